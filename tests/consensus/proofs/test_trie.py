"""The state trie against a trie rebuilt from its definition, and its proofs against forgery."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import ZERO_HASH, decode, encode
from consensus.crypto import H
from consensus.errors import ConsensusError
from consensus.proofs.trie import MAX_DEPTH, MAX_PROOF_BYTES, CorruptTrieError, Proof, prove, update, verify

Nodes = dict[bytes, bytes]


def place_of(key: bytes) -> bytes:
    return bytes(int(digit, 16) for digit in H("tw/key", key).hex())


def keys_with_shared_prefixes() -> list[bytes]:
    """Keys of which neighbours' hashes agree in five to eight nibbles, and a few that agree in none."""
    ordered = sorted((place_of(key), key) for key in (b"%d" % i for i in range(20_000)))
    close = [key for (p, k), (q, other) in pairwise(ordered) if p[:5] == q[:5] for key in (k, other)]
    assert len(close) > 100
    return [*sorted(set(close[:24])), b"", b"a", b"b", b"account/1", b"account/2", bytes(200)]


KEYS = keys_with_shared_prefixes()
maps = st.dictionaries(st.sampled_from(KEYS), st.binary(max_size=4), max_size=len(KEYS))
batches = st.lists(st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(max_size=2), max_size=12), max_size=8)


def reference(state: Mapping[bytes, bytes]) -> tuple[bytes, Nodes]:
    """Root and nodes of a map, straight from the definition."""
    nodes: Nodes = {}

    def build(path: bytes, leaves: list[tuple[bytes, bytes]]) -> bytes:
        if len(leaves) == 1:
            nodes[path] = leaves[0][1]
            return H("tw/state-leaf", leaves[0][1][1:])
        bitmap, hashes = 0, b""
        for nibble in range(16):
            below = [leaf for leaf in leaves if leaf[0][len(path)] == nibble]
            if below:
                bitmap |= 1 << nibble
                hashes += build(path + bytes([nibble]), below)
        nodes[path] = b"\x01" + bitmap.to_bytes(2, "big") + hashes
        return H("tw/state-node", nodes[path][1:])

    leaves = [(place_of(key), b"\x00" + H("tw/key", key) + H("tw/state-value", value)) for key, value in state.items()]
    return (build(b"", leaves) if leaves else ZERO_HASH), nodes


def nothing(path: bytes) -> None:
    """The nodes of the empty trie."""


def store(nodes: Nodes, writes: Mapping[bytes, bytes | None]) -> None:
    for path, node in writes.items():
        if node is None:
            del nodes[path]  # a deletion of a node that is not there is an error
        else:
            assert nodes.get(path) != node, "an unchanged node was written"
            nodes[path] = node


def build(state: Mapping[bytes, bytes]) -> tuple[bytes, Nodes]:
    root, writes = update(nothing, state)
    return root, {path: node for path, node in writes.items() if node is not None}


def random_state(size: int, seed: int = 1) -> dict[bytes, bytes]:
    draw = random.Random(seed)
    return {draw.randbytes(20): draw.randbytes(12) for _ in range(size)}


