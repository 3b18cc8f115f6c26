"""Building blocks to mine: candidates on the tip for any unit and miner, and their sealing with a winning tile.

Thread-safe. A candidate costs some microseconds while tip and pools stand still: only the header is new.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from consensus.block import Answer, Block, Body, Header, HeaderCore, PacketUnit, Proof, Unit, Zero
from consensus.difficulty import median_time
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_TENSOR_BYTES, PROTOCOL_VERSION
from consensus.rules import jobs
from consensus.shape import Shape
from consensus.state import GROUPS, PACKETS, WORKERS, Packet, PacketStatus, StateReader
from consensus.validation import expected_target
from consensus.work.unit import UInt32
from node.chain.headers import HeaderEntry
from node.mining.assembly import Assembly, MinedChain, TipMoved, assemble
from node.pool.mempool import Mempool
from node.pool.results import ResultPool
from worker.source import IDLE_SHAPE

REFRESH_MS = 250
"""How often, at most, a body is chosen anew for what came into the pools since; a new tip always gets a new body."""
_REST = 10
"""Times as long as choosing a body took, it is used: under load, at most a tenth of a core goes into choosing."""


@dataclass(frozen=True)
class Candidate:
    """A block without its proof.

    Attributes:
        tip: the block that it stands on.
        id, seed: of the header core.
    """

    tip: HeaderEntry
    core: HeaderCore
    body: Body
    id: bytes
    seed: bytes

    @property
    def shape(self) -> Shape:
        """Of the unit's product."""
        return self.core.unit.shape

    def another(self) -> Candidate:
        """See `worker.source.Unit`."""
        nonce = (int.from_bytes(self.core.nonce, "big") + 1) % 2 ** (8 * len(self.core.nonce))
        core = msgspec.structs.replace(self.core, nonce=nonce.to_bytes(len(self.core.nonce), "big"))
        return Candidate(self.tip, core, self.body, core.id, core.seed)


class Held(NamedTuple):
    """A packet that a worker holds, and the last tick at which its answer is paid."""

    packet_id: bytes
    packet: Packet
    deadline: int
    complete: bool

    @property
    def unit(self) -> PacketUnit:
        """The packet as a block's unit."""
        p = self.packet
        return PacketUnit(self.packet_id, p.a_root, p.b_root, p.m, p.k, p.n)


class Producer:
    """Makes candidates from the pools.

    Attributes:
        idle_unit: what is mined while no packet waits.
    """

    def __init__(
        self,
        chain: MinedChain,
        pool: Mempool,
        results: ResultPool,
        clock: Callable[[], int],
        rng: random.Random,
        idle_shape: Shape = IDLE_SHAPE,
    ) -> None:
        """`clock` gives Unix time in milliseconds; `rng` draws header nonces, which need be distinct, not secret."""
        self.idle_unit = Zero(*idle_shape)
        self._chain = chain
        self._pool = pool
        self._results = results
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._assembly: Assembly | None = None
        self._versions = (0, 0)
        self._stale_ms = 0

    def candidate(self, unit: Unit, miner: bytes) -> Candidate:
        """A candidate on the present tip.

        Raises:
            ConsensusError: NOT_ASSIGNEE: `miner` does not hold the unit's packet, or not any more.
        """
        params = self._chain.params
        if isinstance(unit, PacketUnit):
            packet = self._chain.read(lambda state: PACKETS.get(state, unit.packet_id))
            if packet is None or packet.status != PacketStatus.HELD or packet.worker != miner:
                raise ConsensusError(Reason.NOT_ASSIGNEE, miner, "the packet's assignee")
        assembly, time_ms = self._current(unit.shape.product_bytes if isinstance(unit, PacketUnit) else 0)
        body, body_root = assembly.body, assembly.body_root
        if isinstance(unit, PacketUnit):
            others = tuple(r for r in body.results if r.body.packet_id != unit.packet_id)
            if len(others) < len(body.results):  # the unit's own answer is implicit
                body = Body(others, body.transactions)
                body_root = body.root()
        parent = assembly.tip.header
        core = HeaderCore(
            version=PROTOCOL_VERSION,
            chain_id=params.chain_id,
            height=assembly.tip.height + 1,
            parent=assembly.tip.id,
            parent_ticket=parent.ticket,
            time_ms=time_ms,
            target=expected_target(params, parent).to_bytes(32, "big"),
            miner=miner,
            state_root=assembly.state_root,
            body_root=body_root,
            unit=unit,
            nonce=self._rng.randbytes(8),
        )
        return Candidate(assembly.tip, core, body, core.id, core.seed)

    def seal(self, candidate: Candidate, i: int, j: int, state: UInt32, answer: Answer | None = None) -> Block:
        """The block: tile (i, j) won with its `state` (16 uint32); a packet unit comes with its worker's `answer`."""
        proof = Proof(i, j, state.astype("<u4").tobytes(), answer)
        return Block(Header(candidate.core, proof), candidate.body)

    def held(self, worker: bytes) -> list[Held]:
        """The packets that a worker holds, in the order in which to make them.

        By deadline; those of complete groups last: they earn as much, but leaving them is no miss.
        """
        packets = self._chain.read(lambda state: _held(self._chain, state, worker))
        return sorted(packets, key=lambda held: (held.complete, held.deadline))

    def _current(self, reserve_bytes: int) -> tuple[Assembly, int]:
        """A body on the tip with room for the unit's product, and the block's time; chosen anew only when it must be.

        Whether the block ticks decides which jobs' expiries it admits, so a body serves only times on its side of that.
        """
        with self._lock:
            while True:
                versions = (self._pool.version, self._results.version)
                now_ms, tip = self._clock(), self._chain.tip
                time_ms = max(now_ms, median_time(tip.context(tip.header.ticket).times_ms) + 1)
                known = self._assembly
                if known is not None and known.tip is tip and known.ticks == (time_ms >= known.tick_ms):
                    fresh = versions == self._versions or now_ms < self._stale_ms
                    if fresh and known.tensor_bytes + reserve_bytes <= MAX_TENSOR_BYTES:
                        return known, time_ms
                try:
                    chosen = assemble(self._chain, self._pool, self._results, time_ms, reserve_bytes)
                except TipMoved:
                    continue
                if chosen.tip is not tip:
                    continue
                done_ms = self._clock()
                self._stale_ms = done_ms + max(REFRESH_MS, _REST * (done_ms - now_ms))
                self._assembly, self._versions = chosen, versions
                return chosen, time_ms


def _held(chain: MinedChain, state: StateReader, address: bytes) -> list[Held]:
    worker = WORKERS.get(state, address)
    packets = []
    for holding in worker.holds if worker is not None else ():
        packet = PACKETS.get(state, holding.packet_id)
        if packet is None or packet.status != PacketStatus.HELD:
            continue
        group = GROUPS.get(state, packet.job)
        assert group is not None, "a packet without its group"
        until = jobs.deadline(chain.params, packet)
        packets.append(Held(holding.packet_id, packet, until, group.completed_at > 0))
    return packets
