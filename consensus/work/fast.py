"""The work function on the AVX2 kernels: buffers, bands of tile rows, threads.

Columns are packed once, rows a band of 64 at a time, so that a band stays in its core's own cache. The kernels release
the GIL and may get it back late, where other threads are busy in Python: so they take a batch at a time, some
milliseconds of work. Batches are what threads share out, and an interruption is noticed between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from consensus.crypto import stream
from consensus.shape import TILE_SIDE, Shape
from consensus.work import kernel
from consensus.work.noise import left_noise, right_noise
from consensus.work.threads import Stage, share
from consensus.work.unit import LANES, Evaluation, Int8, Int32, Interrupted, UInt32, is_zero

_Slots = npt.NDArray[np.int64]
_Work = Callable[[Iterator[range]], None]

_BATCH_MACS = 2**28
"""Multiplications in a batch of bands: two milliseconds or three of a core."""
_BATCH_ENTRIES = 2**21
"""Packed in a batch of columns, in about as long."""


def noised(seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]:
    """See `consensus.work.noised`; operands checked and C-contiguous."""
    (m, k), n = a.shape, b.shape[1]
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    left, right = left_noise(seed, m), right_noise(seed, n)
    a2, b2 = np.empty_like(a), np.take(np.concatenate([right, -right]), q, axis=0)
    rows = np.empty(TILE_SIDE * k, np.uint8)
    for i in range(m // TILE_SIDE):
        kernel.pack_noise_rows(i, 0, left, p, rows)
        quads = rows.view(np.int32).reshape(-1, k // 4, kernel.GROUP)
        band = a2[TILE_SIDE * i : TILE_SIDE * (i + 1)].view(np.int32)
        band.reshape(-1, kernel.GROUP, k // 4)[:] = quads.transpose(0, 2, 1)
    a2 += a
    b2 += b
    return a2, b2


def evaluate(seed: bytes, a: Int8, b: Int8, threads: int, interrupted: Interrupted) -> Evaluation:
    """See `consensus.work.evaluate`; operands checked and C-contiguous, not both zero."""
    (m, k), n = a.shape, b.shape[1]
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    left, right = left_noise(seed, m), right_noise(seed, n)
    columns = np.empty((n // TILE_SIDE, _wide_size(k)), np.uint8)
    product, states = np.empty((m, n), np.int32), np.zeros((m // TILE_SIDE, n // TILE_SIDE, LANES), np.uint32)
    # A zero operand makes the true product zero, which needs no recovery.
    useful = not is_zero(a) and not is_zero(b)

    def pack(tasks: Iterator[range]) -> None:
        for tiles in tasks:
            kernel.pack_wide_columns(tiles.start, tiles.stop, b.ctypes.data, right, p, q, columns)

    def multiply(tasks: Iterator[range]) -> None:
        rows = np.empty_like(columns[0])
        for bands in tasks:
            kernel.evaluate_wide_rows(
                bands.start, bands.stop, a.ctypes.data, left, p, q, useful, rows, columns, product, states
            )

    done = share(threads, *_stages(Shape(m, k, n), threads, pack, multiply), interrupted=interrupted)
    if not useful:
        product[:] = 0
    elif done < m // TILE_SIDE:
        _multiply_plain(a[TILE_SIDE * done :], b, product[TILE_SIDE * done :], threads)
    return Evaluation(product, states if done == m // TILE_SIDE else None)


def evaluate_idle(seed: bytes, shape: Shape, threads: int, interrupted: Interrupted) -> Evaluation | None:
    """See `consensus.work.evaluate_idle`; shape checked."""
    m, k, n = shape
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    # The rows take the indices of p alone, the columns those of q and both signs (64 in a slot).
    indices, slots = p & (TILE_SIDE - 1), q ^ (p & TILE_SIDE)
    left, right = left_noise(seed, m), right_noise(seed, n)
    columns, offsets = _narrow_buffers(n, k)
    product, states = np.empty((m, n), np.int32), np.zeros((m // TILE_SIDE, n // TILE_SIDE, LANES), np.uint32)

    def pack(tasks: Iterator[range]) -> None:
        for tiles in tasks:
            kernel.pack_noise_columns(tiles.start, tiles.stop, right, slots, columns, offsets)

    def multiply(tasks: Iterator[range]) -> None:
        rows = np.empty_like(columns[0])
        for bands in tasks:
            kernel.evaluate_noise_rows(bands.start, bands.stop, left, indices, rows, columns, offsets, product, states)

    done = share(threads, *_stages(Shape(m, k, n), threads, pack, multiply), interrupted=interrupted)
    return Evaluation(product, states) if done == m // TILE_SIDE else None


def multiply(a: Int8, b: Int8, threads: int) -> Int32:
    """See `consensus.work.multiply`; operands checked and C-contiguous."""
    product = np.empty((a.shape[0], b.shape[1]), np.int32)
    _multiply_plain(a, b, product, threads)
    return product


def strip_state(seed: bytes, a_strip: Int8, b_strip: Int8, left: Int8, right: Int8) -> UInt32:
    """See `consensus.work.strip_state`; strips checked and C-contiguous. left, right: (64, 64), the strips' noise."""
    k = a_strip.shape[1]
    p, q = _slots(seed, "p", k), _slots(seed, "q", k)
    rows, columns = np.empty(_wide_size(k), np.uint8), np.empty((1, _wide_size(k)), np.uint8)
    unused, states = np.empty((TILE_SIDE, TILE_SIDE), np.int32), np.zeros((1, 1, LANES), np.uint32)
    kernel.pack_wide_columns(0, 1, b_strip.ctypes.data, right, p, q, columns)
    kernel.evaluate_wide_rows(0, 1, a_strip.ctypes.data, left, p, q, False, rows, columns, unused, states)
    state: UInt32 = states[0, 0]
    return state


