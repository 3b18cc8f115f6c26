"""What the wallet's commands do with a node: pay, wait until it is settled, watch for a payment, prove a balance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from msgspec import Struct

from api.chain import MovementView, TxView
from consensus import validation, work
from consensus.address import decode_address
from consensus.block import Header, Zero, decode_header
from consensus.codec import decode
from consensus.errors import ConsensusError
from consensus.proofs import trie
from consensus.state import ACCOUNTS, Account
from consensus.transaction import Output, Payload, SubmitJob, Transfer, TxBody
from wallet.accounts.amounts import format_tile
from wallet.accounts.journal import Journal, Note, now_ms
from wallet.accounts.keys import SigningKey
from wallet.accounts.keystore import Account as StoredAccount
from wallet.accounts.payment import PaymentRequest
from wallet.client import purse
from wallet.client.gateway import Gateway, Heads, Told
from wallet.client.purse import USUAL, Awaited, Purse, Sent, Wish, fetch, look_up, unknown_outcome
from wallet.client.rpc import NetworkError, RpcError
from wallet.client.transactions import Rules, max_fee
from wallet.errors import ExitCode, WalletError, naming

HISTORY_PAGE = 100

_WAIT_BLOCKS = 20
"""How many intended block times the first confirmation may take."""
_LEAST_WAIT_SECONDS = 60.0
_POLL_SECONDS = 5.0
_SAME_MS = 10 * 60 * 1000
_MAX_ACCOUNT_BYTES = 64


class Balance(Struct, frozen=True):
    """An account's balance. `proved_by`: id of the block whose header proves it, null if it is the node's word only."""

    address: str
    balance_grains: int
    balance: str
    pending_transactions: int
    height: int
    proved_by: str | None


class Settled(Struct, frozen=True):
    """A transaction that was sent. `status`: sent, or confirmed with `confirmations` blocks, its own counted."""

    txid: str
    status: str
    height: int | None
    confirmations: int
    fee_grains: int | None


@dataclass(frozen=True, slots=True)
class Since:
    """Where a history begins: above a `height`, or at `time_ms` (Unix milliseconds)."""

    height: int = -1
    time_ms: int = 0

    def holds(self, movement: MovementView) -> bool:
        """Whether a movement belongs to it."""
        return movement.height > self.height and movement.time_ms >= self.time_ms


class Received(Struct, frozen=True):
    """A payment that fits the request which was watched for."""

    txid: str
    sender: str
    amount_grains: int
    amount: str
    memo: str
    height: int
    confirmations: int


@dataclass(frozen=True, slots=True)
class Payment:
    """A transaction as it would be signed now, and what it is for. Other payments may take its nonce before it is sent,
    and then it gets another one, and with it another id; its fees are never more than these."""

    network: Rules
    body: TxBody
    note: Note
    wish: Wish
    same: tuple[Awaited, ...] = ()
    """Those of the last minutes that are for the same: maybe somebody pays twice."""

    @property
    def txid(self) -> bytes:
        """Its id, if it were signed now."""
        return self.body.txid(self.network.genesis_hash)

    @property
    def max_fee_grains(self) -> int:
        """The most that it can cost in fees."""
        return max_fee(self.body)


async def prepare_payment(
    url: str,
    journal: Journal,
    account: StoredAccount,
    request: PaymentRequest,
    max_fee_grains: int | None,
    wish: Wish = USUAL,
) -> Payment:
    """A transfer that fulfils `request`, which names an amount. Raises `WalletError`: network-mismatch,
    insufficient-balance, fee-too-low."""
    assert request.amount_grains is not None
    payload = Transfer((Output(request.address, request.amount_grains),), request.memo.encode())
    what = f"the payment of {format_tile(request.amount_grains)} TILE to "
    async with Gateway(url) as gateway:
        network = await gateway.network()
        network.require(account.prefix)
        network.require(request.prefix)
        note = Note("payment", what + network.address_text(request.address))
        payment = await _quote(gateway, network, account.public_key, payload, note, max_fee_grains, wish)
        since_ms = now_ms() - _SAME_MS
        awaited = await look_up(gateway, network, journal, account.address_text, "payment")
        same = (one for one in awaited if one.signed.what == note.what and one.signed.made_ms > since_ms)
        return replace(payment, same=tuple(same))


async def prepare_replacement(
    url: str, journal: Journal, txid: str, max_fee_grains: int | None, tip: int | None, *, cancel: bool
) -> tuple[Payment, Sent]:
    """What takes the place of a transaction that waits: the same at higher fees, or (`cancel`) nothing but its nonce.
    Beside it the transaction itself.

    Only one of the two can ever be in the chain. Raises `WalletError`: transaction-not-found, already-confirmed,
    already-replaced, and as `prepare_payment`.
    """
    async with Gateway(url) as gateway:
        network = await gateway.network()
        sent = await _known(gateway, network, journal, txid)
        body = sent.transaction.body
        await _require_waiting(gateway, network, sent)
        noted = journal.find(txid)
        note = Note("payment", f"transaction {txid}")
        payload: Payload = body.payload
        if noted is not None:
            note = Note(noted.kind, noted.what, lambda new: noted.resume.replace(txid, new[0]))
        elif isinstance(payload, SubmitJob):
            note = Note("job", f"job {txid}")
        if cancel:
            note = Note("cancel", f"the cancellation of {note.what}")
            payload = Transfer((Output(body.address, 0),))
        wish = Wish(tip, body.nonce, body)
        return await _quote(gateway, network, body.sender, payload, note, max_fee_grains, wish), sent


async def deliver(
    url: str,
    journal: Journal,
    payment: Payment,
    key: SigningKey,
    confirmations: int,
    timeout_seconds: float | None,
    tell: Told,
    signed: Callable[[Sent], None],
) -> Settled:
    """Send a payment, behind what the account has pending, and wait for `confirmations` blocks (0: do not wait).

    `signed` hears of it before it leaves. Raises `WalletError`, see `Purse.pay` and `settle`.
    """
    async with Gateway(url) as gateway:
        own = Purse(gateway, payment.network, key.public_key, payment.max_fee_grains, journal)
        (sent,) = await own.pay(
            key,
            [payment.body.payload],
            payment.note,
            wish=payment.wish,
            signed=lambda all_: signed(*all_),
            tell=tell,
        )
        return await settle(gateway, payment.network, sent, confirmations, timeout_seconds, tell)


async def resend(
    url: str, journal: Journal, txid: str, confirmations: int, timeout_seconds: float | None, tell: Told
) -> Settled:
    """Bring a transaction that was signed before to the node once more, unless it is there, and wait as `deliver` does.
    The same bytes can only be paid once.

    Raises `WalletError`: transaction-not-found, already-replaced, and as `settle`.
    """
    async with Gateway(url) as gateway:
        network = await gateway.network()
        sent = await _known(gateway, network, journal, txid)
        with naming([txid], "transaction"):
            try:
                await purse.deliver(gateway, network, sent, tell)
            except RpcError as error:
                raise _replaced(error, txid) from error
            except WalletError as error:
                raise unknown_outcome(error, txid) from error
        return await settle(gateway, network, sent, confirmations, timeout_seconds, tell)


async def settle(
    gateway: Gateway, network: Rules, sent: Sent, confirmations: int, timeout_seconds: float | None, tell: Told
) -> Settled:
    """Wait until `confirmations` blocks stand on a transaction, its own counted; send it again if the node loses it.

    With no confirmations to wait for, it is sent. Raises `WalletError`, which names it: payment-failed with the chain's
    reason, already-replaced, confirmation-timeout, outcome-unknown where the node cannot be asked.
    """
    txid = sent.txid.hex()
    if not confirmations:
        return Settled(txid, "sent", None, 0, None)
    with naming([txid], "transaction"):
        patience = timeout_seconds or _patience_seconds(network, confirmations)
        try:
            async with asyncio.timeout(patience), gateway.heads(tell) as heads:
                return await _confirmed(gateway, network, sent, confirmations, heads, tell)
        except TimeoutError:
            message = f"transaction {txid} is not confirmed {confirmations} times after {patience:g} s"
            fix = f"it may still be, so do not pay again: tilework wallet resend {txid} --wait {confirmations} waits on"
            raise WalletError("confirmation-timeout", message, fix, ExitCode.TIMEOUT) from None
        except NetworkError as error:
            raise unknown_outcome(error, txid) from error


async def _confirmed(
    gateway: Gateway, network: Rules, sent: Sent, confirmations: int, heads: Heads, tell: Told
) -> Settled:
    txid, seen = sent.txid.hex(), -1
    while True:
        view = await gateway.transaction(txid)
        if view is None:
            try:
                await purse.deliver(gateway, network, sent, tell)
            except RpcError as error:
                raise _replaced(error, txid) from error
        elif view.status == "confirmed":
            _require_success(view)
            if view.confirmations >= confirmations:
                return Settled(txid, "confirmed", view.height, view.confirmations, view.fee)
        count = 0 if view is None else view.confirmations
        if count != seen:
            tell(f"{count} of {confirmations} confirmations")
            seen = count
        await heads.wait(_POLL_SECONDS)


async def watch(
    url: str, request: PaymentRequest, since: int | None, confirmations: int, timeout_seconds: float, tell: Told
) -> Received:
    """Wait for a payment that fits `request` in amount and memo, in a block above `since` (None: from now on).

    Raises `WalletError` (payment-timeout). A payment whose block leaves the chain counts no more.
    """
    async with Gateway(url) as gateway:
        network = await gateway.network()
        network.require(request.prefix)
        address = network.address_text(request.address)
        start = (await gateway.info()).height if since is None else since
        seen = ""
        try:
            async with asyncio.timeout(timeout_seconds), gateway.heads(tell) as heads:
                while True:
                    payment = await _find_payment(gateway, request, address, start)
                    if payment is not None and payment.confirmations >= max(confirmations, 1):
                        return payment
                    news = f"{payment.confirmations} of {confirmations} confirmations" if payment else "no payment yet"
                    if news != seen:
                        tell(news)
                        seen = news
                    await heads.wait(_POLL_SECONDS)
        except TimeoutError:
            message = f"no such payment to {address} was confirmed within {timeout_seconds:g} s"
            fix = f"look further with the same command and --since {start}"
            raise WalletError("payment-timeout", message, fix, ExitCode.TIMEOUT) from None


@dataclass(frozen=True, slots=True)
class Statement:
    """What an account has before it and behind it: transactions of the journal that no block has taken for good, and
    movements, newest first."""

    awaited: list[Awaited]
    movements: list[MovementView]
    height: int
    """Of the tip: what matures above it has not matured yet."""


async def history(
    url: str, journal: Journal, prefix: str, address: str, limit: int | None, before: int | None, since: Since
) -> Statement:
    """What came to and left an account: at most `limit` movements (None: all), below the height `before`, `since`."""
    async with Gateway(url) as gateway:
        network = await gateway.network()
        network.require(prefix)
        awaited = await look_up(gateway, network, journal, address)
        movements: list[MovementView] = []
        while limit is None or len(movements) < limit:
            wanted = HISTORY_PAGE if limit is None else min(HISTORY_PAGE, limit - len(movements))
            page = await gateway.history(address, wanted, before)
            movements += [movement for movement in page if since.holds(movement)]
            if not page or not since.holds(page[-1]):
                break
            before = page[-1].height
        return Statement(awaited, movements, (await gateway.info()).height)


async def balance(url: str, prefix: str, address: str, prove: bool, tell: Told) -> Balance:
    """An account's balance, on the node's word or (`prove`) proved against a header. Raises `WalletError`."""
    async with Gateway(url) as gateway:
        network = await gateway.network()
        network.require(prefix)
        account = await gateway.account(address)
        if not prove:
            info = await gateway.info()
            return Balance(
                address, account.balance, format_tile(account.balance), account.pending_count, info.height, None
            )
        proved, height, header = await _proved_account(gateway, network, address, tell)
        return Balance(
            address, proved.balance, format_tile(proved.balance), account.pending_count, height, header.id.hex()
        )


# ---------------------------------------------------------------------- inside


async def _find_payment(gateway: Gateway, request: PaymentRequest, address: str, since: int) -> Received | None:
    """The oldest payment above `since` that fits."""
    fitting: Received | None = None
    before: int | None = None
    while True:
        page = await gateway.history(address, HISTORY_PAGE, before)
        for movement in page:
            if movement.height <= since:
                return fitting
            if movement.kind == "received" and request.amount_grains in (None, movement.amount):
                view = await gateway.transaction(movement.reference)
                if view is not None and view.height is not None and view.memo == request.memo.encode().hex():
                    fitting = Received(
                        view.txid,
                        view.sender,
                        movement.amount,
                        format_tile(movement.amount),
                        request.memo,
                        view.height,
                        view.confirmations,
                    )
        if not page:
            return fitting
        before = page[-1].height


async def _proved_account(gateway: Gateway, network: Rules, address: str, tell: Told) -> tuple[Account, int, Header]:
    """An account's record after some block, with the header above it, which proves the record and was worked for."""
    proof = await gateway.proof(address)
    header = await _header_above(gateway, network, proof.height, tell)
    key = ACCOUNTS.key(decode_address(address, network.params.address_prefix))
    value = None if proof.value is None else bytes.fromhex(proof.value)
    try:
        evidence = decode(trie.Proof, bytes.fromhex(proof.proof), trie.MAX_PROOF_BYTES)
        holds = trie.verify(header.core.state_root, key, value, evidence)
        record = Account() if value is None else decode(Account, value, _MAX_ACCOUNT_BYTES)
    except ConsensusError as error:
        raise _unproved(str(error)) from error
    if not holds:
        raise _unproved(f"the proof does not lead to the state root of block {header.id.hex()}")
    return record, proof.height, header


