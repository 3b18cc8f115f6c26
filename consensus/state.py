"""The state: typed tables over one flat, ordered map of bytes (docs/protocol.md, section 7).

Keys are readable and ordered, so that consensus can walk a table ("the queue, highest price first"); the trie
(`consensus.proofs.trie`) authenticates the same map by hashed keys and keeps its nodes beside it, under their paths.
Whatever executes does so on an `Overlay`: the map below is never changed, and a refused block leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Annotated, Generic, Protocol, TypeVar

import msgspec
from msgspec import Meta

from consensus.codec import U16, U32, U63, Address, Amount, Hash, PublicKey, Value, decoder_of, encode
from consensus.proofs import trie
from consensus.tensor import OfOperands

R = TypeVar("R", bound=Value)

Changes = dict[bytes, bytes | None]
"""Key → new value, None for a deleted key."""

NODE_PREFIX = b"#"
"""Trie nodes: `#` ‖ path. Outside the authenticated map, which they commit to."""


class StateReader(Protocol):
    """A flat map of bytes at one block."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with `prefix` and is greater than `after`, in key order."""


class Overlay:
    """Pending changes over a reader; itself a reader."""

    def __init__(self, below: StateReader, writes: Mapping[bytes, bytes | None] | None = None) -> None:
        self._below = below
        self.writes: Changes = dict(writes or {})

    def get(self, key: bytes) -> bytes | None:
        if key in self.writes:
            return self.writes[key]
        return self._below.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.writes[key] = value

    def delete(self, key: bytes) -> None:
        self.writes[key] = None

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Both layers merged in key order. What is written during a scan does not show in it."""
        pending = sorted((k, v) for k, v in self.writes.items() if k.startswith(prefix) and k > after)
        below = self._below.scan(prefix, after)
        position = 0
        for key, value in below:
            while position < len(pending) and pending[position][0] < key:
                if (written := pending[position][1]) is not None:
                    yield pending[position][0], written
                position += 1
            if position < len(pending) and pending[position][0] == key:
                if (written := pending[position][1]) is not None:
                    yield key, written
                position += 1
            else:
                yield key, value
        for key, written in pending[position:]:
            if written is not None:
                yield key, written


class EmptyState:
    """The map before genesis."""

    def get(self, key: bytes) -> bytes | None:
        return None

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(())


class Account(Value, frozen=True):
    """Spendable grains and the number of transactions sent."""

    balance: Amount = 0
    nonce: U63 = 0


class Holding(Value, frozen=True):
    """A packet that a worker holds, its job, and which of the worker's places it was dealt to."""

    number: U16
    packet_id: Hash
    job: Hash


class Declaration(Value, frozen=True):
    """What a worker takes: packets at `min_price` grains per 2⁴⁰ of weight or more, none larger than `max_unit_bytes`
    with its product, and `places` of them at once."""

    min_price: Amount = 0
    max_unit_bytes: U63 = 0
    places: U16 = 0


class Worker(Value, frozen=True):
    """A registered worker. Times are ticks.

    `declared` is in force; `announced` replaces it at `announced_for`, 0 if nothing is announced. `places` are the
    worker's positions in the array of places; `review_at` is when they are looked at next, 0 for never. `reserved` is
    the part of the bond that stands for the packets held. `retired_at` is 0 while it serves.

    `paid`, `burned` and `missed` are its record: grains earned, grains of those fees burned, packets not answered.
    """

    public_key: PublicKey
    x25519_key: PublicKey
    bond: Amount
    seen: U63
    declared: Declaration = Declaration()
    announced: Declaration = Declaration()
    announced_for: U63 = 0
    review_at: U63 = 0
    retired_at: U63 = 0
    reserved: Amount = 0
    paid: Amount = 0
    burned: Amount = 0
    missed: U32 = 0
    places: tuple[U32, ...] = ()
    holds: tuple[Holding, ...] = ()


class Place(Value, frozen=True):
    """Room for one packet at a worker: the `number`-th of its places."""

    worker: Address
    number: U16


class PacketStatus(IntEnum):
    """Where a packet stands between its job's opening and its group's closing."""

    QUEUED = 0
    HELD = 1
    DONE = 2
    WITHDRAWN = 3


class Packet(OfOperands, Value, frozen=True):
    """One product to be made. `worker`, `place` and `dealt_at` (a tick) mean something only while it is held."""

    job: Hash
    index: U32
    m: U32
    k: U32
    n: U32
    a_root: Hash
    b_root: Hash
    fee: Amount
    status: PacketStatus = PacketStatus.QUEUED
    worker: Address = bytes(20)
    place: U16 = 0
    dealt_at: U63 = 0


class Group(Value, frozen=True):
    """A job's group of packets. `completed_at` is 0 until it completes.

    `expiry` and `closes_at` are ticks, `opened_at`, `kept_until` and `completed_at` heights. `closes_at` is when its
    closing is due: its expiry until it ends, 0 once only held ones are left. Nodes keep the operands through
    `kept_until`, and those of a packet that is dealt for longer.
    `swept` counts the packets, in order, that its closing has passed: of those, only held ones are still in the state.
    """

    owner: Address
    packets: U32
    threshold: U32
    price: Amount
    expiry: U63
    mode: U16
    sequence: U63
    opened_at: U63
    kept_until: U63
    escrow: Amount
    closes_at: U63
    done: U32 = 0
    held: U32 = 0
    completed_at: U63 = 0
    cancelled: bool = False
    swept: U32 = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more of it is dealt: it has what it needs, or its owner withdrew it."""
        return self.completed_at > 0 or self.cancelled


class Reward(Value, frozen=True):
    """What a block's miner is credited once it has matured."""

    miner: Address
    amount: Amount