def _multiply_plain(a: Int8, b: Int8, product: Int32, threads: int) -> None:
    """Write A·B into `product`, with no noise and no transcript."""
    (m, k), n = a.shape, b.shape[1]
    columns, offsets = _narrow_buffers(n, k)

    def pack(tasks: Iterator[range]) -> None:
        for tiles in tasks:
            kernel.pack_plain_columns(tiles.start, tiles.stop, b.ctypes.data, n, columns, offsets)

    def multiply(tasks: Iterator[range]) -> None:
        rows = np.empty_like(columns[0])
        for bands in tasks:
            kernel.multiply_plain_rows(bands.start, bands.stop, a.ctypes.data, rows, columns, offsets, product)

    share(threads, *_stages(Shape(m, k, n), threads, pack, multiply))


def _stages(shape: Shape, threads: int, pack: _Work, multiply: _Work) -> tuple[Stage, Stage]:
    """Packing and multiplication, in batches; none so large that a thread has nothing to do."""
    m, k, n = shape
    tiles, bands = n // TILE_SIDE, m // TILE_SIDE
    return (
        Stage(tiles, pack, max(1, min(tiles // threads, _BATCH_ENTRIES // (TILE_SIDE * k)))),
        Stage(bands, multiply, max(1, min(bands // threads, _BATCH_MACS // (TILE_SIDE * k * n)))),
    )


def _wide_size(k: int) -> int:
    """Bytes that 64 packed rows or columns take, with the tail of recovery."""
    return TILE_SIDE * (k + kernel.TAIL) * kernel.WIDE_BYTES


def _narrow_buffers(n: int, k: int) -> tuple[npt.NDArray[np.uint8], Int32]:
    """Room for the packed columns, 64 at a time, and for their offsets."""
    tiles, chunks = n // TILE_SIDE, k // TILE_SIDE
    offsets = np.empty((tiles, TILE_SIDE // kernel.STRIP, chunks, LANES), np.int32)
    return np.empty((tiles, TILE_SIDE * k), np.uint8), offsets


def _slots(seed: bytes, label: str, k: int) -> _Slots:
    words = np.frombuffer(stream(seed, label, 4 * k), "<u4").astype(np.uint32)
    slots = np.empty(k, np.int64)
    kernel.draw_slots(words, slots)
    return slots
