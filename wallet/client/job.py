"""A product that was bought: its packets' answers as they come, and the product itself, believed only once checked.

Whatever the node says about status is taken for news, never for truth: a packet is answered once a product has
arrived that passes Freivalds' check against the packet's own operands, and the whole is checked once more against the
user's X and W. A node that lies can only waste time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from api.work import Explanation, JobView, PacketView
from consensus.proofs import freivalds
from consensus.rules.jobs import job_fees
from consensus.transaction import CancelJob, SubmitJob, packet_id_of
from wallet.accounts.journal import Note
from wallet.accounts.keys import SigningKey
from wallet.client.gateway import Gateway, Told, is_refusal, silent, together
from wallet.client.matrices import Int8Matrix, Int32Matrix
from wallet.client.offers import Offer, make_offer
from wallet.client.purse import Purse, Sent
from wallet.client.rpc import RpcError
from wallet.client.slicing import Slices, assemble
from wallet.errors import ExitCode, WalletError

POLL_SECONDS = 5.0
"""How long to wait for news of a block before asking anyway."""

WITHHELD_SECONDS = 30.0
"""How long a node may fail to serve a product that it calls done."""

_ENDED = {"closed": "was closed", "cancelled": "was cancelled", "expired": "expired"}
"""What the node calls a job that is over, and the words for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `verified` of `packets` products are here and true; the rest is what the node says.

    `status`: pending (waiting for a block), open, complete (all is here), or ended (some will never come).
    """

    status: str
    packets: int
    verified: int
    done: int
    held: int
    queued: int
    workers: int
    blocks_won: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Grains, as the chain has them: `escrowed` in all, of it `paid` so far (`burned` of that) and `refunded`, and
    `fees` of transactions. `held` is what the escrow still holds, and `total` what will not come back."""

    escrowed: int
    paid: int
    burned: int
    refunded: int
    fees: int
    held: int
    total: int


@dataclass(slots=True, eq=False)
class Group:
    """One job on the chain: its transaction, which of the product's packets it buys, and the node's last word on it."""

    sent: Sent
    packets: tuple[int, ...]
    view: JobView | None = None

    @property
    def id(self) -> str:
        return self.sent.txid.hex()

    @property
    def payload(self) -> SubmitJob:
        payload = self.sent.transaction.body.payload
        assert isinstance(payload, SubmitJob)
        return payload

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be answered, as the node says."""
        return self.view is not None and self.view.status in _ENDED and self.view.closed_at is not None


@dataclass(slots=True)
class Checks:
    """Seconds that Freivalds' checks took: of each packet, and of the assembled product."""

    packets: list[float] = field(default_factory=list)
    whole: float = 0.0


