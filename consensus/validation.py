"""The checks that a block passes before it is executed, cheapest first (docs/protocol.md, section 5).

    header: by itself → against its parent → its tile      (a bogus header costs its sender hash work)
    body:   by itself, before execution
    result: in `consensus.transition`

All functions are pure; each raises ConsensusError with its reason, `BadProof` where only the copy's proof is at fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from consensus import crypto, difficulty, tensor, work
from consensus.block import Block, Body, Header, PacketUnit, PairUnit, Zero
from consensus.codec import Hash, Value, encode
from consensus.errors import BadProof, ConsensusError, Reason
from consensus.params import (
    MAX_BODY_BYTES,
    MAX_BODY_TX_BYTES,
    MAX_OPERAND_BYTES,
    MAX_TARGET,
    MAX_TX_BYTES,
    PROTOCOL_VERSION,
    ChainParams,
)
from consensus.rules import payloads
from consensus.shape import MAX_UNIT_BYTES, TILE_SIDE
from consensus.tensor import TensorSpec
from consensus.transaction import Transaction


class Strips(Value, frozen=True):
    """What proves the operands under a header's tile: A's row strip, B's column strip, their paths."""

    a: bytes
    a_path: tuple[Hash, ...]
    b: bytes
    b_path: tuple[Hash, ...]


class ParentContext(NamedTuple):
    """What the next header is checked against. `times_ms`: of the last min(11, available) headers, parent included."""

    header: Header
    times_ms: Sequence[int]


def expected_target(params: ChainParams, parent: Header) -> int:
    """The target of the block after `parent`: ASERT anchored at genesis, as if its parent came one spacing before."""
    return difficulty.next_target(
        int.from_bytes(params.anchor_target, "big"),
        parent.core.time_ms - (params.genesis_time_ms - params.spacing_ms),
        parent.core.height,
        params.spacing_ms,
        params.halflife_ms,
        MAX_TARGET,
    )


def max_time_ms(params: ChainParams, now_ms: int) -> int:
    """Latest time of a block that is accepted at `now_ms`."""
    return now_ms + max(2 * params.spacing_ms, 10_000)


def check_header(params: ChainParams, header: Header, parent: ParentContext, now_ms: int | None = None) -> None:
    """Everything about a header but its tile. `now_ms` is the local clock; None leaves the future unchecked."""
    _check_header_alone(params, header)
    core, above = header.core, parent.header
    if core.parent != above.id:
        raise ConsensusError(Reason.UNKNOWN_PARENT, core.parent, above.id)
    if core.height != above.core.height + 1:
        raise ConsensusError(Reason.BAD_HEIGHT, core.height, above.core.height + 1)
    median = difficulty.median_time(parent.times_ms)
    if core.time_ms <= median:
        raise ConsensusError(Reason.TIME_TOO_OLD, core.time_ms, f"more than {median}")
    target = expected_target(params, above)
    if core.target_int != target:
        raise ConsensusError(Reason.WRONG_TARGET, core.target, target.to_bytes(32, "big"))
    if core.parent_ticket != above.ticket:
        raise ConsensusError(Reason.WRONG_PARENT_TICKET, core.parent_ticket, above.ticket)
    # Last, because a header that is only early may be looked at again.
    if now_ms is not None and core.time_ms > max_time_ms(params, now_ms):
        raise ConsensusError(Reason.TIME_TOO_NEW, core.time_ms, f"at most {max_time_ms(params, now_ms)}")


def check_answer(genesis_hash: bytes, header: Header) -> None:
    """A packet header carries its miner's own signed answer: nobody else can make another copy of it."""
    core, proof = header.core, header.proof
    assert proof is not None, "checked with the header"
    if (result := header.result) is None or proof.answer is None:
        return
    if crypto.address_of(proof.answer.key) != core.miner:
        raise BadProof(Reason.WRONG_ANSWER, crypto.address_of(proof.answer.key), core.miner)
    if not crypto.verify(proof.answer.key, result.body.signing_hash(genesis_hash), result.signature):
        raise BadProof(Reason.BAD_SIGNATURE, result.signature, "the miner's signature for this network")


def check_tile(header: Header, strips: Strips | None = None) -> None:
    """Recompute the winning tile. All but zero operands need their `strips`, whose roots stand in the core."""
    core, proof = header.core, header.proof
    assert proof is not None, "checked with the header"
    m, k, n = core.unit.shape
    if isinstance(core.unit, Zero):
        a: tensor.Matrix = np.zeros((TILE_SIDE, k), np.int8)
        b: tensor.Matrix = np.zeros((k, TILE_SIDE), np.int8)
    else:
        a, b = _proved_strips(core.unit, proof.i, proof.j, strips)
    state = work.strip_state(core.seed, a, b, m, n, proof.i, proof.j)
    if state.astype("<u4").tobytes() != proof.state:
        raise BadProof(Reason.WRONG_TILE_STATE, proof.state, state.astype("<u4").tobytes())


