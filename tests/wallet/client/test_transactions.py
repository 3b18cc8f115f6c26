"""Transactions as the wallet builds them, judged by consensus."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from api.rules import ParamsView
from consensus import params, validation
from consensus.address import encode_address
from consensus.params import TILE, Allocation, ChainParams
from consensus.rules import payloads
from consensus.transaction import CancelJob, Operand, Output, Pair, RegisterWorker, SubmitJob, Transfer
from consensus.transition import genesis_transition
from wallet.accounts.keys import SigningKey
from wallet.client.transactions import (
    DEFAULT_MAX_FEE_GRAINS,
    FeeTerms,
    Rules,
    build,
    check_balance,
    choose_fees,
    gas_of,
    max_fee,
    outbid,
)
from wallet.errors import WalletError

KEY = SigningKey(bytes(range(32)))
PARAMS = params.devnet(1_700_000_000_000, (Allocation(KEY.address, 5 * TILE),))
PAYMENT = Transfer((Output(bytes(20), 7), Output(KEY.address, 5)), b"two coffees")
JOB = SubmitJob(
    (Operand(bytes(32), 64, 128),), (Operand(bytes(32), 128, 256),), (Pair(0, 0),), threshold=1, price=9, expiry=100
)


def network(rules: ChainParams = PARAMS) -> Rules:
    return Rules(rules, genesis_transition(rules)[0].id)


@pytest.mark.parametrize("payload", [PAYMENT, JOB, CancelJob(bytes(32)), RegisterWorker(bytes(32), 0, 1, 1, TILE)])
def test_consensus_accepts_what_is_built_and_signed(payload: Any) -> None:
    body = build(PARAMS, KEY.public_key, 3, payload, choose_fees(PARAMS, payload, 1, 1))
    tx = KEY.transaction(body, network().genesis_hash)
    validation.check_transaction(PARAMS, tx)
    validation.check_signatures(network().genesis_hash, [tx])
    assert (body.gas_limit, body.nonce) == (payloads.intrinsic_gas(PARAMS, body), 3)
    assert gas_of(PARAMS, payload) == body.gas_limit
    assert max_fee(body) == body.gas_limit * (body.tip + body.max_base_fee)


def test_a_signature_is_of_one_network_only() -> None:
    tx = KEY.transaction(build(PARAMS, KEY.public_key, 0, PAYMENT, FeeTerms(1, 1)), network().genesis_hash)
    assert not tx.is_signed(network(params.mainnet()).genesis_hash)


def test_what_a_payload_moves() -> None:
    assert payloads.outlay(PARAMS, PAYMENT) == 12
    assert payloads.outlay(PARAMS, RegisterWorker(bytes(32), 0, 1, 1, TILE)) == TILE
    assert payloads.outlay(PARAMS, JOB) == 100
    assert payloads.outlay(PARAMS, CancelJob(bytes(32))) == 0


def test_fees_leave_room_for_full_blocks_and_keep_to_the_limit() -> None:
    gas = gas_of(PARAMS, PAYMENT)
    easy = choose_fees(PARAMS, PAYMENT, base_fee=1000, tip=10)
    assert easy.tip == 10
    assert 1000 * 1.125**11 < easy.max_base_fee < 1000 * 1.125**13
    tight = choose_fees(PARAMS, PAYMENT, 1000, 10, max_fee_grains=gas * 1005)
    assert tight == FeeTerms(5, 1000)
    greedy = choose_fees(PARAMS, PAYMENT, 1, tip=2**62)
    assert (greedy.tip + greedy.max_base_fee) * gas <= DEFAULT_MAX_FEE_GRAINS
    with pytest.raises(WalletError, match="are allowed") as caught:
        choose_fees(PARAMS, PAYMENT, 1000, 10, max_fee_grains=gas * 1000 - 1)
    assert caught.value.code == "fee-too-low"
    with pytest.raises(WalletError, match="are allowed"):
        choose_fees(PARAMS, PAYMENT, 2**62, 0)


def test_an_exact_tip_is_kept_or_refused() -> None:
    gas = gas_of(PARAMS, PAYMENT)
    assert choose_fees(PARAMS, PAYMENT, 1000, 10, gas * 1010, exact=True).tip == 10
    with pytest.raises(WalletError, match="are allowed"):
        choose_fees(PARAMS, PAYMENT, 1000, 10, gas * 1009, exact=True)


def test_what_takes_anothers_place_offers_a_tenth_more_in_tip_and_in_all() -> None:
    before = FeeTerms(100, 1000)
    fees = outbid(PARAMS, PAYMENT, FeeTerms(1, 5), before)
    assert fees == FeeTerms(110, 1100)
    assert outbid(PARAMS, PAYMENT, FeeTerms(0, 1), FeeTerms(0, 1)) == FeeTerms(1, 1)
    assert outbid(PARAMS, PAYMENT, FeeTerms(500, 9000), before) == FeeTerms(500, 9000)
    with pytest.raises(WalletError, match="to take its place"):
        outbid(PARAMS, PAYMENT, FeeTerms(1, 5), before, gas_of(PARAMS, PAYMENT) * 1209)


def test_a_missing_balance_is_told_in_numbers() -> None:
    check_balance(10, 10, "the payment")
    with pytest.raises(WalletError, match=r"1\.5 TILE, fees included.* holds 0\.25: 1\.25 are missing") as caught:
        check_balance(TILE // 4, TILE * 3 // 2, "the payment")
    assert caught.value.code == "insufficient-balance"


# -- a node that passes one network off as another


def served(rules: ChainParams) -> ChainParams:
    """The rules as they come through a node's JSON."""
    return msgspec.json.decode(msgspec.json.encode(ParamsView.of(rules)), type=ParamsView).params()


def test_rules_survive_the_way_through_json() -> None:
    for rules in (PARAMS, params.mainnet(), params.regtest(5)):
        assert served(rules) == rules


def test_rules_that_contradict_one_another_or_hold_wrong_addresses_are_refused() -> None:
    view = ParamsView.of(PARAMS)
    other = encode_address(bytes(20), "tile")
    wrong: list[dict[str, Any]] = [
        {"gas_limit": 5},
        {"window": 0},
        {"allocations": [{"address": other, "amount": 1}]},
        {"allocations": [{"address": "x", "amount": 1}]},
    ]
    for changes in wrong:
        data = msgspec.json.encode({**msgspec.to_builtins(view), **changes})
        with pytest.raises(ValueError):  # noqa: PT011  (whatever rule is broken first)
            msgspec.json.decode(data, type=ParamsView).params()


def test_a_genesis_hash_of_another_network_is_refused() -> None:
    mainnet = network(params.mainnet())
    with pytest.raises(WalletError, match="do not lead to the genesis hash"):
        Rules(PARAMS, mainnet.genesis_hash)
    disguised = replace(PARAMS, address_prefix="tile")
    with pytest.raises(WalletError, match="like mainnet's"):
        network(disguised)
    with pytest.raises(WalletError, match="not with 'tdev'") as caught:
        mainnet.require("tdev")
    assert caught.value.code == "network-mismatch"
    mainnet.require("tile")
