"""The shape of a product: which a unit of work can have, how large its entries are, and what it costs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

TILE_SIDE = 64
"""Side of a tile of the product, depth of a chunk of the inner side, and rank of the noise: a noise of lower rank would
leave a shortcut."""

OPERAND_BOUND = 63
"""Largest magnitude of an operand's entry: with noise in [−64, 64] the sum fits int8 (|A'|, |B'| ≤ 127)."""
NOISED_BOUND = 64
"""Largest magnitude in the noised operands of an idle unit, which are noise and nothing else."""
MAX_DIMENSION = 4096
MAX_UNIT_BYTES = 32 << 20
LEAST_WEIGHT = 1 << 22


class Shape(NamedTuple):
    """An (m×k)·(k×n) product: the left operand's rows, the inner side, the right operand's columns."""

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.m}×{self.k} times {self.k}×{self.n}"

    def is_unit(self) -> bool:
        """Whether every side is a multiple of 64 in 64…4096."""
        return all(is_side(size) for size in self)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a unit: m·n·(k + 128), the recovery of the product included."""
        return self.m * self.n * (self.k + 2 * TILE_SIDE)

    @property
    def weight(self) -> int:
        """What a packet is priced by: max(2²², m·n·(k + 128) + 64·k·(m + n)).

        Besides the multiplications a unit costs the noise of its operands, which weighs in thin shapes, and what does
        not depend on its size. The fee that just pays for a packet varies 2.2-fold per weight over thirteen shapes, and
        11-fold per multiplication.
        """
        return max(LEAST_WEIGHT, self.macs + TILE_SIDE * self.k * (self.m + self.n))

    @property
    def product_bytes(self) -> int:
        """Bytes of the int32 product."""
        return 4 * self.m * self.n

    @property
    def unit_bytes(self) -> int:
        """Bytes that a unit moves: int8 operands and the int32 product."""
        return self.m * self.k + self.k * self.n + self.product_bytes


def is_side(size: int) -> bool:
    """Whether a matrix that takes part in a unit can have a side of `size`: a multiple of 64 in 64…4096."""
    return TILE_SIDE <= size <= MAX_DIMENSION and size % TILE_SIDE == 0


class Sided(Protocol):
    """The three sides of a product: (m×k)·(k×n)."""

    @property
    def m(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...


class OfShape:
    """Mixin of records that hold the three sides."""

    __slots__ = ()

    @property
    def shape(self: Sided) -> Shape:
        """The product's shape."""
        return Shape(self.m, self.k, self.n)
