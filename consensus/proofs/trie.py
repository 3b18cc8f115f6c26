"""The authenticated state: a 16-ary Merkle trie over hashed keys (docs/protocol.md, section 7).

The trie commits to a flat map from keys to values and is stored beside it, node by node, under the node's *path*: one
byte per nibble (0 … 15) of the key hash, b"" for the root. Storing by path leaves no garbage and needs no reference
counts, and undoing a block is writing back the previous bytes of the paths it touched.

    key hash     H("tw/key", key), read as 64 nibbles, high nibble first
    leaf         0x00 ‖ key hash (32) ‖ H("tw/state-value", value) (32)       hash: H("tw/state-leaf", node[1:])
    branch       0x01 ‖ bitmap (u16, big-endian; bit n: nibble n is there)    hash: H("tw/state-node", node[1:])
                      ‖ the hash of each child that is there, in nibble order
    empty trie   no node; its root is 32 zero bytes

A subtree with one key is one leaf, and any other is a branch, so the shape depends on the keys alone and equal maps
have equal nodes and roots, whatever their history. (Chains of branches with a single child arise only where two key
hashes share a prefix; no extension nodes: keys are hashed, so such chains are short.) A branch holds the hashes of its
children, so that an update reads only the nodes on its way, and a sibling only where a deletion leaves it alone.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from typing import Annotated

from msgspec import Meta

from consensus.codec import ZERO_HASH, Value
from consensus.crypto import H

GetNode = Callable[[bytes], bytes | None]
"""The node stored under a path, or None."""

MAX_DEPTH = 64
"""Branches above the deepest possible leaf: one per nibble of a key hash."""

MAX_PROOF_BYTES = 32 * 1024
"""Bound for decoding a `Proof`: 64 branch records of at most 485 encoded bytes, a leaf and the array headers."""

_LEAF, _BRANCH = 0, 1
_NIBBLE = tuple(bytes((n,)) for n in range(16))
_HEX_TO_NIBBLE = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))

# A nibble path with the leaf node to put there; None deletes.
_Edit = tuple[bytes, bytes | None]


class Proof(Value, frozen=True):
    """Evidence that a key has a value, or none, in the map under some root.

    Attributes:
        branches: from the root down, each as bitmap (u16, big-endian) ‖ the hashes of the children *not* on the way.
        leaf: what the way ends in: key hash ‖ value hash of a leaf, the key's own or another; b"" for an empty slot.
    """

    branches: Annotated[
        tuple[Annotated[bytes, Meta(min_length=2, max_length=2 + 32 * 15)], ...], Meta(max_length=MAX_DEPTH)
    ]
    leaf: Annotated[bytes, Meta(max_length=64)]


class CorruptTrieError(Exception):
    """The stored nodes do not form a trie: one is missing, damaged or misplaced. The store is not to be trusted."""

    def __init__(self, path: bytes, problem: str) -> None:
        self.path = path
        super().__init__(f"state trie node {path.hex()[1::2] or 'root'}: {problem}")


def update(get_node: GetNode, changes: Mapping[bytes, bytes | None]) -> tuple[bytes, dict[bytes, bytes | None]]:
    """Root and nodes after a batch of changes to the map. Pure: the caller stores the writes.

    Args:
        get_node: access to the current nodes.
        changes: key → new value, None deletes (also a key that is not there).
    Returns:
        (new root, node writes: path → new node, or None to delete it). Only nodes that differ are in the writes.
    Raises:
        CorruptTrieError: a node that must be there is missing or malformed.
    """
    edits = sorted(_edit(key, value) for key, value in changes.items())
    writes: dict[bytes, bytes | None] = {}
    old = get_node(b"")
    new = _rewrite(get_node, writes, b"", old, edits) if edits else old
    if new != old:
        writes[b""] = new
    return (ZERO_HASH if new is None else _node_hash(new)), writes


def prove(get_node: GetNode, key: bytes) -> Proof:
    """A proof of the key's value, or of its absence, under the current root.

    Raises:
        CorruptTrieError: a node that must be there is missing or malformed.
    """
    place = _place(H("tw/key", key))
    branches: list[bytes] = []
    path, node = b"", get_node(b"")
    while node is not None and not _is_leaf(path, node):
        bitmap, hashes = _split(path, node)
        nibble = place[len(path)]
        present = bitmap >> nibble & 1
        if present:
            del hashes[_index(bitmap, nibble)]
        branches.append(node[1:3] + b"".join(hashes))
        path = place[: len(path) + 1]
        node = _child(get_node, path) if present else None
    return Proof(branches=tuple(branches), leaf=b"" if node is None else node[1:])


def verify(root: bytes, key: bytes, value: bytes | None, proof: Proof) -> bool:
    """Whether `proof` shows that `key` has `value` (None: is absent) in the map under `root`.

    Sound because `root` binds the whole trie: a slot on the key's way holds the key's leaf, another key's leaf, or
    nothing, and nobody knows two preimages of a hash. Malformed proofs are False; none raises.
    """
    depth = len(proof.branches)
    if depth > MAX_DEPTH or len(proof.leaf) not in (0, 64):
        return False
    key_hash = H("tw/key", key)
    if value is not None:
        if proof.leaf != key_hash + H("tw/state-value", value):
            return False
    elif proof.leaf and (proof.leaf[:32] == key_hash or _place(proof.leaf[:32])[:depth] != _place(key_hash)[:depth]):
        return False  # it shows the key itself, or a leaf that has no business on its way
    node = H("tw/state-leaf", proof.leaf) if proof.leaf else None
    for record, nibble in zip(reversed(proof.branches), reversed(_place(key_hash)[:depth]), strict=True):
        node = _fold(record, nibble, node)
        if node is None:
            return False
    return (ZERO_HASH if node is None else node) == root


def _fold(record: bytes, nibble: int, child: bytes | None) -> bytes | None:
    """Hash of the branch of a proof with `child` (None: nothing) put in its slot `nibble`; None if malformed."""
    bitmap = int.from_bytes(record[:2], "big")
    siblings = (bitmap & ~(1 << nibble)).bit_count()
    if len(record) != 2 + 32 * siblings or bitmap >> nibble & 1 != (child is not None) or not bitmap:
        return None
    cut = 2 + 32 * _index(bitmap, nibble)
    return H("tw/state-node", record[:cut] + (child or b"") + record[cut:])


def _rewrite(
    get_node: GetNode, writes: dict[bytes, bytes | None], path: bytes, old: bytes | None, edits: list[_Edit]
) -> bytes | None:
    """The node at `path`, now `old`, after `edits` (sorted, all below `path`); what changes below it goes to `writes`.

    Recurses once per nibble, so at most 64 deep. The caller records the node itself: it may yet move up.
    """
    hashes: list[bytes]
    if old is None or _is_leaf(path, old):
        edits = _live(path, old, edits)
        if len(edits) < 2:
            return edits[0][1] if edits else None
        old_bitmap, hashes = 0, []
    else:
        old_bitmap, hashes = _split(path, old)
    bitmap = old_bitmap
    depth, start = len(path), 0
    while start < len(edits):
        place = edits[start][0]
        nibble, child_path = place[depth], place[: depth + 1]
        end = start + 1
        while end < len(edits) and edits[end][0][depth] == nibble:
            end += 1
        bit, index = 1 << nibble, _index(bitmap, nibble)
        before = _child(get_node, child_path) if bitmap & bit else None
        after = _rewrite(get_node, writes, child_path, before, edits[start:end])
        start = end
        if after == before:
            continue
        writes[child_path] = after
        hashes[index : index + (before is not None)] = [] if after is None else [_node_hash(after)]
        bitmap = bitmap & ~bit if after is None else bitmap | bit
    if not bitmap:
        return None
    if len(hashes) == 1:
        child_path = path + _NIBBLE[bitmap.bit_length() - 1]
        child = writes.get(child_path) or _child(get_node, child_path)
        if _is_leaf(child_path, child):  # a subtree of one key: the leaf moves up
            if bitmap & old_bitmap:
                writes[child_path] = None
            else:
                del writes[child_path]
            return child
    return b"".join((b"\x01", bitmap.to_bytes(2, "big"), *hashes))


def _live(path: bytes, old: bytes | None, edits: list[_Edit]) -> list[_Edit]:
    """The leaves, in order, that edits leave under a path that held nothing or one leaf."""
    live = [edit for edit in edits if edit[1] is not None]
    if old is not None:
        place = _place(old[1:33])
        if not place.startswith(path):
            raise CorruptTrieError(path, "a leaf that belongs elsewhere")
        if all(edit[0] != place for edit in edits):
            insort(live, (place, old))
    return live


def _place(key_hash: bytes) -> bytes:
    """The full path of a key hash: its 64 nibbles, one per byte."""
    return key_hash.hex().encode().translate(_HEX_TO_NIBBLE)


def _edit(key: bytes, value: bytes | None) -> _Edit:
    key_hash = H("tw/key", key)
    return _place(key_hash), None if value is None else b"\x00" + key_hash + H("tw/state-value", value)


def _node_hash(node: bytes) -> bytes:
    return H("tw/state-node" if node[0] else "tw/state-leaf", node[1:])


def _index(bitmap: int, nibble: int) -> int:
    """Position of the child `nibble` among the children that are there."""
    return (bitmap & ((1 << nibble) - 1)).bit_count()


def _child(get_node: GetNode, path: bytes) -> bytes:
    node = get_node(path)
    if node is None:
        raise CorruptTrieError(path, "missing")
    return node


def _is_leaf(path: bytes, node: bytes) -> bool:
    if len(node) == 65 and node[0] == _LEAF:
        return True
    if len(node) > 3 and node[0] == _BRANCH:
        return False
    raise CorruptTrieError(path, "malformed")


def _split(path: bytes, branch: bytes) -> tuple[int, list[bytes]]:
    """Bitmap and child hashes of a branch node."""
    bitmap = branch[1] << 8 | branch[2]
    if len(branch) != 3 + 32 * bitmap.bit_count():
        raise CorruptTrieError(path, "malformed")
    return bitmap, [branch[i : i + 32] for i in range(3, len(branch), 32)]
