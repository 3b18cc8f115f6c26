"""Freivalds' check against recomputing the product, and against merely reading the three matrices."""

from __future__ import annotations

import numpy as np

from benchmarks._bench import Row, interleaved_medians, main, run_alone
from consensus import work
from consensus.proofs import freivalds

# m, k, n: least sgemm ÷ check, most check ÷ reading
SHAPES: dict[tuple[int, int, int], tuple[float | None, float | None]] = {
    (1024, 1024, 1024): (50.0, None),
    (2048, 2048, 2048): (None, 4.0),
}


def run() -> list[Row]:
    """All rows, measured in a process of their own."""
    return run_alone("benchmarks.freivalds")


def measure() -> list[Row]:
    """All rows, in this process."""
    freivalds.warm()
    return [row for shape, targets in SHAPES.items() for row in _checks(shape, *targets)]


def _checks(shape: tuple[int, int, int], least: float | None, most: float | None) -> list[Row]:
    m, k, n = shape
    generator = np.random.default_rng(0)
    a = generator.integers(-63, 64, (m, k), dtype=np.int8)
    b = generator.integers(-63, 64, (k, n), dtype=np.int8)
    c = work.multiply(a, b)
    x, y = a.astype(np.float32), b.astype(np.float32)
    times = interleaved_medians(
        {
            "check": lambda: freivalds.verify(a, b, c),
            "read": lambda: (a.max(), b.max(), c.max()),
            "sgemm": lambda: x @ y,
        },
        rounds=7,
        repeat=7,
    )
    name = "×".join(map(str, shape))
    milliseconds = f"{1000 * times['check']:.2f} ms"
    return [
        Row(f"sgemm ÷ Freivalds, {name}", times["sgemm"] / times["check"], "×", least, milliseconds),
        Row(f"Freivalds ÷ reading once, {name}", times["check"] / times["read"], "×", most, better="lower"),
    ]


if __name__ == "__main__":
    main(run, measure)