def check_body(params: ChainParams, genesis_hash: bytes, block: Block) -> None:
    """Everything about a body that needs no state. Results' signatures wait for the workers' keys."""
    body = block.body
    size = len(encode(body))
    if size > MAX_BODY_BYTES:
        raise ConsensusError(Reason.BODY_TOO_LARGE, size, MAX_BODY_BYTES)
    if body.root() != block.header.core.body_root:
        raise ConsensusError(Reason.WRONG_BODY_ROOT, body.root(), block.header.core.body_root)
    txids = {tx.body.txid(genesis_hash) for tx in body.transactions}
    if len(txids) != len(body.transactions):
        raise ConsensusError(Reason.DUPLICATE_TRANSACTION, f"{len(body.transactions)} transactions", "distinct ones")
    answered = [result.body.packet_id for result in body.results]
    if isinstance(block.header.core.unit, PacketUnit):
        answered.append(block.header.core.unit.packet_id)
    if len(set(answered)) != len(answered):
        raise ConsensusError(Reason.DUPLICATE_RESULT, f"{len(answered)} results", "one a packet")
    if len(body.results) > params.max_results:
        raise ConsensusError(Reason.TOO_MANY_RESULTS, len(body.results), params.max_results)
    offered = sum(len(encode(tx)) for tx in body.transactions)
    if offered > MAX_BODY_TX_BYTES:
        raise ConsensusError(Reason.BODY_TOO_LARGE, f"transactions of {offered} bytes", MAX_BODY_TX_BYTES)
    for tx in body.transactions:
        check_transaction(params, tx)
    # Before anything is fetched; the Results' products are added in execution, where their shapes are known.
    obliged = sum({spec.commitment: spec.size for spec in obliged_operands(body)}.values())
    if obliged > MAX_OPERAND_BYTES:
        raise ConsensusError(Reason.TOO_MANY_TENSOR_BYTES, obliged, MAX_OPERAND_BYTES)


def check_signatures(genesis_hash: bytes, transactions: Sequence[Transaction]) -> None:
    """Every transaction is signed by its sender. The costly part of a body: whoever has checked them may skip it."""
    for tx in transactions:
        if not tx.is_signed(genesis_hash):
            raise ConsensusError(Reason.BAD_SIGNATURE, tx.signature, "the sender's signature for this network")


def check_transaction(params: ChainParams, tx: Transaction) -> None:
    """Everything about a transaction but its signature and what depends on the state."""
    body = tx.body
    size = len(encode(tx))
    if size > MAX_TX_BYTES:
        raise ConsensusError(Reason.OVERSIZE, f"{size} bytes", f"at most {MAX_TX_BYTES}")
    if not crypto.is_strict_public_key(body.sender):
        raise ConsensusError(Reason.BAD_PUBLIC_KEY, body.sender, "a canonical key that is not of small order")
    payloads.kind_of(body.payload).check(params, body.payload)
    needed = payloads.intrinsic_gas(params, body)
    if body.gas_limit < needed:
        raise ConsensusError(Reason.GAS_LIMIT_TOO_LOW, body.gas_limit, needed)
    if body.gas_limit > params.gas_limit:
        raise ConsensusError(Reason.BLOCK_GAS_EXCEEDED, body.gas_limit, params.gas_limit)


def obliged_operands(body: Body) -> list[TensorSpec]:
    """The operands that a block's transactions oblige every node to have."""
    return [spec for tx in body.transactions for spec in payloads.operands(tx)]


def _check_header_alone(params: ChainParams, header: Header) -> None:
    core, proof = header.core, header.proof
    if core.version != PROTOCOL_VERSION:
        raise ConsensusError(Reason.BAD_VERSION, core.version, PROTOCOL_VERSION)
    if core.chain_id != params.chain_id:
        raise ConsensusError(Reason.WRONG_CHAIN, core.chain_id, params.chain_id)
    if core.target_int > MAX_TARGET:
        raise ConsensusError(Reason.WRONG_TARGET, core.target, f"at most {MAX_TARGET.to_bytes(32, 'big').hex()}")
    if proof is None:
        raise BadProof(Reason.MISSING_PROOF, "no proof", "a winning tile")
    if (proof.answer is not None) != isinstance(core.unit, PacketUnit):
        raise BadProof(Reason.WRONG_ANSWER, proof.answer, "an answer beside a packet, and beside nothing else")
    shape = core.unit.shape
    if not shape.is_unit():
        raise ConsensusError(Reason.BAD_UNIT, shape, "multiples of 64 in 64…4096")
    if shape.unit_bytes > MAX_UNIT_BYTES:
        raise ConsensusError(Reason.UNIT_TOO_LARGE, shape.unit_bytes, MAX_UNIT_BYTES)
    rows, columns = shape.m // TILE_SIDE, shape.n // TILE_SIDE
    if proof.i >= rows or proof.j >= columns:
        raise BadProof(Reason.TILE_OUT_OF_RANGE, f"({proof.i}, {proof.j})", f"below ({rows}, {columns})")
    if not work.wins(header.ticket, core.target_int, shape.k):
        raise BadProof(Reason.TICKET_ABOVE_TARGET, header.ticket, core.target)


def _proved_strips(
    unit: PacketUnit | PairUnit, i: int, j: int, strips: Strips | None
) -> tuple[tensor.Matrix, tensor.Matrix]:
    left, right = unit.left, unit.right
    if strips is None:
        raise BadProof(Reason.MISSING_STRIPS, None, "the tile's strips")
    if not tensor.verify_strip(left, i, strips.a, strips.a_path) or not tensor.verify_strip(
        right, j, strips.b, strips.b_path
    ):
        raise BadProof(Reason.WRONG_STRIPS, "other bytes", "the tile's strips")
    a, b = tensor.strip_matrix(left, strips.a), tensor.strip_matrix(right, strips.b)
    if not (tensor.in_operand_range(a) and tensor.in_operand_range(b)):
        raise ConsensusError(Reason.OPERAND_OUT_OF_RANGE, "an entry outside [−63, 63]", "7-bit operands")
    return a, b


def obliged_tensors(block: Block) -> list[bytes]:
    """Commitments of all tensors without which the block cannot be executed: operands, and products named in it."""
    operands = [spec.commitment for spec in obliged_operands(block.body)]
    products = [result.body.product for result in block.body.results]
    if (own := block.header.result) is not None:
        products.append(own.body.product)
    return list(dict.fromkeys(operands + products))
