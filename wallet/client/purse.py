"""An account that sends transactions through one node: nonces, fees, whether the balance covers them, and what became
of those before.

Everything is checked before anything is signed, and everything signed is in the journal before anything is sent.
Whoever sends from one account takes turns: in this process, and through the journal among all processes of its
directory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from api.chain import AccountView, TxView
from consensus.codec import encode
from consensus.crypto import address_of
from consensus.errors import ConsensusError
from consensus.rules.payloads import outlay
from consensus.transaction import Payload, Transaction, TxBody, decode_transaction
from wallet.accounts.journal import Fate, Journal, Note, Signed, now_ms
from wallet.client.gateway import Gateway, Told, is_refusal, silent, together
from wallet.client.rpc import RpcError
from wallet.client.transactions import FeeTerms, Rules, build, check_balance, choose_fees, max_fee, outbid
from wallet.errors import ExitCode, WalletError, naming

_POOL_PAUSE_SECONDS = 5.0
_POOL_PATIENCE_BLOCKS = 20
"""How many intended block times an account may wait without a single block that takes one of its transactions."""
_POOL_LEAST_PATIENCE_SECONDS = 60.0


class Signer(Protocol):
    """A key of the account: `wallet.accounts.keys.SigningKey`, or a worker's."""

    def transaction(self, body: TxBody, genesis_hash: bytes) -> Transaction:
        """The signed transaction."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A signed transaction on its way."""

    txid: bytes
    transaction: Transaction


@dataclass(frozen=True, slots=True)
class Wish:
    """What a sender asks for beyond the usual. `tip`: grains per gas; `nonce`: instead of the account's next, to take
    the place of what waits under it; `outbids`: a transaction whose place it takes, so that its fees must be higher."""

    tip: int | None = None
    nonce: int | None = None
    outbids: TxBody | None = None


USUAL = Wish()
"""The next nonce, and what it takes now."""


class Purse:
    """The account of `public_key` on `network`. `max_fee_grains` bounds the fees of each transaction; None: 1 TILE.

    Without a `journal` nothing outlives this process, and no other one is waited for.
    """

    def __init__(
        self,
        gateway: Gateway,
        network: Rules,
        public_key: bytes,
        max_fee_grains: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.gateway = gateway
        self.network = network
        self.public_key = public_key
        self.address = network.address_text(address_of(public_key))
        self._journal = journal
        self._max_fee_grains = max_fee_grains
        self._sending = asyncio.Lock()

    async def prepare(self, payloads: Sequence[Payload], what: str, wish: Wish = USUAL) -> list[TxBody]:
        """Transactions with the account's next nonces, ready to be signed. Nobody's turn is taken: a quote.

        Raises `WalletError`: fee-too-low, and insufficient-balance, with the numbers, if it does not cover them all.
        """
        params = self.network.params
        account, quote = await asyncio.gather(self.gateway.account(self.address), self.gateway.fees())
        tip = quote.suggested_tip if wish.tip is None else wish.tip
        bodies = []
        for nonce, payload in enumerate(payloads, start=account.next_nonce if wish.nonce is None else wish.nonce):
            fees = choose_fees(params, payload, quote.base_fee, tip, self._max_fee_grains, exact=wish.tip is not None)
            if wish.outbids is not None:
                fees = outbid(params, payload, fees, FeeTerms.of(wish.outbids), self._max_fee_grains)
            bodies.append(build(params, self.public_key, nonce, payload, fees))
        needed = sum(max_fee(body) + outlay(params, body.payload) for body in bodies)
        check_balance(account.balance, needed, what)
        return bodies

    async def pay(
        self,
        signer: Signer,
        payloads: Sequence[Payload],
        note: Note,
        *,
        wish: Wish = USUAL,
        signed: Callable[[list[Sent]], None] = lambda _sent: None,
        tell: Told = silent,
    ) -> list[Sent]:
        """Sign and send transactions, one after the other; `signed` hears of all of them before the first is sent.

        Raises `WalletError`. Once something was signed it has `txids`, and says what is not known to have come to
        nothing: outcome-unknown where a node cannot be asked. Before: earlier-unresolved if it is not known what became
        of a transaction before (unless the wish names a nonce), and what `prepare` raises.
        """
        async with self._turn(tell):
            if wish.nonce is None:
                await self._require_known()
            bodies = await self.prepare(payloads, note.what, wish)
            sent = [Sent(b.txid(self.network.genesis_hash), self._sign(signer, b)) for b in bodies]
            self._note(sent, note)
            signed(sent)
            await self._send(sent, tell)
            return sent

    async def resend(self, sent: Sent) -> None:
        """Send again what a node has forgotten. Raises as `Gateway.send`."""
        await self.gateway.send(sent.transaction, sent.txid.hex())

    # ------------------------------------------------------------------ inside

    @asynccontextmanager
    async def _turn(self, tell: Told) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._sending)
            if self._journal is not None:
                await stack.enter_async_context(self._journal.turn(self.address, tell))
            yield

    async def _require_known(self) -> None:
        """What waits from before must be at the node: whatever it has not heard of could be sent, and paid, as well."""
        if self._journal is None:
            return
        for one in await look_up(self.gateway, self.network, self._journal, self.address):
            if one.state == "unknown":
                message = f"it is not known what became of {one.signed.what}: the node has no transaction {one.txid}"
                raise WalletError("earlier-unresolved", message, one.advice, txids=[one.txid])

    def _sign(self, signer: Signer, body: TxBody) -> Transaction:
        assert body.sender == self.public_key
        return signer.transaction(body, self.network.genesis_hash)

    def _note(self, sent: Sequence[Sent], note: Note) -> None:
        if self._journal is None:
            return
        genesis, resume, made_ms = self.network.genesis_hash.hex(), note.resume([s.txid.hex() for s in sent]), now_ms()
        self._journal.note(
            Signed(
                txid=one.txid.hex(),
                genesis=genesis,
                account=self.address,
                nonce=one.transaction.body.nonce,
                raw=encode(one.transaction),
                kind=note.kind,
                what=note.what,
                resume=resume,
                made_ms=made_ms,
            )
            for one in sent
        )

    async def _send(self, transactions: Sequence[Sent], tell: Told) -> None:
        """Send in order. What comes after one that failed has not left, and stays here."""
        for count, one in enumerate(transactions):
            txids = [before.txid.hex() for before in transactions[: count + 1]]
            with naming(txids, "transaction"):
                try:
                    await deliver(self.gateway, self.network, one, tell)
                except WalletError as error:
                    refused = is_refusal(error)
                    self._withhold(transactions[count if refused else count + 1 :])
                    if refused:
                        raise _refused(error, one.txid.hex(), txids[:-1]) from error
                    raise unknown_outcome(error, one.txid.hex(), txids[:-1]) from error

    def _withhold(self, transactions: Sequence[Sent]) -> None:
        if self._journal is not None:
            self._journal.settle([one.txid.hex() for one in transactions], Fate.WITHHELD)


