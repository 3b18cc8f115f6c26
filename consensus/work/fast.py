"""The work function on the AVX2 kernels: buffers, bands of tile rows, threads.

Columns are packed once, rows a band of 64 at a time, so that a band stays in its core's own cache. The kernels release
the GIL: bands are what threads share out, and an interruption is noticed between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from consensus.crypto import stream
from consensus.work import kernel
from consensus.work.noise import left_noise, right_noise
from consensus.work.threads import share
from consensus.work.unit import LANES, TILE, Evaluation, Int8, Int32, Interrupted, UInt32

_Slots = npt.NDArray[np.int64]


def noised(seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]:
    """See `consensus.work.noised`; operands checked and C-contiguous."""
    (m, k), n = a.shape, b.shape[1]
    left, right = left_noise(seed, m), right_noise(seed, n)
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    a2, b2 = np.empty_like(a), np.take(np.concatenate([right, -right]), q, axis=0)
    table, packed = np.empty((kernel.SLOTS, 16), np.int8), np.empty(TILE * k, np.uint8)
    for start in range(0, m, TILE):
        band = slice(start, start + TILE)
        kernel.pack_noise_rows(left[band], 0, p, table, packed)
        quads = packed.view(np.int32).reshape(-1, k // 4, kernel.GROUP)
        a2[band].view(np.int32).reshape(-1, kernel.GROUP, k // 4)[:] = quads.transpose(0, 2, 1)
    a2 += a
    b2 += b
    return a2, b2


def evaluate(seed: bytes, a: Int8, b: Int8, threads: int, interrupted: Interrupted) -> Evaluation:
    """See `consensus.work.evaluate`; operands checked and C-contiguous, not both zero."""
    (m, k), n = a.shape, b.shape[1]
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    left, right = left_noise(seed, m), right_noise(seed, n)
    columns = np.empty((n // TILE, TILE * (k + kernel.TAIL) * kernel.WIDE_BYTES), np.uint8)
    # A zero operand makes the true product zero, which needs no recovery.
    useful = not _is_zero(a) and not _is_zero(b)
    product = (np.empty if useful else np.zeros)((m, n), np.int32)
    states = np.zeros((m // TILE, n // TILE, LANES), np.uint32)

    def pack(numbers: Iterator[int]) -> None:
        tables = np.empty((2, TILE // kernel.STRIP, kernel.SLOTS, kernel.STRIP), np.int16)
        for j in numbers:
            kernel.pack_wide_columns(right, TILE * j, b.ctypes.data, p, q, tables, columns[j])

    def multiply(numbers: Iterator[int]) -> None:
        tables = np.empty((4, kernel.SLOTS, 2 * kernel.GROUP), np.int16)
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
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    # The rows take the indices of p alone, the columns those of q and both signs (64 in a slot).
    indices, slots = p & (TILE - 1), q ^ (p & TILE)
    left, right = left_noise(seed, m), right_noise(seed, n)
    columns, offsets = _narrow_buffers(n, k)
    product = np.empty((m, n), np.int32)
    states = np.zeros((m // TILE, n // TILE, LANES), np.uint32)

    def pack(numbers: Iterator[int]) -> None:
        table = np.empty((kernel.SLOTS, kernel.STRIP), np.int8)
        for j in numbers:
            kernel.pack_noise_columns(right, TILE * j, slots, table, columns[j], offsets[j])

    def multiply(numbers: Iterator[int]) -> None:
        table = np.empty((kernel.SLOTS, 16), np.int8)
        rows, folds = np.empty_like(columns[0]), np.zeros(k // TILE * LANES, np.uint32)
        for i in numbers:
            band = slice(TILE * i, TILE * (i + 1))
            kernel.pack_noise_rows(left[band], kernel.IDLE_BIAS, indices, table, rows)
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
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    size = TILE * (k + kernel.TAIL) * kernel.WIDE_BYTES
    rows, columns = np.empty(size, np.uint8), np.empty(size, np.uint8)
    row_tables = np.empty((4, kernel.SLOTS, 2 * kernel.GROUP), np.int16)
    column_tables = np.empty((2, TILE // kernel.STRIP, kernel.SLOTS, kernel.STRIP), np.int16)
    kernel.pack_wide_rows(a_strip.ctypes.data, k, left, p, q, row_tables, rows)
    kernel.pack_wide_columns(right, 0, b_strip.ctypes.data, p, q, column_tables, columns)
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


def _slots(seed: bytes, label: str, k: int) -> _Slots:
    words = np.frombuffer(stream(seed, label, 4 * k), "<u4").astype(np.uint32)
    slots = np.empty(k, np.int64)
    kernel.draw_slots(words, slots)
    return slots


def _is_zero(matrix: Int8) -> bool:
    return not matrix[0].any() and not matrix.any()  # the first row nearly always decides
