"""Genesis files: there and back again, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from api.rules import ParamsView
from consensus import params
from consensus.params import TILE, Allocation
from node import genesis
from node.genesis import GenesisError
from tests.builders import ALICE, BOB

RULES = params.devnet(1_700_000_000_000, (Allocation(ALICE.address, 5 * TILE), Allocation(BOB.address, 1)))


@pytest.mark.parametrize("rules", [RULES, params.mainnet(), params.regtest(0)], ids=lambda rules: rules.network)
def test_the_file_gives_back_the_rules(rules: params.ChainParams, tmp_path: Path) -> None:
    path = tmp_path / "genesis.json"
    path.write_bytes(genesis.dump(rules))
    assert genesis.load(path) == rules


def test_which_rules_a_network_has(tmp_path: Path) -> None:
    path = tmp_path / "genesis.json"
    path.write_bytes(genesis.dump(RULES))
    assert genesis.rules_of("devnet", path) == RULES
    assert genesis.rules_of("mainnet", None) == params.mainnet()
    assert genesis.rules_of("regtest", None).network == "regtest"
    for network, file, words in (
        ("devnet", None, "none is named"),
        ("mainnet", path, "built in"),
        ("regtest", path, "devnet, not regtest"),
    ):
        with pytest.raises(GenesisError, match=words):
            genesis.rules_of(network, file)


def test_what_is_no_genesis_file(tmp_path: Path) -> None:
    view = msgspec.to_builtins(ParamsView.of(RULES))
    path = tmp_path / "genesis.json"
    for change, words in (
        ({"spacing_ms": "fast"}, "spacing_ms"),
        ({"surprise": 1}, "surprise"),
        ({"anchor_target": "00"}, "anchor_target"),
        ({"anchor_target": "ff" * 32}, "contradict"),
        ({"window": 0}, "contradict"),
        ({"min_reserve": -4}, "min_reserve"),
        ({"min_reserve": 2**70}, "min_reserve"),
        ({"halving_interval": 2**62}, "contradict"),
        ({"allocations": [{"address": "tile1x", "amount": 1}]}, "allocation"),
    ):
        path.write_bytes(msgspec.json.encode(view | change))
        with pytest.raises(GenesisError, match=words):
            genesis.load(path)
    path.write_bytes(b'{"a":' + b"[" * 100_000)
    with pytest.raises(GenesisError, match="no genesis file"):
        genesis.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(GenesisError, match="no genesis file"):
        genesis.load(path)
    with pytest.raises(GenesisError, match="cannot read"):
        genesis.load(tmp_path / "none.json")
    path.write_bytes(b" " * (2 << 20))
    with pytest.raises(GenesisError, match="larger"):
        genesis.load(path)