async def _header_above(gateway: Gateway, network: Rules, height: int, tell: Told) -> Header:
    """The header at `height` + 1, once it is there: it must name that height, and its ticket must win its target."""
    deadline = time.monotonic() + _patience_seconds(network, 1)
    async with gateway.heads(tell) as heads:
        tell(f"waiting for block {height + 1}, whose header proves the state at {height}")
        while (view := await gateway.header(height + 1)) is None:
            if time.monotonic() > deadline:
                message = f"block {height + 1}, whose header would prove the balance, has not come"
                raise WalletError("proof-timeout", message, "see that somebody mines", ExitCode.TIMEOUT)
            await heads.wait(_POLL_SECONDS)
    try:
        header = decode_header(bytes.fromhex(view.raw))
        core = header.core
        if (core.height, core.chain_id) != (height + 1, network.params.chain_id) or header.proof is None:
            raise _unproved("the node gave a header of another place")
        k = core.unit.shape.k
        if not work.wins(header.ticket, core.target_int, k):
            raise _unproved("the header's ticket does not win its target")
        if isinstance(core.unit, Zero):  # any other's tile takes the strips of its operands
            validation.check_tile(header)
    except (ConsensusError, work.UnitError) as error:
        raise _unproved(str(error)) from error
    return header


async def _quote(
    gateway: Gateway,
    network: Rules,
    public_key: bytes,
    payload: Payload,
    note: Note,
    max_fee_grains: int | None,
    wish: Wish,
) -> Payment:
    (body,) = await Purse(gateway, network, public_key, max_fee_grains).prepare([payload], note.what, wish)
    return Payment(network, body, note, wish)