class Job:
    """A product X·W that was ordered; made by `wallet.client.client.Client`.

    Attributes:
        slices: the operands and packets that it was cut into.
        answers: packet index → the node's account of its answer, for products that were verified.
        checks: how long verifying took.
    """

    def __init__(
        self,
        purse: Purse,
        key: SigningKey | None,
        slices: Slices,
        attempts: int = 1,
        resume: Callable[[Sequence[str]], str] = lambda _ids: "",
        tell: Told = silent,
    ) -> None:
        """`resume` gives, for all its ids, the command that fetches the product; `tell` hears of waits."""
        self.slices = slices
        self.answers: dict[int, PacketView] = {}
        self.checks = Checks()
        self._purse = purse
        self._key = key
        self._attempts_left = attempts - 1
        self._resume = resume
        self._tell = tell
        self._life: int | None = None
        self._groups: list[Group] = []
        self._products: dict[int, Int32Matrix] = {}
        self._product: Int32Matrix | None = None
        self._unserved: dict[int, float] = {}
        self._other_transactions: list[str] = []

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of its jobs on the chain: with X and W, all that another process needs to resume it."""
        return tuple(group.id for group in self._groups)

    def adopt(self, group: Group) -> None:
        """Count a job that is on the chain (or on its way) as part of this one."""
        self._groups.append(group)

    async def place(self, offer: Offer) -> None:
        """Upload the operands and send the jobs of `offer`. Raises `WalletError`, which names those it has signed."""
        key, self._life = self._require_key(), offer.life
        await self._upload(part.payload for part in offer.parts)

        def signed(sent: Sequence[Sent]) -> None:
            # Before they leave: if this is interrupted, `refresh` finds out what has arrived and sends the rest.
            for one, part in zip(sent, offer.parts, strict=True):
                self.adopt(Group(one, part.packets))

        # With those of earlier attempts: the product takes them all.
        before = self.ids
        note = Note("job", f"the job {self.slices.grid.shape}", lambda ids: self._resume([*before, *ids]))
        payloads = [part.payload for part in offer.parts]
        await self._purse.pay(key, payloads, note, signed=signed, tell=self._tell)

    # ------------------------------------------------------------------ following

    async def refresh(self) -> Progress:
        """Ask for news, and fetch and verify every product that there is by now.

        Raises `WalletError`: job-failed, job-lost, product-wrong, product-withheld.
        """
        await together(partial(self._refresh_group, group) for group in self._groups if not self._is_settled(group))
        return self.snapshot()

    def snapshot(self) -> Progress:
        """The last known progress."""
        views = [group.view for group in self._groups if group.view is not None]
        verified, total = len(self._products), len(self.slices.packets)
        if verified == total:
            status = "complete"
        elif self._hopeless():
            status = "ended"
        else:
            status = "open" if any(view.status != "pending" for view in views) else "pending"
        return Progress(
            status=status,
            packets=total,
            verified=verified,
            done=sum(view.done for view in views),
            held=sum(view.held for view in views),
            queued=sum(view.queued for view in views),
            workers=len({answer.worker for answer in self.answers.values()}),
            blocks_won=tuple(sorted({height for view in views for height in view.blocks_won})),
        )

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """Each change, until all packets are answered. Raises `WalletError`, as `refresh` does and if the job ended
        (job-expired, job-cancelled) with packets unanswered and no attempts left."""
        last: Progress | None = None
        async with self._gateway.heads(self._tell) as heads:
            while True:
                now = await self.refresh()
                if now != last:
                    yield now
                    last = now
                if now.status == "complete":
                    return
                if now.status == "ended":
                    await self._offer_again(self._hopeless())
                    continue
                await heads.wait(POLL_SECONDS)

    async def result(
        self, timeout_seconds: float | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> Int32Matrix:
        """X·W, exactly: int32 (m, n), read-only. `on_progress` is told each change.

        Waits at most `timeout_seconds`; None: as long as it takes.
        Raises `WalletError`: job-timeout, and what `progress` and the final check raise. After a time-out it may be
        called again, here or, through `Client.attach`, elsewhere.
        """
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                if len(self._products) < len(self.slices.packets):
                    async with aclosing(self.progress()) as changes:
                        async for now in changes:
                            if on_progress is not None:
                                on_progress(now)
                return await self._checked_product()
        except TimeoutError:
            if not limit.expired():
                raise
            now = self.snapshot()
            message = f"after {timeout_seconds:g} s, {now.verified} of {now.packets} packets are answered"
            fix = f"wait longer; the job goes on: tilework job result {','.join(self.ids)} X.npy W.npy -o C.npy"
            raise WalletError("job-timeout", message, fix, ExitCode.TIMEOUT) from None

    async def cost(self) -> Cost:
        """What it has cost so far; final once all its jobs have closed."""
        transactions = [*self.ids, *self._other_transactions]
        found = await together(partial(self._gateway.job, job) for job in self.ids)
        views = [view for view in found if view is not None and view.opened_at is not None]
        confirmed = await together(partial(self._gateway.transaction, txid) for txid in transactions)
        opened = {view.job for view in views}
        params = self._purse.network.params
        escrowed = sum(sum(job_fees(params, group.payload)) for group in self._groups if group.id in opened)
        paid, refunded = sum(view.paid for view in views), sum(view.refund or 0 for view in views)
        fees = sum(tx.fee or 0 for tx in confirmed if tx is not None)
        return Cost(
            escrowed=escrowed,
            paid=paid,
            burned=sum(view.burned for view in views),
            refunded=refunded,
            fees=fees,
            held=escrowed - paid - refunded,
            total=paid + fees,
        )

    async def final_cost(self, patience_seconds: float) -> Cost:
        """What it has cost once all its jobs have closed and what was unspent has come back; waits for that at most
        `patience_seconds`, after which some is still `held`."""
        deadline = time.monotonic() + patience_seconds
        async with self._gateway.heads(self._tell) as heads:
            while True:
                cost = await self.cost()
                if not cost.held or time.monotonic() > deadline:
                    return cost
                await heads.wait(POLL_SECONDS)

    async def explain(self) -> list[Explanation]:
        """For every packet of every job, who held it when, and who was paid or why not."""
        stories = await together(partial(explain, self._gateway, job) for job in self.ids)
        return [story for job in stories for story in job]

    async def cancel(self) -> None:
        """Withdraw the packets that nobody holds; held ones may still be answered, and are then paid."""
        self._other_transactions += await cancel(self._purse, self._require_key(), self.ids)
        self._attempts_left = 0

    # ------------------------------------------------------------------ inside

    @property
    def _gateway(self) -> Gateway:
        return self._purse.gateway

    def _require_key(self) -> SigningKey:
        return require_key(self._key)

    async def _upload(self, payloads: Iterable[SubmitJob]) -> None:
        """Bring the operands of jobs to the node."""
        wanted = {spec.commitment for payload in payloads for spec in payload.operands()}
        tensors = {tensor.commitment: tensor for tensor in (*self.slices.lefts, *self.slices.rights)}
        await together(partial(self._gateway.upload, tensors[commitment]) for commitment in wanted)

    def _is_settled(self, group: Group) -> bool:
        return group.is_over and all(index in self._products for index in group.packets)

    async def _see(self, group: Group) -> JobView | None:
        """The node's word on a group, kept; None where a block is still awaited."""
        view = await self._gateway.job(group.id)
        if view is not None:
            group.view = view
            return view
        tx = await self._gateway.transaction(group.id)
        if tx is not None and tx.status == "confirmed" and tx.ok is False:
            message = f"the job's transaction failed: {tx.detail or tx.reason}"
            raise WalletError("job-failed", message, "correct what it says and submit again; its gas is spent")
        if tx is None:
            await self._restore(group)
        return None

    async def _restore(self, group: Group) -> None:
        """Bring back a job that the node does not know: a reorganisation, or a restart, has lost its transaction."""
        group.view = None
        try:
            await self._upload([group.payload])
            await self._purse.resend(group.sent)
        except RpcError as error:
            if not is_refusal(error):
                raise
            message = f"job {group.id} is not on the chain, and cannot be sent again: {error.message}"
            fix = "see `tilework job list`; submit the product again if it is not there: nothing was paid for it"
            raise WalletError("job-lost", message, fix, txids=[group.id]) from error

    async def _refresh_group(self, group: Group) -> None:
        view = await self._see(group)
        if view is None or view.done <= sum(index in self._products for index in group.packets):
            return
        answers = await self._gateway.packets(group.id)
        await together(
            partial(self._take, group.packets[answer.index], answer)
            for answer in answers
            if answer.product is not None
            and answer.index < len(group.packets)
            and group.packets[answer.index] not in self._products
        )

    async def _take(self, index: int, answer: PacketView) -> None:
        """Fetch a packet's product and verify it."""
        assert answer.product is not None
        packet = self.slices.packets[index]
        rows, _, cols = self.slices.shape(packet)
        product = await self._gateway.tensor(answer.product, np.int32, rows, cols)
        if product is None:
            since = self._unserved.setdefault(index, time.monotonic())
            if time.monotonic() - since > WITHHELD_SECONDS:
                message = f"the node calls packet {index} done and does not serve its product"
                fix = "ask another node; products are kept for a while only, so do it soon"
                raise WalletError("product-withheld", message, fix, ExitCode.NETWORK)
            return
        a, b = self.slices.lefts[packet.left].matrix, self.slices.rights[packet.right].matrix
        is_true, seconds = await asyncio.to_thread(_verify, a, b, product)
        if not is_true:
            message = f"the node served a matrix that is not the product of packet {index}"
            raise WalletError("product-wrong", message, "do not trust this node; ask another", ExitCode.NETWORK)
        self._unserved.pop(index, None)
        self.checks.packets.append(seconds)
        self._products[index] = product
        self.answers[index] = answer

    def _hopeless(self) -> list[int]:
        """Packets without a product that no job will bring any more."""
        awaited: set[int] = set(self._unserved)
        for group in self._groups:
            if not group.is_over:
                awaited.update(group.packets)
        return [i for i in range(len(self.slices.packets)) if i not in self._products and i not in awaited]

    async def _offer_again(self, packets: Sequence[int]) -> None:
        """Order anew what came to nothing, or say why it did."""
        view = next(view for group in reversed(self._groups) if group.is_over and (view := group.view) is not None)
        if self._attempts_left <= 0 or view.status == "cancelled":
            raise await self._unanswered(packets, view)
        self._attempts_left -= 1
        payload = next(group.payload for group in self._groups if group.id == view.job)
        params, info = self._purse.network.params, await self._gateway.info()
        life = params.max_life // 2 if self._life is None else self._life
        await self.place(make_offer(params, self.slices, payload.price, life, info.tick, packets))

    async def _unanswered(self, packets: Sequence[int], view: JobView) -> WalletError:
        position, group = next(
            (group.packets.index(packets[0]), group) for group in self._groups if packets[0] in group.packets
        )
        try:
            story = await self._gateway.explain(packet_id_of(group.sent.txid, position).hex(), group.id)
            why = f"Of the first: {story.verdict}"
        except RpcError:
            why = "The node does not say why."
        count = f"{len(packets)} of {len(self.slices.packets)} packets"
        message = f"the job {_ENDED[view.status]} with {count} unanswered. {why}"
        fix = "submit again with a higher price, smaller packets or a longer life; unused escrow is back on the account"
        if view.status == "closed":  # only a group that has all its answers is closed so
            fix = "the node hides answers: ask another with `tilework job result`"
        return WalletError(f"job-{view.status}", message, fix)

    async def _checked_product(self) -> Int32Matrix:
        """The assembled product, checked against X and W themselves."""
        if self._product is None:
            products = [self._products[index] for index in range(len(self.slices.packets))]
            product = await asyncio.to_thread(assemble, self.slices, products)
            is_true, self.checks.whole = await asyncio.to_thread(_verify, self.slices.x, self.slices.w, product)
            assert is_true, "true packets were assembled to a false product"
            product.flags.writeable = False
            self._product = product
        return self._product


