"""The public face of the work function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from consensus.work import reference
from consensus.work.noise import left_noise, right_noise, signed_permutations
from consensus.work.unit import (
    TILE,
    Evaluation,
    Int8,
    UInt32,
    UnitError,
    check_operand,
    check_seed,
    check_shape,
    check_tile_index,
    check_unit,
)


def noised(seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]:
    """(A', B'): the operands with the seed's noise added, int8 in [−127, 127]. Raises UnitError."""
    a, b = check_unit(seed, a, b)
    return reference.noised(seed, a, b)


def idle_operands(seed: bytes, m: int, n: int, k: int) -> tuple[Int8, Int8]:
    """(A', B') of an idle unit, whose operands are zero: nothing but noise, int8 in [−64, 64]. Raises UnitError."""
    check_shape(m, n, k)
    return noised(seed, np.zeros((m, k), np.int8), np.zeros((k, n), np.int8))


def evaluate(
    seed: bytes, a: Int8, b: Int8, threads: int = 1, interrupted: Callable[[], bool] | None = None
) -> Evaluation:
    """The true product and the transcript states of a packet. Raises UnitError."""
    a, b = check_unit(seed, a, b)
    return reference.evaluate(seed, a, b)


def evaluate_idle(
    seed: bytes, m: int, n: int, k: int, threads: int = 1, interrupted: Callable[[], bool] | None = None
) -> Evaluation | None:
    """The noised product and the transcript states of an idle unit; None if interrupted. Raises UnitError."""
    a2, b2 = idle_operands(seed, m, n, k)
    return Evaluation(*reference.transcript(a2, b2))


def tile_state(seed: bytes, a: Int8, b: Int8, i: int, j: int) -> UInt32:
    """The state (16 uint32) of tile (i, j) alone, in O(64·64·k). Raises UnitError."""
    for name, index, size in (("a", i, a.shape[0]), ("b", j, b.shape[1])):
        if not 0 <= index < size // TILE:
            raise UnitError(f"{name}: no tile {index} in {size} rows or columns")
    return strip_state(
        seed, a[TILE * i : TILE * (i + 1)], b[:, TILE * j : TILE * (j + 1)], a.shape[0], b.shape[1], i, j
    )


def strip_state(seed: bytes, a_strip: Int8, b_strip: Int8, m: int, n: int, i: int, j: int) -> UInt32:
    """`tile_state` from strips alone: rows 64i … 64i+63 of A (64×k), columns 64j … 64j+63 of B (k×64)."""
    check_seed(seed)
    check_tile_index(i, j)
    a_strip, b_strip = check_operand("a_strip", a_strip), check_operand("b_strip", b_strip)
    k = a_strip.shape[1]
    check_shape(m, n, k)
    p, q = signed_permutations(seed, "p", k), signed_permutations(seed, "q", k)
    left = left_noise(seed, TILE * (i + 1))[TILE * i :]
    right = right_noise(seed, n)[:, TILE * j : TILE * (j + 1)]
    _, states = reference.transcript(a_strip + left[:, p.index] * p.sign, b_strip + right[q.index] * q.sign[:, None])
    state: UInt32 = states[0, 0]
    return state


def warm() -> None:
    """Compile or load every kernel now."""