class TestUpdate:
    def test_empty(self) -> None:
        assert update(nothing, {}) == (ZERO_HASH, {})
        assert update(nothing, {b"absent": None}) == (ZERO_HASH, {})

    def test_format_is_fixed(self) -> None:
        """Restated on purpose: whoever changes these bytes changes the chain."""
        root, nodes = build({b"key": b"value"})
        assert nodes == {b"": b"\x00" + H("tw/key", b"key") + H("tw/state-value", b"value")}
        assert root.hex() == "086e44be052110a22fe582579b472f574734fc059deeb692a7f23cdca513a529"
        root, _ = build({b"%d" % i: b"value %d" % i for i in range(100)})
        assert root.hex() == "902dd366a97c11470d65925adea5ce65f038a40e4c40cc861c52c7de468c7c41"

    @settings(deadline=None)
    @given(maps)
    def test_fresh_build_equals_the_definition(self, state: dict[bytes, bytes]) -> None:
        assert build(state) == reference(state)

    @settings(max_examples=150, deadline=None)
    @given(maps, batches)
    def test_only_the_content_matters(
        self, start: dict[bytes, bytes], history: list[dict[bytes, bytes | None]]
    ) -> None:
        state = dict(start)
        _, nodes = build(state)
        for changes in history:
            before, expected_before = dict(nodes), reference(state)[0]
            root, writes = update(nodes.get, changes)
            assert nodes == before, "update must not store anything itself"
            store(nodes, writes)
            for key, value in changes.items():
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
            assert (root, nodes) == reference(state)
            # Undo: the previous bytes of the touched paths bring the previous trie back.
            undone = dict(nodes)
            for path in writes:
                undone.pop(path, None)
                if path in before:
                    undone[path] = before[path]
            assert undone == before
            assert update(undone.get, {})[0] == expected_before

    @settings(deadline=None)
    @given(maps, st.randoms(use_true_random=False))
    def test_one_by_one_equals_a_batch(self, state: dict[bytes, bytes], draw: random.Random) -> None:
        nodes: Nodes = {}
        order = list(state)
        draw.shuffle(order)
        for key in order:
            store(nodes, update(nodes.get, {key: state[key]})[1])
        assert nodes == build(state)[1]
        for key in order:
            root, writes = update(nodes.get, {key: None})
            store(nodes, writes)
        assert not nodes
        assert not order or root == ZERO_HASH

    def test_a_change_without_effect_writes_nothing(self) -> None:
        state = random_state(100)
        root, nodes = build(state)
        assert update(nodes.get, dict(state)) == (root, {})
        assert update(nodes.get, {b"absent": None, b"too": None}) == (root, {})

    def test_large_random_history(self) -> None:
        draw = random.Random(7)
        state = random_state(3000)
        _, nodes = build(state)
        for _ in range(3):
            changes: dict[bytes, bytes | None] = dict(random_state(500, draw.randrange(2**32)))
            changes |= dict.fromkeys(draw.sample(sorted(state), 700))
            changes |= dict.fromkeys(draw.sample(sorted(state), 300), b"new")
            root, writes = update(nodes.get, changes)
            store(nodes, writes)
            state = {k: v for k, v in (state | changes).items() if v is not None}
            assert (root, nodes) == reference(state)

    def test_reads_only_the_way_and_each_node_once(self) -> None:
        state = random_state(5000)
        _, nodes = build(state)
        reads: list[bytes] = []

        def get_node(path: bytes) -> bytes | None:
            reads.append(path)
            return nodes.get(path)

        keys = sorted(state)[:50]
        update(get_node, dict.fromkeys(keys, b"changed"))
        on_the_way = {place_of(key)[:depth] for key in keys for depth in range(65)} & nodes.keys()
        assert sorted(reads) == sorted(on_the_way)

    def test_domains_are_separate(self) -> None:
        """No value, however chosen, makes a leaf pass for a branch or the other way round."""
        root, nodes = build({b"a": b"", b"b": b""})
        assert H("tw/state-leaf", nodes[b""][1:]) != root
        assert build({b"a": nodes[b""]})[0] != root

    @pytest.mark.parametrize(
        "damaged",
        [
            b"",
            b"\x02" + bytes(64),
            b"\x00" + bytes(63),
            b"\x00" + bytes(65),
            b"\x01",
            b"\x01\x00\x00",
            b"\x01\x00\x00" + bytes(32),
            b"\x01\x00\x03" + bytes(32),
            b"\x01\x00\x01" + bytes(33),
        ],
    )
    def test_a_malformed_node_is_refused(self, damaged: bytes) -> None:
        nodes = {b"": damaged}
        with pytest.raises(CorruptTrieError, match="root: malformed"):
            update(nodes.get, {b"key": b"value"})
        with pytest.raises(CorruptTrieError, match="root: malformed"):
            prove(nodes.get, b"key")

    def test_a_missing_node_is_refused(self) -> None:
        _, nodes = build(random_state(300))
        path = place_of(b"key")[:1]
        del nodes[path]
        with pytest.raises(CorruptTrieError, match="missing"):
            update(nodes.get, {b"key": b"value"})
        with pytest.raises(CorruptTrieError, match="missing"):
            prove(nodes.get, b"key")

    def test_a_missing_sibling_is_refused_where_it_would_move_up(self) -> None:
        keys = {place_of(b"%d" % i)[0]: b"%d" % i for i in range(9)}
        first, second = list(keys)[:2]
        _, nodes = build({keys[first]: b"1", keys[second]: b"2"})
        del nodes[bytes([second])]
        with pytest.raises(CorruptTrieError, match="missing"):
            update(nodes.get, {keys[first]: None})

    def test_a_misplaced_leaf_is_refused(self) -> None:
        _, nodes = build(random_state(300))
        (_, leaf), (path, _) = [item for item in nodes.items() if len(item[1]) == 65][:2]
        nodes[path] = leaf
        with pytest.raises(CorruptTrieError, match="belongs elsewhere"):
            update(nodes.get, {b"%d" % i: b"" for i in range(5000)})


