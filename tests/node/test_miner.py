"""The miner: idle blocks, packets won and not won, its pace, and what it does when blocks come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from consensus import events
from consensus.block import PacketUnit
from node.compute import InlineCompute
from node.miner import Miner
from tests.builders import ALICE, BOB, DAVE, Key, exact, operand
from tests.node.rig import Rig, asynchronous, worker_key


class Bench(InlineCompute):
    """Evaluates at once, then lets the loop breathe."""

    async def run(self, function, *args, **kwargs):  # type: ignore[no-untyped-def]
        result = await super().run(function, *args, **kwargs)
        await asyncio.sleep(0)
        return result


def miner_of(rig: Rig, key: Key = DAVE, **options: object) -> Miner:
    defaults = {"compute": rig.compute, "bench": Bench(), "rng": random.Random(2)}
    return Miner(rig.intake, rig.producer, worker_key(key), **{**defaults, **options})  # type: ignore[arg-type]


async def mine_until(miner: Miner, done: Callable[[], bool]) -> None:
    """Run the miner until `done`; a fault or a minute's silence fails the test."""
    task = asyncio.ensure_future(miner.run())
    async with asyncio.timeout(60):
        while not done() and not task.done():  # noqa: ASYNC110  (any condition, not one that signals)
            await asyncio.sleep(0)
    if task.done():
        task.result()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@asynchronous
async def test_idle_blocks_on_a_lonely_node() -> None:
    rig = Rig()
    miner = miner_of(rig)
    await mine_until(miner, lambda: miner.stats.idle_blocks == 5)
    assert rig.chain.tip.height == 5
    assert miner.stats.idle_units == 5
    assert {entry.core.miner for entry in rig.chain.tip.ancestors() if entry.height} == {DAVE.address}


@asynchronous
async def test_a_pending_transaction_enters_the_next_block() -> None:
    rig = Rig()
    txid = await rig.intake.transaction(rig.builder.transfer(ALICE, BOB, 5))
    await mine_until(miner_of(rig), lambda: rig.chain.tip.height >= 1)
    assert rig.chain.transaction(txid)
    assert len(rig.pool) == 0


@asynchronous
async def test_a_dealt_packet_that_wins_answers_itself() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    a, b = operand(64, 4096, 1), operand(4096, 64, 2)  # one tile that wins with certainty
    job = rig.builder.job(ALICE, a, b)
    await rig.submit(job)
    await rig.mine()
    assert rig.builder.holder(job.packets[0]) == DAVE
    miner = miner_of(rig, idle_duty=0.0)
    await mine_until(miner, lambda: miner.stats.packet_blocks == 1)
    assert isinstance(rig.chain.tip.core.unit, PacketUnit)
    answered = answer_to(rig, job.packets[0])
    assert answered.won
    product = rig.tensors.tensor(answered.product)
    assert product is not None
    assert (product.matrix == exact(a, b)).all()
    assert len(rig.results) == 0
    assert miner.stats.idle_units == 0


@asynchronous
async def test_a_dealt_packet_that_does_not_win_is_sent_as_a_result() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    a, b = operand(64, 64, 1), operand(64, 64, 2)  # 1 ticket at a chance of 1/64
    job = rig.builder.job(ALICE, a, b)
    await rig.submit(job)
    await rig.mine()
    miner = miner_of(rig, idle_duty=0.0)
    await mine_until(miner, lambda: len(rig.results) == 1)
    sent = rig.results.get(job.packets[0])
    assert sent is not None
    assert rig.announced[-1] == sent
    await rig.mine()
    answered = answer_to(rig, job.packets[0])
    assert not answered.won
    assert answered.worker == DAVE.address
    assert len(rig.results) == 0


def answer_to(rig: Rig, packet: bytes) -> events.Answered:
    return next(event for _, event in rig.chain.packet_events(packet) if isinstance(event, events.Answered))