async def explain(gateway: Gateway, job: str) -> list[Explanation]:
    """For every packet of one job on the chain, who held it when, and who was paid or why not. Raises `WalletError`."""
    view = await gateway.job(job)
    if view is None:
        raise unknown_job(job)
    packets = (packet_id_of(bytes.fromhex(job), index).hex() for index in range(view.packets))
    return await together(partial(gateway.explain, packet, job) for packet in packets)


async def cancel(purse: Purse, key: SigningKey, ids: Sequence[str]) -> list[str]:
    """Withdraw what nobody holds of jobs; gives the ids of the transactions that say so.

    Raises `WalletError`: not-open, job-not-found where the node knows nothing of any of them.
    """
    views = await together(partial(purse.gateway.job, job) for job in ids)
    if not any(views) and not any(await together(partial(purse.gateway.transaction, job) for job in ids)):
        raise unknown_job(ids[0])
    payloads = [CancelJob(bytes.fromhex(view.job)) for view in views if view is not None and view.status == "open"]
    if not payloads:
        fix = "see `tilework job status`; what is complete, closed or still pending cannot be cancelled"
        raise WalletError("not-open", "no part of the job is open", fix)
    sent = await purse.pay(key, payloads, Note("cancel", f"the cancellation of job {', '.join(ids)}"))
    return [one.txid.hex() for one in sent]


def require_key(key: SigningKey | None) -> SigningKey:
    """The key, or `WalletError` (no-key)."""
    if key is None:
        raise WalletError("no-key", "there is no key to sign with", "give the client a signing key", ExitCode.USAGE)
    return key


def unknown_job(job: str) -> WalletError:
    """What is raised where the node knows no such job."""
    fix = "copy the whole id (`tilework job list` shows them), and ask a node of the same network"
    return WalletError("job-not-found", f"the node knows of no job {job}", fix, ExitCode.NOT_FOUND)


def _verify(a: Int8Matrix, b: Int8Matrix, product: Int32Matrix) -> tuple[bool, float]:
    begin = time.perf_counter()
    is_true = freivalds.verify(a, b, product)
    return is_true, time.perf_counter() - begin