async def fetch(gateway: Gateway, network: Rules, journal: Journal | None, txid: str) -> Sent | None:
    """A transaction by its id, from the journal or else from the node; None where neither has it.

    The id is the hash of what it says, so that nobody can pass off another. Raises `WalletError`: transaction-differs,
    network-mismatch.
    """
    noted = None if journal is None else journal.find(txid)
    if noted is not None:
        if noted.genesis != network.genesis_hash.hex():
            fix = "name a node of its network with --rpc"
            raise WalletError("network-mismatch", f"transaction {txid} is of another network than the node", fix)
        return Sent(bytes.fromhex(txid), decode_transaction(noted.raw))
    view = await gateway.transaction(txid)
    if view is None:
        return None
    try:
        tx = decode_transaction(bytes.fromhex(view.raw))
    except ConsensusError as error:
        raise _other_transaction(txid) from error
    found = tx.body.txid(network.genesis_hash)
    if found.hex() != txid or not tx.is_signed(network.genesis_hash):
        raise _other_transaction(txid)
    return Sent(found, tx)


def _other_transaction(txid: str) -> WalletError:
    fix = "do not trust this node; ask another"
    return WalletError("transaction-differs", f"the node gave another transaction for {txid}", fix, ExitCode.NETWORK)


# --- one transaction ------------------------------------------------------------------------------------------------


