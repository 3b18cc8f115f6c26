"""What the wallet's commands do with a node: pay, wait until it is settled, watch for a payment, prove a balance."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from msgspec import Struct

from api.chain import MovementView, TxView
from consensus import validation, work
from consensus.address import decode_address
from consensus.block import Header, Zero, decode_header
from consensus.codec import decode
from consensus.errors import ConsensusError
from consensus.proofs import trie
from consensus.state import ACCOUNTS, Account
from consensus.transaction import Output, Transfer, TxBody
from wallet.accounts.amounts import format_tile
from wallet.accounts.keys import SigningKey
from wallet.accounts.keystore import Account as StoredAccount
from wallet.accounts.payment import PaymentRequest
from wallet.client import purse
from wallet.client.gateway import Gateway
from wallet.client.purse import Purse, Sent, Told
from wallet.client.transactions import Rules, max_fee, sign
from wallet.errors import ExitCode, WalletError

HISTORY_PAGE = 100

_WAIT_BLOCKS = 20
"""How many intended block times the first confirmation may take."""
_LEAST_WAIT_SECONDS = 60.0
_POLL_SECONDS = 5.0
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
    """A transfer, ready to be signed."""

    network: Rules
    body: TxBody

    @property
    def txid(self) -> bytes:
        """Its id."""
        return self.body.txid(self.network.genesis_hash)

    @property
    def max_fee_grains(self) -> int:
        """The most that it can cost in fees."""
        return max_fee(self.body)


async def prepare_payment(
    url: str, account: StoredAccount, request: PaymentRequest, max_fee_grains: int | None
) -> Payment:
    """A transfer that fulfils `request`, which names an amount. Raises `WalletError`: network-mismatch,
    insufficient-balance, fee-too-low."""
    assert request.amount_grains is not None
    payload = Transfer((Output(request.address, request.amount_grains),), request.memo.encode())
    async with Gateway(url) as gateway:
        network = await gateway.network()
        network.require(account.prefix)
        network.require(request.prefix)
        (body,) = await Purse(gateway, network, account.public_key, max_fee_grains).prepare([payload], "the payment")
        return Payment(network, body)


async def deliver(
    url: str, payment: Payment, key: SigningKey, confirmations: int, timeout_seconds: float | None, tell: Told
) -> Settled:
    """Send a payment, behind what the account has pending, and wait for `confirmations` blocks (0: do not wait).

    Raises `WalletError`, see `settle`.
    """
    async with Gateway(url) as gateway:
        sent = Sent(payment.txid, sign(payment.network, key, payment.body))
        await purse.deliver(gateway, payment.network, sent, tell)
        if not confirmations:
            return Settled(sent.txid.hex(), "sent", None, 0, None)
        return await settle(gateway, payment.network, sent, confirmations, timeout_seconds, tell)


async def settle(
    gateway: Gateway, network: Rules, sent: Sent, confirmations: int, timeout_seconds: float | None, tell: Told
) -> Settled:
    """Wait until `confirmations` blocks stand on a transaction, its own counted; send it again if the node loses it.

    Raises `WalletError`: payment-failed with the chain's reason, confirmation-timeout.
    """
    txid = sent.txid.hex()
    patience = timeout_seconds or _patience_seconds(network, confirmations)
    try:
        async with asyncio.timeout(patience), gateway.heads() as heads:
            seen = -1
            while True:
                view = await gateway.transaction(txid)
                if view is None:
                    await purse.deliver(gateway, network, sent, tell)
                elif view.status == "confirmed":
                    _require_success(view)
                    if view.confirmations >= confirmations:
                        return Settled(txid, "confirmed", view.height, view.confirmations, view.fee)
                count = 0 if view is None else view.confirmations
                if count != seen:
                    tell(f"{count} of {confirmations} confirmations")
                    seen = count
                await heads.wait(_POLL_SECONDS)
    except TimeoutError:
        message = f"transaction {txid} is not confirmed {confirmations} times after {patience:g} s"
        fix = "it may still be; see `tilework wallet history` before you pay again"
        raise WalletError("confirmation-timeout", message, fix, ExitCode.TIMEOUT) from None


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
            async with asyncio.timeout(timeout_seconds), gateway.heads() as heads:
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


async def history(url: str, prefix: str, address: str, limit: int, before: int | None) -> list[MovementView]:
    """What came to and left an account, newest first."""
    async with Gateway(url) as gateway:
        (await gateway.network()).require(prefix)
        return await gateway.history(address, limit, before)


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
    async with gateway.heads() as heads:
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


def _require_success(view: TxView) -> None:
    if view.ok is False:
        message = f"the transaction stands in block {view.height} but failed: {view.detail or view.reason}"
        raise WalletError("payment-failed", message, "correct what it says and pay again; only its fee is spent")


def _patience_seconds(network: Rules, confirmations: int) -> float:
    return max(_LEAST_WAIT_SECONDS, (_WAIT_BLOCKS + 2 * confirmations) * network.params.spacing_ms / 1000)


def _unproved(why: str) -> WalletError:
    message = f"the balance is not proved: {why}"
    return WalletError("balance-unproved", message, "do not trust this node; ask another", ExitCode.NETWORK)
