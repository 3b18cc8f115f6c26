"""Whole networks from one seed: they agree, pay, survive faults, and do the same again."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import numpy as np
import pytest

from consensus import events, state
from consensus.block import PacketUnit
from consensus.params import TILE
from consensus.state import EmptyState, holdings_change
from tests.builders import ALICE, BOB, CAROL, Int32, Job, exact, operand
from tests.node.virtual_time import run, virtual
from tests.simulation.world import SimulatedNode, World

SEED = int(os.environ.get("TILEWORK_SEED", "7"))
"""A failing run prints its seed: TILEWORK_SEED gives it again."""


async def start_ring(world: World) -> None:
    """Every node dials the two before it."""
    for number, node in enumerate(world.nodes):
        await node.start(*world.nodes[max(0, number - 2) : number])
    await world.until(lambda: all(node.network.peers() for node in world.nodes))


def product_of(node: SimulatedNode, job: Job) -> Int32:
    """The job's product, out of the answers that the node has seen paid."""
    answered = [e for _, e in node.chain.archive.job_events(job.id) if isinstance(e, events.Answered)]
    products = {}
    for event in answered:
        tensor = node.tensors.tensor(event.product)
        assert tensor is not None
        products[event.packet_id] = tensor.matrix
    return job.assemble(products)


def completed(node: SimulatedNode, job: Job) -> bool:
    """Whether the job closed because its threshold was reached."""
    return any(
        isinstance(e, events.Closed) and e.why == events.Ending.COMPLETED
        for _, e in node.chain.archive.job_events(job.id)
    )


def check_supply(node: SimulatedNode) -> None:
    """Every grain of the final state, counted anew."""
    everything = node.read(lambda view: dict(view.scan(b"")))
    ledger = node.read(state.ledger)
    assert holdings_change(EmptyState(), dict(everything)) == ledger.issued - ledger.burned


@virtual
async def test_nodes_agree_pay_and_compute() -> None:
    world = World(SEED)
    await start_ring(world)
    await world.register_all()
    a, b = operand(512, 2048, 1), operand(2048, 128, 2)  # long inner sides, so that packets win blocks
    job = world.user.job(
        ALICE, a, b, rows=64, cols=64, expiry=world.height() + 100, max_base_fee=10**6, nonce=world.nonce(ALICE)
    )
    await world.send(world.nodes[0], job.transaction)
    paid = world.user.transfer(BOB, CAROL, 5 * TILE, nonce=world.nonce(BOB))
    await world.send(world.nodes[-1], paid)
    node = world.nodes[1]
    await world.until(lambda: any(isinstance(e, events.Closed) for _, e in node.chain.archive.job_events(job.id)))
    await world.settle()
    assert np.array_equal(product_of(node, job), exact(a, b))
    txid = paid.body.txid(node.chain.genesis_hash)
    assert all(n.chain.archive.transaction(txid) is not None for n in world.nodes)
    units = [node.chain.known.header(node.chain.archive.id_at(h) or b"") for h in range(1, node.chain.tip.height + 1)]
    assert any(isinstance(header.core.unit, PacketUnit) for header in units if header)
    check_supply(node)
    await world.stop()


@virtual
async def test_a_partition_heals_to_the_chain_with_the_most_work() -> None:
    world = World(SEED, nodes=5)
    await start_ring(world)
    await world.reach(10)
    minority, majority = world.nodes[:2], world.nodes[2:]
    world.wires.partition({n.host for n in minority}, {n.host for n in majority})
    await world.reach(30)
    assert not world.agree()
    world.wires.heal()
    heaviest = max((n.chain.tip for n in world.nodes), key=lambda tip: tip.total_work)
    await world.settle()
    on_main = world.nodes[0].chain.archive.id_at(heaviest.height)
    assert on_main == heaviest.id or world.nodes[0].chain.tip.total_work > heaviest.total_work
    for node in world.nodes:
        check_supply(node)
    await world.stop()


