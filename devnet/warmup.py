"""Compiles the kernels into their cache, once for all nodes, and measures an idle unit: `python -m devnet.warmup`.

A process of its own, so that the devnet's supervisor stays small and can be interrupted. Prints `Measured` as JSON.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import msgspec

from consensus import work
from consensus.params import ChainParams, devnet
from consensus.proofs import freivalds
from devnet.layout import Measured
from node.mining.miner import LowPriorityCompute

_RUNS = 8
_REST_SECONDS = 0.25


async def measure(params: ChainParams) -> Measured:
    """Warm every kernel, then time idle units as a miner will: handed to its thread, after a rest, with cold caches."""
    work.warm()
    freivalds.warm()
    bench = LowPriorityCompute()
    seconds = []
    for run in range(_RUNS):
        await asyncio.sleep(_REST_SECONDS)
        started = time.perf_counter()
        await bench.run(work.evaluate_idle, run.to_bytes(32, "big"), params.idle_shape)
        seconds.append(time.perf_counter() - started)
    bench.close()
    return Measured(statistics.mean(seconds))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(measure(devnet(0)))) + b"\n")
