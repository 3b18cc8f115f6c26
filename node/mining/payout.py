"""Sends what a worker has earned to the address that its operator wants it on, unattended.

The node holds the worker's key, so it signs the payment itself. At most one transaction of the account waits at a time:
a payment that is lost with the pool leaves its nonce to the next one, so that only one of them can ever be paid.
"""

from __future__ import annotations

import asyncio
import logging

from msgspec.structs import replace

from consensus import state
from consensus.errors import ConsensusError
from consensus.params import TILE
from consensus.rules.payloads import intrinsic_gas
from consensus.state import Account, Ledger, StateReader
from consensus.transaction import Output, Transaction, Transfer, TxBody
from node.compute import Compute
from node.pool.intake import Intake
from node.pool.mempool import PoolError
from worker.key import WorkerKey

logger = logging.getLogger("tilework.payout")

KEPT_GRAINS = TILE
"""What stays on the account, for the fees of its own transactions."""
_TIP = 1


class Payout:
    """Used on the event loop."""

    def __init__(self, intake: Intake, key: WorkerKey, to: bytes, above_grains: int, compute: Compute) -> None:
        """Pay everything but `KEPT_GRAINS` to the address `to` whenever the account holds more than `above_grains`.
        `compute` is for reading the state."""
        self._intake = intake
        self._key = key
        self._to = to
        self._above_grains = above_grains
        self._compute = compute

    async def run(self) -> None:
        """Look once in every intended block time, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._intake.chain.params.spacing_ms / 1000)

    async def look(self) -> bytes | None:
        """Pay out if there is enough; returns the txid of what was sent."""
        tx = await self._compute.run(self._due)
        if tx is None:
            return None
        assert isinstance(tx.body.payload, Transfer)
        amount = tx.body.payload.outputs[0].amount
        try:
            txid = await self._intake.transaction(tx)
        except (PoolError, ConsensusError) as error:
            logger.warning("cannot pay out", extra={"grains": amount, "reason": str(error)})
            return None
        logger.info("paid out", extra={"grains": amount, "txid": txid.hex()})
        return txid

    def _due(self) -> Transaction | None:
        """The payment, signed; None if there is too little, or a transaction of the account waits for its block."""
        chain, pool, address = self._intake.chain, self._intake.pool, self._key.address

        def read(reader: StateReader) -> tuple[Account, Ledger]:
            return state.account(reader, address), state.ledger(reader)

        account, ledger = chain.read(read)
        if account.balance <= max(self._above_grains, KEPT_GRAINS) or pool.pending_of(address):
            return None
        transfer = Transfer((Output(self._to, account.balance),))
        body = TxBody(self._key.public_key, account.nonce, _TIP, 0, 2 * ledger.base_fee + 10, transfer)
        # Dearest with the whole balance as its amount: a smaller one takes no more bytes.
        gas = intrinsic_gas(chain.params, body)
        amount = account.balance - KEPT_GRAINS - gas * (body.max_base_fee + body.tip)
        if amount <= 0:
            return None
        body = replace(body, payload=Transfer((Output(self._to, amount),)))
        body = replace(body, gas_limit=intrinsic_gas(chain.params, body))
        return self._key.transaction(body, chain.genesis_hash)
