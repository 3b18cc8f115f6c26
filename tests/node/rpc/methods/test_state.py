"""`state_*`: accounts with what is pending, and proofs that convince whoever holds the next header."""

from __future__ import annotations

import asyncio

from consensus.block import decode_header
from consensus.codec import decode
from consensus.proofs import trie
from consensus.state import Account
from tests.builders import ALICE, BOB, FUNDS, MINER
from tests.node.rpc.world import World


def test_account_counts_what_is_pending() -> None:
    world = World()
    world.mine([world.builder.transfer(ALICE, BOB, 7)])
    first = world.builder.transfer(ALICE, BOB, 1)
    second = world.builder.transfer(ALICE, BOB, 2)
    for tx in (first, second):
        asyncio.run(world.intake.transaction(tx))
    account = world.call("state_getAccount", address=world.text(ALICE))
    assert (account["nonce"], account["next_nonce"], account["pending_count"]) == (1, 3, 2)
    assert account["balance"] == world.builder.balance(ALICE)
    assert world.call("state_getAccount", address=world.text(BOB).upper())["balance"] == FUNDS + 7


def test_an_unused_account_is_empty() -> None:
    world = World()
    empty = world.call("state_getAccount", address=world.text(MINER))
    assert (empty["balance"], empty["nonce"], empty["next_nonce"], empty["pending_count"]) == (0, 0, 0, 0)


def test_proof_of_presence_and_absence_against_the_next_header() -> None:
    world = World()
    world.mine([world.builder.transfer(ALICE, BOB, 7)])
    present, absent = (world.call("state_getProof", address=world.text(key)) for key in (BOB, MINER))
    world.mine()
    header = decode_header(bytes.fromhex(world.call("chain_getHeader", height=present["height"] + 1)["raw"]))
    for view in (present, absent):
        proof = decode(trie.Proof, bytes.fromhex(view["proof"]), trie.MAX_PROOF_BYTES)
        value = None if view["value"] is None else bytes.fromhex(view["value"])
        assert view["state_root"] == header.core.state_root.hex()
        assert trie.verify(header.core.state_root, bytes.fromhex(view["key"]), value, proof)
    assert absent["value"] is None
    assert decode(Account, bytes.fromhex(present["value"]), 64).balance == FUNDS + 7


def test_addresses_are_checked() -> None:
    world = World()
    good = world.text(ALICE)
    for bad in ("", "tdev1", good[:-1] + ("q" if good[-1] != "q" else "p"), "x" * 91):
        assert world.refused("state_getAccount", address=bad).kind.name == "INVALID_PARAMS"
    other = "tile" + good[4:]
    assert "tdev1" in world.refused("state_getProof", address=other).object.data.fix
