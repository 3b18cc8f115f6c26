"""An account that sends transactions through one node: nonces, fees, and whether the balance covers them.

Everything is checked before anything is sent. One purse at a time builds transactions for an account: two would take
the same nonces, and the second would be refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from consensus.crypto import address_of
from consensus.rules.payloads import outlay
from consensus.transaction import Payload, Transaction, TxBody
from wallet.accounts.keys import SigningKey
from wallet.client.gateway import Gateway
from wallet.client.rpc import NetworkError, RpcError
from wallet.client.transactions import Rules, build, check_balance, choose_fees, max_fee, sign
from wallet.errors import ExitCode, WalletError

_POOL_PAUSE_SECONDS = 5.0
_POOL_PATIENCE_BLOCKS = 20
"""How many intended block times an account may wait without a single block that takes one of its transactions."""
_POOL_LEAST_PATIENCE_SECONDS = 60.0

Told = Callable[[str], None]
"""Takes a line about how far a wait has come."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A signed transaction on its way."""

    txid: bytes
    transaction: Transaction


class Purse:
    """The account of `public_key` on `network`. `max_fee_grains` bounds the fees of each transaction; None: 1 TILE."""

    def __init__(self, gateway: Gateway, network: Rules, public_key: bytes, max_fee_grains: int | None = None) -> None:
        self.gateway = gateway
        self.network = network
        self.public_key = public_key
        self.address = network.address_text(address_of(public_key))
        self.sending = asyncio.Lock()
        """Held from `prepare` to the end of `send`."""
        self._max_fee_grains = max_fee_grains

    async def prepare(self, payloads: Sequence[Payload], what: str) -> list[TxBody]:
        """Transactions with the account's next nonces, ready to be signed.

        Raises `WalletError`: fee-too-low, and insufficient-balance, with the numbers, if it does not cover them all.
        """
        params = self.network.params
        account, quote = await asyncio.gather(self.gateway.account(self.address), self.gateway.fees())
        bodies = []
        for nonce, payload in enumerate(payloads, start=account.next_nonce):
            fees = choose_fees(params, payload, quote.base_fee, quote.suggested_tip, self._max_fee_grains)
            bodies.append(build(params, self.public_key, nonce, payload, fees))
        needed = sum(max_fee(body) + outlay(params, body.payload) for body in bodies)
        check_balance(account.balance, needed, what)
        return bodies

    def sign(self, key: SigningKey, bodies: Sequence[TxBody]) -> list[Sent]:
        """The transactions as they will be sent: their ids are known before anybody has seen them."""
        return [Sent(body.txid(self.network.genesis_hash), sign(self.network, key, body)) for body in bodies]

    async def send(self, transactions: Sequence[Sent]) -> None:
        """Send in order. Raises `WalletError`, which names what was (or may have been) sent if not all were."""
        for count, one in enumerate(transactions):
            try:
                await deliver(self.gateway, self.network, one)
            except WalletError as error:
                known = [before.txid.hex() for before in transactions[:count]]
                known += [f"maybe {one.txid.hex()}"] * isinstance(error, NetworkError)
                if not known:
                    raise
                message = f"{error.message}; sent until then: {', '.join(known)}"
                raise WalletError(error.code, message, error.fix, error.exit_code) from error

    async def resend(self, sent: Sent) -> None:
        """Send again what a node has forgotten. Raises `RpcError` if it is refused now."""
        await self.gateway.send(sent.transaction, sent.txid.hex())


async def deliver(gateway: Gateway, network: Rules, sent: Sent, tell: Told = lambda _line: None) -> None:
    """Send, and where the account has too many pending before it, wait for blocks to take some, however many.

    Raises `RpcError` if it is refused, `WalletError` (too-many-pending) if no block takes any for long.
    """
    patience = max(_POOL_LEAST_PATIENCE_SECONDS, _POOL_PATIENCE_BLOCKS * network.params.spacing_ms / 1000)
    taken, since = -1, time.monotonic()
    async with gateway.heads() as heads:
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
                message = f"no block has taken any of the account's pending transactions for {patience:g} s"
                raise WalletError("too-many-pending", message, "see that somebody mines, then go on", ExitCode.TIMEOUT)
            await heads.wait(_POOL_PAUSE_SECONDS)
