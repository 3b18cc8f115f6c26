"""Freivalds' check of a matrix product (docs/protocol.md, section 4): A(BR) = CR for a secret random R, in O(n²).

R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977.

**A false product passes with probability at most 2⁻⁶⁰.** R has two columns of independent uniform entries from
[−2²⁹, 2²⁹), and both sides are compared modulo 2⁶⁴. Let D = C − AB ≠ 0, with d ≠ 0 an entry of some row, in column j.
|C| and |AB| are at most bound²·k < 2³¹, which is checked, so |d| < 2³². Fix all of a column r of R but r_j. If x and y
in place of r_j both make that row of D·r vanish, then d·(x − y) ≡ 0 (mod 2⁶⁴), and as |d·(x − y)| < 2³²·2³⁰ = 2⁶², it
is 0 and x = y. So at most one of 2³⁰ values lets the row pass, and two independent columns leave 2⁻⁶⁰. A true product
has D = 0 and always passes: arithmetic modulo 2⁶⁴ is a ring, so integers may wrap, in whatever order they are added.
(Modulo 2³¹ − 1 the check would be unsound: an entry of C may be wrong by exactly that.)

**The kernel** reads each matrix once. For bound ≤ 64, and n, k ≤ 4096, no 32-bit lane can overflow:

    B·R   R in two balanced limbs of 15 bits: a lane adds n/8 products, each at most 64·2¹⁴, so at most 2²⁹
    A·Y   Y = B·R in three balanced limbs of 16 bits: a lane adds k/8 products of at most 64·2¹⁵, so at most 2³⁰
    C·R   products of 32-bit entries in 64-bit lanes that wrap

Three balanced limbs hold |Y| ≤ 2⁴⁷ − 2³², and |Y| ≤ bound·n·2²⁹: enough where bound·n ≤ 2¹⁸ − 8. Entries out of bounds
may overflow a lane, but the same pass finds them, and then no sum matters. Other shapes and bounds, and processors
without AVX2, take the plain path.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from consensus.crypto import stream
from consensus.shape import MAX_DIMENSION, NOISED_BOUND, OPERAND_BOUND, Shape
from consensus.work.features import distrust, has_kernels, kernel_fault
from consensus.work.selfcheck import operands

CHALLENGE_COLUMNS = 2
CHALLENGE_LIMIT = 2**29
"""Entries of a challenge lie in [−2²⁹, 2²⁹): 2³⁰ of them."""

_KERNEL_STEP = 16
_KERNEL_REACH = 2**18 - 8
_BAND = 64
_CHECKED_SHAPE = Shape(128, 192, 64)

Challenge = npt.NDArray[np.int64]


def verify(a: Any, b: Any, c: Any, bound: int = OPERAND_BOUND, challenge: Challenge | None = None) -> bool:
    """Whether c = a·b: always true of a true product; of a false one with probability ≤ 2⁻⁶⁰.

    a: (m, k) int8, b: (k, n) int8, entries in [−bound, bound]; 64 for the noised operands of idle units.
    c: (m, n) int32, entries in [−bound²·k, bound²·k].
    Any other type, shape or entry makes the verdict False: nothing that a peer may send raises. Arrays may be
    read-only and of any memory layout; contiguous rows are fastest.

    challenge: (n, 2) int64 in [−2²⁹, 2²⁹), for tests. By default a fresh secret one, so that nobody can grind a product
    against it. Raises ValueError for a bad bound or challenge: those come from the caller, not from a peer.
    """
    if not 1 <= bound <= 127:
        raise ValueError(f"bound = {bound}: expected 1 to 127")
    if not (_is_matrix(a, np.int8) and _is_matrix(b, np.int8) and _is_matrix(c, np.int32)):
        return False
    (m, k), (b_rows, n) = a.shape, b.shape
    # Beyond 2³¹ − 1 an entry of the product would not fit int32, nor a difference the proof's 32 bits.
    if not (m and n and k) or b_rows != k or c.shape != (m, n) or bound**2 * k >= 2**31:
        return False
    if challenge is None:
        challenge = fresh_challenge(n)
    elif challenge.shape != (n, CHALLENGE_COLUMNS) or challenge.dtype != np.int64:
        raise ValueError(f"challenge: expected ({n}, {CHALLENGE_COLUMNS}) int64")
    elif challenge.min() < -CHALLENGE_LIMIT or challenge.max() >= CHALLENGE_LIMIT:
        raise ValueError("challenge: entries must lie in [−2²⁹, 2²⁹)")
    sides_fit = max(n, k) <= MAX_DIMENSION and n % _KERNEL_STEP == 0 == k % _KERNEL_STEP
    if has_kernels() and sides_fit and bound <= NOISED_BOUND and bound * n <= _KERNEL_REACH:
        return _verify_fast(a, b, c, bound, challenge)
    return _verify_plain(a, b, c, bound, challenge)


def fresh_challenge(n: int) -> Challenge:
    """(n, 2) int64, uniform in [−2²⁹, 2²⁹): the keystream of a fresh 256-bit secret from the operating system."""
    keystream = stream(secrets.token_bytes(32), "freivalds", 4 * n * CHALLENGE_COLUMNS)
    words = np.frombuffer(keystream, "<u4").reshape(n, CHALLENGE_COLUMNS)
    return (words >> 2).astype(np.int64) - CHALLENGE_LIMIT


def warm() -> str:
    """Compile the kernel or load it from numba's cache, and see that its verdicts are those of the definition.

    Returns what is wrong, in words, or "". Where something is, no kernel is used from then on, in all of this process.
    """
    if not has_kernels():
        return kernel_fault()
    try:
        fault = _fault()
    except Exception as error:  # of a compiler or a processor: anything
        fault = f"{type(error).__name__}: {error}"
    if fault:
        distrust(fault)
    return fault


def _fault() -> str:
    """The first verdict of the kernel that is wrong: on true products, and on those wrong in one entry."""
    for name, a, b in operands(_CHECKED_SHAPE):
        product = a.astype(np.int32) @ b.astype(np.int32)
        challenge = fresh_challenge(b.shape[1])
        if not _verify_fast(a, b, product, OPERAND_BOUND, challenge):
            return f"Freivalds' check refuses a true product of {name} operands"
        for row, column, change in ((0, 0, 1), (-1, -1, -1), (17, 33, 2**20)):
            wrong = product.copy()
            wrong[row, column] += change
            if _verify_fast(a, b, wrong, OPERAND_BOUND, challenge):
                return f"Freivalds' check takes a false product of {name} operands for true"
    return ""


def _is_matrix(value: Any, dtype: type[np.generic]) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype == dtype


def _verify_plain(
    a: npt.NDArray[np.int8], b: npt.NDArray[np.int8], c: npt.NDArray[np.int32], bound: int, challenge: Challenge
) -> bool:
    """The definition, in int64 that wraps, a band of rows at a time to spare memory."""
    product_bound = bound**2 * a.shape[1]
    for matrix, limit in ((a, bound), (b, bound), (c, product_bound)):
        if matrix.min() < -limit or matrix.max() > limit:
            return False
    y = _times(b, challenge)
    return np.array_equal(_times(a, y), _times(c, challenge))


def _times(matrix: npt.NDArray[Any], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    bands = (matrix[start : start + _BAND] for start in range(0, matrix.shape[0], _BAND))
    return np.concatenate([band.astype(np.int64) @ columns for band in bands])


def _verify_fast(
    a: npt.NDArray[np.int8], b: npt.NDArray[np.int8], c: npt.NDArray[np.int32], bound: int, challenge: Challenge
) -> bool:
    from consensus.proofs import freivalds_kernel as kernel  # late: numba and its cache take half a second to load

    a, b, c = _with_contiguous_rows(a), _with_contiguous_rows(b), _with_contiguous_rows(c)
    challenge = np.require(challenge, requirements=["C", "W"])
    m, k = a.shape
    limbs = np.empty((kernel.A_LIMBS, k), np.int16)
    if kernel.project_b(b.ctypes.data, b.strides[0], k, challenge, limbs) > bound:
        return False
    a_rows, c_rows = (a.ctypes.data, a.strides[0]), (c.ctypes.data, c.strides[0])
    agree: bool = kernel.rows_agree(*a_rows, *c_rows, m, limbs, challenge, bound, bound**2 * k)
    return agree


def _with_contiguous_rows(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return matrix if matrix.strides[1] == matrix.itemsize else np.ascontiguousarray(matrix)
