"""Buying products: `async with Client(url, key) as client: c = await client.multiply(x, w)`, and c is x @ w, exactly.

    async with Client("http://127.0.0.1:8545", key) as client:
        job = await client.submit(x, w, packets=16)       # cut, uploaded, offered
        async for progress in job.progress():             # as blocks bring answers
            print(progress.verified, "of", progress.packets)
        c = await job.result()                            # int32, checked against x and w
        print(await job.cost())

x and w are integer matrices with entries in [−63, 63]. Where there is no event loop, `SyncClient` has the same methods.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt

from api.work import Explanation
from consensus.errors import ConsensusError
from consensus.rules import jobs
from consensus.shape import Shape
from consensus.transaction import SubmitJob
from wallet.accounts.journal import Journal
from wallet.accounts.keys import SigningKey
from wallet.client.gateway import Gateway, Told, check_job_id, silent, together
from wallet.client.job import Cost, Group, Job, Progress, cancel, explain, require_key, unknown_job
from wallet.client.matrices import Int8Matrix, Int32Matrix, Matmul, as_operands
from wallet.client.offers import Offer, Terms, find_deal, life_of, make_offer
from wallet.client.purse import Purse, Sent, fetch
from wallet.client.slicing import Grid, Slices, check_inner, cut
from wallet.client.transactions import Rules
from wallet.errors import ExitCode, WalletError

T = TypeVar("T")


class Client:
    """Buys products through the node at `url`, paid from the account of `key`. An asynchronous context manager.

    Without a key, it can follow jobs (`attach`) but not pay. `prefix`: how the account's addresses begin, if that is
    known: the node must then be of that network. `max_fee_grains` bounds the fees of each transaction (None: 1 TILE).
    `journal`: where what is signed is noted before it is sent, and whose other users are waited for: with the one of
    the account's keystore, commands and programs send from one account at once, and none loses sight of a payment.
    `patience_seconds`: how long a node that cannot be reached is waited for. Whatever fails raises `WalletError`; once
    something was signed, its `txids` say what.
    """

    def __init__(
        self,
        url: str,
        key: SigningKey | None = None,
        *,
        prefix: str | None = None,
        max_fee_grains: int | None = None,
        journal: Journal | None = None,
        patience_seconds: float = 30.0,
    ) -> None:
        self.gateway = Gateway(url, patience_seconds=patience_seconds)
        self._key = key
        self._prefix = prefix
        self._max_fee_grains = max_fee_grains
        self._journal = journal
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.gateway)
            self.network: Rules = await self.gateway.network()
            if self._prefix is not None:
                self.network.require(self._prefix)
            public_key = bytes(32) if self._key is None else self._key.public_key
            self._purse = Purse(self.gateway, self.network, public_key, self._max_fee_grains, self._journal)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def offer(
        self,
        x: npt.ArrayLike,
        w: npt.ArrayLike,
        *,
        price: int | None = None,
        packets: int | None = None,
        life: int | None = None,
        memory_bound: int | None = None,
    ) -> Offer:
        """What buying x·w would take; nothing is sent. Arguments as for `submit`."""
        left, right = await asyncio.to_thread(_checked, x, w)
        terms, params = Terms(price, packets, life, memory_bound), self.network.params
        life = life_of(params, terms)
        workers, info = await asyncio.gather(self.gateway.workers(), self.gateway.info())
        deal = find_deal(params, workers, Shape(left.shape[0], left.shape[1], right.shape[1]), terms)
        slices = await asyncio.to_thread(cut, left, right, deal.grid)
        offer = make_offer(params, slices, deal.price, life, info.tick)
        return dataclasses.replace(offer, able=deal.able, places=deal.places)

    def job(
        self,
        offer: Offer,
        *,
        attempts: int = 1,
        resume: Callable[[Sequence[str]], str] = lambda _ids: "",
        tell: Told = silent,
    ) -> Job:
        """A job that its `place(offer)` will order; see `order`, and `Job` for `resume` and `tell`."""
        return Job(self._purse, self._key, offer.slices, attempts, resume, tell)

    async def order(self, offer: Offer, *, attempts: int = 1) -> Job:
        """Upload the operands and submit the jobs of an offer. attempts: how often unanswered packets are offered."""
        job = self.job(offer, attempts=attempts)
        await job.place(offer)
        return job

    async def submit(
        self,
        x: npt.ArrayLike,
        w: npt.ArrayLike,
        *,
        price: int | None = None,
        packets: int | None = None,
        life: int | None = None,
        memory_bound: int | None = None,
        attempts: int = 1,
    ) -> Job:
        """Order x·w: x (m, k), w (k, n), integers in [−63, 63].

        price: grains per 2⁴⁰ of weight (None: what half of the able places work for). packets: about how many
        (None: one for each place, if the product is large enough). life: ticks for which the offer stands (None: half
        of the longest). memory_bound: bytes of the largest packet, operands and product, at most 32 MiB (None: what
        half of the places have). attempts: how often packets that nobody answered are offered; each may cost its escrow
        if the node is wrong about the one before.
        Raises `WalletError`: matrix-invalid, shape-mismatch, sum-too-large, insufficient-balance, no-worker, …
        """
        offer = await self.offer(x, w, price=price, packets=packets, life=life, memory_bound=memory_bound)
        return await self.order(offer, attempts=attempts)

    async def multiply(self, x: npt.ArrayLike, w: npt.ArrayLike, **terms: Any) -> Int32Matrix:
        """x·w, bought: `submit` with these terms, then `result`."""
        job = await self.submit(x, w, **terms)
        return await job.result()

    def matmul(self, **terms: Any) -> Matmul:
        """`multiply` with fixed terms, as `wallet.models.quantised.run` wants it."""

        async def product(x: Int8Matrix, w: Int8Matrix) -> Int32Matrix:
            return await self.multiply(x, w, **terms)

        return product

    async def attach(self, ids: str | Sequence[str], x: npt.ArrayLike, w: npt.ArrayLike) -> Job:
        """A job that was submitted earlier, maybe by another process: its `ids`, and the matrices it was about.

        The ids are hashes of the transactions, so that the node cannot pass others off as them. Raises `WalletError`:
        job-not-found, operands-differ, job-incomplete.
        """
        left, right = await asyncio.to_thread(_checked, x, w)
        wanted = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        jobs = await together(partial(self._find, job_id) for job_id in wanted)
        grid = _grid_of([payload for _, payload in jobs], Shape(left.shape[0], left.shape[1], right.shape[1]))
        slices = await asyncio.to_thread(cut, left, right, grid)
        job = Job(self._purse, self._key, slices)
        covered: set[int] = set()
        for sent, payload in jobs:
            packets = _packets_of(payload, slices)
            covered.update(packets)
            job.adopt(Group(sent, packets))
        if len(covered) < len(slices.packets):
            message = f"these jobs make {len(covered)} of the product's {len(slices.packets)} packets"
            raise WalletError("job-incomplete", message, "name all jobs of the product", ExitCode.USAGE)
        return job

    async def explain(self, job: str) -> list[Explanation]:
        """For every packet of one job on the chain, who held it when, and who was paid or why not."""
        return await explain(self.gateway, job)

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        """Withdraw what nobody holds of jobs on the chain; gives the ids of the transactions that say so."""
        return await cancel(self._purse, require_key(self._key), ids)

    async def _find(self, job_id: str) -> tuple[Sent, SubmitJob]:
        """The transaction that submitted a job, or was to, as its sender signed it."""
        check_job_id(job_id)
        sent = await fetch(self.gateway, self.network, self._journal, job_id)
        if sent is None:
            raise unknown_job(job_id)
        payload = sent.transaction.body.payload
        if not isinstance(payload, SubmitJob):
            fix = "`tilework job list` shows jobs"
            raise WalletError("job-not-found", f"transaction {job_id} submits no job", fix, ExitCode.NOT_FOUND)
        try:
            jobs.check(self.network.params, payload)
        except ConsensusError as error:
            fix = "nothing is to be had from it; see `tilework job explain`"
            raise WalletError("job-failed", f"job {job_id} breaks a rule: {error}", fix) from error
        return sent, payload


class SyncClient:
    """`Client` for code without an event loop: the same methods, and `SyncJob`s. A context manager.

    Jobs make progress on the network at all times; their answers are fetched while one of their methods runs.
    """

    def __init__(self, url: str, key: SigningKey | None = None, **options: Any) -> None:
        self._client = Client(url, key, **options)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._run(self._client.__aexit__(kind, error, traceback))
        finally:
            self._runner.close()

    def submit(self, x: npt.ArrayLike, w: npt.ArrayLike, **terms: Any) -> SyncJob:
        """See `Client.submit`."""
        return SyncJob(self._runner, self._run(self._client.submit(x, w, **terms)))

    def multiply(self, x: npt.ArrayLike, w: npt.ArrayLike, **terms: Any) -> Int32Matrix:
        """See `Client.multiply`."""
        return self._run(self._client.multiply(x, w, **terms))

    def attach(self, ids: str | Sequence[str], x: npt.ArrayLike, w: npt.ArrayLike) -> SyncJob:
        """See `Client.attach`."""
        return SyncJob(self._runner, self._run(self._client.attach(ids, x, w)))

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)


class SyncJob:
    """A `Job` without an event loop."""

    def __init__(self, runner: asyncio.Runner, job: Job) -> None:
        self._runner = runner
        self._job = job

    @property
    def ids(self) -> tuple[str, ...]:
        """See `Job.ids`."""
        return self._job.ids

    def refresh(self) -> Progress:
        """See `Job.refresh`."""
        return self._runner.run(self._job.refresh())

    def progress(self) -> Iterator[Progress]:
        """See `Job.progress`."""
        changes = self._job.progress()
        try:
            while True:
                change = self._runner.run(_next(changes))
                if change is None:
                    return
                yield change
        finally:
            self._runner.run(_close(changes))

    def result(
        self, timeout_seconds: float | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> Int32Matrix:
        """See `Job.result`."""
        return self._runner.run(self._job.result(timeout_seconds, on_progress))

    def cost(self) -> Cost:
        """See `Job.cost`."""
        return self._runner.run(self._job.cost())

    def explain(self) -> list[Explanation]:
        """See `Job.explain`."""
        return self._runner.run(self._job.explain())

    def cancel(self) -> None:
        """See `Job.cancel`."""
        self._runner.run(self._job.cancel())


async def _next(changes: AsyncGenerator[Progress, None]) -> Progress | None:
    return await anext(changes, None)


async def _close(changes: AsyncGenerator[Progress, None]) -> None:
    await changes.aclose()


def _checked(x: npt.ArrayLike, w: npt.ArrayLike) -> tuple[Int8Matrix, Int8Matrix]:
    left, right = as_operands(x, w)
    check_inner(left.shape[1])
    return left, right


def _grid_of(payloads: Sequence[SubmitJob], shape: Shape) -> Grid:
    """The grid that a product of `shape` was cut by: its first slices, the largest, are whole steps."""
    lefts = [left for payload in payloads for left in payload.lefts]
    rights = [right for payload in payloads for right in payload.rights]
    step = Shape(max(left.rows for left in lefts), max(left.cols for left in lefts), max(r.cols for r in rights))
    return Grid(shape, step)


def _packets_of(payload: SubmitJob, slices: Slices) -> tuple[int, ...]:
    """Which of the product's packets a job's packets are, in its order. `WalletError` (operands-differ)."""
    index_of = {
        (slices.lefts[packet.left].commitment, slices.rights[packet.right].commitment): index
        for index, packet in enumerate(slices.packets)
    }
    pairs = [(payload.left(pair).commitment, payload.right(pair).commitment) for pair in payload.packets]
    if not all(pair in index_of for pair in pairs):
        fix = "give the very matrices that the job was submitted with, and all jobs of the product"
        raise WalletError("operands-differ", "the job is about other matrices", fix, ExitCode.USAGE)
    return tuple(index_of[pair] for pair in pairs)
