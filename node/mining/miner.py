"""The node's own miner: the mining loop over units of this process, which enter by the one door like everybody's."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from consensus.block import PacketUnit
from consensus.errors import ConsensusError, MissingTensor
from consensus.tensor import Tensor
from consensus.transaction import Result, Transaction
from consensus.work.unit import Int8
from node.chain.chain import Import
from node.compute import Compute
from node.mining.producer import Candidate, Producer
from node.mining.turns import Turns
from node.pool.intake import Intake, NotYet
from node.pool.mempool import PoolError
from worker.compute import Bench
from worker.key import WorkerKey
from worker.loop import MiningLoop
from worker.source import ProductGone, UnitLost, Win
from worker.stats import MinerStats

logger = logging.getLogger("tilework.miner")


class LocalUnits:
    """A `UnitSource` over this node's producer and intake, for one worker's key."""

    def __init__(self, intake: Intake, producer: Producer, key: WorkerKey, compute: Compute) -> None:
        """`compute` is for the short work around units."""
        self._intake = intake
        self._chain = intake.chain
        self._producer = producer
        self._turns = Turns(intake, producer)
        self._key = key
        self._compute = compute

    async def next_unit(self, idle: bool) -> Candidate | None:
        """See `UnitSource`."""
        held = self._turns.next_packet(self._key.address)
        if held is None and not idle:
            return None
        with _losses():
            unit = self._producer.idle_unit if held is None else held.unit
            candidate = await self._compute.run(self._producer.candidate, unit, self._key.address)
        if held is not None:
            self._turns.give(held.packet_id, candidate.tip)
        return candidate

    async def operands(self, unit: Candidate) -> tuple[Int8, Int8]:
        """See `UnitSource`."""
        assert isinstance(unit.core.unit, PacketUnit)
        matrices = []
        for spec in (unit.core.unit.left, unit.core.unit.right):
            tensor = await self._compute.run(self._chain.tensors.tensor, spec.commitment)
            if tensor is None:
                raise UnitLost(str(MissingTensor(spec.commitment)))
            matrices.append(tensor.matrix)
        return matrices[0], matrices[1]

    def is_stale(self, unit: Candidate) -> bool:
        """See `UnitSource`."""
        return self._chain.tip is not unit.tip

    async def submit(self, unit: Candidate, win: Win) -> bool:
        """See `UnitSource`."""
        answer = self._key.answer_of(unit.core.unit, win.product, self._chain.genesis_hash)
        block = self._producer.seal(unit, win.i, win.j, win.state, answer)
        try:
            with _losses():
                if win.product is not None:
                    await self._intake.tensor(win.product, obliged=True)
                change = await self._intake.block(block)
        except UnitLost as refusal:
            logger.error("own block refused", extra={"height": block.height, "reason": str(refusal)})
            raise
        if not any(done.block.id == unit.id for done in change.connected):
            return False
        logger.info("block won", extra={"height": block.height, "block": unit.id.hex()})
        return True

    async def publish(self, packet: PacketUnit, commitment: bytes, product: Tensor | None) -> None:
        """See `UnitSource`."""
        if product is None:
            product = await self._compute.run(self._chain.tensors.tensor, commitment)
        if product is None:
            raise ProductGone(str(MissingTensor(commitment)))  # dropped long after its packet was over
        with _losses():
            await self._intake.tensor(product, obliged=True)
            await self._intake.result(self._key.result(packet.packet_id, commitment, self._chain.genesis_hash))

    def lost(self, what: str, why: str) -> None:
        """See `UnitSource`."""
        logger.warning(what, extra={"reason": why})


class Miner:
    """Mines for one worker key. `run()` it in a task; cancelling that stops it within a band of the current unit."""

    def __init__(
        self,
        intake: Intake,
        producer: Producer,
        key: WorkerKey,
        *,
        compute: Compute,
        bench: Bench,
        rng: random.Random,
        threads: int = 1,
        idle_duty: float = 1.0,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing starts before `run()`. See `LocalUnits` and `MiningLoop` for the arguments."""
        self._intake = intake
        source = LocalUnits(intake, producer, key, compute)
        self._loop = MiningLoop(source, bench=bench, rng=rng, threads=threads, idle_duty=idle_duty, stopwatch=stopwatch)

    @property
    def stats(self) -> MinerStats:
        """Counters, for metrics."""
        return self._loop.stats

    async def run(self) -> None:
        """Mine until cancelled. What cannot be survived (a `StorageError`) comes out in an ExceptionGroup."""
        self._intake.observers.append(self)
        try:
            await self._loop.run()
        finally:
            self._intake.observers.remove(self)

    # ------------------------------------------------------------------ observer

    def new_tip(self, change: Import) -> None:
        """Look again at what there is to do."""
        self._loop.wake()

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        """The next candidate will have it."""

    def new_result(self, result: Result, result_id: bytes) -> None:
        """The next candidate will have it."""


@contextmanager
def _losses() -> Iterator[None]:
    """The node's refusals, as the loop knows them."""
    try:
        yield
    except (ConsensusError, MissingTensor, NotYet, PoolError) as error:
        raise UnitLost(str(error)) from error
