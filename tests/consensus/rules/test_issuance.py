"""Subsidy and fee market."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus import state
from consensus.codec import MAX_AMOUNT
from consensus.params import TILE
from consensus.rules.issuance import next_base_fee, subsidy
from tests.builders import ALICE, ChainBuilder, operand, regtest

PARAMS = regtest()
LIMIT = PARAMS.gas_limit
TARGET = LIMIT // 2


@pytest.mark.parametrize(
    ("height", "grains"),
    [
        (1, 50 * TILE),
        (2**20 - 1, 50 * TILE),
        (2**20, 25 * TILE),
        (2 * 2**20, 12_500_000_000),
        (35 * 2**20, 1),
        (36 * 2**20, 0),
        (64 * 2**20, 0),
        (2**62, 0),
    ],
)
def test_the_subsidy_halves_every_2_to_the_20_blocks(height: int, grains: int) -> None:
    assert subsidy(PARAMS, height) == grains


def test_all_that_is_ever_minted_fits_one_amount() -> None:
    total = sum(subsidy(PARAMS, era * 2**20) * 2**20 for era in range(64))
    assert 10**17 < total < 2 * 50 * TILE * 2**20 < MAX_AMOUNT


def test_a_chain_past_its_halving_mints_half() -> None:
    chain = ChainBuilder(replace(PARAMS, halving_interval=3), worked=False)
    minted = []
    for _ in range(10):
        before = state.ledger(chain.state).issued
        chain.mine()
        minted.append(state.ledger(chain.state).issued - before)
    tile = 50 * TILE
    assert minted == [tile, tile, *[tile // 2] * 3, *[tile // 4] * 3, *[tile // 8] * 2]


@pytest.mark.parametrize(
    ("base_fee", "gas_used", "expected"),
    [
        # EIP-1559: parent fee ± fee · |used − target| / target / 8, at least +1 when above
        (1_000_000, TARGET, 1_000_000),
        (1_000_000, LIMIT, 1_125_000),
        (1_000_000, 0, 875_000),
        (1_000_000, TARGET + TARGET // 2, 1_062_500),
        (1_000_000, TARGET // 2, 937_500),
        (1, TARGET + 1, 2),
        (7, LIMIT, 8),
        (1, 0, 1),
        (7, 0, 7),
        (8, 0, 7),
        (100, TARGET - 1, 100),
    ],
)
def test_base_fee_examples(base_fee: int, gas_used: int, expected: int) -> None:
    assert next_base_fee(PARAMS, base_fee, gas_used) == expected


@given(st.integers(8, 10**15), st.integers(0, LIMIT))
def test_the_base_fee_changes_by_an_eighth_at_most(base_fee: int, gas_used: int) -> None:
    after = next_base_fee(PARAMS, base_fee, gas_used)
    assert max(1, base_fee - base_fee // 8) <= after <= base_fee + base_fee // 8
    assert (after - base_fee) * (gas_used - TARGET) >= 0


@given(st.integers(1, 10**15), st.integers(0, LIMIT))
def test_the_base_fee_never_falls_below_one(base_fee: int, gas_used: int) -> None:
    assert next_base_fee(PARAMS, base_fee, gas_used) >= 1


def test_blocks_above_the_target_raise_the_fee_of_the_next() -> None:
    chain = ChainBuilder(worked=False)
    a, b = operand(2048, 64), operand(64, 2048)
    chain.mine([chain.job(ALICE, a, b, price=1).transaction for _ in range(2)])
    used = sum(r.gas_used for r in chain.tip.transition.receipts)
    assert used > TARGET
    assert state.ledger(chain.state).base_fee == next_base_fee(PARAMS, 1, used) == 2
    chain.mine()
    assert state.ledger(chain.state).base_fee == 2, "an eighth of 2 is no whole grain"
