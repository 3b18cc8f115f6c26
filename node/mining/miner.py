"""The miner: makes the packets that its worker holds, and idle units while there are none.

The event loop only decides; units run on a thread of low priority. Each packet is computed once, as the unit of a fresh
candidate. If a ticket wins, the block answers the packet; if not, or if a better block came first, the product is
finished all the same and sent as a signed Result, while the next unit runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

from consensus import work
from consensus.block import Idle, PacketUnit
from consensus.errors import ConsensusError, MissingTensor
from consensus.tensor import Tensor
from consensus.transaction import Result, Transaction
from consensus.work.unit import UInt32
from node.chain.chain import Import
from node.chain.headers import HeaderEntry
from node.compute import Compute
from node.mining.producer import Candidate, Held, Producer
from node.pool.intake import Intake, NotYet
from node.pool.mempool import PoolError
from worker.key import WorkerKey

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("tilework.miner")

_NICENESS = 10
_RETRY_SECONDS = 1.0
"""Pause after something unexpected, so that a fault never becomes a busy loop."""
_REMEMBERED = 1024
"""Packets whose products are known by commitment; far more than are held at once."""
_JITTER = 0.5
"""Idle pauses vary by this part, so that miners do not fall into step."""


class LowPriorityCompute:
    """One long-lived thread that yields to everything else on the machine.

    Linux keeps a priority per thread, and the threads that the kernels start inherit it; elsewhere the thread runs as
    any other.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="miner", initializer=_lower_priority)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Wait for what runs; refuse what would come."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class MinerStats:
    """What a miner has done since it started. `seconds` of its thread, `macs` as packets are priced."""

    idle_units: int = 0
    packet_units: int = 0
    macs: int = 0
    seconds: float = 0.0
    packets_answered: int = 0
    idle_blocks: int = 0
    packet_blocks: int = 0


class _Win(NamedTuple):
    """A unit's first winning tile, and its product."""

    i: int
    j: int
    state: UInt32
    product: Tensor


