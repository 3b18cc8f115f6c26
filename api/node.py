"""Answers about a node itself."""

from __future__ import annotations

from msgspec import Struct

from api.fields import Count, Hash


class NodeInfo(Struct, frozen=True):
    """This node. `miner` is its worker's account, null if it does not mine. `notes` say in words what keeps it from
    being of use: no peers on a network that has none, no blocks, a worker that is dealt nothing."""

    version: str
    network: str
    node_id: Hash
    p2p_address: str
    rpc_address: str
    miner: str | None
    uptime_seconds: float
    peers: Count
    height: Count
    notes: tuple[str, ...] = ()


class PeerView(Struct, frozen=True):
    """A connected peer. `latency_ms` is null before the first answer.

    `score` counts its misbehaviour; at 100 it is disconnected.
    """

    id: Hash
    address: str
    direction: str
    agent: str
    version: Count
    height: Count
    latency_ms: float | None
    score: float
    bytes_in: Count
    bytes_out: Count


class MempoolInfo(Struct, frozen=True):
    """What waits for a block."""

    transactions: Count
    bytes: Count
    results: Count


class MiningInfo(Struct, frozen=True):
    """What the node's own miner has done since it started; all zero where it does not mine.

    `macs` counts multiplications as packets are priced, `seconds` the time spent on them.
    """

    enabled: bool
    idle_units: Count = 0
    packet_units: Count = 0
    macs: Count = 0
    seconds: float = 0.0
    packets_answered: Count = 0
    idle_blocks: Count = 0
    packet_blocks: Count = 0


class Done(Struct, frozen=True):
    """It was done."""

    ok: bool = True
