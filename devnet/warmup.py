"""Compiles the kernels into their cache, once for all nodes, and measures an idle unit: `python -m devnet.warmup`.

A process of its own, so that the devnet's supervisor stays small and can be interrupted. Prints `Measured` as JSON.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from consensus import work
from consensus.proofs import freivalds
from devnet.layout import Measured
from worker.bench import idle_unit_seconds
from worker.source import IDLE_SHAPE


async def measure() -> Measured:
    """Warm every kernel, then time idle units."""
    work.warm()
    freivalds.warm()
    return Measured(await idle_unit_seconds(IDLE_SHAPE))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(measure())) + b"\n")
