"""What a unit of work is: its shape, the range of its operands, and the outcome of evaluating it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consensus.shape import MAX_DIMENSION, NOISED_BOUND, OPERAND_BOUND, TILE_SIDE, Shape, is_side

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]
Interrupted = Callable[[], bool] | None
"""Asked between bands of tile rows; once true, the search for tickets ends."""

LANES = 16
"""32-bit words in a tile's transcript state."""
SEED_SIZE = 32

# Every sum over the inner dimension is at most 127² · 4096 < 2²⁶·⁰: int32 holds it with room to spare.
assert (OPERAND_BOUND + NOISED_BOUND) ** 2 * MAX_DIMENSION < 2**31


class UnitError(ValueError):
    """A seed, an operand, a shape or a tile index that no unit of work can have."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The outcome of one unit.

    product: (m, n) int32, C-contiguous. The true product A·B of a packet; of an idle unit the noised one, A'·B'.
    states:  (m/64, n/64, 16) uint32, the final transcript state of every tile; None if the search for
             tickets was given up because it was interrupted (the product is complete all the same).
    """

    product: Int32
    states: UInt32 | None


def check_seed(seed: bytes) -> None:
    """Raise UnitError unless `seed` is 32 bytes."""
    if not isinstance(seed, bytes) or len(seed) != SEED_SIZE:
        got = f"{len(seed)} bytes" if isinstance(seed, bytes) else type(seed).__name__
        raise UnitError(f"seed: expected {SEED_SIZE} bytes, got {got}")


def check_dimension(name: str, size: int) -> None:
    """Raise UnitError unless `size` is a multiple of 64 in [64, 4096]."""
    if not is_side(size):
        raise UnitError(
            f"{name} = {size}: expected a multiple of {TILE_SIDE} from {TILE_SIDE} to {MAX_DIMENSION} (pad with zeros)"
        )


def check_tile_index(i: int, j: int) -> None:
    """Raise UnitError unless some unit has a tile (i, j)."""
    if not (0 <= i < MAX_DIMENSION // TILE_SIDE and 0 <= j < MAX_DIMENSION // TILE_SIDE):
        raise UnitError(f"no unit has a tile ({i}, {j}): indices run from 0 to {MAX_DIMENSION // TILE_SIDE - 1}")


def check_shape(shape: Shape) -> None:
    """Raise UnitError unless a unit can have this shape."""
    for name, size in shape._asdict().items():
        check_dimension(name, size)


def check_operand(name: str, matrix: Any) -> Int8:
    """Return `matrix`, C-contiguous. Raise UnitError unless it is 2-D int8 with entries in [−63, 63]."""
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype != np.int8:
        got = f"{matrix.ndim}-D {matrix.dtype}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
        raise UnitError(f"{name}: expected a 2-D int8 array, got {got}")
    for size in matrix.shape:
        check_dimension(f"{name}: a dimension", size)
    operand: Int8 = np.ascontiguousarray(matrix)
    low, high = int(operand.min()), int(operand.max())
    if low < -OPERAND_BOUND or high > OPERAND_BOUND:
        raise UnitError(f"{name}: entries must lie in [−{OPERAND_BOUND}, {OPERAND_BOUND}], got [{low}, {high}]")
    return operand


def check_inner_dimension(a: Int8, b: Int8) -> None:
    """Raise UnitError unless a has as many columns as b has rows."""
    if a.shape[1] != b.shape[0]:
        raise UnitError(f"inner dimensions differ: a is {a.shape[0]}×{a.shape[1]}, b is {b.shape[0]}×{b.shape[1]}")


def check_threads(threads: int) -> None:
    """Raise UnitError unless there is at least one thread."""
    if threads < 1:
        raise UnitError(f"threads = {threads}: expected at least 1")


def is_zero(operand: Int8) -> bool:
    """Whether all entries are 0."""
    return not operand[0].any() and not operand.any()  # the first row nearly always decides
