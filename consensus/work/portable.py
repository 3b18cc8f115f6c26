"""The work function on any machine, through float32 BLAS: the same bits, slower.

A float32 sum of integers is exact, in whatever order and with or without fused multiply-add, while no partial sum
exceeds 2²⁴ in magnitude. A chunk of the noised product stays below 127²·64 < 2²⁰, and all of the plain product below
63²·4096 < 2²⁴. Across chunks the noised sums, up to 2²⁶, are added as int32.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from consensus.shape import MAX_DIMENSION, NOISED_BOUND, OPERAND_BOUND, TILE_SIDE, Shape
from consensus.work import reference
from consensus.work.noise import noise_added
from consensus.work.reference import noised
from consensus.work.threads import Stage, share
from consensus.work.unit import LANES, Evaluation, Float32, Int8, Int32, Interrupted, UInt32

__all__ = ["evaluate", "evaluate_idle", "multiply", "noised", "strip_state"]

assert (OPERAND_BOUND + NOISED_BOUND) ** 2 * TILE_SIDE <= 2**24
assert OPERAND_BOUND**2 * MAX_DIMENSION <= 2**24


def evaluate(seed: bytes, a: Int8, b: Int8, threads: int, interrupted: Interrupted) -> Evaluation:
    """See `consensus.work.evaluate`; operands checked."""
    transcript = _transcript(*noised(seed, a, b), threads, interrupted)
    return Evaluation(multiply(a, b, threads), transcript.states if transcript else None)


def evaluate_idle(seed: bytes, shape: Shape, threads: int, interrupted: Interrupted) -> Evaluation | None:
    """See `consensus.work.evaluate_idle`; shape checked."""
    m, k, n = shape
    operands = noised(seed, np.zeros((m, k), np.int8), np.zeros((k, n), np.int8))
    return _transcript(*operands, threads, interrupted)


def multiply(a: Int8, b: Int8, threads: int) -> Int32:
    """See `consensus.work.multiply`; operands checked. BLAS has threads of its own."""
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.int32)


def strip_state(seed: bytes, a_strip: Int8, b_strip: Int8, left: Int8, right: Int8) -> UInt32:
    """See `consensus.work.strip_state`; strips checked. left, right: (64, 64), the strips' noise."""
    a2, b2 = noise_added(seed, a_strip, b_strip, left, right)
    _, states = _band(a2, b2.astype(np.float32))
    state: UInt32 = states[0]
    return state


def _transcript(a2: Int8, b2: Int8, threads: int, interrupted: Interrupted) -> Evaluation | None:
    """The noised product and its states; None if interrupted between two bands of rows."""
    m, n = a2.shape[0], b2.shape[1]
    columns = b2.astype(np.float32)
    product = np.empty((m, n), np.int32)
    states = np.empty((m // TILE_SIDE, n // TILE_SIDE, LANES), np.uint32)

    def multiply(tasks: Iterator[range]) -> None:
        for i in chain.from_iterable(tasks):
            band = slice(TILE_SIDE * i, TILE_SIDE * (i + 1))
            product[band], states[i] = _band(a2[band], columns)

    done = share(threads, Stage(m // TILE_SIDE, multiply), interrupted=interrupted)
    return Evaluation(product, states) if done == m // TILE_SIDE else None


def _band(a2: Int8, b2: Float32) -> tuple[Int32, UInt32]:
    """The noised product of 64 rows, (64, n), and its states, (n/64, 16)."""
    rows = a2.astype(np.float32)
    sums = np.zeros((TILE_SIDE, b2.shape[1]), np.int32)
    states = np.zeros((1, b2.shape[1] // TILE_SIDE, LANES), np.uint32)
    for start in range(0, rows.shape[1], TILE_SIDE):
        chunk = slice(start, start + TILE_SIDE)
        sums += (rows[:, chunk] @ b2[chunk]).astype(np.int32)
        states = reference.advanced(states, sums)
    return sums, states[0]
