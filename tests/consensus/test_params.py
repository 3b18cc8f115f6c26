"""The networks' rules, restated on purpose."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from consensus import params, shape
from consensus.codec import MAX_AMOUNT, encode
from consensus.crypto import H
from consensus.params import TILE, Allocation, ChainParams
from consensus.transition import genesis_transition

T = 1_700_000_000_000
NETWORKS = [params.devnet(T), params.regtest(T), params.mainnet()]


def test_devnet_and_mainnet_as_agreed() -> None:
    def fields(p: ChainParams) -> tuple[int, ...]:
        return (
            p.spacing_ms,
            p.halflife_ms,
            p.maturity,
            p.window,
            p.liveness,
            p.max_life,
            p.retention,
            p.max_reorg,
        )

    assert fields(params.devnet(T)) == (2_000, 60_000, 10, 10, 300, 1_000, 2_000, 100)
    assert fields(params.mainnet()) == (30_000, 900_000, 100, 20, 2_880, 20_000, 20_000, 100)
    for p in NETWORKS:
        assert p.min_reserve == 10 * TILE
        assert (p.initial_subsidy, p.halving_interval) == (50 * 10**9, 1_048_576)
        assert (p.registration_delay, p.deal_lag, p.max_examined, p.max_tries) == (8, 4, 256, 64)
        assert (p.max_closed, p.max_missed, p.max_seated) == (2_048, 512, 2_048)
        assert p.min_fee == 100
    assert (params.devnet(T).address_prefix, params.mainnet().address_prefix) == ("tdev", "tile")
    assert params.mainnet().allocations == ()


def test_limits_as_agreed() -> None:
    assert params.MAX_TX_BYTES == 131_072
    assert params.MAX_BODY_BYTES == 1_048_576
    assert params.MAX_BODY_TX_BYTES == 786_432
    assert params.MAX_OPERAND_BYTES == 16_777_216
    assert params.MAX_TENSOR_BYTES == shape.MAX_UNIT_BYTES == 33_554_432
    assert shape.MAX_DIMENSION == 4_096
    assert params.MAX_TARGET == 2**254 - 1
    assert params.MAX_MEMO_BYTES == 256


def test_regtest_is_devnet_at_the_easiest_target() -> None:
    devnet = params.devnet(T)
    assert params.regtest(T) == replace(
        devnet, network="regtest", chain_id=3, anchor_target=(2**254 - 1).to_bytes(32, "big")
    )


def test_no_two_networks_share_a_genesis_hash() -> None:
    variants = [
        *NETWORKS,
        params.devnet(T + 1),
        params.devnet(T, (Allocation(bytes(20), 1),)),
        replace(params.devnet(T), window=11),
        replace(params.devnet(T), network="other"),
    ]
    blocks = [genesis_transition(variant)[0] for variant in variants]
    assert len({block.id for block in blocks}) == len(variants)
    for variant, block in zip(variants, blocks, strict=True):
        assert block.header.core.nonce == H("tw/params", encode(variant))[:8]


@pytest.mark.parametrize(
    "broken",
    [
        {"anchor_target": bytes(32)},
        {"anchor_target": (2**254).to_bytes(32, "big")},
        {"registration_delay": 4},
        {"window": 0},
        {"max_life": 10},
        {"retention": 110},
        {"min_reserve": 0},
        {"max_missed": 255},
        {"max_seated": 1},
        {"gas_limit": 63 << 20},
        {"allocations": (Allocation(bytes(20), MAX_AMOUNT),)},
    ],
    ids=str,
)
def test_relations_between_constants_are_asserted(broken: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        replace(params.devnet(T), **broken)
