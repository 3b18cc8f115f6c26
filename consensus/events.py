"""What happened to jobs, packets and bonds, block by block: the raw material of "who held it, and why was I not paid?".

Events are derived from blocks and hashed into nothing; a node indexes them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

from consensus.codec import U32, U63, Address, Amount, Hash, Value


class Opened(Value, frozen=True, tag=0):
    """A job's group was opened with `escrow` grains behind `packets` packets."""

    job: Hash
    owner: Address
    packets: U32
    threshold: U32
    escrow: Amount


class Dealt(Value, frozen=True, tag=1):
    """A packet went to a worker's place; it may be answered through tick `deadline`."""

    job: Hash
    packet_id: Hash
    worker: Address
    place: U32
    deadline: U63


class Answered(Value, frozen=True, tag=2):
    """A verified product was paid: `fee` = `burned` + `share` (the miner's) + the worker's pay.

    `won` says that the product won the block.
    """

    job: Hash
    packet_id: Hash
    worker: Address
    product: Hash
    fee: Amount
    burned: Amount
    share: Amount
    won: bool


class Missed(Value, frozen=True, tag=3):
    """The window passed without an answer; `burned` grains of the worker's bond are gone."""

    job: Hash
    packet_id: Hash
    worker: Address
    burned: Amount


class Dropped(Value, frozen=True, tag=4):
    """The window passed without an answer, but the group was complete by then: no pay, no miss."""

    job: Hash
    packet_id: Hash
    worker: Address


class Completed(Value, frozen=True, tag=5):
    """The threshold was reached: waiting packets are withdrawn, those still held keep their windows and their pay."""

    job: Hash


class Cancelled(Value, frozen=True, tag=6):
    """The owner withdrew the packets that nobody held."""

    job: Hash


class Ending(IntEnum):
    """Why a group closed."""

    COMPLETED = 0
    EXPIRED = 1
    CANCELLED = 2


class Closed(Value, frozen=True, tag=7):
    """The group is over and `refund` grains went back to its owner."""

    job: Hash
    owner: Address
    refund: Amount
    done: U32
    why: Ending


class Returned(Value, frozen=True, tag=8):
    """A worker that had retired is gone, and its bond is back on its account."""

    worker: Address
    bond: Amount


JobEvent: TypeAlias = Opened | Dealt | Answered | Missed | Dropped | Completed | Cancelled | Closed
Event: TypeAlias = JobEvent | Returned


class Receipt(Value, frozen=True):
    """How a transaction ended. A failed one (`reason` not empty) has paid its gas and used its nonce, nothing else."""

    txid: Hash
    gas_used: U63
    fee: Amount
    reason: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the payload took effect."""
        return not self.reason
