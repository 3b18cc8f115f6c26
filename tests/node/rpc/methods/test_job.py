"""`job_*`: a job's life as its owner sees it, and the answer to "who was paid, and why not I?"."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.builders import ALICE, BOB, DAVE, ERIN, FRANK, Job, fees_of
from tests.node.rpc.world import World, small_job, with_workers


def job(world: World, which: Job) -> Any:
    return world.call("job_get", job=which.id.hex())


def packets(world: World, which: Job) -> list[Any]:
    return world.call("job_packets", job=which.id.hex())  # type: ignore[no-any-return]


def verdict(world: World, packet: bytes, **params: str) -> str:
    return world.call("job_explain", packet=packet.hex(), **params)["verdict"]  # type: ignore[no-any-return]


def test_a_job_from_the_mempool_to_its_closing() -> None:
    world = with_workers(DAVE, ERIN)
    bought = small_job(world, ALICE, packets=2)
    asyncio.run(world.intake.transaction(bought.transaction))
    pending = job(world, bought)
    assert (pending["status"], pending["opened_at"], pending["escrow"]) == ("pending", None, 0)
    assert [packet["status"] for packet in packets(world, bought)] == ["queued", "queued"]

    opened = world.mine([bought.transaction])
    view = job(world, bought)
    fees = fees_of(world.builder, bought)
    assert (view["status"], view["held"], view["queued"], view["done"]) == ("open", 2, 0, 0)
    assert (view["owner"], view["packets"], view["threshold"]) == (world.text(ALICE), 2, 2)
    assert (view["escrow"], view["opened_at"], view["refund"]) == (sum(fees), opened.height, None)
    held = packets(world, bought)
    assert [packet["packet_id"] for packet in held] == [packet_id.hex() for packet_id in bought.packets]
    assert {packet["worker"] for packet in held} == {world.text(DAVE), world.text(ERIN)}
    assert {packet["deadline"] for packet in held} == {opened.height + world.builder.params.window}
    assert [packet["fee"] for packet in held] == fees

    first, second = bought.packets
    won = world.mine(packet=first, results=[world.builder.result(second)])
    view = job(world, bought)
    assert (view["status"], view["done"], view["closed_at"]) == ("closed", 2, won.height)
    assert (view["paid"], view["workers"], view["blocks_won"]) == (sum(fees), 2, [won.height])
    assert (view["refund"], view["escrow"]) == (0, 0)
    done = packets(world, bought)
    assert [(packet["status"], packet["won"]) for packet in done] == [("done", True), ("done", False)]
    assert done[1]["product"] == won.block.body.results[0].body.product.hex()
    assert {packet["answered_at"] for packet in done} == {won.height}


def test_explanation_of_a_paid_packet() -> None:
    world = with_workers(DAVE)
    bought = small_job(world, ALICE, packets=1)
    world.mine([bought.transaction])
    assert "may answer through tick" in verdict(world, bought.packets[0])
    node = world.mine(results=world.builder.answers(bought))
    story = world.call("job_explain", packet=bought.packets[0].hex())
    assert [line["event"] for line in story["history"]] == ["opened", "dealt", "answered", "completed", "closed"]
    (fee,) = fees_of(world.builder, bought)
    pay = fee - fee // 10 - fee // 50
    assert story["verdict"].startswith(f"{world.text(DAVE)} was paid {pay} grains of a fee of {fee} ")
    assert story["verdict"].endswith(f"at height {node.height}.")
    assert (story["job"], story["index"]) == (bought.id.hex(), 0)


def test_a_missed_window_and_a_second_worker() -> None:
    world = with_workers(DAVE)
    bought = small_job(world, ALICE, packets=1)
    world.mine([bought.transaction])
    world.mine(count=world.builder.params.window)
    story = world.call("job_explain", packet=bought.packets[0].hex())
    assert "missed" in [line["event"] for line in story["history"]]
    assert "lost 10000000000 grains of its bond" in " ".join(line["text"] for line in story["history"])
    assert "1 window(s) passed unanswered" in story["verdict"]


def test_surplus_packets_are_paid_in_full_or_dropped() -> None:
    world = with_workers(DAVE, ERIN, FRANK)
    bought = small_job(world, ALICE, packets=3, threshold=1)
    world.mine([bought.transaction])
    first, second, third = world.builder.held(bought)
    world.mine(results=[world.builder.result(first)])
    assert job(world, bought)["status"] == "complete"
    assert (
        packets(world, bought)[bought.packets.index(third)]["deadline"]
        == world.chain.tip.height - 1 + world.builder.params.window
    )
    world.mine(results=[world.builder.result(second)])
    assert f"of a fee of {fees_of(world.builder, bought)[0]} " in verdict(world, second)
    world.mine(count=world.builder.params.window)
    assert job(world, bought)["status"] == "closed"
    assert verdict(world, third).startswith("Nobody was paid: the job had the 1 results that it needs")
    assert packets(world, bought)[bought.packets.index(third)]["status"] == "withdrawn"


def test_a_cancelled_job_and_a_packet_that_was_never_dealt() -> None:
    world = World()  # nobody works here
    bought = small_job(world, ALICE, packets=2)
    world.mine([bought.transaction])
    assert "waits in the queue" in verdict(world, bought.packets[0])
    world.mine([world.builder.cancel(ALICE, bought)])
    view = job(world, bought)
    assert (view["status"], view["refund"]) == ("cancelled", sum(fees_of(world.builder, bought)))
    assert [packet["status"] for packet in packets(world, bought)] == ["withdrawn", "withdrawn"]
    assert world.refused("job_explain", packet=bought.packets[0].hex()).kind.name == "NOT_FOUND"
    assert "cancelled the job" in verdict(world, bought.packets[0], job=bought.id.hex())


def test_a_cancelled_job_that_completes_all_the_same() -> None:
    """Each packet without an answer names what ended its own wait."""
    world = with_workers(DAVE, ERIN)
    bought = small_job(world, ALICE, packets=3, threshold=1)
    world.mine([bought.transaction])
    waiting = next(packet_id for packet_id in bought.packets if world.builder.holder(packet_id) is None)
    first, second = world.builder.held(bought)
    world.mine([world.builder.cancel(ALICE, bought)])
    world.mine(results=[world.builder.result(first)])
    world.mine(count=world.builder.params.window)
    job_id = bought.id.hex()
    assert "its owner cancelled the job" in verdict(world, waiting, job=job_id)
    assert "the job had the 1 results that it needs" in verdict(world, second)
    assert "still held it" in verdict(world, second)


def test_an_expired_job_returns_its_escrow() -> None:
    world = World()
    life = world.builder.params.window + 2
    bought = small_job(world, ALICE, packets=1, expiry=1 + life)
    world.mine([bought.transaction])
    world.mine(count=life)
    view = job(world, bought)
    assert (view["status"], view["closed_at"]) == ("expired", 1 + life)
    assert "the job expired at height" in verdict(world, bought.packets[0], job=bought.id.hex())


def test_a_job_whose_transaction_failed_is_none() -> None:
    world = World()
    bought = small_job(world, ALICE, packets=1, expiry=2)
    world.mine([bought.transaction])
    assert world.call("tx_get", txid=bought.id.hex())["reason"] == "bad-expiry"
    assert world.refused("job_get", job=bought.id.hex()).kind.name == "NOT_FOUND"
    transfer = world.builder.transfer(ALICE, BOB, 1)
    world.mine([transfer])
    no_job = transfer.body.txid(world.builder.genesis_hash).hex()
    for method in ("job_get", "job_packets"):
        assert world.refused(method, job=no_job).kind.name == "NOT_FOUND"


def test_lists_newest_first_open_and_closed() -> None:
    world = with_workers(DAVE)
    bought = [small_job(world, owner, packets=1, seed=seed) for seed, owner in enumerate((ALICE, BOB, ALICE))]
    for one in bought[:2]:
        world.mine([one.transaction])
        world.mine(results=world.builder.answers(one))
        world.mine()
    world.mine([bought[2].transaction])
    listed = world.call("job_list")
    assert [view["job"] for view in listed] == [one.id.hex() for one in reversed(bought)]
    assert [view["status"] for view in listed] == ["open", "closed", "closed"]
    own = world.call("job_list", owner=world.text(ALICE))
    assert [view["job"] for view in own] == [bought[2].id.hex(), bought[0].id.hex()]
    assert len(world.call("job_list", limit=1)) == 1
