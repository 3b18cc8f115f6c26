"""What blocks mint and what gas costs (docs/protocol.md, sections 7 and 12)."""

from __future__ import annotations

from consensus.params import ChainParams


def subsidy(params: ChainParams, height: int) -> int:
    """Grains minted by the block at `height`: halved every `halving_interval`, the same for idle and paid units."""
    return params.initial_subsidy >> min(height // params.halving_interval, 63)


def next_base_fee(params: ChainParams, base_fee: int, gas_used: int) -> int:
    """Base fee of the next block (EIP-1559): target is half the limit, change at most 1/8, never below 1."""
    target = params.gas_limit // 2
    step = base_fee * abs(gas_used - target) // target // params.base_fee_change_denominator
    if gas_used > target:
        return base_fee + max(step, 1)
    return max(base_fee - step, 1)
