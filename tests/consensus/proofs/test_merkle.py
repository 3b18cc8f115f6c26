"""Merkle trees: promotion, counts and forged paths."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.proofs import merkle

LEAVES = [merkle.leaf_hash(bytes([n])) for n in range(9)]

leaf_lists = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20)


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.blake2b(left + right, digest_size=32, person=b"tw/node").digest()


def bound(count: int, top: bytes) -> bytes:
    return hashlib.blake2b(bytes([count, 0, 0, 0]) + top, digest_size=32, person=b"tw/root").digest()


def test_small_trees_by_hand() -> None:
    a, b, c, d, e = LEAVES[:5]
    assert a == hashlib.blake2b(b"\x00", digest_size=32, person=b"tw/leaf").digest()
    assert merkle.root([]) == bytes(32)
    assert merkle.root([a]) == bound(1, a)
    assert merkle.root([a, b]) == bound(2, node(a, b))
    assert merkle.root([a, b, c]) == bound(3, node(node(a, b), c))
    assert merkle.root([a, b, c, d, e]) == bound(5, node(node(node(a, b), node(c, d)), e))


def test_an_odd_node_is_promoted_not_paired_with_itself() -> None:
    """CVE-2012-2459: where it is doubled, [a, b, c] and [a, b, c, c] share a root."""
    a, b, c = LEAVES[:3]
    assert merkle.root([a, b, c]) != merkle.root([a, b, c, c])
    assert merkle.root(LEAVES[:6]) != merkle.root([*LEAVES[:6], *LEAVES[4:6]])


@given(leaf_lists, leaf_lists)
def test_lists_of_one_length_differ_in_their_roots(first: list[bytes], second: list[bytes]) -> None:
    second = (second * 20)[: len(first)]
    assert (merkle.root(first) == merkle.root(second)) == (first == second)


@given(leaf_lists, st.data())
def test_paths_prove_each_leaf_and_nothing_else(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, path = merkle.root(leaves), merkle.path(leaves, index)
    assert merkle.verify(root, len(leaves), index, leaves[index], path)
    assert not merkle.verify(root, len(leaves), index, merkle.leaf_hash(b"forged"), path)
    other = data.draw(st.integers(-1, len(leaves)))
    if other != index and not (0 <= other < len(leaves) and leaves[other] == leaves[index]):
        assert not merkle.verify(root, len(leaves), other, leaves[index], path)


@pytest.mark.parametrize("index", range(9))
def test_forged_paths_fail(index: int) -> None:
    root, path = merkle.root(LEAVES), merkle.path(LEAVES, index)
    assert not merkle.verify(root, 9, index, LEAVES[index], path[:-1])
    assert not merkle.verify(root, 9, index, LEAVES[index], (*path, bytes(32)))
    assert not merkle.verify(root, 9, index, LEAVES[index], (path[0][:31], *path[1:]))
    assert not merkle.verify(root, 9, index, LEAVES[index], (b"", *path))
    for level in range(len(path)):
        forged = list(path)
        forged[level] = bytes(32)
        assert not merkle.verify(root, 9, index, LEAVES[index], forged)


def test_an_inner_node_passes_for_no_leaf() -> None:
    """The root covers the count, which fixes the depth: a path cannot stop a level early, whatever count it claims."""
    a, b, c, d = LEAVES[:4]
    root = merkle.root([a, b, c, d])
    assert not merkle.verify(root, 4, 0, node(a, b), (node(c, d),))
    assert not merkle.verify(root, 2, 0, node(a, b), (node(c, d),))


def test_a_promoted_leaf_poses_for_no_pair() -> None:
    """The path of the third of three leaves would fit a tree of four whose last pair it stands for."""
    a, b, c = LEAVES[:3]
    root, path = merkle.root([a, b, c]), merkle.path([a, b, c], 0)
    assert merkle.verify(root, 3, 0, a, path)
    assert not merkle.verify(root, 4, 0, a, path)


def test_the_count_bounds_the_index() -> None:
    root = merkle.root(LEAVES)
    assert not merkle.verify(root, 8, 8, LEAVES[8], merkle.path(LEAVES, 8))
    assert not merkle.verify(bytes(32), 0, 0, bytes(32), ())
    with pytest.raises(IndexError):
        merkle.path(LEAVES, 9)
    with pytest.raises(IndexError):
        merkle.path(LEAVES, -1)