@virtual
async def test_a_crashed_node_and_a_late_one_catch_up() -> None:
    world = World(SEED, nodes=4)
    late = world.nodes.pop()
    await start_ring(world)
    await world.reach(10)
    victim = world.nodes[1]
    await victim.crash()
    await world.reach(60)
    await victim.start(*world.nodes[:1])
    world.nodes.append(late)
    await late.start(world.nodes[0], world.nodes[2])
    await world.until(lambda: min(n.chain.tip.height for n in world.nodes) > 55)
    await world.settle()
    await world.stop()


@pytest.mark.parametrize("step_s", [3600, -3600, 10**9, -(10**8)])
@virtual
async def test_a_node_whose_clock_was_stepped_comes_back_by_itself_once_it_is_right(step_s: int) -> None:
    """And its worker: from then on it mines blocks that everybody takes, and makes the packets that it holds."""
    world = World(SEED, nodes=4)
    await start_ring(world)
    await world.register_all()
    stepped, others = world.nodes[2], world.nodes[:2]
    for _ in range(2):  # there, back, and once more
        stepped.step_ms = 1000 * step_s
        above = others[0].chain.tip.height + 10
        await world.until(partial(stands_at, others[0], above))
        assert step_s > 0 or stepped.chain.tip.height < above, "to a clock that is behind, others are ahead"
        stepped.step_ms = 0
        await world.settle()
    start = world.height()
    await world.until(lambda: mined_above(others[0], start, stepped))
    a, b = operand(256, 64, 1), operand(64, 64, 2)
    job = world.user.job(ALICE, a, b, rows=64, expiry=world.height() + 100, nonce=world.nonce(ALICE))
    await world.send(world.nodes[0], job.transaction)
    await world.until(lambda: completed(others[0], job))
    await world.settle()
    assert np.array_equal(product_of(stepped, job), exact(a, b))
    check_supply(stepped)
    await world.stop()


def stands_at(node: SimulatedNode, height: int) -> bool:
    return node.chain.tip.height >= height


def mined_above(node: SimulatedNode, height: int, miner: SimulatedNode) -> bool:
    """Whether the node's chain has a block of a miner's above a height."""
    tips = [entry for entry in node.chain.tip.ancestors() if entry.height > height]
    return any(entry.core.miner == miner.key.address for entry in tips)


async def life(seed: int, blocks: int) -> list[bytes]:
    """A life with transfers, jobs, lost connections, a partition and crashes; returns the final chain's ids."""
    world = World(seed, nodes=3)
    await start_ring(world)
    await world.register_all()
    jobs: list[tuple[Job, Int32]] = []
    number = 0
    while world.height() < blocks:
        await world.reach(world.height() + 10)
        number += 1
        await world.resend()
        node = world.rng.choice(world.running)
        await world.send(node, world.user.transfer(BOB, CAROL, 1 + number, nonce=world.nonce(BOB)))
        if number % 5 == 0:
            a, b = operand(64 * world.rng.randint(1, 3), 1024, number), operand(1024, 64, number + 1)
            job = world.user.job(
                ALICE,
                a,
                b,
                rows=64,
                expiry=world.height() + 200,
                nonce=world.nonce(ALICE),
            )
            await world.send(node, job.transaction)
            jobs.append((job, exact(a, b)))
        if number % 7 == 0:
            world.wires.lose(2)
        if number % 20 == 0:
            hosts = [n.host for n in world.running]
            world.wires.partition({hosts[0]}, set(hosts[1:]))
            await asyncio.sleep(20)
            world.wires.heal()
        if number % 33 == 0:
            victim = world.rng.choice(world.running)
            await victim.crash()
            await asyncio.sleep(15)
            await victim.start(*world.running)
    await world.settle()
    node = world.nodes[0]
    finished = [(job, product) for job, product in jobs if completed(node, job)]
    assert len(finished) >= len(jobs) * 8 // 10
    for job, product in finished:
        assert np.array_equal(product_of(node, job), product)
    check_supply(node)
    ids = [node.chain.archive.id_at(height) or b"" for height in range(blocks)]
    await world.stop()
    return ids


@virtual
async def test_a_life_of_1000_blocks_with_faults() -> None:
    await life(SEED, 1_000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_lives(seed: int) -> None:
    run(life(seed, 300))


def test_the_same_seed_gives_the_same_chain() -> None:
    once = run(life(SEED, 60))
    assert once == run(life(SEED, 60))
    assert once != run(life(SEED + 1, 60))
