"""Keeps a registered worker's declared price near the one that its operator wants, unattended.

The node holds the worker's key, so it signs the new declaration itself. Only the price changes: joining, the bond and
the number of places stay the operator's decision.
"""

from __future__ import annotations

import asyncio
import logging

from msgspec.structs import replace

from consensus.errors import ConsensusError
from consensus.rules.payloads import intrinsic_gas
from consensus.state import WORKERS, Ledger, StateReader, Worker, ledger
from consensus.transaction import RegisterWorker, Transaction, TxBody
from node.compute import Compute
from node.pool.intake import Intake
from node.pool.mempool import PoolError
from worker.key import WorkerKey
from worker.price import AskingPrice, has_moved

logger = logging.getLogger("tilework.pricing")

_TIP = 1


class Pricing:
    """Used on the event loop."""

    def __init__(self, intake: Intake, key: WorkerKey, asking: AskingPrice, compute: Compute) -> None:
        """`compute` is for reading the state."""
        self._intake = intake
        self._key = key
        self._asking = asking
        self._compute = compute

    async def run(self) -> None:
        """Look once in every intended block time, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._intake.chain.params.spacing_ms / 1000)

    async def look(self) -> bytes | None:
        """Declare anew if the right price has moved by a quarter; returns the txid of what was sent.

        Nothing is sent while a declaration waits for its tick or a transaction of the account for its block, so there
        is at most one declaration in `registration_delay` ticks.
        """
        found = await self._compute.run(self._due)
        if found is None:
            return None
        before, tx = found
        assert isinstance(tx.body.payload, RegisterWorker)
        price = tx.body.payload.min_price
        try:
            txid = await self._intake.transaction(tx)
        except (PoolError, ConsensusError) as error:
            logger.warning("cannot declare a new price", extra={"price": price, "reason": str(error)})
            return None
        fields = {"price": price, "before": before, "txid": txid.hex()}
        logger.info("declared a new price, in grains per 2⁴⁰ of weight", extra=fields)
        return txid

    def _due(self) -> tuple[int, Transaction] | None:
        """The price in force and the declaration that is to replace it, signed; None if all is well or under way."""
        chain, pool, address = self._intake.chain, self._intake.pool, self._key.address

        def read(reader: StateReader) -> tuple[Worker | None, Ledger, int, int]:
            core = chain.tip.core
            return WORKERS.get(reader, address), ledger(reader), core.height, core.target_int

        worker, book, height, target = chain.read(read)
        if worker is None or worker.retired_at or worker.announced_for or pool.pending_of(address):
            return None
        declared, wanted = worker.declared, self._asking.grains(chain.params, height + 1, target)
        if not declared.places or not has_moved(declared.min_price, wanted):
            return None
        payload = RegisterWorker(self._key.x25519_key, wanted, declared.max_unit_bytes, declared.places, 0)
        body = TxBody(self._key.public_key, pool.next_nonce(address), _TIP, 0, 2 * book.base_fee + 10, payload)
        body = replace(body, gas_limit=intrinsic_gas(chain.params, body))
        return declared.min_price, self._key.transaction(body, chain.genesis_hash)