class Ledger(Value, frozen=True):
    """What belongs to no account: the supply, the fee market, the next job's number, the clock, the last draws.

    `tick` counts blocks that came at least a quarter of the spacing after the last that counted, whose time is
    `ticked_ms`. `places` is the length of the array of places, `held` the number of packets held, `held_bytes` the size
    of their products.
    `tickets` are the `parent_ticket`s of the last `deal_lag` headers, oldest first. `dealt_through` is the key of the
    queue at which the last round of dealing ended; empty at the beginning.
    """

    issued: Amount
    burned: Amount
    base_fee: Amount
    sequence: U63
    tick: U63
    ticked_ms: U63
    tickets: tuple[Hash, ...]
    places: U32 = 0
    held: U32 = 0
    held_bytes: U63 = 0
    dealt_through: Annotated[bytes, Meta(max_length=32)] = b""


class CorruptRecordError(Exception):
    """A stored record is no record of its table. The store is not to be trusted."""


class Table(Generic[R]):
    """Records of one kind under one prefix. Reading raises CorruptRecordError where the store is damaged.

    `holdings` says how many grains a record holds: the supply check sums it over every changed record.
    """

    def __init__(self, prefix: bytes, record: type[R], holdings: Callable[[R], int] | None = None) -> None:
        self.prefix = prefix
        self.kind = record
        self.holdings = holdings
        self._decode = decoder_of(record).decode

    def key(self, *parts: bytes | int) -> bytes:
        """The prefix and the parts, integers as 8 bytes big-endian, so that keys sort by them."""
        return self.prefix + b"".join(p.to_bytes(8, "big") if isinstance(p, int) else p for p in parts)

    def get(self, state: StateReader, *parts: bytes | int) -> R | None:
        """The record, or None."""
        data = state.get(self.key(*parts))
        return None if data is None else self.record(data)

    def put(self, state: Overlay, record: R, *parts: bytes | int) -> None:
        """Write the record."""
        state.put(self.key(*parts), encode(record))

    def delete(self, state: Overlay, *parts: bytes | int) -> None:
        """Remove the record."""
        state.delete(self.key(*parts))

    def scan(self, state: StateReader, *parts: bytes | int) -> Iterator[tuple[bytes, R]]:
        """(rest of the key behind `parts`, record), in key order."""
        prefix = self.key(*parts)
        for key, data in state.scan(prefix):
            yield key[len(prefix) :], self.record(data)

    def record(self, data: bytes) -> R:
        """A record out of its bytes."""
        try:
            return self._decode(data)
        except msgspec.DecodeError as error:
            raise CorruptRecordError(f"a stored {self.kind.__name__} cannot be read: {error}") from error

    def held_by(self, data: bytes | None) -> int:
        """Grains that an encoded record of this table holds."""
        return 0 if data is None or self.holdings is None else self.holdings(self.record(data))


class Mark(Value, frozen=True):
    """A record whose key says everything."""


class Entry(Value, frozen=True):
    """A queued packet."""

    packet_id: Hash


ACCOUNTS = Table(b"a", Account, lambda account: account.balance)
CLOSINGS = Table(b"c", Mark)
"""tick ‖ job: the group's closing is due."""
DEADLINES = Table(b"d", Mark)
"""tick ‖ packet: whoever still holds the packet then has missed it."""
GROUPS = Table(b"g", Group, lambda group: group.escrow)
LEDGER = Table(b"l", Ledger)
PACKETS = Table(b"p", Packet)
PLACES = Table(b"n", Place)
"""0 … `Ledger.places` − 1: the array of places, in no order."""
QUEUE = Table(b"q", Entry)
"""(2⁶³ − 1 − price) ‖ job sequence ‖ packet index: highest price first, then oldest."""
REVIEWS = Table(b"v", Mark)
"""tick ‖ worker: the worker's places, and a retired one's bond, are looked at."""
REWARDS = Table(b"r", Reward, lambda reward: reward.amount)
"""height at whose end it is credited."""
WORKERS = Table(b"w", Worker, lambda worker: worker.bond)

_HOLDERS = {table.prefix: table for table in (ACCOUNTS, GROUPS, REWARDS, WORKERS)}


def ledger(state: StateReader) -> Ledger:
    """The ledger; present from genesis on."""
    record = LEDGER.get(state)
    assert record is not None, "a state without a ledger"
    return record


def account(state: StateReader, address: bytes) -> Account:
    """An account; one that was never touched is empty."""
    return ACCOUNTS.get(state, address) or Account()


def holdings_change(before: StateReader, changes: Changes) -> int:
    """How many grains more (or fewer) all records together hold after `changes`."""
    total = 0
    for key, value in changes.items():
        table = _HOLDERS.get(key[:1])
        if table is not None:
            total += table.held_by(value) - table.held_by(before.get(key))
    return total


def commit(before: StateReader, changes: Changes) -> tuple[bytes, Changes]:
    """The root after `changes`, and the changes with the trie's nodes added."""
    root, nodes = trie.update(lambda path: before.get(NODE_PREFIX + path), changes)
    return root, changes | {NODE_PREFIX + path: node for path, node in nodes.items()}


def root_of(state: StateReader) -> bytes:
    """The state's root hash; 32 zero bytes for the empty state."""
    return trie.update(lambda path: state.get(NODE_PREFIX + path), {})[0]
