"""Starting from a state instead of from genesis (docs/protocol.md, section 8): the rules, and what is built on disk.

Tensors are dropped after `retention` blocks, so nobody can replay an older chain from its beginning. A fresh node takes
the state at a *checkpoint*, a height on which all nodes agree, proves it by the next header's `state_root`, and
replays from there. The fetched state grows beside the present one, under the spare prefix of the store; adopting it is
one small batch, so a crash leaves either the old chain or the new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from consensus import state
from consensus.block import Header, copy_id
from consensus.codec import ZERO_HASH, encode
from consensus.params import ChainParams
from consensus.state import GROUPS, NODE_PREFIX, PACKETS, StateReader
from node.chain import schema
from node.chain.headers import HeaderEntry, HeaderTree
from node.chain.schema import StoredHeader
from node.chain.store import StorageError, Store, StoreState

FIRST_KEY = bytes((NODE_PREFIX[0] + 1,))
"""All records stand behind it and all trie nodes before."""

_SPACINGS = 16
"""Checkpoints from the newest to the end of retention: many askers share one, and each stays good for long."""

_BATCH = 4096


def checkpoint_spacing(params: ChainParams) -> int:
    """Blocks from one checkpoint to the next."""
    return max(1, (params.retention - params.max_reorg) // _SPACINGS)


def checkpoint_height(params: ChainParams, height: int) -> int:
    """Height of the newest checkpoint below a tip at `height`: no reorganisation reaches it. 0 if there is none."""
    deep = max(0, height - params.max_reorg)
    return deep - deep % checkpoint_spacing(params)


def replay_span(params: ChainParams) -> int:
    """Blocks that a node may be behind and still replay; those at the very end of retention would vanish meanwhile."""
    return params.retention - params.max_reorg


def open_operands(params: ChainParams, reader: StateReader, height: int) -> dict[bytes, int]:
    """Operands of all packets of open groups in the state at `height` → the height through which they are kept."""
    keep: dict[bytes, int] = {}
    for _, packet in PACKETS.scan(reader):
        group = GROUPS.get(reader, packet.job)
        if group is None:  # closed while this walk was under way
            continue
        until = max(group.kept_until, height + 2 * params.retention)
        for operand in (packet.left, packet.right):
            keep[operand.commitment] = max(until, keep.get(operand.commitment, 0))
    return keep


class Staging:
    """A state that is being fetched, under the spare prefix `place`. Whatever stood there is removed.

    Attributes:
        root: of the records so far.
        size_bytes: of the records so far.
    """

    def __init__(self, store: Store, place: bytes) -> None:
        clear(store, place)
        self.place = place
        self.root = ZERO_HASH
        self.size_bytes = 0
        self.reader = StoreState(store, place)
        self._store = store

    def add(self, records: Mapping[bytes, bytes]) -> None:
        """Take more records, and grow the trie by them."""
        assert all(key >= FIRST_KEY for key in records), "a trie node, which nobody may bring"
        self.root, writes = state.commit(self.reader, dict(records))
        self._store.write({self.place + key: value for key, value in writes.items()})
        self.size_bytes += sum(len(key) + len(value) for key, value in records.items())


def clear(store: Store, place: bytes) -> None:
    """Remove all keys under a prefix, some at a time."""
    keys = (key for key, _ in store.scan(place))
    while batch := list(islice(keys, _BATCH)):
        store.write(dict.fromkeys(batch))


def spare(place: bytes) -> bytes:
    """The other of the two prefixes."""
    return schema.STATE_TOO if place == schema.STATE else schema.STATE


def write_headers(store: Store, entries: Iterable[HeaderEntry]) -> None:
    """Keep headers whose bodies will not come."""
    remaining = iter(entries)
    while batch := list(islice(remaining, _BATCH)):
        store.write({schema.header(entry.id): encode(stored_header(entry)) for entry in batch})


def read_headers(store: Store, tree: HeaderTree, base_height: int) -> None:
    """Put all headers that are kept into the tree.

    Raises:
        StorageError: one has no parent.
    """
    main = {block_id for _, block_id in store.scan(schema.MAIN)}
    stored = [schema.decode(StoredHeader, data) for _, data in store.scan(schema.HEADER)]
    for record in sorted(stored, key=lambda record: record.core.height):
        if record.core.height == 0:
            continue
        parent = tree.get(record.core.parent)
        if parent is None:
            raise StorageError(f"header {record.core.id.hex()} at height {record.core.height} has no parent")
        entry = tree.add(Header(record.core, record.proofs[0]), parent)
        entry.copies.update({copy_id(proof): proof for proof in record.proofs})
        if entry.id in main:
            entry.has_body = entry.height > base_height
        else:  # of a side branch; or kept for an adoption that a crash cut short
            entry.has_body = store.get(schema.body(entry.id)) is not None


def stored_header(entry: HeaderEntry) -> StoredHeader:
    """What is kept of a header."""
    return StoredHeader(entry.core, tuple(entry.copies.values()))
