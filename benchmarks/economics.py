"""What tickets cost by shape, and what strategies gain: the tables of docs/economics.md.

A ticket's weight is its chance of winning: k. Times are of the thread's processor, the least of several turns, so that
a busy machine does not blur ratios of a few percent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks._bench import Row, main, run_alone
from consensus import work
from consensus.params import TILE
from consensus.shape import Shape
from tests.simulation.economy import advantage
from tests.simulation.strategies import LIMITS, LOSING, Case

SEED = bytes(range(32))
IDLE = (256, 2048, 256)
# m, k, n
SHAPES = (
    (64, 64, 64),
    (64, 4096, 64),
    (4096, 64, 64),
    (1024, 64, 1024),
    (256, 2048, 256),
    (256, 4096, 256),
    (512, 4096, 512),
    (1024, 1024, 1024),
    (1024, 4096, 1024),
    (64, 4096, 4096),
    (2048, 4096, 2048),
)
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_ROUNDS = 12
_MACS_PER_TURN = 150_000_000


def run() -> list[Row]:
    """All rows, measured in a process of their own."""
    return run_alone("benchmarks.economics")


def measure() -> list[Row]:
    """All rows, in this process."""
    return [*_tickets(), *_strategies()]


def _tickets() -> list[Row]:
    work.warm()
    functions: dict[tuple[str, tuple[int, int, int]], Callable[[], object]] = {}
    generator = np.random.default_rng(0)
    for m, k, n in {IDLE: None, **dict.fromkeys(SHAPES)}:
        a = generator.integers(-63, 64, (m, k), dtype=np.int8)
        b = generator.integers(-63, 64, (k, n), dtype=np.int8)
        functions["packet", (m, k, n)] = lambda a=a, b=b: work.evaluate(SEED, a, b).states  # type: ignore[misc]
        functions["idle", (m, k, n)] = lambda m=m, k=k, n=n: work.evaluate_idle(SEED, Shape(m, k, n))  # type: ignore[misc]
    weights = _weights_per_second(functions)
    least = weights["idle", IDLE]
    rows = []
    for shape in SHAPES:
        name = "×".join(map(str, shape))
        rows.append(Row(f"random packet's tickets ÷ idle ones, {name}", weights["packet", shape] / least, "×"))
        rows.append(Row(f"zero packet's tickets ÷ idle ones, {name}", weights["idle", shape] / least, "×"))
    return rows


def _weights_per_second(
    functions: Mapping[tuple[str, tuple[int, int, int]], Callable[[], object]],
) -> dict[tuple[str, tuple[int, int, int]], float]:
    """Multiplications per second, to which ticket weights are proportional, of units that take turns."""
    repeats = {key: max(1, _MACS_PER_TURN // math.prod(key[1])) for key in functions}
    least = dict.fromkeys(functions, math.inf)
    for _ in range(_ROUNDS):
        for key, function in functions.items():
            function()  # a turn of its own to warm the cache
            start = time.thread_time()
            for _ in range(repeats[key]):
                function()
            least[key] = min(least[key], time.thread_time() - start)
    return {key: repeats[key] * math.prod(key[1]) / taken for key, taken in least.items()}


def _strategies() -> list[Row]:
    """The most that a strategy gains over honest work, TILE, whatever the share; at most 0 where it must lose."""
    return [_strategy(case) for case in (*LOSING, *LIMITS)]


def _strategy(case: Case) -> Row:
    gains = {
        share: advantage(replace(case.market, share=share), case.strategy, case.baseline, case.seeds) / TILE
        for share in SHARES
    }
    note = ", ".join(f"{share:g}: {gain:+.4f}" for share, gain in gains.items())
    target = None if case.margin is None else -case.margin / TILE
    return Row(case.name, max(gains.values()), "TILE", target, note, "lower")


if __name__ == "__main__":
    main(run, measure)
