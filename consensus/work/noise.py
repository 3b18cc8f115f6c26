"""The noise of a unit, drawn from its seed (docs/protocol.md, section 3).

Each 64-column chunk of A gets a signed permutation of one uniform 64-column block, `left`, and each 64-row chunk of B
one of `right`: every 64×64 block of noise has full rank, so zero operands offer no shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consensus.crypto import stream
from consensus.shape import TILE_SIDE
from consensus.work.unit import Int8


@dataclass(frozen=True, slots=True)
class SignedPermutations:
    """One signed permutation of 0 … 63 for each chunk of the inner dimension, flattened.

    index: (k,) int64, entry 64c + t names the column of `left` (row of `right`) that noise goes with t of chunk c.
    sign:  (k,) int8, −1 or +1.
    """

    index: npt.NDArray[np.int64]
    sign: Int8


def signed_permutations(seed: bytes, label: str, k: int) -> SignedPermutations:
    """The permutations that label "p" (for A) or "q" (for B) draws for an inner dimension of k."""
    words = np.frombuffer(stream(seed, label, 4 * k), dtype="<u4").reshape(k // TILE_SIDE, TILE_SIDE)
    # A stable argsort by the upper 31 bits: with the position below them no two keys are equal.
    keys = (words.astype(np.uint64) >> np.uint64(1)) << np.uint64(6) | np.arange(TILE_SIDE, dtype=np.uint64)
    keys.sort(axis=1)
    index = (keys & np.uint64(TILE_SIDE - 1)).astype(np.int64).ravel()
    return SignedPermutations(index, np.where(words & 1, -1, 1).astype(np.int8).ravel())


def left_noise(seed: bytes, m: int) -> Int8:
    """`left`: m×64 int8 in [−64, 63]. Row r depends on r alone, whatever m is."""
    return _uniform(_keystream(seed, "left", m, TILE_SIDE))


def right_noise(seed: bytes, n: int) -> Int8:
    """`right`: 64×n int8 in [−64, 63]."""
    return _uniform(_keystream(seed, "right", TILE_SIDE, n))


def strip_noise(seed: bytes, n: int, i: int, j: int) -> tuple[Int8, Int8]:
    """What one tile needs of the noise: rows 64i … 64i+63 of `left`, columns 64j … 64j+63 of `right`, 64×64 each."""
    left = _keystream(seed, "left", TILE_SIDE, TILE_SIDE, TILE_SIDE * i)  # a row of `left` is a block of the keystream
    right = _keystream(seed, "right", TILE_SIDE, n)[:, TILE_SIDE * j : TILE_SIDE * (j + 1)]
    return _uniform(left), _uniform(right)


def noise_added(seed: bytes, a: Int8, b: Int8, left: Int8, right: Int8) -> tuple[Int8, Int8]:
    """A + signed gather of `left`, B + signed gather of `right`, for rows of A and columns of B and their noise.

    The sums fit int8: |63| + |64| = 127.
    """
    k = a.shape[1]
    p, q = signed_permutations(seed, "p", k), signed_permutations(seed, "q", k)
    return a + left[:, p.index] * p.sign, b + right[q.index] * q.sign[:, None]


def _keystream(seed: bytes, label: str, rows: int, columns: int, first_block: int = 0) -> npt.NDArray[np.uint8]:
    return np.frombuffer(stream(seed, label, rows * columns, first_block), np.uint8).reshape(rows, columns)


def _uniform(keystream: npt.NDArray[np.uint8]) -> Int8:
    entries = np.bitwise_and(keystream, 127, order="C").view(np.int8)
    entries -= 64
    return entries
