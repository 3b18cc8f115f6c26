"""The work function against numpy's float32 product: whole units, idle units, threads, one tile, a warm start.

One thread each unless said.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np

from benchmarks._bench import Row, interleaved_medians, main, median_time, run_alone
from consensus import work
from consensus.shape import Shape
from consensus.work.unit import Int8
from worker.source import IDLE_SHAPE

SEED = bytes(range(32))
# No ticket wins here, so that a search looks at every tile.
TARGET = 1
# m, k, n: the least ratio, and the rounds
SHAPES: dict[tuple[int, int, int], tuple[float | None, int]] = {
    (512, 512, 512): (1.1, 60),
    (1024, 1024, 1024): (1.3, 40),
    (1024, 4096, 1024): (1.45, 9),
    (2048, 2048, 2048): (None, 7),
}


def run() -> list[Row]:
    """All rows, measured in a process of their own."""
    return run_alone("benchmarks.work")


def measure() -> list[Row]:
    """All rows, in this process."""
    work.warm()
    rows = [row for shape, (target, rounds) in SHAPES.items() for row in _units(shape, target, rounds)]
    return [*rows, *_idle_unit(), *_tiles(), _warm_start()]


def _units(shape: tuple[int, int, int], target: float | None, rounds: int) -> list[Row]:
    m, k, n = shape
    a, b = _operands(m, k, n)
    x, y = a.astype(np.float32), b.astype(np.float32)

    def unit(threads: int) -> None:
        states = work.evaluate(SEED, a, b, threads=threads).states
        assert states is not None
        assert not list(work.winning_tiles(SEED, states, TARGET, k))

    times = interleaved_medians(
        {
            "sgemm": lambda: x @ y,
            "unit": lambda: unit(1),
            "two": lambda: unit(2),
            "plain": lambda: work.multiply(a, b),
            "idle": lambda: work.evaluate_idle(SEED, Shape(m, k, n)),
        },
        rounds,
    )
    name = f"{m}×{k}×{n}"
    milliseconds = f"{1000 * times['unit']:.2f} ms, sgemm {1000 * times['sgemm']:.2f} ms"
    return [
        Row(f"useful unit ÷ sgemm, {name}", times["sgemm"] / times["unit"], "×", target, milliseconds),
        Row(f"two threads ÷ one, {name}", times["unit"] / times["two"], "×", 1.8 if m >= 1024 else None),
        Row(f"product without noise ÷ sgemm, {name}", times["sgemm"] / times["plain"], "×"),
        Row(f"idle unit ÷ useful unit, {name}", times["unit"] / times["idle"], "×", 1.0),
    ]


def _idle_unit() -> list[Row]:
    unit = median_time(lambda: work.evaluate_idle(SEED, IDLE_SHAPE), 100)
    return [
        Row(
            f"idle unit of the networks, {'×'.join(map(str, IDLE_SHAPE))}",
            1000 * unit,
            "ms",
            note=f"{math.prod(IDLE_SHAPE) / unit / 1e9:.0f} GMAC/s",
        ),
    ]


def _tiles() -> list[Row]:
    rows = []
    for k, target in ((1024, 0.3), (4096, None)):
        a, b = _operands(1024, k, 1024)
        taken = median_time(lambda a=a, b=b: work.tile_state(SEED, a, b, 15, 15), 200)  # type: ignore[misc]
        rows.append(Row(f"one tile of a header, k = {k}", 1000 * taken, "ms", target, better="lower"))
    return rows


def _warm_start() -> Row:
    """From the start of a second process to warm kernels, less what an empty Python takes."""

    def start(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begin

    code = "from consensus import work; from consensus.proofs import freivalds; work.warm(); freivalds.warm()"
    taken = min(start(code) for _ in range(3)) - min(start("pass") for _ in range(3))
    return Row("warm start of all kernels", taken, "s", 1.0, better="lower")


def _operands(m: int, k: int, n: int) -> tuple[Int8, Int8]:
    generator = np.random.default_rng(0)
    return (
        generator.integers(-63, 64, (m, k), dtype=np.int8),
        generator.integers(-63, 64, (k, n), dtype=np.int8),
    )


if __name__ == "__main__":
    main(run, measure)