async def _known(gateway: Gateway, network: Rules, journal: Journal, txid: str) -> Sent:
    """A transaction of the journal or of the node."""
    sent = await fetch(gateway, network, journal, txid)
    if sent is None:
        fix = "`tilework wallet history` shows what waits; --dir names the directory of the account that it is from"
        message = f"neither the journal nor the node has a transaction {txid}"
        raise WalletError("transaction-not-found", message, fix, ExitCode.NOT_FOUND)
    return sent


async def _require_waiting(gateway: Gateway, network: Rules, sent: Sent) -> None:
    """Raises `WalletError` where a block has taken a transaction, or another one under its nonce."""
    txid, body = sent.txid.hex(), sent.transaction.body
    view = await gateway.transaction(txid)
    if view is not None and view.status == "confirmed":
        message = f"transaction {txid} stands in block {view.height}"
        raise WalletError("already-confirmed", message, "nothing waits; what is paid stays paid", txids=[txid])
    if view is None and (await gateway.account(network.address_text(body.address))).nonce > body.nonce:
        raise _gone(txid)


def _replaced(error: RpcError, txid: str) -> WalletError:
    """What a refusal of a transaction that was signed before amounts to."""
    return _gone(txid) if error.reason == "nonce-too-low" else error


def _gone(txid: str) -> WalletError:
    message = f"another transaction of the account has the nonce of {txid}, which can never be paid any more"
    return WalletError("already-replaced", message, "`tilework wallet history` shows what was paid", txids=[txid])


def _require_success(view: TxView) -> None:
    if view.ok is False:
        why = view.detail or view.reason
        message = f"transaction {view.txid} stands in block {view.height} but failed: {why}"
        raise WalletError("payment-failed", message, "correct what it says first; nothing but its fee is spent")


def _patience_seconds(network: Rules, confirmations: int) -> float:
    return max(_LEAST_WAIT_SECONDS, (_WAIT_BLOCKS + 2 * confirmations) * network.params.spacing_ms / 1000)


def _unproved(why: str) -> WalletError:
    message = f"the balance is not proved: {why}"
    return WalletError("balance-unproved", message, "do not trust this node; ask another", ExitCode.NETWORK)
