"""Parameters of the methods, as a node documents them and a client sends them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from api.fields import AddressText, Count, Hash
from consensus.params import MAX_TX_BYTES

MAX_JOBS = 200
MAX_WORKERS = 1000
MAX_MOVEMENTS = 1000
MAX_RESULT_BYTES = 256
MAX_ANSWER_BYTES = 256
REPLACEMENT_PERCENT = 10
"""By how much more a transaction must offer, in tip and in all, to take the place of one that waits under its nonce."""


class Params(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all parameter structs; its fields carry `Meta(description=…)`."""


class NoParams(Params, frozen=True):
    """For a method that takes none."""


# --- chain_* ---------------------------------------------------------------------------------------------------------


class WhichBlock(Params, frozen=True):
    """A block by id or by height; neither means the tip."""

    id: Annotated[Hash, Meta(description="Id of the block.")] | None = None
    height: Annotated[Count, Meta(description="Height in the main chain. Without both: the tip.")] | None = None


# --- state_* ---------------------------------------------------------------------------------------------------------


class OfAccount(Params, frozen=True):
    """An account."""

    address: Annotated[AddressText, Meta(description="Address of the account.")]


# --- tx_* ------------------------------------------------------------------------------------------------------------


class SignedTransaction(Params, frozen=True):
    """A signed transaction."""

    transaction: Annotated[
        str, Meta(max_length=2 * MAX_TX_BYTES, description="Canonical bytes of the signed transaction, hexadecimal.")
    ]


class OfTransaction(Params, frozen=True):
    """A transaction."""

    txid: Annotated[Hash, Meta(description="Id of the transaction.")]


class History(Params, frozen=True):
    """A page of an account's movements."""

    address: Annotated[AddressText, Meta(description="Address of the account.")]
    limit: Annotated[int, Meta(ge=1, le=MAX_MOVEMENTS, description="At most this many movements.")] = 50
    before: Annotated[Count, Meta(description="Only below this height: the last of the previous page.")] | None = None


# --- job_* -----------------------------------------------------------------------------------------------------------


class OfJob(Params, frozen=True):
    """A job."""

    job: Annotated[Hash, Meta(description="The job: the id of the transaction that submitted it.")]


class JobListing(Params, frozen=True):
    """Which jobs."""

    owner: Annotated[AddressText, Meta(description="Only the jobs of this account.")] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_JOBS, description="At most this many jobs.")] = 50


class OfPacket(Params, frozen=True):
    """A packet."""

    packet: Annotated[Hash, Meta(description="Id of the packet, from `job_packets`.")]
    job: (
        Annotated[Hash, Meta(description="Its job: needed only if it was never dealt and the job has closed.")] | None
    ) = None


# --- worker_* --------------------------------------------------------------------------------------------------------


class OfWorker(Params, frozen=True):
    """A worker."""

    address: Annotated[AddressText, Meta(description="Address of the worker's account.")]


class WorkerListing(Params, frozen=True):
    """Which workers."""

    active_only: Annotated[bool, Meta(description="Only those that packets are dealt to.")] = False
    limit: Annotated[int, Meta(ge=1, le=MAX_WORKERS, description="At most this many workers.")] = 100


# --- work_* ----------------------------------------------------------------------------------------------------------


class ForMiner(Params, frozen=True):
    """Who mines."""

    miner: Annotated[AddressText, Meta(description="Address that the block is to reward.")]


class Submission(Params, frozen=True):
    """A winning tile."""

    id: Annotated[Hash, Meta(description="The unit's id, from `work_getUnit`.")]
    i: Annotated[Count, Meta(description="Row of the winning tile.")]
    j: Annotated[Count, Meta(description="Column of the winning tile.")]
    state: Annotated[
        str,
        Meta(pattern="^[0-9a-f]*$", min_length=128, max_length=128, description="The tile's 16 × u32, little-endian."),
    ]
    answer: Annotated[
        Annotated[str, Meta(pattern="^[0-9a-f]*$", max_length=2 * MAX_ANSWER_BYTES)] | None,
        Meta(description="Of a packet: the worker's canonical signed Answer, its product uploaded before."),
    ] = None


class SignedResult(Params, frozen=True):
    """A worker's claim."""

    result: Annotated[
        str, Meta(max_length=2 * MAX_RESULT_BYTES, description="Canonical bytes of the signed Result, hexadecimal.")
    ]


# --- node_* ----------------------------------------------------------------------------------------------------------


class NewPeer(Params, frozen=True):
    """Where a peer listens."""

    address: Annotated[str, Meta(min_length=3, max_length=262, description="host:port, or [IPv6]:port.")]
