"""Merkle trees over lists (docs/protocol.md, section 2).

An odd node is promoted, never paired with itself, so that no two lists share a root (CVE-2012-2459). The root is the
hash of the number of leaves and the top, so that neither an inner node nor a promoted leaf passes for another tree's.
"""

from __future__ import annotations

from collections.abc import Sequence

from consensus.codec import ZERO_HASH
from consensus.crypto import H


def leaf_hash(data: bytes | memoryview) -> bytes:
    """Hash of one leaf's full bytes."""
    return H("tw/leaf", data)


def root(leaves: Sequence[bytes]) -> bytes:
    """H("tw/root", u32 count ‖ top) over leaf hashes; 32 zero bytes for an empty list."""
    if not leaves:
        return ZERO_HASH
    level = list(leaves)
    while len(level) > 1:
        level = _parents(level)
    return _bound(len(leaves), level[0])


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
    width = count
    while width > 1:
        if index ^ 1 < width:
            sibling = next(remaining, None)
            if sibling is None or len(sibling) != 32:
                return False
            node = H("tw/node", sibling + node if index & 1 else node + sibling)
        index >>= 1
        width = (width + 1) >> 1
    return next(remaining, None) is None and _bound(count, node) == root_hash


def _bound(count: int, top: bytes) -> bytes:
    """The top of a tree, bound to the number of its leaves."""
    return H("tw/root", count.to_bytes(4, "little") + top)


def _parents(level: list[bytes]) -> list[bytes]:
    paired = [H("tw/node", level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return paired + level[len(level) & ~1 :]
