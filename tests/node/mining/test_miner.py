"""The miner: idle blocks, packets won and not won, its pace, and what it does when blocks come and go."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import pytest

from consensus import events
from consensus.block import PacketUnit
from consensus.shape import Shape
from node.chain.store import StorageError
from node.compute import InlineCompute, ThreadCompute
from node.mining.miner import Miner
from tests.builders import ALICE, BOB, DAVE, ERIN, Key, exact, operand, regtest
from tests.node.rig import Rig, asynchronous, worker_key
from tests.node.virtual_time import run
from worker import loop as loop_module
from worker.compute import LowPriorityCompute

P = ParamSpec("P")
T = TypeVar("T")


class Bench(InlineCompute):
    """Evaluates at once, then lets the loop breathe."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        result = await super().run(function, *args, **kwargs)
        await asyncio.sleep(0)
        return result


def miner_of(rig: Rig, key: Key = DAVE, **options: object) -> Miner:
    defaults = {"compute": rig.compute, "bench": Bench(), "rng": random.Random(2)}
    return Miner(rig.intake, rig.producer, worker_key(key), **{**defaults, **options})  # type: ignore[arg-type]


async def mine_until(miner: Miner, done: Callable[[], bool]) -> None:
    """Run the miner until `done`; a fault or a minute's silence fails the test."""
    task = asyncio.ensure_future(miner.run())
    await until(lambda: done() or task.done())
    if task.done():
        task.result()
    await stop(task)


async def until(done: Callable[[], bool]) -> None:
    """Let others run until `done`; a minute is too long."""
    async with asyncio.timeout(60):
        while not done():  # noqa: ASYNC110  (any condition, not one that signals)
            await asyncio.sleep(0)


async def stop(task: asyncio.Task[None]) -> None:
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
    assert rig.chain.archive.transaction(txid)
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


# --- when blocks come in between


class Interrupting(Bench):
    """Lets something happen while the first unit is on the bench."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        self._meanwhile: Callable[[], Awaitable[object]] | None = meanwhile

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            await meanwhile()
        return await super().run(function, *args, **kwargs)


@asynchronous
async def test_a_packet_is_finished_when_a_block_comes_first() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    job = rig.builder.job(ALICE, operand(64, 4096, 1), operand(4096, 64, 2))  # would win
    await rig.submit(job)
    await rig.mine()
    node = rig.branch().mine()
    miner = miner_of(rig, idle_duty=0.0, bench=Interrupting(lambda: rig.receive(node)))
    await mine_until(miner, lambda: len(rig.results) == 1)
    assert rig.chain.tip.id == node.block.id
    assert miner.stats.packet_blocks == 0


@asynchronous
async def test_an_idle_unit_is_given_up_when_a_block_comes_first() -> None:
    rig = Rig()
    node = rig.branch().mine()
    miner = miner_of(rig, bench=Interrupting(lambda: rig.receive(node)))
    await mine_until(miner, lambda: miner.stats.idle_blocks == 1)
    assert rig.chain.tip.core.parent == node.block.id
    assert miner.stats.idle_units == 1


@asynchronous
async def test_each_packet_is_made_once_whatever_becomes_of_its_block() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    job = rig.builder.job(ALICE, operand(64, 4096, 1), operand(4096, 64, 2))
    await rig.submit(job)
    await rig.mine()
    branch = rig.branch()
    rival = [branch.mine(), branch.mine()]
    miner = miner_of(rig, idle_duty=0.0)
    task = asyncio.ensure_future(miner.run())
    await until(lambda: miner.stats.packet_blocks == 1)
    for node in rival:
        await rig.receive(node)
    assert rig.chain.tip.id == rival[-1].block.id, "the block that was won is undone"
    await until(lambda: len(rig.results) == 1)
    await stop(task)
    assert miner.stats.packet_units == 1
    await rig.mine()
    assert not answer_to(rig, job.packets[0]).won


@asynchronous
async def test_it_goes_on_with_the_next_packet_on_the_new_tip() -> None:
    rig = Rig()
    await rig.with_workers(DAVE, packets=4)
    job = rig.builder.job(ALICE, operand(192, 4096, 1), operand(4096, 64, 2), rows=64, max_base_fee=100)
    await rig.submit(job)
    await rig.mine()
    assert len(rig.builder.held(job)) == 3
    miner = miner_of(rig, idle_duty=0.0)
    await mine_until(miner, lambda: miner.stats.packets_answered == 3)
    assert miner.stats.packet_units == miner.stats.packet_blocks == 3
    assert [answer_to(rig, packet).won for packet in job.packets] == [True] * 3


@asynchronous
async def test_a_packet_waits_for_its_operands() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2))
    await rig.submit(job)
    await rig.mine()
    missing = job.payload.operands()[1].commitment
    rig.tensors.remove(missing)
    miner = miner_of(rig)
    task = asyncio.ensure_future(miner.run())
    height = rig.chain.tip.height
    await until(lambda: rig.chain.tip.height >= height + 2)
    assert miner.stats.packet_units == 0
    await rig.upload(missing)
    await until(lambda: miner.stats.packets_answered == 1)
    await stop(task)


@asynchronous
async def test_a_result_that_is_refused_is_tried_at_the_next_tip_only() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2))
    await rig.submit(job)
    await rig.mine()
    stranger = worker_key(DAVE)
    stranger._signer = worker_key(ERIN)._signer  # its signatures are another's
    miner = Miner(
        rig.intake, rig.producer, stranger, compute=rig.compute, bench=Bench(), rng=random.Random(1), idle_duty=0.0
    )
    task = asyncio.ensure_future(miner.run())
    await until(lambda: miner.stats.results_refused == 1)
    refusals = 0
    for _ in range(3):
        before = miner.stats.results_refused
        await rig.mine()
        await until(lambda before=before: miner.stats.results_refused > before)  # type: ignore[misc]
        refusals += 1
    await stop(task)
    assert (refusals, miner.stats.packet_units, miner.stats.packets_answered) == (3, 1, 0)
    assert miner.stats.results_refused == 4, "once at each tip"


# --- pace


NEVER_WINS = {"anchor_target": (2**64).to_bytes(32, "big")}


class Slow(InlineCompute):
    """A unit takes a virtual second."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        result = await super().run(function, *args, **kwargs)
        await asyncio.sleep(1.0)
        return result


