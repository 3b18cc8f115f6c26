"""What a WebSocket client can subscribe to: the topics' names and their events."""

from __future__ import annotations

from msgspec import Struct

from api.chain import TxKind
from api.fields import Count, Hash
from api.work import JobEventName

NEW_HEADS = "newHeads"
"""`api.chain.HeaderView`"""
PENDING_TRANSACTIONS = "pendingTransactions"
JOBS = "jobs"
RESULTS = "results"
REORGS = "reorgs"


class PendingTx(Struct, frozen=True):
    """A transaction that has entered the mempool."""

    txid: Hash
    sender: str
    nonce: Count
    kind: TxKind


class JobEvent(Struct, frozen=True):
    """Something happened to a job in the main chain's block at `height`."""

    height: Count
    job: Hash
    event: JobEventName
    packet_id: Hash | None
    worker: str | None
    text: str


class PendingResult(Struct, frozen=True):
    """A verified Result that has entered the pool."""

    id: Hash
    packet_id: Hash
    worker: str
    product: Hash


class Reorg(Struct, frozen=True):
    """Blocks left the main chain: `disconnected` newest first, `connected` oldest first, `fork_height` below both."""

    fork_height: Count
    disconnected: tuple[Hash, ...]
    connected: tuple[Hash, ...]
