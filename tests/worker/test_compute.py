"""The bench's thread, what is measured on it, and the counters."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable

import pytest

from consensus import work
from consensus.shape import Shape
from node.compute import ThreadCompute
from worker.bench import idle_unit_seconds
from worker.compute import LowPriorityCompute
from worker.stats import MinerStats


def test_the_thread_yields_to_everything_else() -> None:
    async def story() -> None:
        bench = LowPriorityCompute()
        before = os.getpriority(os.PRIO_PROCESS, 0)
        thread, niceness = await bench.run(
            lambda: (threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        assert thread != threading.get_native_id()
        assert os.getpriority(os.PRIO_PROCESS, 0) == before
        if sys.platform == "linux":
            assert niceness >= 10
        bench.close()
        with pytest.raises(RuntimeError):
            await bench.run(int)

    asyncio.run(story())


@pytest.mark.parametrize("make", [LowPriorityCompute, lambda: ThreadCompute(2)], ids=["bench", "node"])
@pytest.mark.parametrize("raised", [ValueError, StopIteration, asyncio.CancelledError, SystemExit])
def test_whatever_a_function_raises_reaches_who_waits(
    raised: type[BaseException], make: Callable[[], LowPriorityCompute | ThreadCompute]
) -> None:
    """A future cannot carry a StopIteration: without care its caller would wait for ever."""

    def fail() -> None:
        raise raised

    async def story() -> None:
        bench = make()
        try:
            with pytest.raises(RuntimeError if raised is StopIteration else raised):
                async with asyncio.timeout(5):
                    await bench.run(fail)
            assert await bench.run(lambda: 1) == 1
        finally:
            bench.close()

    asyncio.run(story())


def test_an_idle_unit_is_measured() -> None:
    work.warm()
    seconds = asyncio.run(idle_unit_seconds(Shape(64, 64, 64)))
    assert 0 < seconds < 1


def test_the_counters_and_their_sums() -> None:
    stats = MinerStats(macs=8, seconds=2.0, idle_blocks=1, packet_blocks=2, results_sent=4)
    assert (stats.macs_per_second, stats.blocks_won, stats.packets_answered) == (4.0, 3, 6)
    assert MinerStats().macs_per_second == 0.0
    counters = stats.counters()
    assert counters["blocks_won"] == 3
    assert set(counters) == set(vars(stats)) | {"blocks_won", "packets_answered"}