class TestProofs:
    @settings(max_examples=200, deadline=None)
    @given(maps)
    def test_every_key_is_proved_present_or_absent(self, state: dict[bytes, bytes]) -> None:
        root, nodes = build(state)
        for key in KEYS:
            value = state.get(key)
            proof = prove(nodes.get, key)
            assert verify(root, key, value, proof)
            assert not verify(root, key, (value or b"") + b"x", proof)
            assert not verify(H("tw/block", root), key, value, proof)
            if value is not None:
                assert not verify(root, key, None, proof)
            else:
                assert not verify(root, key, b"", proof)

    def test_an_inclusion_proof_serves_no_other_key(self) -> None:
        root, nodes = build(dict.fromkeys(KEYS, b"same"))
        for key in KEYS:
            proof = prove(nodes.get, key)
            for other in KEYS:
                assert verify(root, other, b"same", proof) == (other == key)
                assert not verify(root, other, None, proof)

    def test_whatever_a_proof_shows_is_true(self) -> None:
        """The leaf that excludes one key may well include another; no proof shows a falsehood about any key."""
        state = dict.fromkeys(KEYS[::2], b"same")
        root, nodes = build(state)
        for proof in [prove(nodes.get, key) for key in KEYS]:
            for key in KEYS:
                for claim in (None, b"same", b"other"):
                    assert claim == state.get(key) or not verify(root, key, claim, proof)

    def test_nothing_is_in_the_empty_trie(self) -> None:
        proof = prove(nothing, b"a")
        assert proof == Proof(branches=(), leaf=b"")
        assert verify(ZERO_HASH, b"a", None, proof)
        assert not verify(ZERO_HASH, b"a", b"", proof)

    @pytest.mark.parametrize("terminal", ["own leaf", "other leaf", "empty slot"])
    def test_every_mutated_byte_is_noticed(self, terminal: str) -> None:
        state = random_state(200)
        root, nodes = build(state)
        if terminal == "own leaf":
            key = next(iter(state))
        else:
            wants_leaf = terminal == "other leaf"
            key = next(k for k in (b"%d" % i for i in range(999)) if bool(prove(nodes.get, k).leaf) == wants_leaf)
        value = state.get(key)
        proof = prove(nodes.get, key)
        assert proof.branches
        wire = encode(proof)
        assert len(wire) <= MAX_PROOF_BYTES
        assert decode(Proof, wire, MAX_PROOF_BYTES) == proof
        for position in range(len(wire)):
            for flip in (0x01, 0x80, 0xFF):
                forged = wire[:position] + bytes([wire[position] ^ flip]) + wire[position + 1 :]
                try:
                    decoded = decode(Proof, forged, MAX_PROOF_BYTES)
                except ConsensusError:
                    continue
                assert not verify(root, key, value, decoded)
        for cut in range(len(wire)):
            with pytest.raises(ConsensusError):
                decode(Proof, wire[:cut], MAX_PROOF_BYTES)

    def test_a_present_key_is_not_proved_absent(self) -> None:
        """An honest proof dressed up as an exclusion: leaf dropped or replaced, way cut, its bit cleared."""
        state = random_state(500)
        root, nodes = build(state)
        absent = next(k for k in (b"%d" % i for i in range(999)) if not prove(nodes.get, k).leaf)
        for key in list(state)[:50]:
            proof = prove(nodes.get, key)
            other = prove(nodes.get, next(k for k in state if k != key))
            bit = 1 << place_of(key)[len(proof.branches) - 1]
            last = proof.branches[-1]
            cleared = (int.from_bytes(last[:2], "big") & ~bit).to_bytes(2, "big") + last[2:]
            forgeries = [
                Proof(branches=proof.branches, leaf=b""),
                Proof(branches=proof.branches, leaf=other.leaf),
                Proof(branches=proof.branches, leaf=proof.leaf),
                Proof(branches=proof.branches[:-1], leaf=b""),
                Proof(branches=proof.branches[:-1], leaf=proof.leaf),
                Proof(branches=(*proof.branches[:-1], cleared), leaf=b""),
                Proof(branches=(), leaf=b""),
                Proof(branches=(), leaf=other.leaf),
                other,
                prove(nodes.get, absent),
            ]
            assert not any(verify(root, key, None, forgery) for forgery in forgeries)

    def test_a_stale_proof_fails(self) -> None:
        state = random_state(50)
        _, nodes = build(state)
        key = next(iter(state))
        proof = prove(nodes.get, key)
        root, _ = update(nodes.get, {b"elsewhere": b"changed"})
        assert not verify(root, key, state[key], proof)

    def test_depth_is_bounded(self) -> None:
        """A chain of branches as deep as a key hash has nibbles is followed, one deeper is refused."""
        key, value = b"deep", b"value"
        leaf = H("tw/key", key) + H("tw/state-value", value)
        records: list[bytes] = []
        node = H("tw/state-leaf", leaf)
        for nibble in reversed(place_of(key)):
            bitmap = (1 << nibble).to_bytes(2, "big")
            records.insert(0, bitmap)
            node = H("tw/state-node", bitmap + node)
        assert len(records) == MAX_DEPTH
        assert verify(node, key, value, Proof(branches=tuple(records), leaf=leaf))
        assert not verify(node, key, value, Proof(branches=(records[0], *records), leaf=leaf))
        assert not verify(node, key, value, Proof(branches=(records[0],) * 100_000, leaf=leaf))
        widest = Proof(branches=(bytes(2 + 32 * 15),) * MAX_DEPTH, leaf=bytes(64))
        assert len(encode(widest)) <= MAX_PROOF_BYTES
        for oversize in (
            Proof(branches=(*widest.branches, b"\0\0"), leaf=b""),
            Proof(branches=(bytes(2 + 32 * 15 + 1),), leaf=b""),
            Proof(branches=(b"\0",), leaf=b""),
            Proof(branches=(), leaf=bytes(65)),
        ):
            with pytest.raises(ConsensusError):
                decode(Proof, encode(oversize), MAX_PROOF_BYTES)

    def test_malformed_records_fail_even_under_a_root_made_for_them(self) -> None:
        numbers = [b"%d" % i for i in range(999)]
        nibble = place_of(b"key")[0]
        near = next(key for key in numbers if place_of(key)[0] == nibble)
        far = next(key for key in numbers if place_of(key)[0] != nibble)
        near_leaf, far_leaf = (H("tw/key", key) + H("tw/state-value", b"value") for key in (near, far))
        near_hash, far_hash = H("tw/state-leaf", near_leaf), H("tw/state-leaf", far_leaf)
        here, elsewhere = ((1 << n).to_bytes(2, "big") for n in (nibble, (nibble + 1) % 16))
        child_first = nibble < (nibble + 1) % 16
        forgeries = {
            "branch without children": (b"\0\0", b"", b"\0\0"),
            "child announced but not there": (here, b"", here),
            "child there but not announced": (
                elsewhere + bytes(32),
                near_leaf,
                elsewhere + (near_hash + bytes(32) if child_first else bytes(32) + near_hash),
            ),
            "surplus hash": (here + bytes(32), near_leaf, here + near_hash + bytes(32)),
            "leaf off the way": (here, far_leaf, here + far_hash),
        }
        honest = Proof(branches=(here,), leaf=near_leaf)
        assert verify(H("tw/state-node", here + near_hash), b"key", None, honest), "the frame of these forgeries"
        for what, (record, claimed_leaf, preimage) in forgeries.items():
            proof = Proof(branches=(record,), leaf=claimed_leaf)
            assert not verify(H("tw/state-node", preimage), b"key", None, proof), what
        for size in (1, 32, 63, 65, 96):
            assert not verify(H("tw/state-leaf", bytes(size)), b"key", None, Proof(branches=(), leaf=bytes(size)))

    @settings(max_examples=300, deadline=None)
    @given(
        st.binary(max_size=40),
        st.binary(max_size=8),
        st.none() | st.binary(max_size=8),
        st.lists(st.binary(max_size=520), max_size=70),
        st.binary(max_size=70),
    )
    def test_garbage_is_false_and_never_raises(
        self, root: bytes, key: bytes, value: bytes | None, branches: list[bytes], leaf: bytes
    ) -> None:
        assert not verify(root, key, value, Proof(branches=tuple(branches), leaf=leaf))

    def test_proof_is_logarithmic(self) -> None:
        state = random_state(5000)
        _, nodes = build(state)
        sizes = [len(encode(prove(nodes.get, key))) for key in list(state)[:200]]
        assert max(sizes) < 3000
