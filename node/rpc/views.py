"""How RPC's answers are made from the chain's own values."""

from __future__ import annotations

from typing import cast

from msgspec import Struct

from api.chain import (
    HeaderView,
    OutputView,
    PacketUnitView,
    PairUnitView,
    ResultView,
    TxKind,
    TxView,
    UnitView,
    ZeroView,
)
from consensus.address import encode_address
from consensus.block import Header, PacketUnit, PairUnit, Unit, Zero
from consensus.codec import encode
from consensus.events import Receipt
from consensus.rules import payloads
from consensus.transaction import Payload, Result, Transaction


class Placed(Struct, frozen=True):
    """Where something stands, for views: block id, height, confirmations, and the receipt of a transaction."""

    block: bytes
    height: int
    confirmations: int
    receipt: Receipt | None


def kind_name(payload: Payload) -> TxKind:
    """The name of a payload's kind."""
    return cast(TxKind, payloads.kind_of(payload).name)


def header_view(header: Header, prefix: str, total_work: int, confirmations: int, main: bool) -> HeaderView:
    """`confirmations` counts the block itself; 0 off the main chain."""
    core, proof = header.core, header.proof
    return HeaderView(
        id=header.id.hex(),
        height=core.height,
        parent=core.parent.hex(),
        parent_ticket=core.parent_ticket.hex(),
        time_ms=core.time_ms,
        target=core.target.hex(),
        miner=encode_address(core.miner, prefix),
        state_root=core.state_root.hex(),
        body_root=core.body_root.hex(),
        unit=unit_view(core.unit),
        nonce=core.nonce.hex(),
        ticket=header.ticket.hex(),
        tile=None if proof is None else (proof.i, proof.j),
        product=None if header.result is None else header.result.body.product.hex(),
        total_work=str(total_work),
        confirmations=confirmations,
        main=main,
        raw=encode(header).hex(),
    )


def unit_view(unit: Unit) -> UnitView:
    """What was, or is to be, multiplied."""
    match unit:
        case Zero():
            return ZeroView(unit.m, unit.k, unit.n)
        case PairUnit():
            return PairUnitView(unit.a_root.hex(), unit.b_root.hex(), unit.m, unit.k, unit.n)
        case PacketUnit():
            return PacketUnitView(unit.packet_id.hex(), unit.a_root.hex(), unit.b_root.hex(), unit.m, unit.k, unit.n)


def tx_view(tx: Transaction, txid: bytes, prefix: str, placed: Placed | None) -> TxView:
    """`placed` is None while the transaction is pending."""
    body, payload = tx.body, tx.body.payload
    receipt = None if placed is None else placed.receipt
    view = payloads.kind_of(payload).view
    return TxView(
        txid=txid.hex(),
        status="pending" if placed is None else "confirmed",
        block=None if placed is None else placed.block.hex(),
        height=None if placed is None else placed.height,
        confirmations=0 if placed is None else placed.confirmations,
        sender=encode_address(body.address, prefix),
        nonce=body.nonce,
        kind=kind_name(payload),
        outputs=tuple(
            OutputView(encode_address(output.address, prefix), output.amount) for output in view.outputs(payload)
        ),
        memo=view.memo(payload).hex(),
        gas_used=None if receipt is None else receipt.gas_used,
        fee=None if receipt is None else receipt.fee,
        ok=None if receipt is None else receipt.ok,
        reason="" if receipt is None else receipt.reason,
        detail="" if receipt is None else receipt.detail,
        raw=encode(tx).hex(),
    )


def result_view(result: Result, prefix: str) -> ResultView:
    """A Result of a block or of the pool."""
    body = result.body
    return ResultView(body.packet_id.hex(), encode_address(body.worker, prefix), body.product.hex())
