"""Compiles the kernels into their cache, once for all nodes, and measures an idle unit: `python -m devnet.warmup`.

A process of its own, so that the devnet's supervisor stays small and can be interrupted. Prints `Measured` as JSON.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from consensus import work
from consensus.params import ChainParams, devnet
from consensus.proofs import freivalds
from devnet.layout import Measured
from worker.bench import idle_unit_seconds


async def measure(params: ChainParams) -> Measured:
    """Warm every kernel, then time idle units."""
    work.warm()
    freivalds.warm()
    return Measured(await idle_unit_seconds(params.idle_shape))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(measure(devnet(0)))) + b"\n")
