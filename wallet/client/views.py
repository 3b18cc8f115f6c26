"""What the wallet reads of a node's answers: one struct per thing, with the fields that it uses and no others.

Bytes are lower-case hexadecimal, addresses bech32m, amounts integers of grains; what does not apply is null. Fields
that a node may add are passed over.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from consensus.address import AddressError, decode_address
from consensus.codec import MAX_AMOUNT, decode, encode
from consensus.errors import ConsensusError
from consensus.params import Allocation, ChainParams, GasSchedule

Hex: TypeAlias = Annotated[str, Meta(pattern=r"^([0-9a-f]{2})*\Z")]
Hash: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
"""A height, a number of things, or grains."""

_MAX_PARAMS_BYTES = 1 << 20


# --- the chain -----------------------------------------------------------------------------------------------------


class ChainInfo(Struct, frozen=True):
    """The network, its tip, and whether the node is still catching up."""

    network: str
    genesis_hash: Hash
    height: Count
    syncing: bool
    spacing_ms: Count


class AllocationView(Struct, frozen=True):
    """Grains that genesis gave to an address."""

    address: str
    amount: Count


class GasView(Struct, frozen=True):
    """Gas per thing; see `consensus.params.GasSchedule`."""

    transaction: Count
    byte: Count
    output: Count
    worker: Count
    packet: Count
    tensor_byte: Count


class ParamsView(Struct, frozen=True):
    """All rules of a network; see `consensus.params.ChainParams`."""

    network: str
    chain_id: Count
    address_prefix: str
    genesis_time_ms: Count
    spacing_ms: Count
    halflife_ms: Count
    anchor_target: Hash
    maturity: Count
    window: Count
    grace: Count
    liveness: Count
    max_life: Count
    retention: Count
    max_reorg: Count
    slot_bond: Count
    allocations: tuple[AllocationView, ...]
    initial_subsidy: Count
    halving_interval: Count
    gas: GasView
    gas_limit: Count
    initial_base_fee: Count
    base_fee_change_denominator: Count
    min_price: Count
    min_fee: Count
    score_unit: Count
    score_cap: Count
    registration_delay: Count
    deal_lag: Count
    max_examined: Count
    idle_m: Count
    idle_n: Count
    idle_k: Count

    def params(self) -> ChainParams:
        """The rules themselves. Raises `ValueError` where they contradict one another."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        fields["anchor_target"] = bytes.fromhex(self.anchor_target)
        fields["gas"] = GasSchedule(*(getattr(self.gas, name) for name in GasSchedule.__struct_fields__))
        try:
            fields["allocations"] = tuple(
                Allocation(decode_address(entry.address, self.address_prefix), entry.amount)
                for entry in self.allocations
            )
            # A constructor does not look at ranges, a decoder does.
            return decode(ChainParams, encode(ChainParams(**fields)), _MAX_PARAMS_BYTES)
        except (AddressError, AssertionError, ConsensusError, ZeroDivisionError) as error:
            raise ValueError(str(error) or "a relation between them does not hold") from error


assert set(ParamsView.__struct_fields__) == set(ChainParams.__struct_fields__)
assert set(GasView.__struct_fields__) == set(GasSchedule.__struct_fields__)


class HeaderView(Struct, frozen=True):
    """A header of the main chain; `raw` is canonical and says all the rest."""

    id: Hash
    height: Count
    raw: Hex


class HeadEvent(Struct, frozen=True):
    """A new tip."""

    height: Count


# --- accounts and transactions -------------------------------------------------------------------------------------


class AccountView(Struct, frozen=True):
    """An account after the tip. `next_nonce` counts what is pending too."""

    balance: Count
    nonce: Count
    next_nonce: Count
    pending_count: Count


class ProofView(Struct, frozen=True):
    """That an account has, or lacks, a record after the block at `height`; the next header tells the root."""

    height: Count
    value: Hex | None
    proof: Hex


class FeesView(Struct, frozen=True):
    """The next block's base fee, and a tip with which a transaction is likely to be in it: grains per gas."""

    base_fee: Count
    suggested_tip: Count


class TxSent(Struct, frozen=True):
    """A transaction was taken into the mempool."""

    txid: Hash


class OutputView(Struct, frozen=True):
    """Grains for an address."""

    address: str
    amount: Count


class TxView(Struct, frozen=True):
    """A transaction; what its block decides is null or empty while it is pending. `raw` is canonical."""

    txid: Hash
    status: Literal["pending", "confirmed"]
    height: Count | None
    confirmations: Count
    sender: str
    kind: str
    outputs: tuple[OutputView, ...]
    memo: Hex
    fee: Count | None
    ok: bool | None
    reason: str
    detail: str
    raw: Hex


class MovementView(Struct, frozen=True):
    """Grains that came to (or, below zero, left) an account; `reference` is a transaction, packet, job or block id."""

    height: Count
    kind: str
    amount: int
    reference: Hash
    time_ms: Count


# --- jobs and workers ----------------------------------------------------------------------------------------------

JobStatus: TypeAlias = Literal["pending", "open", "complete", "closed", "cancelled", "expired"]


class JobView(Struct, frozen=True):
    """A job. `paid` and `burned` are totals so far; `refund` is null until the job has closed."""

    job: Hash
    owner: str
    status: JobStatus
    packets: Count
    threshold: Count
    price: Count
    expiry: Count
    done: Count
    held: Count
    queued: Count
    escrow: Count
    opened_at: Count | None
    closed_at: Count | None
    refund: Count | None
    paid: Count
    burned: Count
    workers: Count
    blocks_won: tuple[Count, ...]


class PacketView(Struct, frozen=True):
    """A packet of a job. `product` is the commitment of its answer."""

    packet_id: Hash
    index: Count
    m: Count
    k: Count
    n: Count
    fee: Count
    status: Literal["queued", "held", "done", "withdrawn"]
    worker: str | None
    product: Hash | None
    answered_at: Count | None
    won: bool


class StoryLine(Struct, frozen=True):
    """What happened to a packet at a height."""

    height: Count
    event: str
    worker: str | None
    text: str


class Explanation(Struct, frozen=True):
    """Who held a packet when, and in one sentence who was paid how much, or why nobody was."""

    packet_id: Hash
    job: Hash
    index: Count
    history: tuple[StoryLine, ...]
    verdict: str


class WorkerView(Struct, frozen=True):
    """A registered worker: what it takes, and how much of it at once."""

    address: str
    active: bool
    slots: Count
    slots_used: Count
    min_price: Count
    max_unit_bytes: Count


# --- work for an outside miner -------------------------------------------------------------------------------------


class UnitOffer(Struct, frozen=True):
    """A unit to work on: the header core, and the operands' commitments (null: an idle unit)."""

    id: Hex
    core: Hex
    packet_id: Hash | None
    a: Hash | None
    b: Hash | None


class WorkAccepted(Struct, frozen=True):
    """The outcome of submitted work: whether its block became the tip."""

    block: Hash
    height: Count
    accepted: bool


class ResultAccepted(Struct, frozen=True):
    """A Result was taken into the pool."""

    id: Hash


# --- tensors -------------------------------------------------------------------------------------------------------


class TensorView(Struct, frozen=True):
    """An uploaded tensor, as the node committed to it."""

    commitment: Hash
