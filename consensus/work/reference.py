"""The work function as docs/protocol.md (section 3) writes it: plain numpy, to read and to test the fast one by."""

from __future__ import annotations

import numpy as np

from consensus.shape import TILE_SIDE
from consensus.work.noise import left_noise, noise_added, right_noise
from consensus.work.unit import LANES, Evaluation, Int8, Int32, UInt32


def noised(seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]:
    """A' = A + signed gather of `left`, B' = B + signed gather of `right`. The sums fit int8: |63| + |64| = 127."""
    return noise_added(seed, a, b, left_noise(seed, a.shape[0]), right_noise(seed, b.shape[1]))


def evaluate(seed: bytes, a: Int8, b: Int8) -> Evaluation:
    """The true product and all transcript states, by the definition and with no recovery: A·B is multiplied apart."""
    a2, b2 = noised(seed, a, b)
    _, states = transcript(a2, b2)
    return Evaluation(a.astype(np.int32) @ b.astype(np.int32), states)


def transcript(a2: Int8, b2: Int8) -> tuple[Int32, UInt32]:
    """The product (m×n int32) of noised operands, and the state that each tile's running sums leave behind."""
    (m, k), n = a2.shape, b2.shape[1]
    sums = np.zeros((m, n), np.int32)
    states = np.zeros((m // TILE_SIDE, n // TILE_SIDE, LANES), np.uint32)
    for start in range(0, k, TILE_SIDE):
        chunk = slice(start, start + TILE_SIDE)
        sums += a2[:, chunk].astype(np.int32) @ b2[chunk].astype(np.int32)
        states = advanced(states, sums)
    return sums, states


def advanced(states: UInt32, sums: Int32) -> UInt32:
    """The tiles' states after one more chunk: rotated, then XORed with a fold of the running sums.

    The fold XORs a tile down to 16 words, one for each residue of the column modulo 16. XOR is sensitive to carries: a
    sum over the tile would follow from row and column sums, without the product.
    """
    rotated = np.bitwise_left_shift(states, 13) | np.bitwise_right_shift(states, 32 - 13)
    m, n = sums.shape
    lanes = sums.view(np.uint32).reshape(m // TILE_SIDE, TILE_SIDE, n // TILE_SIDE, TILE_SIDE // LANES, LANES)
    advanced: UInt32 = rotated ^ np.bitwise_xor.reduce(lanes, axis=(1, 3))
    return advanced
