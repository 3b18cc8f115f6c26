"""The rules of a network as JSON: what `chain_params` answers, and what `--genesis` reads.

Bytes are lower-case hexadecimal and addresses bech32m, so that a person can read the file. The two directions are
inverse to each other, and whoever founds a chain from the file gets the same genesis hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from consensus import params
from consensus.address import AddressError, decode_address, encode_address
from consensus.params import Allocation, ChainParams, GasSchedule

MAX_FILE_BYTES = 1 << 20

REGTEST_GENESIS_TIME_MS = 1_700_000_000_000
"""Regtest without a file has this birthday: long ago, so that its target stays at its easiest."""

Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64)]


class GenesisError(Exception):
    """The network cannot be determined; `fix` says what to do."""

    def __init__(self, message: str, fix: str) -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message}: {fix}")


class AllocationView(Struct, frozen=True, forbid_unknown_fields=True):
    """Grains that genesis gives to an address."""

    address: str
    amount: int


class GasScheduleView(Struct, frozen=True, forbid_unknown_fields=True):
    """Gas per thing; see `consensus.params.GasSchedule`."""

    transaction: int
    byte: int
    output: int
    worker: int
    packet: int
    tensor_byte: int


class ParamsView(Struct, frozen=True, forbid_unknown_fields=True):
    """All rules of a network, `consensus.params.ChainParams`. Amounts in grains, times in milliseconds."""

    network: str
    chain_id: int
    address_prefix: str
    genesis_time_ms: int
    spacing_ms: int
    halflife_ms: int
    anchor_target: Hex32
    maturity: int
    window: int
    grace: int
    liveness: int
    max_life: int
    retention: int
    max_reorg: int
    slot_bond: int
    allocations: tuple[AllocationView, ...]
    initial_subsidy: int
    halving_interval: int
    gas: GasScheduleView
    gas_limit: int
    initial_base_fee: int
    base_fee_change_denominator: int
    min_price: int
    min_fee: int
    score_unit: int
    score_cap: int
    registration_delay: int
    deal_lag: int
    max_examined: int
    idle_m: int
    idle_n: int
    idle_k: int


assert ParamsView.__struct_fields__ == ChainParams.__struct_fields__
assert GasScheduleView.__struct_fields__ == GasSchedule.__struct_fields__


def to_view(rules: ChainParams) -> ParamsView:
    """The rules as JSON shows them."""
    fields = msgspec.structs.asdict(rules)
    fields["anchor_target"] = rules.anchor_target.hex()
    fields["gas"] = GasScheduleView(**msgspec.structs.asdict(rules.gas))
    fields["allocations"] = tuple(
        AllocationView(encode_address(allocation.address, rules.address_prefix), allocation.amount)
        for allocation in rules.allocations
    )
    return ParamsView(**fields)


def from_view(view: ParamsView) -> ChainParams:
    """The rules themselves. Raises `GenesisError` where they contradict one another."""
    fields = msgspec.structs.asdict(view)
    fields["anchor_target"] = bytes.fromhex(view.anchor_target)
    fields["gas"] = GasSchedule(**msgspec.structs.asdict(view.gas))
    try:
        fields["allocations"] = tuple(
            Allocation(decode_address(allocation.address, view.address_prefix), allocation.amount)
            for allocation in view.allocations
        )
        # Once more through the decoder: the constructor of a struct does not look at ranges.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(ChainParams(**fields)), type=ChainParams)
    except AddressError as error:
        raise GenesisError(f"an allocation is not of this network: {error}", _FIX) from None
    except (AssertionError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise GenesisError(f"the rules contradict one another ({error or 'see ChainParams'})", _FIX) from None


_FIX = "take the file from the network's founder, or from `chain_params` of one of its nodes"


def load(path: Path) -> ChainParams:
    """The rules in a genesis file. Raises `GenesisError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise GenesisError(f"cannot read the genesis file {path}: {error.strerror}", _FIX) from None
    if len(data) > MAX_FILE_BYTES:
        raise GenesisError(f"{path} is larger than {MAX_FILE_BYTES} bytes", _FIX)
    try:
        return from_view(msgspec.json.decode(data, type=ParamsView))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GenesisError(f"{path} is no genesis file: {error}", _FIX) from None


def dump(rules: ChainParams) -> bytes:
    """The content of a genesis file."""
    return msgspec.json.format(msgspec.json.encode(to_view(rules)), indent=2) + b"\n"


def rules_of(network: str, file: Path | None) -> ChainParams:
    """The rules of `network`: built in for mainnet and (without a file) regtest, else those in the genesis `file`.

    Raises:
        GenesisError: no file where one is needed, one too many, or one of another network.
    """
    if network == "mainnet":
        if file is not None:
            raise GenesisError("mainnet's rules are built in", "leave out --genesis, or choose another --network")
        return params.mainnet()
    if file is None:
        if network == "regtest":
            return params.regtest(REGTEST_GENESIS_TIME_MS)
        fix = "start a whole network with `tilework devnet up`, or join one: --genesis FILE"
        raise GenesisError(f"every {network} is a network of its own, and none is named", fix)
    rules = load(file)
    if rules.network != network:
        raise GenesisError(f"{file} describes {rules.network}, not {network}", f"choose --network {rules.network}")
    return rules
