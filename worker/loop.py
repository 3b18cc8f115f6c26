"""The mining loop: makes the packets that its worker holds, and idle units while there are none.

The event loop only decides; units run on the bench, idle ones many in a row, so that a busy one does not slow them
down. Each packet is computed once, as the unit of a fresh candidate. If a ticket wins, the block answers the packet; if
not, or if a better block came first, the product is finished all the same and sent as a signed Result, while the next
unit runs. A packet that comes again (its block was undone, or its answer lost) is sent again, not computed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic

from consensus.block import PacketUnit
from consensus.tensor import Tensor
from consensus.work import UnitError
from worker.compute import Bench
from worker.evaluation import evaluate_idle, evaluate_packet
from worker.source import ProductGone, U, UnitLost, UnitSource, Win
from worker.stats import MinerStats

RETRY_SECONDS = 1.0
"""Pause after something unexpected, so that a fault never becomes a busy loop."""
TURN_SECONDS = 0.1
"""Idle units are made on the bench for so long, at full duty, before the event loop is asked for new ones."""
MOST_UNDER_WAY = 4
"""Products that are being sent; where the line is slower than the bench, the bench waits, and memory stays bounded."""

_REMEMBERED = 1024
"""Packets whose products are known by commitment; far more than are held at once."""
_JITTER = 0.5
"""Idle pauses vary by this part, so that miners do not fall into step."""
_RECENT_UNITS = 8
"""Idle units by whose fastest a pause is measured: one that the machine held up must not hold up the next as well."""
_MOST_STRETCH = 4
"""Times the fastest idle unit of all by which a pause is measured at most: when a load of minutes ends, the pause that
has begun under it must end, too."""


class MiningLoop(Generic[U]):
    """Makes the units of one source. `run()` it in a task; cancelling that stops it within a band of the current unit.

    Attributes:
        stats: counters.
    """

    def __init__(
        self,
        source: UnitSource[U],
        *,
        bench: Bench,
        rng: random.Random,
        threads: int = 1,
        idle_duty: float = 1.0,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing starts before `run()`.

        Args:
            bench: where units are evaluated.
            rng: jitters idle pauses.
            threads: how many share one unit.
            idle_duty: fraction of the time for which idle units may run, 0 … 1; 0 makes packets only.
            stopwatch: seconds, to measure units with, on any thread; a simulation's is its loop's time.
        """
        assert 0 <= idle_duty <= 1
        assert threads >= 1
        self._source = source
        self._bench = bench
        self._rng = rng
        self._threads = threads
        self._idle_duty = idle_duty
        self._stopwatch = stopwatch
        self._woken = asyncio.Event()
        self._stopping = threading.Event()
        self._recent: deque[float] = deque(maxlen=_RECENT_UNITS)  # seconds of idle units
        self._fastest = math.inf  # of all of them
        self._idle_from = 0.0  # of the event loop's time: idle units rest until then
        self._products: dict[PacketUnit, bytes] = {}  # by commitment: the products themselves are the source's
        self._under_way: set[PacketUnit] = set()
        self._room = asyncio.Semaphore(MOST_UNDER_WAY)
        self.stats = MinerStats()

    def wake(self) -> None:
        """There is a new tip: look again at what there is to do. On the event loop's thread."""
        self._woken.set()

    async def run(self, units: int | None = None) -> None:
        """Make `units` units (None: until cancelled), and send what came of them.

        What cannot be survived (whatever the source raises, except `UnitLost`) comes out in an ExceptionGroup.
        """
        self._stopping.clear()
        done = 0
        try:
            async with asyncio.TaskGroup() as group:
                while units is None or done < units:
                    done += await self._step(group)
        finally:
            self._stopping.set()

    async def _step(self, group: asyncio.TaskGroup) -> bool:
        """One unit, or one wait; whether there was a unit."""
        self._woken.clear()
        try:
            unit = await self._source.next_unit(self._may_idle())
            if unit is None:
                await self._rest()
                return False
            if isinstance(unit.core.unit, PacketUnit):
                await self._make_packet(group, unit, unit.core.unit)
            else:
                await self._make_idle(unit)
        except (UnitLost, UnitError) as error:
            self.stats.units_lost += 1
            self._source.lost("unit lost", str(error))
            await asyncio.sleep(RETRY_SECONDS)
        return True

    # ------------------------------------------------------------------ units

    async def _make_packet(self, group: asyncio.TaskGroup, unit: U, packet: PacketUnit) -> None:
        known = self._products.get(packet)
        if known is not None:
            await self._publish(group, packet, known, None)
            return
        left, right = await self._source.operands(unit)
        started = self._stopwatch()
        interrupted = partial(self._is_over, unit)
        product, win = await self._bench.run(evaluate_packet, unit, left, right, self._threads, interrupted)
        self.stats.packet_units += 1
        self._count(unit, 1, self._stopwatch() - started)
        self._remember(packet, product.commitment)
        if await self._submit(unit, win):
            self.stats.packet_blocks += 1
        else:
            await self._publish(group, packet, product.commitment, product)

    async def _make_idle(self, unit: U) -> None:
        started = self._stopwatch()

        def more() -> bool:
            return self._idle_duty == 1 and self._stopwatch() - started < TURN_SECONDS

        idled = await self._bench.run(evaluate_idle, unit, self._threads, partial(self._is_over, unit), more)
        seconds = self._stopwatch() - started
        if idled.finished:
            self.stats.idle_units += idled.finished
            self._count(unit, idled.finished, seconds)
        if await self._submit(idled.unit, idled.win):
            self.stats.idle_blocks += 1
        if self._idle_duty < 1:
            jitter = 1 + _JITTER * (2 * self._rng.random() - 1)
            self._recent.append(seconds)
            self._fastest = min(self._fastest, seconds)
            usual = min(*self._recent, _MOST_STRETCH * self._fastest)
            pause = usual * (1 / self._idle_duty - 1) * jitter
            self._idle_from = asyncio.get_running_loop().time() + pause

    def _may_idle(self) -> bool:
        if self._idle_duty == 1:
            return True
        return self._idle_duty > 0 and asyncio.get_running_loop().time() >= self._idle_from

    async def _rest(self) -> None:
        """Until there is a new tip, which may bring packets, or it is time for an idle unit."""
        # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes together with the tip.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._idle_from if self._idle_duty else None):
                await self._woken.wait()

    def _is_over(self, unit: U) -> bool:
        return self._source.is_stale(unit) or self._stopping.is_set()

    # ------------------------------------------------------------------ outcomes

    async def _submit(self, unit: U, win: Win | None) -> bool:
        """Send the block out, if there is one and it is not too late; whether it became the tip."""
        if win is None or self._is_over(unit):
            return False
        try:
            return await self._source.submit(unit, win)
        except UnitLost:
            await asyncio.sleep(RETRY_SECONDS)
            return False

    async def _publish(
        self, group: asyncio.TaskGroup, packet: PacketUnit, commitment: bytes, product: Tensor | None
    ) -> None:
        """Send a packet's answer while the next unit runs; wait only where too many are under way."""
        if packet in self._under_way:
            return
        await self._room.acquire()
        self._under_way.add(packet)
        group.create_task(self._send(packet, commitment, product))

    async def _send(self, packet: PacketUnit, commitment: bytes, product: Tensor | None) -> None:
        try:
            await self._source.publish(packet, commitment, product)
            self.stats.results_sent += 1
        except UnitLost as error:
            # The window may have passed meanwhile. If the packet is still held at the next tip, it comes again.
            if isinstance(error, ProductGone):
                self._products.pop(packet, None)
            self.stats.results_refused += 1
            self._source.lost("result refused", str(error))
        finally:
            self._under_way.discard(packet)
            self._room.release()

    def _remember(self, packet: PacketUnit, commitment: bytes) -> None:
        """Products outlive their answers for a while: a reorganisation may ask for them again."""
        self._products[packet] = commitment
        if len(self._products) > _REMEMBERED:
            del self._products[next(iter(self._products))]

    def _count(self, unit: U, units: int, seconds: float) -> None:
        self.stats.macs += units * unit.shape.macs
        self.stats.seconds += seconds
