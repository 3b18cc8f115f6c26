"""What RPC answers look like: one struct per thing, and how each is made from the chain's own values.

Bytes are lower-case hexadecimal, addresses bech32m, amounts integers of grains; what does not apply is null.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, cast

from msgspec import Meta, Struct

from consensus.address import encode_address
from consensus.block import Header, PacketUnit
from consensus.codec import encode
from consensus.events import Receipt
from consensus.rules import payloads
from consensus.transaction import Payload, Result, Transaction

Hex32: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64)]


# --- blocks --------------------------------------------------------------------------------------------------------


class IdleView(Struct, frozen=True, tag_field="kind", tag="idle"):
    """The unit of a miner for whom no job waited."""


class PacketUnitView(Struct, frozen=True, tag_field="kind", tag="packet"):
    """A paid packet: an m×k matrix times a k×n one, by the Merkle roots of their strips."""

    packet_id: str
    a_root: str
    b_root: str
    m: int
    k: int
    n: int


UnitView: TypeAlias = IdleView | PacketUnitView


class HeaderView(Struct, frozen=True):
    """A header with what its place in the chain adds. `state_root` is that of the state after the parent.

    `tile` and `product` are null for genesis. `total_work` is decimal text: it outgrows 64 bits. `raw` is canonical.
    """

    id: str
    height: int
    parent: str
    parent_ticket: str
    time_ms: int
    target: str
    miner: str
    state_root: str
    body_root: str
    unit: UnitView
    nonce: str
    ticket: str
    tile: tuple[int, int] | None
    product: str | None
    total_work: str
    confirmations: int
    main: bool
    raw: str


class OutputView(Struct, frozen=True):
    """Grains for an address."""

    address: str
    amount: int


TxKind: TypeAlias = Literal["transfer", "register_worker", "retire_worker", "submit_job", "cancel_job"]


class TxView(Struct, frozen=True):
    """A transaction. What its block decides (from `block` on to `detail`) is null or empty while it is pending.

    `fee` is in grains; `reason` and `detail` say why a payload failed (`ok` false). `raw` is canonical.
    """

    txid: str
    status: Literal["pending", "confirmed"]
    block: str | None
    height: int | None
    confirmations: int
    sender: str
    nonce: int
    kind: TxKind
    outputs: list[OutputView]
    memo: str
    gas_used: int | None
    fee: int | None
    ok: bool | None
    reason: str
    detail: str
    raw: str


class ResultView(Struct, frozen=True):
    """A worker's answer to a packet; `product` is the commitment of the tensor."""

    packet_id: str
    worker: str
    product: str


class BlockView(Struct, frozen=True):
    """A whole block. `reward_grains` is what its miner is credited at maturity, null off the main chain."""

    header: HeaderView
    transactions: list[TxView]
    results: list[ResultView]
    reward_grains: int | None
    size: int


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
        unit=unit_view(core.unit) if isinstance(core.unit, PacketUnit) else IdleView(),
        nonce=core.nonce.hex(),
        ticket=header.ticket.hex(),
        tile=None if proof is None else (proof.i, proof.j),
        product=None if proof is None else proof.product.hex(),
        total_work=str(total_work),
        confirmations=confirmations,
        main=main,
        raw=encode(header).hex(),
    )


def unit_view(unit: PacketUnit) -> PacketUnitView:
    """A packet as a unit."""
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
        outputs=[OutputView(encode_address(output.address, prefix), output.amount) for output in view.outputs(payload)],
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


# --- the network ---------------------------------------------------------------------------------------------------


class ChainInfo(Struct, frozen=True):
    """The network, its tip, and the rules that clients need. `state_root` is that of the state after the tip.

    `snapshot_height` is where the node joined from a snapshot: it has no blocks at or below it. 0: it has them all.
    """

    network: str
    chain_id: int
    address_prefix: str
    genesis_hash: str
    height: int
    tip: str
    time_ms: int
    target: str
    total_work: str
    best_header_height: int
    snapshot_height: int
    state_root: str
    syncing: bool
    spacing_ms: int
    maturity: int
    window: int
    grace: int
    max_life: int
    slot_bond: int
    min_price: int
    min_fee: int
    retention: int
    gas_limit: int


class Supply(Struct, frozen=True):
    """All grains after the block at `height`; `circulating` = `issued` − `burned`."""

    height: int
    issued: int
    burned: int
    circulating: int


# --- accounts and fees ---------------------------------------------------------------------------------------------


class AccountView(Struct, frozen=True):
    """An account after the tip. `next_nonce` and `pending_count` count the mempool too."""

    address: str
    balance: int
    nonce: int
    next_nonce: int
    pending_count: int


class ProofView(Struct, frozen=True):
    """That an account has, or lacks, a record after the block at `height`.

    The header at `height` + 1 carries `state_root`. `key` is the state key, `value` the canonical record (null if
    absent), `proof` the canonical `consensus.proofs.trie.Proof`.
    """

    address: str
    height: int
    block: str
    state_root: str
    key: str
    value: str | None
    proof: str


class TxSent(Struct, frozen=True):
    """A transaction was taken into the mempool."""

    txid: str


class GasView(Struct, frozen=True):
    """Gas per thing."""

    transaction: int
    byte: int
    output: int
    worker: int
    packet: int
    tensor_byte: int


class Fees(Struct, frozen=True):
    """The next block's base fee, and fees with which a transaction is likely to be in it. Grains per gas."""

    base_fee: int
    suggested_tip: int
    suggested_max_base_fee: int
    gas: GasView
    gas_limit: int


class MovementView(Struct, frozen=True):
    """Grains that came to (or, below zero, left) an account. `reference` is a transaction, packet, job or block id."""

    height: int
    kind: Literal["sent", "received", "packet", "escrow", "refund", "block"]
    amount: int
    reference: str
    time_ms: int
