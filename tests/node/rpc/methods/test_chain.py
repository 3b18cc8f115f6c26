"""`chain_*`: what is said of the tip, of headers on and off the main chain, of blocks and the supply."""

from __future__ import annotations

import msgspec
import pytest

from api.rules import ParamsView
from consensus import state
from consensus.block import decode_header
from consensus.crypto import H
from consensus.transition import genesis_transition
from tests.builders import ALICE, BOB, DAVE, MINER
from tests.node.rpc.world import World, small_job, with_workers


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    world.mine([world.builder.transfer(ALICE, BOB, 5)])
    world.mine(count=2)
    return world


def test_info_shows_the_tip_and_the_rules(world: World) -> None:
    info = world.call("chain_info")
    tip = world.chain.tip
    assert (info["network"], info["chain_id"], info["address_prefix"]) == ("regtest", 3, "tdev")
    assert (info["height"], info["tip"], info["total_work"]) == (3, tip.id.hex(), str(tip.total_work))
    assert info["genesis_hash"] == world.builder.genesis_hash.hex()
    assert info["state_root"] == world.chain.read(state.root_of).hex()
    assert (info["best_header_height"], info["syncing"]) == (3, False)
    assert (info["maturity"], info["min_reserve"], info["gas_limit"]) == (10, 10 * 10**9, 64 << 20)


def test_a_node_that_lacks_bodies_says_that_it_is_syncing() -> None:
    world = World()
    for _ in range(3):
        world.builder.mine()
    for node in world.builder._nodes.values():
        if node.height:
            world.chain.add_header(node.header)
    info = world.call("chain_info")
    assert (info["height"], info["best_header_height"], info["syncing"]) == (0, 3, True)
    assert world.refused("work_getUnit", miner=world.text(MINER)).kind.name == "NOT_READY"


def test_params_found_the_same_network(world: World) -> None:
    view = msgspec.convert(world.call("chain_params"), ParamsView)
    assert genesis_transition(view.params())[0].id == world.builder.genesis_hash


def test_header_by_height_by_id_and_of_the_tip(world: World) -> None:
    first = world.call("chain_getHeader", height=1)
    assert first == world.call("chain_getHeader", id=first["id"])
    assert world.call("chain_getHeader")["height"] == 3
    header = decode_header(bytes.fromhex(first["raw"]))
    assert (header.id.hex(), header.ticket.hex()) == (first["id"], first["ticket"])
    assert (first["confirmations"], first["main"], first["unit"]) == (
        3,
        True,
        {"kind": "zero", "m": 64, "k": 4096, "n": 64},
    )
    assert first["miner"] == world.text(MINER)
    assert header.proof is not None
    assert (first["tile"], first["product"]) == ([header.proof.i, header.proof.j], None)
    assert int(first["total_work"]) == world.chain.entry(header.id).total_work  # type: ignore[union-attr]


def test_genesis_has_no_proof(world: World) -> None:
    view = world.call("chain_getHeader", height=0)
    assert (view["tile"], view["product"], view["ticket"]) == (None, None, "00" * 32)


def test_a_block_off_the_main_chain_has_no_confirmations() -> None:
    world = World()
    genesis_node = world.builder.tip
    world.mine()
    world.mine()
    world.builder.tip = genesis_node
    side = world.builder.mine([world.builder.transfer(ALICE, BOB, 1)])
    world.take(side)
    view = world.call("chain_getBlock", id=side.block.id.hex())
    assert (view["header"]["main"], view["header"]["confirmations"], view["reward_grains"]) == (False, 0, None)
    assert [tx["ok"] for tx in view["transactions"]] == [None]


def test_the_copy_that_the_child_names_is_shown() -> None:
    """Seen when a block has two proofs: a client that follows the tickets must get the one its child was mined on."""
    world = World()
    first = world.mine()
    world.mine()
    entry = world.chain.entry(first.block.id)
    assert entry is not None
    proof = entry.copies[first.header.copy_id]
    assert proof is not None
    entry.copies.clear()  # as if another copy had come first
    entry.copies[H("tw/test", b"other")] = msgspec.structs.replace(proof, i=0, j=0, state=bytes(64))
    entry.copies[first.header.copy_id] = proof
    assert world.call("chain_getHeader", height=1)["ticket"] == first.header.ticket.hex()


def test_block_with_transactions_results_and_reward() -> None:
    world = with_workers()
    job = small_job(world, ALICE, packets=3)
    world.mine([job.transaction])
    held = world.builder.held(job)
    node = world.mine(results=[world.builder.result(held[0])], packet=held[1])
    view = world.call("chain_getBlock")
    unit = view["header"]["unit"]
    assert (unit["kind"], unit["packet_id"], unit["m"], unit["k"], unit["n"]) == ("packet", held[1].hex(), 64, 64, 64)
    (result,) = view["results"]
    assert result["packet_id"] == held[0].hex()
    assert result["product"] == node.block.body.results[0].body.product.hex()
    assert view["reward_grains"] == node.transition.reward
    transactions = world.call("chain_getBlock", height=node.height - 1)["transactions"]
    assert [(tx["kind"], tx["ok"], tx["confirmations"]) for tx in transactions] == [("submit_job", True, 2)]


def test_supply_adds_up(world: World) -> None:
    supply = world.call("chain_supply")
    assert supply["height"] == 3
    assert supply["circulating"] == supply["issued"] - supply["burned"] == world.builder.supply()[0]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"height": 99}, "NOT_FOUND"),
        ({"id": "00" * 32}, "NOT_FOUND"),
        ({"id": "00" * 31}, "INVALID_PARAMS"),
        ({"id": "AA" * 32}, "INVALID_PARAMS"),
        ({"id": "00" * 32, "height": 1}, "INVALID_PARAMS"),
        ({"height": -1}, "INVALID_PARAMS"),
    ],
)
def test_what_is_not_there_is_refused(world: World, params: dict[str, object], name: str) -> None:
    for method in ("chain_getHeader", "chain_getBlock"):
        assert world.refused(method, **params).kind.name == name


def test_the_body_of_a_block_whose_header_alone_is_here() -> None:
    world = World()
    node = world.builder.mine(miner=DAVE)
    world.chain.add_header(node.header)
    assert world.call("chain_getHeader", id=node.block.id.hex())["main"] is False
    assert world.refused("chain_getBlock", id=node.block.id.hex()).kind.name == "UNAVAILABLE"
