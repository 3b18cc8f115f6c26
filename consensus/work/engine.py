"""The work function's entry points: input is checked, then the fastest implementation for this machine does the rest.

That is the AVX2 kernels where the processor has it, unless `warm` finds one of them at fault, else float32 BLAS. Both
give the same bits. `TILEWORK_KERNEL=portable` in the environment forces the latter.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np

from consensus.shape import TILE_SIDE, Shape
from consensus.work import portable
from consensus.work.features import distrust, has_kernels, kernel_fault
from consensus.work.noise import strip_noise
from consensus.work.selfcheck import fault_of
from consensus.work.unit import (
    Evaluation,
    Int8,
    Int32,
    Interrupted,
    UInt32,
    UnitError,
    check_inner_dimension,
    check_operand,
    check_seed,
    check_shape,
    check_threads,
    is_zero,
)


class Implementation(Protocol):
    """What a module must offer: the functions of the same names below, for input that is checked and C-contiguous."""

    def noised(self, seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]: ...

    def evaluate(self, seed: bytes, a: Int8, b: Int8, threads: int, interrupted: Interrupted) -> Evaluation: ...

    def evaluate_idle(self, seed: bytes, shape: Shape, threads: int, interrupted: Interrupted) -> Evaluation | None: ...

    def multiply(self, a: Int8, b: Int8, threads: int) -> Int32: ...

    def strip_state(self, seed: bytes, a_strip: Int8, b_strip: Int8, left: Int8, right: Int8) -> UInt32: ...


def noised(seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]:
    """The operands with the seed's noise added.

    a: (m, k), b: (k, n), int8 in [−63, 63]. Returns A', B' of the same shapes, int8 in [−127, 127]. Raises UnitError.
    """
    a, b = _checked(seed, a, b)
    return _implementation().noised(seed, a, b)


def evaluate(seed: bytes, a: Int8, b: Int8, threads: int = 1, interrupted: Interrupted = None) -> Evaluation:
    """Evaluate a packet: its true product A·B, and the states that its tickets are made of.

    a: (m, k), b: (k, n), int8 in [−63, 63]. interrupted: asked between bands of 64 rows, from any of the threads; once
    it is true (a better block has come, the seed is stale) the states are given up, and the product, which is paid
    for, is finished in the fastest way, without noise. Raises UnitError.
    """
    a, b = _checked(seed, a, b)
    check_threads(threads)
    if not (is_zero(a) and is_zero(b)):
        return _implementation().evaluate(seed, a, b, threads, interrupted)
    # Zero operands are an idle unit in all but the product: they cost what it costs.
    shape = Shape(a.shape[0], a.shape[1], b.shape[1])
    idle = _implementation().evaluate_idle(seed, shape, threads, interrupted)
    return Evaluation(np.zeros((shape.m, shape.n), np.int32), idle.states if idle else None)


def evaluate_idle(seed: bytes, shape: Shape, threads: int = 1, interrupted: Interrupted = None) -> Evaluation | None:
    """Evaluate an idle unit: its noised product A'·B' (nobody paid for another), and the states of its tickets.

    Returns None as soon as `interrupted` is seen to be true. Raises UnitError.
    """
    check_seed(seed)
    check_shape(shape)
    check_threads(threads)
    return _implementation().evaluate_idle(seed, shape, threads, interrupted)


def multiply(a: Int8, b: Int8, threads: int = 1) -> Int32:
    """A·B exactly, (m, n) int32, for work that takes no part in the lottery.

    Operands as in `evaluate`. Raises UnitError.
    """
    a, b = check_operand("a", a), check_operand("b", b)
    check_inner_dimension(a, b)
    check_threads(threads)
    return _implementation().multiply(a, b, threads)


def tile_state(seed: bytes, a: Int8, b: Int8, i: int, j: int) -> UInt32:
    """The state of one tile, 16 uint32, in O(64·64·k). Only the two strips that it depends on are range-checked.

    a: (m, k), b: (k, n), int8 in [−63, 63]. Raises UnitError.
    """
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.ndim == b.ndim == 2):
        raise UnitError("a, b: expected 2-D int8 arrays")
    m, n = a.shape[0], b.shape[1]
    rows, columns = a[TILE_SIDE * i : TILE_SIDE * (i + 1)], b[:, TILE_SIDE * j : TILE_SIDE * (j + 1)]
    return strip_state(seed, rows, columns, m, n, i, j)


def strip_state(seed: bytes, a_strip: Int8, b_strip: Int8, m: int, n: int, i: int, j: int) -> UInt32:
    """`tile_state` for a verifier that holds only the strips of tile (i, j) of an m×n product.

    a_strip: (64, k), rows 64i … 64i+63 of A. b_strip: (k, 64), columns 64j … 64j+63 of B. Raises UnitError.
    """
    check_seed(seed)
    for name, size, index in (("m", m, i), ("n", n, j)):
        if not 0 <= index < size // TILE_SIDE:
            raise UnitError(f"tile ({i}, {j}): no such tile where {name} = {size}")
    a_strip, b_strip = check_operand("a_strip", a_strip), check_operand("b_strip", b_strip)
    check_inner_dimension(a_strip, b_strip)
    check_shape(Shape(m, a_strip.shape[1], n))
    if a_strip.shape[0] != TILE_SIDE or b_strip.shape[1] != TILE_SIDE:
        raise UnitError(
            f"strips: expected {TILE_SIDE} rows and {TILE_SIDE} columns, got {a_strip.shape[0]} and {b_strip.shape[1]}"
        )
    left, right = strip_noise(seed, n, i, j)
    return _implementation().strip_state(seed, a_strip, b_strip, left, right)


def warm() -> str:
    """Compile every kernel, or load it from numba's cache (a few seconds the first time, well under one after that),
    and see that each computes what the reference does.

    Returns what is wrong, in words, or "". Where something is, the portable path is used from then on, in all of this
    process; whoever calls says so, loudly.
    """
    if not has_kernels():
        return kernel_fault()
    try:
        fault = fault_of(_implementation())
    except Exception as error:  # of a compiler or a processor: anything
        fault = f"{type(error).__name__}: {error}"
    if fault:
        distrust(fault)
    return fault


def _checked(seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]:
    check_seed(seed)
    a, b = check_operand("a", a), check_operand("b", b)
    check_inner_dimension(a, b)
    return a, b


def _implementation() -> Implementation:
    """The fastest that runs here."""
    return _kernels() if has_kernels() else portable


@cache
def _kernels() -> Implementation:
    """Loaded late: numba and the cached kernels take half a second."""
    from consensus.work import fast

    return fast
