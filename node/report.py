"""What a node says of itself: to RPC, to probes, to Prometheus."""

from __future__ import annotations

import time

from api.node import MempoolInfo, MiningInfo, NodeInfo, PeerView
from consensus.address import encode_address
from node.failure import Failure
from node.metrics import Reading
from node.mining.miner import Miner
from node.notes import Notes
from node.p2p.network import Network
from node.p2p.transport import Endpoint
from node.pool.intake import Intake
from node.rpc.context import ReadChain
from node.rpc.methods.chain import is_syncing
from node.rpc.server import Readiness
from node.start import software_version
from worker.stats import MinerStats

CLAIM_SECONDS = 30.0
"""While all peers are newer than this their word of their height is believed: nobody has had time to show work. Later
it is the headers that tell, so that no stranger who comes again and again makes a node look unready."""


class Report:
    """Reads the parts of a node; a `node.rpc.context.Host`. On the event loop's thread.

    Attributes:
        rpc_address: URL of the RPC server; empty before it serves.
        mining_now: whether the miner runs.
    """

    def __init__(
        self,
        chain: ReadChain,
        intake: Intake,
        network: Network,
        miner: Miner | None,
        failure: Failure,
        notes: Notes,
        *,
        node_id: bytes,
        worker: bytes | None,
        needs_peers: bool,
    ) -> None:
        """`worker` is the address that is mined for; `needs_peers`: without a peer the node is not ready."""
        self.rpc_address = ""
        self.mining_now = False
        self._chain = chain
        self._intake = intake
        self._network = network
        self._miner = miner
        self._failure = failure
        self._notes = notes
        self._node_id = node_id
        self._worker = worker
        self._needs_peers = needs_peers
        self._started_at = time.monotonic()

    # ------------------------------------------------------------------ probes

    def health(self) -> Readiness:
        """Whether the node lives."""
        error = self._failure.error
        return Readiness(error is None, "" if error is None else str(error))

    def ready(self) -> Readiness:
        """Whether the node takes its full part; if not, the first reason."""
        if self._failure.error is not None:
            return self.health()
        if self._network.address is None:
            return Readiness(False, "not listening for peers")
        if split := self._chain.split:
            depth = self._chain.tip.height - split.fork_height
            other = f"a chain with more work, at height {split.height}, leaves this one {depth} blocks below its tip"
            remedy = "see which of them the others follow; start with --allow-deep-reorg to follow that one"
            return Readiness(False, f"{other}, deeper than a node undoes by itself: {remedy}")
        if behind := self.why_behind():
            return Readiness(False, behind)
        if self._miner is not None and not self.mining_now:
            return Readiness(False, "the miner is not running")
        if group := self._network.only_group():  # it may be led astray and cannot know
            return Readiness(True, f"every peer is of one network, {group}: configure a peer elsewhere")
        return Readiness(True)

    def why_behind(self) -> str:
        """What keeps the node from the network's tip; empty when it is there."""
        peers, tip = self._network.peers(), self._chain.tip
        if self._needs_peers and not peers:
            return "no peer is connected"
        all_are_new = all(peer.connected_s < CLAIM_SECONDS for peer in peers)
        claimed = [peer.height for peer in peers] if all_are_new else []
        known = max([self._chain.best_header.height, *claimed])
        if is_syncing(self._chain) or known - tip.height > 2:
            return f"syncing: height {tip.height} of {known}"
        return ""

    def reading(self) -> Reading:
        """The node at this moment, for metrics."""
        stats = self._miner.stats if self._miner is not None else MinerStats()
        pool = self._intake.pool
        return Reading(
            height=self._chain.tip.height,
            best_header_height=self._chain.best_header.height,
            peers=len(self._network.peers()),
            mempool_transactions=len(pool),
            mempool_bytes=pool.total_bytes,
            results=len(self._intake.results),
            tensor_bytes=self._chain.tensors.total_bytes,
            ready=self.ready().ok,
            mined={name: float(value) for name, value in stats.counters().items()},
        )

    # ------------------------------------------------------------------ for RPC

    def info(self) -> NodeInfo:
        """See `node_info`."""
        params = self._chain.params
        return NodeInfo(
            version=software_version(),
            network=params.network,
            node_id=self._node_id.hex(),
            p2p_address=str(self._network.address or ""),
            rpc_address=self.rpc_address,
            miner=None if self._worker is None else encode_address(self._worker, params.address_prefix),
            uptime_seconds=round(time.monotonic() - self._started_at, 1),
            peers=len(self._network.peers()),
            height=self._chain.tip.height,
            notes=self._notes.texts,
        )

    def peers(self) -> list[PeerView]:
        """See `node_peers`."""
        return [
            PeerView(
                id=peer.id,
                address=peer.address,
                direction=peer.direction,
                agent=peer.agent,
                version=peer.version,
                height=peer.height,
                latency_ms=peer.latency_ms,
                score=peer.score,
                bytes_in=peer.bytes_in,
                bytes_out=peer.bytes_out,
            )
            for peer in self._network.peers()
        ]

    def mempool(self) -> MempoolInfo:
        """See `node_mempool`."""
        pool = self._intake.pool
        return MempoolInfo(len(pool), pool.total_bytes, len(self._intake.results))

    def mining(self) -> MiningInfo:
        """See `node_mining`."""
        if self._miner is None:
            return MiningInfo(enabled=False)
        stats = self._miner.stats
        return MiningInfo(
            enabled=True,
            idle_units=stats.idle_units,
            packet_units=stats.packet_units,
            macs=stats.macs,
            seconds=stats.seconds,
            packets_answered=stats.packets_answered,
            idle_blocks=stats.idle_blocks,
            packet_blocks=stats.packet_blocks,
        )

    def add_peer(self, address: str) -> None:
        """Connect to host:port and stay connected. Raises ValueError."""
        self._network.add_peer(Endpoint.parse(address))
