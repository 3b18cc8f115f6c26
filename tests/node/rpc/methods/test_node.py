"""`node_*`, the subscriptions, and the page that documents all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from node.rpc.methods.table import TABLE, rpc_docs
from node.rpc.server import every_method
from node.rpc.subscriptions import Feed, Hub
from node.rpc.topics import Publisher
from tests.builders import ALICE, BOB, DAVE
from tests.node.rpc.world import PEER, World, small_job, with_workers

PAGE = Path(__file__).parents[4] / "docs" / "rpc.md"

CONTRACT = {
    "chain_info chain_params chain_getHeader chain_getBlock chain_supply",
    "state_getAccount state_getProof",
    "tx_send tx_get tx_fees tx_history",
    "job_get job_packets job_list job_explain",
    "worker_get worker_list",
    "work_getUnit work_submit work_result",
    "node_info node_peers node_mempool node_mining node_addPeer",
    "rpc.discover subscribe unsubscribe",
}


def test_the_node_speaks_for_itself() -> None:
    world = World()
    assert world.call("node_info")["network"] == "regtest"
    assert world.call("node_peers") == [msgspec.to_builtins(PEER)]
    assert world.call("node_mempool") == {"transactions": 1, "bytes": 2, "results": 3}
    assert world.call("node_mining")["enabled"] is False
    assert world.call("node_addPeer", address="192.0.2.7:9545") == {"ok": True}
    assert world.host.added == ["192.0.2.7:9545"]
    assert "host:port" not in world.refused("node_addPeer", address="nonsense").object.message


def test_every_method_of_the_contract_is_there_and_no_other() -> None:
    assert {method.name for method in every_method(TABLE)} == set(" ".join(CONTRACT).split())
    assert {topic.name for topic in TABLE.topics} == {"newHeads", "pendingTransactions", "jobs", "results", "reorgs"}


def test_the_page_is_up_to_date_and_leaves_nothing_out() -> None:
    page = PAGE.read_text()
    assert page == rpc_docs(), "write it anew: make docs"
    for method in every_method(TABLE):
        assert f"### {method.name}\n" in page
        for field in msgspec.structs.fields(method.params):
            assert f"| `{field.name}` |" in page
    for topic in TABLE.topics:
        assert f"| `{topic.name}` |" in page


def events_of(world: World, happen: Callable[[], object]) -> list[tuple[str, Any]]:
    """(topic, event) of all that is published while something happens."""
    hub = Hub(TABLE.topics)
    feed = Feed(8, 1 << 20)
    hub.attach(feed)
    for topic in TABLE.topics:
        feed.subscribe(topic)
    publisher = Publisher(hub, world.chain)
    world.intake.observers.append(publisher)
    happen()
    world.intake.observers.remove(publisher)

    async def drain() -> list[bytes]:
        sent: list[bytes] = []

        async def send(frame: bytes) -> None:
            sent.append(frame)

        task = asyncio.ensure_future(feed.pump(send))
        await asyncio.sleep(0)
        task.cancel()
        return sent

    frames = [msgspec.json.decode(frame)["params"] for frame in asyncio.run(drain())]
    return [(frame["topic"], frame["event"]) for frame in frames]


def test_transactions_results_heads_and_jobs_are_published() -> None:
    world = with_workers(DAVE)
    bought = small_job(world, ALICE, packets=1)
    happened = events_of(world, lambda: asyncio.run(world.intake.transaction(bought.transaction)))
    assert [(topic, event["kind"], event["txid"]) for topic, event in happened] == [
        ("pendingTransactions", "submit_job", bought.id.hex())
    ]
    happened = events_of(world, lambda: world.mine([bought.transaction]))
    assert [topic for topic, _ in happened] == ["newHeads", "jobs", "jobs"]
    assert happened[0][1] == world.call("chain_getHeader")
    assert [(event["event"], event["job"]) for _, event in happened[1:]] == [
        ("opened", bought.id.hex()),
        ("dealt", bought.id.hex()),
    ]
    assert happened[2][1]["worker"] == world.text(DAVE)
    claim = world.builder.result(bought.packets[0])
    world.share_tensors()
    ((topic, event),) = events_of(world, lambda: asyncio.run(world.intake.result(claim)))
    assert (topic, event["packet_id"], event["worker"]) == ("results", bought.packets[0].hex(), world.text(DAVE))


def test_a_reorganisation_is_announced_before_its_heads() -> None:
    world = World()
    fork = world.builder.tip
    old = world.mine([world.builder.transfer(ALICE, BOB, 1)])
    world.builder.tip = fork
    first = world.builder.mine([world.builder.transfer(ALICE, BOB, 2)])
    second = world.builder.mine()
    world.take(first)
    happened = events_of(world, lambda: world.take(second))
    assert [topic for topic, _ in happened] == ["reorgs", "newHeads", "newHeads"]
    assert happened[0][1] == {
        "fork_height": 0,
        "disconnected": [old.block.id.hex()],
        "connected": [first.block.id.hex(), second.block.id.hex()],
    }
    assert [event["confirmations"] for _, event in happened[1:]] == [2, 1]
