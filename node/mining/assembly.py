"""Choosing a block's body: pending Results and transactions, tried one by one on an `Execution` until it is full.

What is tried here runs through the same functions that validate the block, so a chosen body is a valid one. It is
chosen for no unit in particular: a unit's own answer only credits its worker, and more grains make nothing invalid. So
one body serves every candidate on a tip, but for the Result that a packet unit makes implicit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from consensus import state, transition
from consensus.block import Body
from consensus.codec import encode
from consensus.errors import ConsensusError, MissingTensor
from consensus.params import MAX_BODY_BYTES, MAX_BODY_TX_BYTES, MAX_OPERAND_BYTES, MAX_TENSOR_BYTES
from consensus.proofs.products import Products, check_operands
from consensus.rules import payloads
from consensus.rules.execution import Execution
from consensus.state import StateReader
from consensus.transaction import Result
from node.chain.headers import HeaderEntry
from node.pool.mempool import Mempool, TipView
from node.pool.results import ResultPool

MAX_TRIED = 4_096
"""Transactions looked at for one block: several times the 926 smallest that its gas could hold."""

_FRAME_BYTES = 16
"""MessagePack headers of the body and its two arrays."""


class TipMoved(Exception):
    """There is a new tip: what was read belongs to the old one."""


@dataclass(frozen=True)
class Assembly:
    """A body and its root on a tip, for a block whose time is before or from `tick_ms` on, as `ticks` says.

    `tensor_bytes` is what it obliges, the unit's product not counted.
    """

    tip: HeaderEntry
    tick_ms: int
    ticks: bool
    state_root: bytes
    body: Body
    body_root: bytes
    tensor_bytes: int


class MinedChain(TipView, Protocol):
    """What is needed of the chain to build on it."""

    @property
    def genesis_hash(self) -> bytes: ...
    @property
    def products(self) -> Products: ...


class PinnedState:
    """The state after one tip, read in many short reads; `TipMoved` once the chain has gone on.

    The tip never returns to a block that it has left, so reads that all saw the same tip saw the same state.
    """

    def __init__(self, chain: MinedChain, tip: HeaderEntry) -> None:
        self._chain = chain
        self._tip = tip

    def get(self, key: bytes) -> bytes | None:
        return self._chain.read(lambda state: self._checked(state).get(key))

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(self._chain.read(lambda state: list(self._checked(state).scan(prefix, after))))

    def _checked(self, reader: StateReader) -> StateReader:
        if self._chain.tip is not self._tip:
            raise TipMoved
        return reader


def assemble(chain: MinedChain, pool: Mempool, results: ResultPool, time_ms: int, reserve_bytes: int) -> Assembly:
    """A body for a block of `time_ms` on the present tip that leaves room for a unit's product of `reserve_bytes`.

    Reads and executes: up to some 0.1 s for a full block, so not for the event loop.

    Raises:
        TipMoved: a block came meanwhile.
    """
    tip = chain.tip
    pinned = PinnedState(chain, tip)
    state_root = state.root_of(pinned)
    execution = Execution(chain.params, pinned, tip.height + 1, time_ms, miner=bytes(20))
    room = _Room(MAX_BODY_BYTES - _FRAME_BYTES, MAX_TENSOR_BYTES - reserve_bytes)
    offered = _Room(MAX_BODY_TX_BYTES, MAX_OPERAND_BYTES)
    chosen_results: list[Result] = []
    for result in results.pending():
        if len(chosen_results) == chain.params.max_results:
            break
        packet = state.PACKETS.get(execution.state, result.body.packet_id)
        if packet is None:
            continue
        size, tensors = len(encode(result)), {result.body.product: packet.shape.product_bytes}
        if not room.fits(size, tensors):
            continue
        try:
            transition.apply_result(execution, chain.genesis_hash, result, chain.products)
        except (ConsensusError, MissingTensor):
            continue
        room.take(size, tensors)
        chosen_results.append(result)
    chosen = []
    for pending in pool.best(execution.ledger.base_fee, MAX_TRIED):
        operands = payloads.operands(pending.tx)
        size, tensors = len(encode(pending.tx)), {operand.commitment: operand.size for operand in operands}
        if not (room.fits(size, tensors) and offered.fits(size, tensors)):
            continue
        try:
            check_operands(chain.products, operands)
            transition.apply_transaction(execution, chain.genesis_hash, pending.tx)
        except (ConsensusError, MissingTensor):
            continue
        room.take(size, tensors)
        offered.take(size, tensors)
        chosen.append(pending.tx)
        if execution.gas_used + chain.params.gas.transaction > chain.params.gas_limit:
            break
    body = Body(tuple(chosen_results), tuple(chosen))
    return Assembly(tip, execution.tick_ms, execution.ticks, state_root, body, body.root(), room.tensor_bytes)


class _Room:
    """What is left of a body's bytes and of the tensors that a block may oblige, each counted once."""

    def __init__(self, body_limit: int, tensor_limit: int) -> None:
        self._left = body_limit
        self._tensor_limit = tensor_limit
        self._tensors: dict[bytes, int] = {}
        self.tensor_bytes = 0

    def fits(self, size: int, tensors: dict[bytes, int]) -> bool:
        return size <= self._left and self.tensor_bytes + self._added(tensors) <= self._tensor_limit

    def take(self, size: int, tensors: dict[bytes, int]) -> None:
        self._left -= size
        self.tensor_bytes += self._added(tensors)
        self._tensors.update(tensors)

    def _added(self, tensors: dict[bytes, int]) -> int:
        return sum(size for commitment, size in tensors.items() if commitment not in self._tensors)
