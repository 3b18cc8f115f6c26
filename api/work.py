"""Answers about jobs, packets, workers, units and tensors."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from api.chain import UnitView
from api.fields import Count, Hash, Hex

# --- jobs ----------------------------------------------------------------------------------------------------------

JobStatus: TypeAlias = Literal["pending", "open", "complete", "closed", "cancelled", "expired"]
PacketState: TypeAlias = Literal["queued", "held", "done", "withdrawn"]
JobEventName: TypeAlias = Literal[
    "opened", "dealt", "answered", "missed", "dropped", "completed", "cancelled", "closed"
]


class JobView(Struct, frozen=True):
    """A job. `expiry` is a tick, `opened_at`, `completed_at` and `closed_at` are heights. `escrow` is what its group
    still holds; `paid` and `burned` are totals of its packets' fees.

    Status: `complete` has all it needs and waits for packets still held; `closed` was complete; `expired` was not.
    """

    job: Hash
    owner: str
    status: JobStatus
    packets: Count
    threshold: Count
    price: Count
    expiry: Count
    mode: Count
    done: Count
    held: Count
    queued: Count
    escrow: Count
    opened_at: Count | None
    completed_at: Count | None
    closed_at: Count | None
    refund: Count | None
    paid: Count
    burned: Count
    workers: Count
    blocks_won: tuple[Count, ...]


class PacketView(Struct, frozen=True):
    """A packet of a job: an m×k matrix times a k×n one. Who holds it may answer through tick `deadline`.

    `won` says that its product won a block.
    """

    packet_id: Hash
    index: Count
    m: Count
    k: Count
    n: Count
    fee: Count
    status: PacketState
    worker: str | None
    deadline: Count | None
    product: Hash | None
    answered_at: Count | None
    won: bool


class StoryLine(Struct, frozen=True):
    """What happened to a packet or its job at a height."""

    height: Count
    event: JobEventName
    worker: str | None
    text: str


class Explanation(Struct, frozen=True):
    """Who held a packet when, and in one sentence who was paid how much, or why nobody was."""

    packet_id: Hash
    job: Hash
    index: Count
    history: tuple[StoryLine, ...]
    verdict: str


# --- workers -------------------------------------------------------------------------------------------------------


class DeclarationView(Struct, frozen=True):
    """What a worker will take from tick `tick` on: at least `min_price` grains per 2⁴⁰ of weight, packets of at most
    `max_unit_bytes` with their product, and `places` of them at once."""

    tick: Count
    min_price: Count
    max_unit_bytes: Count
    places: Count


class WorkerView(Struct, frozen=True):
    """A worker's account in the state after the tip; all zero where `registered` is false. Times are ticks.

    `places` is how many packets it may hold at once; of its `bond`, `reserved` stands for those that it holds now and
    burns if they are missed. `min_price`, `max_unit_bytes` and `places` are in force; `announced` is what replaces
    them. `seen` is when it last gave a sign of life. `paid`, `burned` and `missed` are its record: grains earned,
    grains of those fees burned, packets not answered. `lost` is what of its bond has burned with those, of all time, in
    blocks that this node has seen (`worker_list` does not say).
    """

    address: str
    registered: bool
    active: bool
    bond: Count
    reserved: Count
    places: Count
    min_price: Count
    max_unit_bytes: Count
    announced: DeclarationView | None
    seen: Count
    retired_at: Count | None
    paid: Count
    burned: Count
    missed: Count
    held: tuple[Hash, ...]
    lost: Count = 0


class UnitOffer(Struct, frozen=True):
    """A unit to work on: the header core whose hash is `seed`, and the operands' commitments (null: zero operands)."""

    id: Hash
    core: Hex
    seed: Hash
    target: Hash
    unit: UnitView
    m: Count
    k: Count
    n: Count
    packet_id: Hash | None
    a: Hash | None
    b: Hash | None
    height: Count
    deadline: Count | None


class WorkAccepted(Struct, frozen=True):
    """The outcome of submitted work: whether its block became the tip."""

    block: Hash
    height: Count
    accepted: bool


class ResultAccepted(Struct, frozen=True):
    """A Result was taken into the pool, or kept until its packet's block is here (`waiting`)."""

    id: Hash
    waiting: bool = False


# --- tensors -------------------------------------------------------------------------------------------------------


class Uploaded(Struct, frozen=True):
    """What an upload answers. `side` says how the tensor is cut: a right operand is cut by columns."""

    commitment: Hash
    root: Hash
    rows: Count
    cols: Count
    dtype: Literal["int8", "int32"]
    side: Literal["rows", "columns"]
