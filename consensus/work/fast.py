"""The work function on the AVX2 kernels: buffers, bands of tile rows, threads.

Columns are packed once, rows a band of 64 at a time, so that a band stays in its core's own cache. The kernels release
the GIL: bands are what threads share out, and an interruption is noticed between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from consensus.work import kernel
from consensus.work.noise import SignedPermutations, left_noise, right_noise, signed_permutations
from consensus.work.threads import share
from consensus.work.unit import LANES, TILE, Evaluation, Int8, Int32, Interrupted, UInt32

_Slots = npt.NDArray[np.int64]


def evaluate(seed: bytes, a: Int8, b: Int8, threads: int, interrupted: Interrupted) -> Evaluation:
    """See `consensus.work.evaluate`; operands checked and C-contiguous, not both zero."""
    (m, k), n = a.shape, b.shape[1]
    p, q = _slots(signed_permutations(seed, "p", k)), _slots(signed_permutations(seed, "q", k))
    left, right = left_noise(seed, m), right_noise(seed, n)
    columns = np.empty((n // TILE, TILE * (k + kernel.TAIL) * kernel.WIDE_BYTES), np.uint8)
    # A zero operand makes the true product zero, which needs no recovery.
    useful = bool(a.any() and b.any())
    product = (np.empty if useful else np.zeros)((m, n), np.int32)
    states = np.zeros((m // TILE, n // TILE, LANES), np.uint32)

    def pack(numbers: Iterator[int]) -> None:
        tables = np.empty((2, TILE // kernel.STRIP, kernel.SLOTS, kernel.STRIP), np.int16)
        for j in numbers:
            strip = slice(TILE * j, TILE * (j + 1))
            kernel.pack_wide_columns(b.ctypes.data + TILE * j, n, right[:, strip], p, q, tables, columns[j])

    def multiply(numbers: Iterator[int]) -> None:
        tables = np.empty((4, kernel.SLOTS * kernel.GROUP), np.int32)
        rows, folds = np.empty_like(columns[0]), np.zeros(k // TILE * LANES, np.uint32)
        unused = None if useful else np.empty((TILE, n), np.int32)
        for i in numbers:
            band = slice(TILE * i, TILE * (i + 1))
            kernel.pack_wide_rows(a.ctypes.data + TILE * i * k, k, left[band], p, q, tables, rows)
            out = product[band] if unused is None else unused
            kernel.multiply_wide(rows, columns, useful, folds, out, states[i])

    share(threads, n // TILE, pack)
    done = share(threads, m // TILE, multiply, interrupted)
    if done == m // TILE:
        return Evaluation(product, states)
    if useful:
        _multiply_plain(a[TILE * done :], b, product[TILE * done :], threads)
    return Evaluation(product, None)


def evaluate_idle(seed: bytes, m: int, n: int, k: int, threads: int, interrupted: Interrupted) -> Evaluation | None:
    """See `consensus.work.evaluate_idle`; shape checked."""
    p, q = signed_permutations(seed, "p", k), signed_permutations(seed, "q", k)
    # P·Q is one signed gather: the rows take the indices of p, the columns take q's and both signs.
    slots = _slots(SignedPermutations(q.index, p.sign * q.sign))
    left, right = left_noise(seed, m), right_noise(seed, n)
    columns, offsets = _narrow_buffers(n, k)
    product = np.empty((m, n), np.int32)
    states = np.zeros((m // TILE, n // TILE, LANES), np.uint32)

    def pack(numbers: Iterator[int]) -> None:
        table = np.empty((kernel.SLOTS, kernel.STRIP), np.int8)
        for j in numbers:
            strip = slice(TILE * j, TILE * (j + 1))
            kernel.pack_idle_columns(right[:, strip], slots, table, columns[j], offsets[j])

    def multiply(numbers: Iterator[int]) -> None:
        table = np.empty((TILE, 16), np.uint8)
        rows, folds = np.empty_like(columns[0]), np.zeros(k // TILE * LANES, np.uint32)
        for i in numbers:
            band = slice(TILE * i, TILE * (i + 1))
            kernel.pack_idle_rows(left[band], p.index, table, rows)
            kernel.multiply_narrow(rows, columns, offsets, folds, product[band], states[i])

    share(threads, n // TILE, pack)
    done = share(threads, m // TILE, multiply, interrupted)
    return Evaluation(product, states) if done == m // TILE else None


def multiply(a: Int8, b: Int8, threads: int) -> Int32:
    """See `consensus.work.multiply`; operands checked and C-contiguous."""
    product = np.empty((a.shape[0], b.shape[1]), np.int32)
    _multiply_plain(a, b, product, threads)
    return product


def strip_state(seed: bytes, a_strip: Int8, b_strip: Int8, left: Int8, right: Int8) -> UInt32:
    """See `consensus.work.strip_state`; strips checked and C-contiguous. left, right: (64, 64), the strips' noise."""
    k = a_strip.shape[1]
    p, q = _slots(signed_permutations(seed, "p", k)), _slots(signed_permutations(seed, "q", k))
    size = TILE * (k + kernel.TAIL) * kernel.WIDE_BYTES
    rows, columns = np.empty(size, np.uint8), np.empty(size, np.uint8)
    row_tables = np.empty((4, kernel.SLOTS * kernel.GROUP), np.int32)
    column_tables = np.empty((2, TILE // kernel.STRIP, kernel.SLOTS, kernel.STRIP), np.int16)
    kernel.pack_wide_rows(a_strip.ctypes.data, k, left, p, q, row_tables, rows)
    kernel.pack_wide_columns(b_strip.ctypes.data, TILE, right, p, q, column_tables, columns)
    folds, unused = np.zeros(k // TILE * LANES, np.uint32), np.empty((TILE, TILE), np.int32)
    state = np.zeros((1, LANES), np.uint32)
    kernel.multiply_wide(rows, columns[None], False, folds, unused, state)
    return state[0]


def _multiply_plain(a: Int8, b: Int8, product: Int32, threads: int) -> None:
    """Write A·B into `product`, with no noise and no transcript."""
    (m, k), n = a.shape, b.shape[1]
    columns, offsets = _narrow_buffers(n, k)

    def pack(numbers: Iterator[int]) -> None:
        for j in numbers:
            kernel.pack_plain_columns(b.ctypes.data + TILE * j, n, k, columns[j], offsets[j])

    def multiply(numbers: Iterator[int]) -> None:
        rows, folds = np.empty_like(columns[0]), np.zeros(k // TILE * LANES, np.uint32)
        unused = np.zeros((n // TILE, LANES), np.uint32)
        for i in numbers:
            band = slice(TILE * i, TILE * (i + 1))
            kernel.pack_plain_rows(a.ctypes.data + TILE * i * k, k, k, rows)
            kernel.multiply_narrow(rows, columns, offsets, folds, product[band], unused)

    share(threads, n // TILE, pack)
    share(threads, m // TILE, multiply)


def _narrow_buffers(n: int, k: int) -> tuple[npt.NDArray[np.uint8], Int32]:
    """Room for the packed columns, 64 at a time, and for their offsets."""
    strips = TILE // kernel.STRIP
    return np.empty((n // TILE, TILE * k), np.uint8), np.empty((n // TILE, strips, k // TILE, LANES), np.int32)


def _slots(permutations: SignedPermutations) -> _Slots:
    return np.where(permutations.sign < 0, permutations.index + TILE, permutations.index)
