"""What RPC answers of jobs, packets and workers look like; see `node.rpc.views`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from node.rpc.views import UnitView

# --- jobs ----------------------------------------------------------------------------------------------------------

JobStatus: TypeAlias = Literal["pending", "open", "complete", "closed", "cancelled", "expired"]


class JobView(Struct, frozen=True):
    """A job. `escrow` is what its group still holds; `paid` and `burned` are totals of its packets' fees.

    Status: `complete` has all it needs and waits for its grace to end; `closed` was complete; `expired` was not.
    """

    job: str
    owner: str
    status: JobStatus
    packets: int
    threshold: int
    price: int
    expiry: int
    mode: int
    done: int
    held: int
    queued: int
    escrow: int
    opened_at: int | None
    completed_at: int | None
    closed_at: int | None
    refund: int | None
    paid: int
    burned: int
    workers: int
    blocks_won: list[int]


class PacketView(Struct, frozen=True):
    """A packet of a job: an m×k matrix times a k×n one. `won` says that its product won a block."""

    packet_id: str
    index: int
    m: int
    k: int
    n: int
    fee: int
    status: Literal["queued", "held", "done", "withdrawn"]
    worker: str | None
    deadline: int | None
    product: str | None
    answered_at: int | None
    won: bool


JobEventName: TypeAlias = Literal[
    "opened", "dealt", "answered", "missed", "dropped", "completed", "cancelled", "closed"
]


class StoryLine(Struct, frozen=True):
    """What happened to a packet or its job at a height."""

    height: int
    event: JobEventName
    worker: str | None
    text: str


class Explanation(Struct, frozen=True):
    """Who held a packet when, and in one sentence who was paid how much, or why nobody was."""

    packet_id: str
    job: str
    index: int
    history: list[StoryLine]
    verdict: str


# --- workers -------------------------------------------------------------------------------------------------------


class WorkerView(Struct, frozen=True):
    """A worker's account in the state after the tip; all zero where `registered` is false.

    `slots` is how many packets it may hold at once, `seen` the last height at which it gave a sign of life.
    """

    address: str
    registered: bool
    active: bool
    bond: int
    score: int
    slots: int
    slots_used: int
    min_price: int
    max_unit_bytes: int
    max_packets: int
    since: int
    seen: int
    retired_at: int | None
    held: list[str]


class UnitOffer(Struct, frozen=True):
    """A unit to work on: the header core whose hash is `seed`, and the operands' commitments (null: zero operands)."""

    id: str
    core: str
    seed: str
    target: str
    unit: UnitView
    m: int
    k: int
    n: int
    packet_id: str | None
    a: str | None
    b: str | None
    height: int
    deadline: int | None


class WorkAccepted(Struct, frozen=True):
    """The outcome of submitted work: whether its block became the tip."""

    block: str
    height: int
    accepted: bool


class ResultAccepted(Struct, frozen=True):
    """A Result was taken into the pool, or kept until its packet's block is here (`waiting`)."""

    id: str
    waiting: bool = False
