"""The rules of a network as JSON: the answer of `chain_params`, and the content of a genesis file."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from api.chain import GasView
from api.fields import Count, Hash
from consensus.address import AddressError, decode_address, encode_address
from consensus.codec import decode, encode
from consensus.errors import ConsensusError
from consensus.params import Allocation, ChainParams, GasSchedule

_MAX_PARAMS_BYTES = 1 << 20


class AllocationView(Struct, frozen=True):
    """Grains that genesis gives to an address."""

    address: str
    amount: Count


class ParamsView(Struct, frozen=True):
    """All rules of a network, `consensus.params.ChainParams`. Amounts in grains, times in milliseconds."""

    network: str
    chain_id: Count
    address_prefix: str
    genesis_time_ms: Count
    spacing_ms: Count
    halflife_ms: Count
    anchor_target: Hash
    maturity: Count
    window: Count
    liveness: Count
    max_life: Count
    retention: Count
    max_reorg: Count
    min_reserve: Count
    allocations: tuple[AllocationView, ...]
    initial_subsidy: Count
    halving_interval: Count
    gas: GasView
    gas_limit: Count
    initial_base_fee: Count
    base_fee_change_denominator: Count
    min_price: Count
    min_fee: Count
    registration_delay: Count
    deal_lag: Count
    max_examined: Count
    max_tries: Count
    max_results: Count
    max_missed: Count
    max_seated: Count
    max_closed: Count

    @classmethod
    def of(cls, rules: ChainParams) -> ParamsView:
        """The rules as JSON shows them."""
        fields = msgspec.structs.asdict(rules)
        fields["anchor_target"] = rules.anchor_target.hex()
        fields["gas"] = GasView(**msgspec.structs.asdict(rules.gas))
        fields["allocations"] = tuple(
            AllocationView(encode_address(allocation.address, rules.address_prefix), allocation.amount)
            for allocation in rules.allocations
        )
        return cls(**fields)

    def params(self) -> ChainParams:
        """The rules themselves. Raises `ValueError` where they contradict one another."""
        fields = msgspec.structs.asdict(self)
        fields["anchor_target"] = bytes.fromhex(self.anchor_target)
        fields["gas"] = GasSchedule(**msgspec.structs.asdict(self.gas))
        try:
            fields["allocations"] = tuple(
                Allocation(decode_address(allocation.address, self.address_prefix), allocation.amount)
                for allocation in self.allocations
            )
        except AddressError as error:
            raise ValueError(f"an allocation is not of this network: {error}") from None
        try:
            # Once more through the decoder: the constructor of a struct does not look at ranges.
            return decode(ChainParams, encode(ChainParams(**fields)), _MAX_PARAMS_BYTES)
        except (AssertionError, ConsensusError, OverflowError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"the rules contradict one another ({error or 'see ChainParams'})") from None


assert ParamsView.__struct_fields__ == ChainParams.__struct_fields__
assert GasView.__struct_fields__ == GasSchedule.__struct_fields__
