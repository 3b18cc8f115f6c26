"""Matrices as content-addressed tensors (docs/protocol.md, section 8).

A tensor is cut into strips: 64 rows each, or 64 columns each for a right operand, so that the two strips under a tile
prove its operands alone. The commitment covers dtype, side, shape and the number of strips beside their Merkle root.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from consensus.codec import Hash, Value, encode
from consensus.crypto import H
from consensus.proofs import merkle
from consensus.shape import OPERAND_BOUND, TILE_SIDE, OfShape, Sided, is_side

Matrix: TypeAlias = npt.NDArray[Any]
"""int8 or int32; which of them, the spec says."""

INT8: Literal[0] = 0
INT32: Literal[1] = 1
ROWS: Literal[0] = 0
COLUMNS: Literal[1] = 1

_DTYPES: dict[int, np.dtype[Any]] = {INT8: np.dtype("<i1"), INT32: np.dtype("<i4")}


class TensorSpec(Value, frozen=True):
    """What a commitment commits to. `leaves` is the number of strips, `root` the Merkle root over their bytes."""

    dtype: Literal[0, 1]
    side: Literal[0, 1]
    rows: int
    cols: int
    leaves: int
    root: Hash

    @property
    def commitment(self) -> bytes:
        """H("tw/tensor", [dtype, side, rows, cols, leaves, root])."""
        return H("tw/tensor", encode(self))

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.cols * _DTYPES[self.dtype].itemsize

    @property
    def strip_size(self) -> int:
        """Bytes of one strip."""
        return self.size // self.leaves

    def is_well_formed(self) -> bool:
        """Whether the shape is one that a unit can have and the number of strips follows from it."""
        along = self.rows if self.side == ROWS else self.cols
        return is_side(self.rows) and is_side(self.cols) and self.leaves == along // TILE_SIDE


def left_spec(rows: int, cols: int, root: bytes) -> TensorSpec:
    """Spec of a left operand A (int8, row strips)."""
    return TensorSpec(INT8, ROWS, rows, cols, rows // TILE_SIDE, root)


def right_spec(rows: int, cols: int, root: bytes) -> TensorSpec:
    """Spec of a right operand B (int8, column strips)."""
    return TensorSpec(INT8, COLUMNS, rows, cols, cols // TILE_SIDE, root)


def product_spec(rows: int, cols: int, root: bytes) -> TensorSpec:
    """Spec of a product C (int32, row strips)."""
    return TensorSpec(INT32, ROWS, rows, cols, rows // TILE_SIDE, root)


class Rooted(Sided, Protocol):
    """A product whose operands are committed to by the Merkle roots of their strips."""

    @property
    def a_root(self) -> bytes: ...
    @property
    def b_root(self) -> bytes: ...


class OfOperands(OfShape):
    """Mixin of records that hold the sides of a product and its operands' roots."""

    __slots__ = ()

    @property
    def left(self: Rooted) -> TensorSpec:
        """Spec of the left operand."""
        return left_spec(self.m, self.k, self.a_root)

    @property
    def right(self: Rooted) -> TensorSpec:
        """Spec of the right operand."""
        return right_spec(self.k, self.n, self.b_root)


class Tensor:
    """A matrix with its spec and strips. Immutable: the array is made read-only.

    Attributes:
        spec: the committed description.
        matrix: (rows, cols) int8 or int32, C order, not writeable.
        leaves: the strips' leaf hashes, in order.
    """

    __slots__ = ("commitment", "leaves", "matrix", "spec")

    def __init__(self, matrix: Matrix, side: Literal[0, 1] = ROWS) -> None:
        """Commit to `matrix`: 2-D int8 or int32, both dimensions multiples of 64 in 64…4096.

        Hashes every byte (about 1.3 ms a MiB): not for an event loop.

        Raises:
            ValueError: wrong dtype or shape.
        """
        dtype = INT8 if matrix.dtype == np.int8 else INT32
        if matrix.ndim != 2 or matrix.dtype not in (np.int8, np.int32):
            raise ValueError(f"a tensor is a 2-D int8 or int32 matrix, got {matrix.ndim}-D {matrix.dtype}")
        rows, cols = matrix.shape
        # Whoever can still write to the array must not change what was committed to.
        self.matrix: Matrix = np.array(matrix, order="C", copy=True if matrix.flags.writeable else None)
        self.matrix.flags.writeable = False
        count = (rows if side == ROWS else cols) // TILE_SIDE
        self.spec = TensorSpec(dtype, side, rows, cols, count, bytes(32))
        if not self.spec.is_well_formed():
            raise ValueError(f"both dimensions must be multiples of 64 in 64…4096, got {rows}×{cols}")
        self.leaves = tuple(merkle.leaf_hash(self.strip(i)) for i in range(count))
        self.spec = TensorSpec(dtype, side, rows, cols, count, merkle.root(self.leaves))
        self.commitment = self.spec.commitment

    def strip(self, index: int) -> bytes:
        """Bytes of strip `index`: little-endian, row-major."""
        part = slice(index * TILE_SIDE, (index + 1) * TILE_SIDE)
        strip = self.matrix[part] if self.spec.side == ROWS else self.matrix[:, part]
        return strip.astype(_DTYPES[self.spec.dtype], copy=False).tobytes()

    def path(self, index: int) -> tuple[bytes, ...]:
        """Merkle path of strip `index`."""
        return merkle.path(self.leaves, index)


def strip_matrix(spec: TensorSpec, data: bytes) -> Matrix:
    """One strip's bytes as a matrix: (64, cols) of rows, (rows, 64) of columns; ValueError on a wrong size."""
    if len(data) != spec.strip_size:
        raise ValueError(f"a strip of {len(data)} bytes, expected {spec.strip_size}")
    shape = (TILE_SIDE, spec.cols) if spec.side == ROWS else (spec.rows, TILE_SIDE)
    return np.frombuffer(data, _DTYPES[spec.dtype]).reshape(shape)


def verify_strip(spec: TensorSpec, index: int, data: bytes, path: tuple[bytes, ...]) -> bool:
    """Whether `data` is strip `index` of the tensor described by `spec`."""
    return len(data) == spec.strip_size and merkle.verify(spec.root, spec.leaves, index, merkle.leaf_hash(data), path)


def assemble(spec: TensorSpec, strips: list[bytes]) -> Tensor:
    """The tensor of all its strips, in order.

    Raises:
        ValueError: a missing or wrong strip; the result's commitment differs from the spec's.
    """
    if not spec.is_well_formed() or len(strips) != spec.leaves:
        raise ValueError(f"{len(strips)} strips, expected {spec.leaves}")
    parts = [strip_matrix(spec, data) for data in strips]
    tensor = Tensor(np.concatenate(parts, axis=spec.side), spec.side)
    if tensor.spec != spec:
        raise ValueError("the strips do not match their commitment")
    return tensor


def in_operand_range(matrix: Matrix, bound: int = OPERAND_BOUND) -> bool:
    """Whether every entry lies in [−bound, bound]."""
    return bool(matrix.min() >= -bound and matrix.max() <= bound)
