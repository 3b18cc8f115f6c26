"""`work_*`: an outside miner from the unit to the block, and an outside worker's answers."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from consensus import work
from consensus.block import HeaderCore
from consensus.codec import decode, encode
from consensus.shape import Shape
from consensus.tensor import Tensor
from tests.builders import ALICE, DAVE, ERIN, MINER, exact
from tests.node.rpc.world import World, small_job, with_workers

ONE_TILE_VIEW = {"kind": "zero", "m": 64, "k": 4096, "n": 64}


def solve(unit: Any) -> dict[str, Any]:
    """What `work_submit` wants for a unit of zeros that wins."""
    seed, target = bytes.fromhex(unit["seed"]), int(unit["target"], 16)
    evaluation = work.evaluate_idle(seed, Shape(unit["m"], unit["k"], unit["n"]))
    assert evaluation is not None
    assert evaluation.states is not None
    i, j, _ = next(work.winning_tiles(seed, evaluation.states, target, unit["k"]))
    return {"id": unit["id"], "i": i, "j": j, "state": evaluation.states[i, j].astype("<u4").tobytes().hex()}


def test_an_idle_unit_becomes_a_block() -> None:
    world = World()
    unit = world.call("work_getUnit", miner=world.text(MINER))
    core = decode(HeaderCore, bytes.fromhex(unit["core"]), 1024)
    assert (core.id.hex(), core.seed.hex(), core.miner) == (unit["id"], unit["seed"], MINER.address)
    assert (unit["unit"], unit["packet_id"], unit["a"], unit["height"]) == (ONE_TILE_VIEW, None, None, 1)
    submission = solve(unit)
    assert world.call("work_submit", **submission) == {"block": unit["id"], "height": 1, "accepted": True}
    assert world.chain.tip.id.hex() == unit["id"]
    assert world.refused("work_submit", **submission).object.data.reason == "unknown-unit"


def test_a_stale_unit_and_a_losing_tile_are_refused() -> None:
    world = World()
    unit = world.call("work_getUnit", miner=world.text(MINER))
    submission = solve(unit)
    losing = submission | {"i": 1}
    assert world.refused("work_submit", **losing).object.data.reason == "bad-tile"
    world.mine()
    assert world.refused("work_submit", **submission).object.data.reason == "stale-unit"
    assert world.refused("work_submit", **submission | {"state": "00"}).kind.name == "INVALID_PARAMS"


def test_a_packet_is_offered_to_its_holder_alone() -> None:
    world = with_workers(DAVE)
    bought = small_job(world, ALICE, packets=1)
    world.mine([bought.transaction])
    world.now_ms = world.chain.tip.core.time_ms + 1
    unit = world.call("work_getUnit", miner=world.text(DAVE))
    left, right = world.builder.operands(bought.packets[0])
    assert unit["packet_id"] == bought.packets[0].hex()
    assert (unit["a"], unit["b"]) == (left.commitment.hex(), right.commitment.hex())
    assert unit["deadline"] == world.chain.tip.height + world.builder.params.window
    assert world.call("work_getUnit", miner=world.text(ERIN))["packet_id"] is None
    product = Tensor(exact(left.matrix, right.matrix))
    signed = encode(world.builder.answer(bought.packets[0], product.commitment)).hex()
    early = world.refused("work_submit", id=unit["id"], i=0, j=0, state="00" * 64, answer=signed)
    assert (early.kind.name, early.object.data.reason) == ("UNAVAILABLE", "missing-tensor")
    asyncio.run(world.intake.tensor(product))
    claim = DAVE.claim(world.builder.genesis_hash, bought.packets[0], product.commitment)
    answer = world.call("work_result", result=encode(claim).hex())
    assert answer == {"id": claim.id(world.builder.genesis_hash).hex(), "waiting": False}
    assert world.intake.results.get(bought.packets[0]) == claim


def test_wrong_answers_are_refused_with_their_reason() -> None:
    world = with_workers(DAVE, ERIN)
    bought = small_job(world, ALICE, packets=1)
    world.mine([bought.transaction])
    (packet,) = bought.packets
    holder = world.builder.holder(packet)
    assert holder is not None
    other = ERIN if holder is DAVE else DAVE
    genesis_hash = world.builder.genesis_hash
    true = world.builder.product(packet)
    false = Tensor(np.zeros((64, 64), np.int32))
    cases = {
        "missing-tensor": holder.claim(genesis_hash, packet, true.commitment),
        "not-assignee": other.claim(genesis_hash, packet, false.commitment),
        "wrong-product": holder.claim(genesis_hash, packet, false.commitment),
        "bad-signature": holder.claim(bytes(32), packet, false.commitment),
        "unknown-worker": MINER.claim(genesis_hash, packet, false.commitment),
    }
    asyncio.run(world.intake.tensor(false))
    for reason, claim in cases.items():
        assert world.refused("work_result", result=encode(claim).hex()).object.data.reason == reason


def test_an_early_answer_waits_for_its_block() -> None:
    world = with_workers(DAVE)
    claim = DAVE.claim(world.builder.genesis_hash, bytes(32), bytes(32))
    answer = world.call("work_result", result=encode(claim).hex())
    assert answer["waiting"] is True
