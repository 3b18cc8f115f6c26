"""What tickets cost by shape, and what strategies gain: the tables of docs/economics.md.

A ticket's weight is its chance of winning: k. Times are of the thread's processor, the least of several turns, so that
a busy machine does not blur ratios of a few percent.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np

from benchmarks._bench import Row, main, run_alone
from consensus import work
from consensus.params import TILE
from consensus.shape import Shape
from tests.simulation.economy import advantages
from tests.simulation.strategies import LIMITS, LOSING
from worker.source import IDLE_SHAPE

SEED = bytes(range(32))
IDLE = tuple(IDLE_SHAPE)
# m, k, n
SHAPES = (
    (64, 64, 64),
    (64, 4096, 64),
    (4096, 64, 64),
    (1024, 64, 1024),
    (256, 2048, 256),
    (512, 2048, 512),
    (256, 4096, 256),
    (512, 4096, 512),
    (1024, 1024, 1024),
    (1024, 4096, 1024),
    (64, 4096, 4096),
    (2048, 4096, 2048),
)
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_SEEDS, _SEEDS_OF_LUCK = 8, 200
"""Runs of strategies that lose by far, and of those that move a few fees to either side."""
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
    """The most that a strategy gains over honest work, TILE, whatever the share; means ± standard errors for each."""
    numbers = range(len((*LOSING, *LIMITS)))
    with ProcessPoolExecutor(initializer=os.nice, initargs=(10,)) as pool:  # a quarter of an hour of one core
        return list(pool.map(_strategy, numbers))


def _strategy(number: int) -> Row:
    """Of a case by its number: its functions cannot be sent to another process."""
    case = (*LOSING, *LIMITS)[number]
    seeds = range(_SEEDS if case.margin is not None else _SEEDS_OF_LUCK)
    means, notes = [], []
    for share in SHARES:
        gains = advantages(replace(case.market, share=share), case.strategy, case.baseline, seeds)
        means.append(statistics.mean(gains) / TILE)
        notes.append(f"{share:g}: {means[-1]:+.4f} ± {statistics.stdev(gains) / math.sqrt(len(gains)) / TILE:.4f}")
    target = None if case.margin is None else -case.margin / TILE
    return Row(case.name, max(means), "TILE", target, f"{len(seeds)} seeds; {', '.join(notes)}", "lower")


if __name__ == "__main__":
    main(run, measure)
