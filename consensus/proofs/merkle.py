"""Merkle trees over lists (docs/protocol.md, section 2).

An odd node is promoted, never paired with itself, so that no two lists share a root (CVE-2012-2459); whoever commits
to a root commits to the number of leaves beside it, so that no inner node passes for a leaf.
"""

from __future__ import annotations

from collections.abc import Sequence

from consensus.codec import ZERO_HASH
from consensus.crypto import H


def leaf_hash(data: bytes | memoryview) -> bytes:
    """Hash of one leaf's full bytes."""
    return H("tw/leaf", data)


def root(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes; 32 zero bytes for an empty list."""
    if not leaves:
        return ZERO_HASH
    level = list(leaves)
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The sibling hashes from leaf `index` up to the root; promoted levels contribute none."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    siblings = []
    level = list(leaves)
    while len(level) > 1:
        if index ^ 1 < len(level):
            siblings.append(level[index ^ 1])
        level = _parents(level)
        index >>= 1
    return tuple(siblings)


def verify(root_hash: bytes, count: int, index: int, leaf: bytes, siblings: Sequence[bytes]) -> bool:
    """Whether the leaf hash `leaf` is leaf `index` of the tree of `count` leaves with this root."""
    if not 0 <= index < count:
        return False
    remaining = iter(siblings)
    node = leaf
    while count > 1:
        if index ^ 1 < count:
            sibling = next(remaining, None)
            if sibling is None or len(sibling) != 32:
                return False
            node = H("tw/node", sibling + node if index & 1 else node + sibling)
        index >>= 1
        count = (count + 1) >> 1
    return node == root_hash and next(remaining, None) is None


def _parents(level: list[bytes]) -> list[bytes]:
    paired = [H("tw/node", level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return paired + level[len(level) & ~1 :]
