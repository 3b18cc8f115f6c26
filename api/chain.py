"""Answers about blocks, transactions, accounts and fees."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from api.fields import Count, Hash, Hex

# --- blocks --------------------------------------------------------------------------------------------------------


class ZeroView(Struct, frozen=True, tag_field="kind", tag="zero"):
    """The unit of a miner for whom no job waited: zero operands, m×k and k×n."""

    m: Count
    k: Count
    n: Count


class PacketUnitView(Struct, frozen=True, tag_field="kind", tag="packet"):
    """A paid packet: an m×k matrix times a k×n one, by the Merkle roots of their strips."""

    packet_id: Hash
    a_root: Hash
    b_root: Hash
    m: Count
    k: Count
    n: Count


class PairUnitView(Struct, frozen=True, tag_field="kind", tag="pair"):
    """A miner's own two matrices, by the Merkle roots of their strips."""

    a_root: Hash
    b_root: Hash
    m: Count
    k: Count
    n: Count


UnitView: TypeAlias = ZeroView | PacketUnitView | PairUnitView


class HeaderView(Struct, frozen=True):
    """A header with what its place in the chain adds. `state_root` is that of the state after the parent.

    `tile` is null for genesis, `product` for all but packets. `total_work` is decimal text: it outgrows 64 bits.
    `raw` is canonical.
    """

    id: Hash
    height: Count
    parent: Hash
    parent_ticket: Hash
    time_ms: Count
    target: Hash
    miner: str
    state_root: Hash
    body_root: Hash
    unit: UnitView
    nonce: Hex
    ticket: Hash
    tile: tuple[Count, Count] | None
    product: Hash | None
    total_work: Annotated[str, Meta(pattern="^[0-9]+$", max_length=80)]
    confirmations: Count
    main: bool
    raw: Hex


class OutputView(Struct, frozen=True):
    """Grains for an address."""

    address: str
    amount: Count


TxKind: TypeAlias = Literal["transfer", "register_worker", "retire_worker", "submit_job", "cancel_job"]


class TxView(Struct, frozen=True):
    """A transaction. What its block decides (from `block` on to `detail`) is null or empty while it is pending.

    `fee` is in grains; `reason` and `detail` say why a payload failed (`ok` false). `raw` is canonical.
    """

    txid: Hash
    status: Literal["pending", "confirmed"]
    block: Hash | None
    height: Count | None
    confirmations: Count
    sender: str
    nonce: Count
    kind: TxKind
    outputs: tuple[OutputView, ...]
    memo: Hex
    gas_used: Count | None
    fee: Count | None
    ok: bool | None
    reason: str
    detail: str
    raw: Hex


class ResultView(Struct, frozen=True):
    """A worker's answer to a packet; `product` is the commitment of the tensor."""

    packet_id: Hash
    worker: str
    product: Hash


class BlockView(Struct, frozen=True):
    """A whole block. `reward_grains` is what its miner is credited at maturity, null off the main chain."""

    header: HeaderView
    transactions: tuple[TxView, ...]
    results: tuple[ResultView, ...]
    reward_grains: Count | None
    size: Count


# --- the network ---------------------------------------------------------------------------------------------------


class ChainInfo(Struct, frozen=True):
    """The network, its tip, and the rules that clients need. `state_root` is that of the state after the tip.

    `tick` is the clock of windows and expiries: a block counts if its time is at least a quarter of `spacing_ms` after
    the last one that counted. `window` and `max_life` are in ticks.
    `snapshot_height` is where the node joined from a snapshot: it has no blocks at or below it. 0: it has them all.
    """

    network: str
    chain_id: Count
    address_prefix: str
    genesis_hash: Hash
    height: Count
    tip: Hash
    time_ms: Count
    target: Hash
    total_work: Annotated[str, Meta(pattern="^[0-9]+$", max_length=80)]
    best_header_height: Count
    snapshot_height: Count
    state_root: Hash
    tick: Count
    syncing: bool
    spacing_ms: Count
    maturity: Count
    window: Count
    max_life: Count
    min_reserve: Count
    min_price: Count
    min_fee: Count
    retention: Count
    gas_limit: Count


class Supply(Struct, frozen=True):
    """All grains after the block at `height`; `circulating` = `issued` − `burned`."""

    height: Count
    issued: Count
    burned: Count
    circulating: Count


# --- accounts and fees ---------------------------------------------------------------------------------------------


class AccountView(Struct, frozen=True):
    """An account after the tip. `next_nonce` and `pending_count` count the mempool too."""

    address: str
    balance: Count
    nonce: Count
    next_nonce: Count
    pending_count: Count


class ProofView(Struct, frozen=True):
    """Evidence that an account has, or lacks, a record after the block at `height`.

    The header at `height` + 1 carries `state_root`. `key` is the state key, `value` the canonical record (null if
    absent), `proof` the canonical `consensus.proofs.trie.Proof`.
    """

    address: str
    height: Count
    block: Hash
    state_root: Hash
    key: Hex
    value: Hex | None
    proof: Hex


class TxSent(Struct, frozen=True):
    """A transaction was taken into the mempool."""

    txid: Hash


class GasView(Struct, frozen=True):
    """Gas per thing."""

    transaction: Count
    byte: Count
    output: Count
    worker: Count
    place: Count
    job: Count
    packet: Count
    tensor_byte: Count


class Fees(Struct, frozen=True):
    """The next block's base fee, and fees with which a transaction is likely to be in it. Grains per gas."""

    base_fee: Count
    suggested_tip: Count
    suggested_max_base_fee: Count
    gas: GasView
    gas_limit: Count


MovementKind: TypeAlias = Literal[
    "genesis", "sent", "received", "fee", "escrow", "refund", "packet", "block", "bond", "bond-back", "miss"
]


class MovementView(Struct, frozen=True):
    """Grains that came to (or, below zero, left) an account in the block at `height`, made at `time_ms`.

    `amount` is the change of its balance, the `fee` of a transaction of its own included; `bond` that of its bond as a
    worker. What was earned by a block is on the balance from the height `matures_at` on. The amounts that have matured
    add up to the balance, and the bonds to the bond.

    `reference` is the id of the block for `block`, `bond-back` and `genesis`, of the packet for `packet` and `miss`, of
    the transaction (which is a job's id, too) for the rest; `job` is a packet's. `counterparty` is who was paid (null:
    more than one) or who paid. A `fee` is all that was paid for a transaction that moved nothing else, or failed (`ok`
    false).
    """

    height: Count
    kind: MovementKind
    amount: int
    reference: Hash
    time_ms: Count
    fee: Count = 0
    bond: int = 0
    counterparty: str | None = None
    memo: Hex = ""
    job: Hash | None = None
    matures_at: Count | None = None
    ok: bool = True