@pytest.mark.parametrize(("duty", "units"), [(1.0, 400), (0.25, 100), (0.01, 4), (0.0, 0)])
def test_idle_units_keep_their_duty(duty: float, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "TURN_SECONDS", 0)  # of which virtual time knows nothing

    async def story() -> None:
        rig = Rig(regtest(**NEVER_WINS))
        miner = miner_of(rig, bench=Slow(), idle_duty=duty, stopwatch=asyncio.get_running_loop().time)
        task = asyncio.ensure_future(miner.run())
        await asyncio.sleep(400.5)
        await stop(task)
        assert units * 0.85 <= miner.stats.idle_units <= units * 1.15 + 1
        assert miner.stats.seconds == pytest.approx(miner.stats.idle_units)

    run(story())


def test_a_packet_ends_the_pause_and_another_block_does_not() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        rig = Rig()
        await rig.with_workers(DAVE)
        bench = Slow()
        miner = miner_of(rig, bench=bench, idle_duty=0.0001, stopwatch=loop.time)
        task = asyncio.ensure_future(miner.run())
        await asyncio.sleep(10)
        assert miner.stats.idle_units == 1
        await rig.mine()
        await asyncio.sleep(10)
        assert miner.stats.idle_units == 1
        await rig.submit(rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2)))
        await rig.mine()
        started = loop.time()
        while miner.stats.packets_answered == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert loop.time() - started < 2
        await stop(task)

    run(story())


# --- threads


@asynchronous
async def test_it_runs_on_a_thread_of_low_priority() -> None:
    bench, compute = LowPriorityCompute(), ThreadCompute(2)
    rig = Rig(compute=compute)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    miner = miner_of(rig, bench=bench, compute=compute, threads=2)
    await mine_until(miner, lambda: miner.stats.idle_blocks >= 3)
    niceness = await bench.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    if sys.platform == "linux":
        assert niceness == min(before + 10, 19) or niceness == 10
    await rig.intake.close()
    bench.close()
    compute.close()


@asynchronous
async def test_cancelling_leaves_a_unit_at_once() -> None:
    bench, compute = LowPriorityCompute(), ThreadCompute(2)
    rig = Rig(regtest(**NEVER_WINS), compute=compute, idle=Shape(2048, 4096, 2048))
    miner = miner_of(rig, bench=bench, compute=compute)
    task = asyncio.ensure_future(miner.run())
    await asyncio.sleep(0.2)
    started = time.perf_counter()
    await stop(task)
    bench.close()
    assert time.perf_counter() - started < 2.0
    assert miner not in rig.intake.observers
    compute.close()


@asynchronous
async def test_a_storage_error_ends_it() -> None:
    rig = Rig()
    rig.store.close()
    with pytest.raises(ExceptionGroup) as caught:
        await miner_of(rig).run()
    assert caught.group_contains(StorageError)


def answer_to(rig: Rig, packet: bytes) -> events.Answered:
    return next(event for _, event in rig.chain.archive.packet_events(packet) if isinstance(event, events.Answered))