async def deliver(gateway: Gateway, network: Rules, sent: Sent, tell: Told = silent) -> None:
    """Send, and where the account has too many pending before it, wait for blocks to take some, however many.

    Raises as `Gateway.send`; `RpcError` (too-many-pending) if no block takes any for long.
    """
    patience = max(_POOL_LEAST_PATIENCE_SECONDS, _POOL_PATIENCE_BLOCKS * network.params.spacing_ms / 1000)
    taken, since = -1, time.monotonic()
    async with gateway.heads(tell) as heads:
        while True:
            try:
                await gateway.send(sent.transaction, sent.txid.hex())
                return
            except RpcError as error:
                if error.reason != "too-many-pending":
                    raise
                if error.account_nonce is not None and error.account_nonce > taken:
                    taken, since = error.account_nonce, time.monotonic()
                    tell(f"waiting for blocks to take earlier transactions: {error.fix}")
                if time.monotonic() > since + patience:
                    error.exit_code = ExitCode.TIMEOUT
                    error.message = f"no block has taken any of the account's pending transactions for {patience:g} s"
                    error.fix = "see that somebody mines, then go on"
                    raise
            await heads.wait(_POOL_PAUSE_SECONDS)


def unknown_outcome(error: WalletError, txid: str, before: Sequence[str] = ()) -> WalletError:
    """What is raised where a transaction may have arrived, and the node cannot be asked."""
    message = f"it is not known whether transaction {txid} has arrived: {error.message}"
    if before:
        message += f"; sent before it: {', '.join(before)}"
    fix = f"do not pay again. This asks, and sends the same one if need be: tilework wallet resend {txid}"
    status = error.exit_code if error.exit_code in (ExitCode.NETWORK, ExitCode.TIMEOUT) else ExitCode.NETWORK
    return WalletError("outcome-unknown", message, fix, status, [*before, txid])


def _refused(error: WalletError, txid: str, before: Sequence[str]) -> WalletError:
    message = f"{error.message} (transaction {txid}, which costs nothing)"
    if before:
        message += f"; sent before it: {', '.join(before)}"
    return WalletError(error.code, message, error.fix, error.exit_code, [*before, txid])


# --- what became of earlier ones --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Awaited:
    """A transaction of the journal that is not settled, and what the node says of it.

    `state`: pending (the node holds it), unknown (it does not), confirmed, failed (in a block, without effect), outbid
    (the node holds another one under its nonce) or replaced (a block does: it is not paid). `view` is the node's
    account of it, where it has one.
    """

    signed: Signed
    state: str
    view: TxView | None

    @property
    def txid(self) -> str:
        """Its id."""
        return self.signed.txid

    @property
    def advice(self) -> str:
        """What to do about one that is unknown."""
        again = self.signed.resume or f"tilework wallet resend {self.txid}"
        never = f"tilework wallet cancel {self.txid}"
        return f"to go on with that very transaction: {again}; to make sure that it is never paid: {never}"

    def fields(self) -> dict[str, object]:
        """It as JSON shows it."""
        signed = self.signed
        fields: dict[str, object] = {
            "txid": self.txid,
            "state": self.state,
            "kind": signed.kind,
            "what": signed.what,
            "nonce": signed.nonce,
            "made_ms": signed.made_ms,
        }
        return fields | ({"fix": self.advice} if self.state == "unknown" else {})


async def look_up(
    gateway: Gateway, network: Rules, journal: Journal, address: str | None = None, kind: str | None = None
) -> list[Awaited]:
    """What the node says of all that is not settled; what a block has buried too deep to be undone is settled here."""
    signed = journal.open(network.genesis_hash.hex(), address, kind)
    if not signed:
        return []
    views = await together(partial(gateway.transaction, one.txid) for one in signed)
    # After the transactions: a nonce that was used by then was used by one of those, or by another.
    names = dict.fromkeys(one.account for one in signed)
    accounts = dict(zip(names, await together(partial(gateway.account, name) for name in names), strict=True))
    height, depth = (await gateway.info()).height, network.params.max_reorg
    waiting = {(one.account, one.nonce) for one, view in zip(signed, views, strict=True) if view is not None}
    awaited = []
    for one, view in zip(signed, views, strict=True):
        state = _state(one, view, accounts[one.account])
        if state == "unknown" and (one.account, one.nonce) in waiting:
            state = "outbid"
        awaited.append(Awaited(one, state, view))
        if view is not None and view.confirmations > depth:
            journal.settle([one.txid], Fate.CONFIRMED)
        if (state == "replaced") != (one.seen_height is not None):
            journal.see(one.txid, height if state == "replaced" else None)
        elif one.seen_height is not None and height - one.seen_height > depth:
            journal.settle([one.txid], Fate.REPLACED)
    return awaited


def _state(signed: Signed, view: TxView | None, account: AccountView) -> str:
    if view is None:
        return "unknown" if account.nonce <= signed.nonce else "replaced"
    if view.status == "pending":
        return "pending"
    return "confirmed" if view.ok else "failed"
