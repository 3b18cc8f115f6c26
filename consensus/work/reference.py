"""The work function as docs/protocol.md (section 3) writes it: plain numpy, to read and to test the fast one by."""

from __future__ import annotations

import numpy as np

from consensus.work.noise import left_noise, right_noise, signed_permutations
from consensus.work.unit import LANES, TILE, Evaluation, Int8, Int32, UInt32


def noised(seed: bytes, a: Int8, b: Int8) -> tuple[Int8, Int8]:
    """A' = A + signed gather of `left`, B' = B + signed gather of `right`. The sums fit int8: |63| + |64| = 127."""
    m, k = a.shape
    n = b.shape[1]
    p, q = signed_permutations(seed, "p", k), signed_permutations(seed, "q", k)
    left, right = left_noise(seed, m), right_noise(seed, n)
    return a + left[:, p.index] * p.sign, b + right[q.index] * q.sign[:, None]


def evaluate(seed: bytes, a: Int8, b: Int8) -> Evaluation:
    """The true product and all transcript states, by the definition and with no recovery: A·B is multiplied apart."""
    a2, b2 = noised(seed, a, b)
    _, states = transcript(a2, b2)
    return Evaluation(a.astype(np.int32) @ b.astype(np.int32), states)


def transcript(a2: Int8, b2: Int8) -> tuple[Int32, UInt32]:
    """The product (m×n int32) of noised operands, and the state that each tile's running sums leave behind."""
    (m, k), n = a2.shape, b2.shape[1]
    sums = np.zeros((m, n), np.int32)
    states = np.zeros((m // TILE, n // TILE, LANES), np.uint32)
    for start in range(0, k, TILE):
        chunk = slice(start, start + TILE)
        sums += a2[:, chunk].astype(np.int32) @ b2[chunk].astype(np.int32)
        states = np.bitwise_left_shift(states, 13) | np.bitwise_right_shift(states, 32 - 13)
        states = states ^ fold(sums)
    return sums, states


def fold(sums: Int32) -> UInt32:
    """XOR each 64×64 tile of `sums` down to 16 words, one for each residue of the column modulo 16.

    XOR is sensitive to carries: a sum over the tile would follow from row and column sums, without the product.
    """
    m, n = sums.shape
    lanes = sums.view(np.uint32).reshape(m // TILE, TILE, n // TILE, TILE // LANES, LANES)
    folded: UInt32 = np.bitwise_xor.reduce(lanes, axis=(1, 3))
    return folded