class Miner:
    """Mines for one worker key. `run()` it in a task; cancelling that stops it within a band of the current unit.

    Attributes:
        stats: counters, for metrics.
    """

    def __init__(
        self,
        intake: Intake,
        producer: Producer,
        key: WorkerKey,
        *,
        compute: Compute,
        bench: Compute,
        rng: random.Random,
        threads: int = 1,
        idle_duty: float = 1.0,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing starts before `run()`.

        Args:
            compute: for the short work around units.
            bench: where units are evaluated; a simulation's lets virtual time pass.
            rng: jitters idle pauses.
            threads: that one unit is shared out to.
            idle_duty: fraction of the time for which idle units may run, 0 … 1; 0 makes packets only.
            stopwatch: seconds, to measure units with; a simulation's is its loop's time.
        """
        assert 0 <= idle_duty <= 1
        assert threads >= 1
        self._intake = intake
        self._chain = intake.chain
        self._producer = producer
        self._key = key
        self._compute = compute
        self._bench = bench
        self._rng = rng
        self._threads = threads
        self._idle_duty = idle_duty
        self._stopwatch = stopwatch
        self._tip_moved = asyncio.Event()
        self._stopping = threading.Event()
        self._products: dict[bytes, bytes] = {}  # packet → commitment of the product, which is in the tensor store
        self._sent_at: dict[bytes, HeaderEntry] = {}
        self.stats = MinerStats()

    # ------------------------------------------------------------------ observer

    def new_tip(self, change: Import) -> None:
        """Look again at what there is to do."""
        self._tip_moved.set()

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        """The next candidate will have it."""

    def new_result(self, result: Result, identity: bytes) -> None:
        """The next candidate will have it."""

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Mine until cancelled. What cannot be survived (a `StorageError`) comes out in an ExceptionGroup."""
        self._stopping.clear()
        self._intake.observers.append(self)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._tip_moved.clear()
                    try:
                        await self._step(group)
                    except (ConsensusError, MissingTensor, PoolError) as error:
                        logger.warning("unit lost", extra={"reason": str(error)})
                        await self._pause(_RETRY_SECONDS)
        finally:
            self._stopping.set()
            self._intake.observers.remove(self)

    async def _step(self, group: asyncio.TaskGroup) -> None:
        """One unit, or one wait."""
        packets = self._producer.held(self._key.address)
        for held in packets:
            if held.packet_id in self._products:
                self._publish_again(group, held.packet_id)
        ready = next((held for held in packets if self._is_ready(held)), None)
        if ready is not None:
            await self._mine_packet(group, ready)
        elif self._idle_duty:
            await self._mine_idle()
        else:
            await self._tip_moved.wait()

    def _is_ready(self, held: Held) -> bool:
        """Not made yet, and its operands are here (after a fast start they may still be arriving)."""
        tensors = self._chain.tensors
        here = tensors.has(held.packet.left.commitment) and tensors.has(held.packet.right.commitment)
        return held.packet_id not in self._products and here

    async def _mine_packet(self, group: asyncio.TaskGroup, held: Held) -> None:
        candidate = await self._compute.run(self._producer.candidate, held.unit, self._key.address)
        started = self._stopwatch()
        product, win = await self._bench.run(self._work_packet, candidate, held)
        self._count(packet_units=1, macs=candidate.shape.macs, seconds=self._stopwatch() - started)
        self._remember(held.packet_id, product.commitment)
        if win is None or not await self._seal(candidate, win):
            self._publish(group, held.packet_id, product)

    async def _mine_idle(self) -> None:
        candidate = await self._compute.run(self._producer.candidate, Idle(), self._key.address)
        started = self._stopwatch()
        finished, win = await self._bench.run(self._work_idle, candidate)
        seconds = self._stopwatch() - started
        if finished:
            self._count(idle_units=1, macs=candidate.shape.macs, seconds=seconds)
        if win is not None:
            await self._seal(candidate, win)
        if self._idle_duty < 1:
            jitter = 1 + _JITTER * (2 * self._rng.random() - 1)
            await self._pause(seconds * (1 / self._idle_duty - 1) * jitter)

    async def _pause(self, seconds: float) -> None:
        """Rest, but not on packets: each new tip is a reason to look whether there are any."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes together with the tip.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._tip_moved.wait()
            if any(self._is_ready(held) for held in self._producer.held(self._key.address)):
                return
            self._tip_moved.clear()

    # ------------------------------------------------------------------ on the bench

    def _work_packet(self, candidate: Candidate, held: Held) -> tuple[Tensor, _Win | None]:
        """The packet's product, and the win if there is one."""
        a, b = (self._chain.tensors.tensor(spec.commitment) for spec in (held.packet.left, held.packet.right))
        if a is None or b is None:
            raise MissingTensor((held.packet.left if a is None else held.packet.right).commitment)
        interrupted = partial(self._is_stale, candidate)
        evaluation = work.evaluate(candidate.seed, a.matrix, b.matrix, self._threads, interrupted)
        product = Tensor(evaluation.product)
        tile = _first_win(candidate, evaluation.states)
        return product, None if tile is None else _Win(*tile, product)

    def _work_idle(self, candidate: Candidate) -> tuple[bool, _Win | None]:
        """Whether the unit was finished, and the win if there is one: nobody needs the product of any other."""
        interrupted = partial(self._is_stale, candidate)
        evaluation = work.evaluate_idle(candidate.seed, candidate.shape, self._threads, interrupted)
        if evaluation is None:
            return False, None
        tile = _first_win(candidate, evaluation.states)
        return True, None if tile is None else _Win(*tile, Tensor(evaluation.product))

    def _is_stale(self, candidate: Candidate) -> bool:
        return self._chain.tip is not candidate.tip or self._stopping.is_set()

    # ------------------------------------------------------------------ outcomes

    async def _seal(self, candidate: Candidate, win: _Win) -> bool:
        """Send the block out; False if it came too late or was refused."""
        if self._is_stale(candidate):
            return False
        product = win.product
        if isinstance(candidate.core.unit, Idle):
            self._chain.products.note_idle(candidate.seed, product.commitment)
        await self._intake.tensor(product, obliged=True)
        block = self._producer.seal(candidate, win.i, win.j, win.state, product.commitment)
        try:
            change = await self._intake.block(block)
        except ConsensusError as error:
            logger.error("own block refused", extra={"height": block.height, "reason": str(error)})
            await self._pause(_RETRY_SECONDS)
            return False
        if not any(done.block.id == candidate.id for done in change.connected):
            return False
        if isinstance(candidate.core.unit, PacketUnit):
            self._count(packet_blocks=1, packets_answered=1)
        else:
            self._count(idle_blocks=1)
        logger.info("block won", extra={"height": block.height, "block": candidate.id.hex()})
        return True

    def _publish(self, group: asyncio.TaskGroup, packet_id: bytes, product: Tensor | None = None) -> None:
        """Sign and send a finished product (None: it is in the tensor store), while the next unit runs."""
        self._sent_at[packet_id] = self._chain.tip
        group.create_task(self._send(packet_id, product))

    def _publish_again(self, group: asyncio.TaskGroup, packet_id: bytes) -> None:
        """A packet still held whose answer is gone from the pool (its block was undone, say): answer it at each tip."""
        if self._intake.results.get(packet_id) is None and self._sent_at.get(packet_id) is not self._chain.tip:
            self._publish(group, packet_id)

    async def _send(self, packet_id: bytes, product: Tensor | None) -> None:
        if product is None:
            product = await self._compute.run(self._chain.tensors.tensor, self._products[packet_id])
        if product is None:
            self._products.pop(packet_id, None)  # dropped long after its packet was over: made anew
            return
        try:
            await self._intake.tensor(product, obliged=True)
            await self._intake.result(self._key.result(packet_id, product.commitment, self._chain.genesis_hash))
            self._count(packets_answered=1)
        except (ConsensusError, MissingTensor, NotYet, PoolError) as error:
            # The window may have passed meanwhile. If the packet is still held at the next tip, it is sent again.
            logger.warning("result refused", extra={"packet": packet_id.hex(), "reason": str(error)})

    def _remember(self, packet_id: bytes, product: bytes) -> None:
        """Products outlive their answers for a while: a reorganisation may ask for them again."""
        self._products[packet_id] = product
        if len(self._products) > _REMEMBERED:
            forgotten = next(iter(self._products))
            del self._products[forgotten]
            self._sent_at.pop(forgotten, None)

    def _count(self, **added: float) -> None:
        changes = {name: getattr(self.stats, name) + value for name, value in added.items()}
        self.stats = replace(self.stats, **changes)


def _first_win(candidate: Candidate, states: UInt32 | None) -> tuple[int, int, UInt32] | None:
    if states is None:
        return None
    k = candidate.shape.k
    tile = next(work.winning_tiles(candidate.seed, states, candidate.core.target_int, k), None)
    return None if tile is None else (tile[0], tile[1], states[tile[0], tile[1]])


def _lower_priority() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
