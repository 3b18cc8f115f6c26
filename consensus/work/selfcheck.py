"""Whether an implementation computes what the reference does: asked in each process, before anything depends on it.

A processor, a compiler or a cache of compiled code can be at fault in ways that no test elsewhere has seen, and a wrong
transcript wins blocks that nobody else accepts. So every kernel proves itself on operands drawn at random and on those
at the edges of their range, over shapes of one tile and of several, in some milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from consensus.crypto import H, stream
from consensus.shape import OPERAND_BOUND, TILE_SIDE, Shape
from consensus.work import reference
from consensus.work.noise import strip_noise
from consensus.work.unit import Evaluation, Int8, Int32, Interrupted, UInt32

_SHAPES = (Shape(64, 64, 64), Shape(128, 192, 64), Shape(64, 128, 128))
_ON_LARGER_SHAPES = ("random", "alternating")


class Checked(Protocol):
    """What is compared; see `consensus.work.engine.Implementation`."""

    def noised(self, seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]: ...

    def evaluate(self, seed: bytes, a: Int8, b: Int8, threads: int, interrupted: Interrupted) -> Evaluation: ...

    def evaluate_idle(self, seed: bytes, shape: Shape, threads: int, interrupted: Interrupted) -> Evaluation | None: ...

    def multiply(self, a: Int8, b: Int8, threads: int) -> Int32: ...

    def strip_state(self, seed: bytes, a_strip: Int8, b_strip: Int8, left: Int8, right: Int8) -> UInt32: ...


def fault_of(implementation: Checked) -> str:
    """The first thing that `implementation` gets wrong, in words; empty if it agrees with the reference throughout."""
    for name, seed, a, b in _cases():
        wrong = _first_difference(implementation, seed, a, b)
        if wrong:
            shape = Shape(a.shape[0], a.shape[1], b.shape[1])
            return f"{wrong} of {name} operands, {shape}, differs from the reference"
    return ""


def operands(shape: Shape) -> Iterator[tuple[str, Int8, Int8]]:
    """Operands at random, and at the edges: the largest, the smallest, of alternating signs, with rows of zeros."""
    m, k, n = shape
    seed = H("tw/selfcheck", bytes((m // TILE_SIDE, k // TILE_SIDE, n // TILE_SIDE)))
    drawn = np.frombuffer(stream(seed, "operands", (m + n) * k), np.uint8) % (2 * OPERAND_BOUND + 1)
    random = (drawn.astype(np.int16) - OPERAND_BOUND).astype(np.int8)
    a, b = random[: m * k].reshape(m, k), random[m * k :].reshape(k, n)
    yield "random", a, b
    high, low = np.full((m, k), OPERAND_BOUND, np.int8), np.full((k, n), -OPERAND_BOUND, np.int8)
    yield "the largest", high, -low
    yield "the smallest", -high, low
    signs = np.where(np.add.outer(np.arange(m), np.arange(k)) % 2, -1, 1).astype(np.int8)
    yield "alternating", high * signs, low
    holed = a.copy()
    holed[::2] = 0
    yield "half empty", holed, b


def _cases() -> Iterator[tuple[str, bytes, Int8, Int8]]:
    for number, shape in enumerate(_SHAPES):
        for name, a, b in operands(shape):
            if number == 0 or name in _ON_LARGER_SHAPES:
                yield name, H("tw/selfcheck", name.encode() + bytes((number,))), a, b


def _first_difference(implementation: Checked, seed: bytes, a: Int8, b: Int8) -> str:
    m, n = a.shape[0], b.shape[1]
    a2, b2 = reference.noised(seed, a, b)
    _, states = reference.transcript(a2, b2)
    product = a.astype(np.int32) @ b.astype(np.int32)
    noised = implementation.noised(seed, a, b)
    if not (np.array_equal(noised[0], a2) and np.array_equal(noised[1], b2)):
        return "the noise"
    unit = implementation.evaluate(seed, a, b, 1, None)
    if not np.array_equal(unit.product, product):
        return "the product"
    if unit.states is None or not np.array_equal(unit.states, states):
        return "the transcript"
    if not np.array_equal(implementation.multiply(a, b, 1), product):
        return "the product without noise"
    i, j = m // TILE_SIDE - 1, n // TILE_SIDE - 1
    strips = a[TILE_SIDE * i :], np.ascontiguousarray(b[:, TILE_SIDE * j :])
    if not np.array_equal(implementation.strip_state(seed, *strips, *strip_noise(seed, n, i, j)), states[i, j]):
        return "one tile's transcript"
    zero = reference.noised(seed, np.zeros_like(a), np.zeros_like(b))
    sums, folded = reference.transcript(*zero)
    idle = implementation.evaluate_idle(seed, Shape(m, a.shape[1], n), 1, None)
    if idle is None or idle.states is None or not np.array_equal(idle.states, folded):
        return "the transcript of an idle unit"
    return "" if np.array_equal(idle.product, sums) else "the product of an idle unit"
