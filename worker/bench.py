"""What one thread of this machine does: idle units, timed as a miner will meet them."""

from __future__ import annotations

import asyncio
import statistics
import time

from consensus import work
from consensus.shape import Shape
from worker.compute import LowPriorityCompute

_RUNS = 8
_REST_SECONDS = 0.25


async def idle_unit_seconds(shape: Shape) -> float:
    """Seconds of an idle unit: handed to the miner's thread, after a rest, with cold caches. Takes two seconds more.

    The kernels must be warm (`work.warm`).
    """
    bench = LowPriorityCompute()
    seconds = []
    try:
        for run in range(_RUNS):
            await asyncio.sleep(_REST_SECONDS)
            started = time.perf_counter()
            await bench.run(work.evaluate_idle, run.to_bytes(32, "big"), shape)
            seconds.append(time.perf_counter() - started)
    finally:
        bench.close()
    return statistics.mean(seconds)
