"""`worker_*`: a worker from its registration to its retirement."""

from __future__ import annotations

from tests.builders import ALICE, BOB, DAVE, ERIN, FRANK
from tests.node.rpc.world import World, small_job, with_workers


def test_a_worker_becomes_active_holds_a_packet_and_retires() -> None:
    world = World()
    unknown = world.call("worker_get", address=world.text(DAVE))
    assert (unknown["registered"], unknown["active"], unknown["bond"], unknown["retired_at"]) == (False, False, 0, None)
    world.mine([world.builder.register(DAVE, packets=2, min_price=7, max_unit_bytes=1 << 20)])
    fresh = world.call("worker_get", address=world.text(DAVE))
    assert (fresh["registered"], fresh["active"], fresh["bond"]) == (True, False, 20 * 10**9)
    announced = {"tick": 9, "min_price": 7, "max_unit_bytes": 1 << 20, "places": 2}
    assert (fresh["announced"], fresh["places"], fresh["seen"]) == (announced, 0, 1)
    world.mine(count=world.builder.params.registration_delay)
    bought = small_job(world, ALICE, packets=1)
    world.mine([bought.transaction])
    busy = world.call("worker_get", address=world.text(DAVE))
    assert (busy["active"], busy["held"], busy["reserved"]) == (True, [bought.packets[0].hex()], 10 * 10**9)
    assert (busy["announced"], busy["min_price"], busy["max_unit_bytes"], busy["places"]) == (None, 7, 1 << 20, 2)
    world.mine([world.builder.retire(DAVE)])
    retired = world.call("worker_get", address=world.text(DAVE))
    assert (retired["registered"], retired["active"]) == (False, False)
    assert retired["retired_at"] == world.chain.tip.height


def test_list_shows_the_best_first() -> None:
    world = with_workers(DAVE, ERIN)
    bought = small_job(world, ALICE, packets=1)
    world.mine([bought.transaction])
    holder = world.builder.holder(bought.packets[0])
    assert holder is not None
    world.mine(results=world.builder.answers(bought), transactions=[world.builder.register(FRANK)])
    listed = world.call("worker_list")
    assert listed[0]["address"] == world.text(holder)
    assert len(listed) == 3
    assert {worker["address"] for worker in world.call("worker_list", active_only=True)} == {
        world.text(DAVE),
        world.text(ERIN),
    }
    assert len(world.call("worker_list", limit=1)) == 1
    assert world.refused("worker_list", limit=0).kind.name == "INVALID_PARAMS"
    assert world.refused("worker_get", address=world.text(BOB)[:-1]).kind.name == "INVALID_PARAMS"
