"""Units for outside miners: another process, a GPU box, anything that can hash a header and multiply.

`get_unit` hands out a candidate, `submit` takes its winning tile and product. A packet's product that wins nothing is
sent as a signed Result like any other (the key stays with the outside miner), so it needs no desk.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from consensus import work
from consensus.block import Answer, PacketUnit
from consensus.codec import encode
from consensus.errors import Refusal
from consensus.shape import TILE_SIDE, Shape
from node.chain.chain import Import
from node.compute import Compute
from node.mining.producer import Candidate, Producer
from node.mining.turns import Turns
from node.pool.intake import Intake

MAX_OUTSTANDING = 1024
"""Units that are remembered: beyond, the miner that has most of them loses its oldest."""
MAX_AGE_SPACINGS = 20
"""Intended block times after which an unanswered unit is forgotten."""

_STATE_BYTES = 64


class DeskReason(StrEnum):
    """The codes of `DeskError`."""

    UNKNOWN_UNIT = "unknown-unit"
    STALE_UNIT = "stale-unit"
    BAD_TILE = "bad-tile"
    BAD_ANSWER = "bad-answer"
    NO_WIN = "no-win"


class DeskError(Refusal):
    """What an outside miner brought makes no block. `code` is a `DeskReason`."""

    def __init__(self, code: DeskReason, message: str, fix: str) -> None:
        super().__init__(code, message, fix)


@dataclass(frozen=True)
class WorkUnit:
    """What an outside miner needs to know.

    Attributes:
        id: names the unit in `submit`; the block's id if it wins.
        core: canonical bytes of the header core; `seed` = H("tw/work", core).
        target: a ticket wins if int(ticket) · 1024 < target · k.
        packet_id, left, right: of a packet, with its operands' commitments; None for an idle unit.
        deadline: last tick at which the packet's answer is paid; None for an idle unit.
    """

    id: bytes
    core: bytes
    seed: bytes
    target: int
    shape: Shape
    packet_id: bytes | None = None
    left: bytes | None = None
    right: bytes | None = None
    deadline: int | None = None


@dataclass(frozen=True)
class _Outstanding:
    candidate: Candidate
    given_ms: int


class WorkDesk:
    """Remembers what was handed out. Used on the event loop."""

    def __init__(self, intake: Intake, producer: Producer, compute: Compute, clock: Callable[[], int]) -> None:
        self._intake = intake
        self._producer = producer
        self._compute = compute
        self._clock = clock
        self._outstanding: OrderedDict[bytes, _Outstanding] = OrderedDict()
        self._turns = Turns(intake, producer)

    async def get_unit(self, worker: bytes) -> WorkUnit:
        """The next unit for a worker's address: a packet that it holds, each once per tip, else an idle unit."""
        held = self._turns.next_packet(worker)
        unit = held.unit if held is not None else self._producer.idle_unit
        candidate = await self._compute.run(self._producer.candidate, unit, worker)
        if held is not None:
            self._turns.give(held.packet_id, candidate.tip)
        self._forget_old()
        self._outstanding[candidate.id] = _Outstanding(candidate, self._clock())
        core = candidate.core
        idle = WorkUnit(candidate.id, encode(core), candidate.seed, core.target_int, candidate.shape)
        if held is None:
            return idle
        left, right = held.packet.left.commitment, held.packet.right.commitment
        return replace(idle, packet_id=held.packet_id, left=left, right=right, deadline=held.deadline)

    async def submit(self, unit_id: bytes, i: int, j: int, state: bytes, answer: Answer | None = None) -> Import:
        """Seal and import the block of a unit that won.

        Args:
            unit_id: from `get_unit`.
            i, j, state: the winning tile and its 16 × u32, little-endian.
            answer: of a packet, the worker's; its product was given to the node before.
        Raises:
            DeskError: an unknown or stale unit, or a tile that does not win: nothing is imported.
            ConsensusError: the block is refused: a false state, answer or product.
            MissingTensor: the product is not here.
        """
        outstanding = self._outstanding.get(unit_id)
        if outstanding is None:
            raise DeskError(
                DeskReason.UNKNOWN_UNIT, "this node handed out no such unit, or too long ago", "get a new unit"
            )
        candidate = outstanding.candidate
        if candidate.tip is not self._intake.chain.tip:
            raise DeskError(
                DeskReason.STALE_UNIT, "a new block came meanwhile", "send a packet's product as a signed result"
            )
        m, k, n = candidate.shape
        if not (0 <= i < m // TILE_SIDE and 0 <= j < n // TILE_SIDE and len(state) == _STATE_BYTES):
            message = f"tile ({i}, {j}) with a state of {len(state)} bytes"
            fix = f"send a tile below ({m // TILE_SIDE}, {n // TILE_SIDE}) with {_STATE_BYTES} bytes"
            raise DeskError(DeskReason.BAD_TILE, message, fix)
        if (answer is not None) != isinstance(candidate.core.unit, PacketUnit):
            message = "an answer beside no packet" if answer is not None else "a packet without its answer"
            raise DeskError(DeskReason.BAD_ANSWER, message, "send the signed answer of a packet, and of nothing else")
        words = np.frombuffer(state, "<u4").astype(np.uint32)
        if not work.wins(work.ticket(candidate.seed, i, j, words), candidate.core.target_int, k):
            message = "the tile's ticket is above the target"
            raise DeskError(
                DeskReason.NO_WIN, message, "submit winning tiles; send a packet's product as a signed result"
            )
        block = self._producer.seal(candidate, i, j, words, answer)
        change = await self._intake.block(block)
        self._outstanding.pop(unit_id, None)
        return change

    def _forget_old(self) -> None:
        """Make room for one more. Units are in the order in which they were handed out."""
        oldest_ms = self._clock() - MAX_AGE_SPACINGS * self._intake.chain.params.spacing_ms
        while self._outstanding and next(iter(self._outstanding.values())).given_ms < oldest_ms:
            self._outstanding.popitem(last=False)
        if len(self._outstanding) >= MAX_OUTSTANDING:
            crowds = Counter(unit.candidate.core.miner for unit in self._outstanding.values())
            largest = max(crowds, key=lambda miner: crowds[miner])
            units = self._outstanding.items()
            del self._outstanding[next(key for key, unit in units if unit.candidate.core.miner == largest)]
