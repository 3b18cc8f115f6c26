"""What RPC answers of the node itself, and the events of subscriptions, look like; see `node.rpc.views`."""

from __future__ import annotations

from msgspec import Struct

from node.rpc.views import TxKind
from node.rpc.views_work import JobEventName

# --- the node ------------------------------------------------------------------------------------------------------


class NodeInfo(Struct, frozen=True):
    """This node. `miner` is its worker's account, null if it does not mine."""

    version: str
    network: str
    node_id: str
    p2p_address: str
    rpc_address: str
    miner: str | None
    uptime_seconds: float
    peers: int
    height: int


class PeerView(Struct, frozen=True):
    """A connected peer. `latency_ms` is null before the first answer; `score` counts its misbehaviour, 100 is out."""

    id: str
    address: str
    direction: str
    agent: str
    version: int
    height: int
    latency_ms: float | None
    score: float
    bytes_in: int
    bytes_out: int


class MempoolInfo(Struct, frozen=True):
    """What waits for a block."""

    transactions: int
    bytes: int
    results: int


class MiningInfo(Struct, frozen=True):
    """What the node's own miner has done since it started; all zero where it does not mine.

    `macs` counts multiplications as packets are priced, `seconds` the time spent on them.
    """

    enabled: bool
    idle_units: int = 0
    packet_units: int = 0
    macs: int = 0
    seconds: float = 0.0
    packets_answered: int = 0
    idle_blocks: int = 0
    packet_blocks: int = 0


class Done(Struct, frozen=True):
    """It was done."""

    ok: bool = True


# --- events --------------------------------------------------------------------------------------------------------


class PendingTx(Struct, frozen=True):
    """A transaction that has entered the mempool."""

    txid: str
    sender: str
    nonce: int
    kind: TxKind


class JobEvent(Struct, frozen=True):
    """Something happened to a job in the main chain's block at `height`."""

    height: int
    job: str
    event: JobEventName
    packet_id: str | None
    worker: str | None
    text: str


class PendingResult(Struct, frozen=True):
    """A verified Result that has entered the pool."""

    id: str
    packet_id: str
    worker: str
    product: str


class Reorg(Struct, frozen=True):
    """Blocks left the main chain: `disconnected` newest first, `connected` oldest first, `fork_height` below both."""

    fork_height: int
    disconnected: list[str]
    connected: list[str]
