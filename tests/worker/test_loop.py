"""The mining loop against a source that does as it is told: what runs beside what, what comes again, what ends it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pytest

from consensus.block import HeaderCore, PacketUnit, Zero
from consensus.crypto import H
from consensus.shape import Shape
from consensus.tensor import Tensor
from tests.builders import exact, operand
from tests.node.virtual_time import run
from worker import loop as loop_module
from worker.compute import LowPriorityCompute
from worker.evaluation import evaluate_idle
from worker.loop import MOST_UNDER_WAY, RETRY_SECONDS, TURN_SECONDS, MiningLoop
from worker.source import ProductGone, UnitLost, Win

P = ParamSpec("P")
T = TypeVar("T")

ALWAYS, NEVER = 2**254 - 1, 0
"""Targets: the easiest, at which a tile of inner side 4096 always wins, and one that nothing meets."""
UNIT_SECONDS = 1.0


@dataclass(frozen=True)
class FakeUnit:
    core: HeaderCore
    seed: bytes
    shape: Shape

    def another(self) -> None:
        """There is none."""


def unit_of(unit: Zero | PacketUnit, target: int = NEVER, shape: Shape | None = None) -> FakeUnit:
    """A candidate at height 1 of nobody's chain."""
    zero = bytes(32)
    address = bytes(20)
    core = HeaderCore(1, 1, 1, zero, zero, 0, target.to_bytes(32, "big"), address, zero, zero, unit, bytes(8))
    return FakeUnit(core, core.seed, shape or unit.shape)


def packet(number: int) -> PacketUnit:
    """Packets differ by id; all have the same operands."""
    return PacketUnit(H("tw/test", bytes([number])), bytes(32), bytes(32), 64, 4096, 64)


LEFT, RIGHT = operand(64, 4096, 1), operand(4096, 64, 2)


class FakeSource:
    """Gives `script` out one by one, then idle units where they are wanted. Attributes say how it behaves."""

    def __init__(self, *script: FakeUnit | Exception) -> None:
        self.script = list(script)
        self.idle_target = NEVER
        self.operand: Callable[[], Any] = lambda: LEFT
        self.publishing: Callable[[PacketUnit], Awaitable[None]] = self._at_once
        self.submitting: Callable[[], Awaitable[bool]] = self._taken
        self.stale = False
        self.asked_for_idle: list[bool] = []
        self.published: list[tuple[PacketUnit, bytes, Tensor | None]] = []
        self.submitted: list[Win] = []
        self.told: list[tuple[str, str]] = []

    async def _at_once(self, packet: PacketUnit) -> None:
        """Taken without delay."""

    async def _taken(self) -> bool:
        return True

    async def next_unit(self, idle: bool) -> FakeUnit | None:
        await asyncio.sleep(0)
        self.asked_for_idle.append(idle)
        if self.script:
            unit = self.script.pop(0)
            if isinstance(unit, Exception):
                raise unit
            return unit
        return unit_of(Zero(64, 4096, 64), self.idle_target) if idle else None

    async def operands(self, unit: FakeUnit) -> tuple[Any, Any]:
        return self.operand(), RIGHT

    def is_stale(self, unit: FakeUnit) -> bool:
        return self.stale

    async def submit(self, unit: FakeUnit, win: Win) -> bool:
        self.submitted.append(win)
        return await self.submitting()

    async def publish(self, packet: PacketUnit, commitment: bytes, product: Tensor | None) -> None:
        self.published.append((packet, commitment, product))
        await self.publishing(packet)

    def lost(self, what: str, why: str) -> None:
        self.told.append((what, why))


class SlowBench:
    """A unit takes a virtual second; `started` lists when each began."""

    def __init__(self) -> None:
        self.started: list[float] = []

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.started.append(now())
        await asyncio.sleep(UNIT_SECONDS)
        return function(*args, **kwargs)


def now() -> float:
    return asyncio.get_running_loop().time()


def loop_of(source: FakeSource, bench: Any = None, seed: int = 1, idle_duty: float = 1.0) -> MiningLoop[FakeUnit]:
    rng = random.Random(seed)
    return MiningLoop(source, bench=bench or SlowBench(), rng=rng, idle_duty=idle_duty, stopwatch=now)


def virtual(story: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in virtual time."""

    def test() -> None:
        run(story())

    test.__name__ = story.__name__
    return test


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- sending


@virtual
async def test_a_product_is_sent_while_the_next_unit_runs() -> None:
    source, bench = FakeSource(unit_of(packet(1)), unit_of(packet(2))), SlowBench()

    async def slowly(_packet: PacketUnit) -> None:
        await asyncio.sleep(10)

    source.publishing = slowly
    loop = loop_of(source, bench, idle_duty=0)
    await loop.run(2)
    assert bench.started == [0, UNIT_SECONDS], "the second does not wait for the first one's answer"
    assert now() == UNIT_SECONDS * 2 + 10, "and the last answer is not forgotten"
    assert loop.stats.results_sent == 2
    answered, commitment, product = source.published[0]
    assert answered == packet(1)
    assert product is not None
    assert product.commitment == commitment
    assert (product.matrix == exact(LEFT, RIGHT)).all()


@virtual
async def test_an_answer_that_hangs_holds_up_no_other() -> None:
    source = FakeSource(*(unit_of(packet(number)) for number in range(MOST_UNDER_WAY + 2)))
    never = asyncio.Event()

    async def first_hangs(answered: PacketUnit) -> None:
        if answered == packet(0):
            await never.wait()

    source.publishing = first_hangs
    loop = loop_of(source, idle_duty=0)
    task = asyncio.ensure_future(loop.run())
    await asyncio.sleep(20)
    assert loop.stats.results_sent == MOST_UNDER_WAY + 1
    await stop(task)


@virtual
async def test_the_bench_waits_for_a_line_that_is_slower() -> None:
    source, bench = FakeSource(*(unit_of(packet(number)) for number in range(20))), SlowBench()
    open_line = asyncio.Event()

    async def wait(_packet: PacketUnit) -> None:
        await open_line.wait()

    source.publishing = wait
    loop = loop_of(source, bench, idle_duty=0)
    task = asyncio.ensure_future(loop.run())
    await asyncio.sleep(100)
    assert len(source.published) == MOST_UNDER_WAY
    assert len(bench.started) == MOST_UNDER_WAY + 1, "so many products are in memory, and one that waits"
    open_line.set()
    await asyncio.sleep(100)
    assert loop.stats.results_sent == 20
    await stop(task)


@virtual
async def test_a_packet_that_comes_again_is_sent_again_and_not_computed_again() -> None:
    """A block with its answer was undone, or the answer never arrived."""
    source = FakeSource(unit_of(packet(1)))
    loop = loop_of(source, idle_duty=0)
    task = asyncio.ensure_future(loop.run())
    await asyncio.sleep(10)
    source.script = [unit_of(packet(1), ALWAYS)]
    loop.wake()
    await asyncio.sleep(10)
    (_, commitment, first), (again, same, second) = source.published
    assert (again, same) == (packet(1), commitment)
    assert first is not None
    assert second is None, "the source has it"
    assert (loop.stats.packet_units, loop.stats.results_sent) == (1, 2)
    await stop(task)


@virtual
async def test_a_packet_whose_block_was_undone_is_sent_as_a_result() -> None:
    source = FakeSource(unit_of(packet(1), ALWAYS), unit_of(packet(1), ALWAYS))
    loop = loop_of(source, idle_duty=0)
    await loop.run(2)
    assert len(source.submitted) == 1
    assert [answered for answered, _, _ in source.published] == [packet(1)]
    assert (loop.stats.packet_units, loop.stats.packet_blocks, loop.stats.packets_answered) == (1, 1, 2)


@virtual
async def test_what_is_being_sent_is_not_sent_twice() -> None:
    source = FakeSource(*[unit_of(packet(1))] * 3)

    async def slowly(_packet: PacketUnit) -> None:
        await asyncio.sleep(10)

    source.publishing = slowly
    await loop_of(source, idle_duty=0).run(3)
    assert len(source.published) == 1


@virtual
async def test_a_product_that_the_source_has_lost_is_made_anew() -> None:
    source = FakeSource(*[unit_of(packet(1))] * 3)
    answers: list[Exception | None] = [None, ProductGone("swept away"), None]

    async def publish(_packet: PacketUnit) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    source.publishing = publish
    loop = loop_of(source, idle_duty=0)
    await loop.run(1)
    await loop.run(1)
    await loop.run(1)
    assert [product is None for _, _, product in source.published] == [False, True, False]
    assert (loop.stats.packet_units, loop.stats.results_sent, loop.stats.results_refused) == (2, 2, 1)


@virtual
async def test_a_refused_result_is_told_and_mining_goes_on() -> None:
    source = FakeSource(unit_of(packet(1)), unit_of(packet(2)))

    async def refuse(_packet: PacketUnit) -> None:
        raise UnitLost("its window is over")

    source.publishing = refuse
    loop = loop_of(source, idle_duty=0)
    await loop.run(2)
    assert source.told == [("result refused", "its window is over")] * 2
    assert (loop.stats.packet_units, loop.stats.results_refused, loop.stats.units_lost) == (2, 2, 0)


def test_only_so_many_products_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_REMEMBERED", 2)

    async def story() -> None:
        numbers = (1, 2, 3, 3, 2, 1)
        source = FakeSource(*(unit_of(packet(number)) for number in numbers))
        loop = loop_of(source, idle_duty=0)
        await loop.run(len(numbers))
        assert loop.stats.packet_units == 4, "only the oldest was forgotten"
        assert loop.stats.results_sent == 6

    run(story())


def test_another_packet_under_the_same_id_is_another_packet() -> None:
    """A node that once lied about a packet's operands does not spoil the answer to the true one."""

    async def story() -> None:
        other = PacketUnit(packet(1).packet_id, H("tw/test", b"x"), bytes(32), 64, 4096, 64)
        source = FakeSource(unit_of(packet(1)), unit_of(other))
        loop = loop_of(source, idle_duty=0)
        await loop.run(2)
        assert loop.stats.packet_units == 2

    run(story())


# --- blocks


@virtual
async def test_a_win_is_submitted_with_its_first_tile_and_product() -> None:
    source = FakeSource(unit_of(packet(1), ALWAYS))
    source.idle_target = ALWAYS
    loop = loop_of(source)
    await loop.run(3)
    assert (loop.stats.packet_blocks, loop.stats.idle_blocks, loop.stats.blocks_won) == (1, 2, 3)
    assert source.published == [], "the block answers the packet"
    win = source.submitted[0]
    assert (win.i, win.j, win.state.shape) == (0, 0, (16,))
    assert (win.product.matrix == exact(LEFT, RIGHT)).all()


@pytest.mark.parametrize("refused", [False, True])
def test_a_block_that_is_not_taken_is_followed_by_the_answer(refused: bool) -> None:
    async def story() -> None:
        source = FakeSource(unit_of(packet(1), ALWAYS))

        async def decline() -> bool:
            if refused:
                raise UnitLost("a rule is broken")
            return False

        source.submitting = decline
        loop = loop_of(source, idle_duty=0)
        await loop.run(1)
        assert len(source.published) == 1
        assert loop.stats.packet_blocks == 0
        assert now() == UNIT_SECONDS + (RETRY_SECONDS if refused else 0)

    run(story())


@virtual
async def test_a_stale_unit_wins_nothing_but_a_packet_is_finished() -> None:
    source = FakeSource(unit_of(packet(1), ALWAYS), unit_of(Zero(64, 4096, 64), ALWAYS))
    source.stale = True
    loop = loop_of(source)
    await loop.run(2)
    assert source.submitted == []
    assert len(source.published) == 1
    assert (loop.stats.packet_units, loop.stats.idle_units) == (1, 0), "the idle unit was given up"


@virtual
async def test_a_win_that_a_block_overtakes_on_the_bench_is_not_submitted() -> None:
    source = FakeSource(unit_of(packet(1), ALWAYS))

    class Overtaken(SlowBench):
        async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
            outcome = await super().run(function, *args, **kwargs)
            source.stale = True
            return outcome

    await loop_of(source, Overtaken(), idle_duty=0).run(1)
    assert source.submitted == []
    assert len(source.published) == 1


# --- pace


def starts(seed: int, duty: float, units: int = 200) -> list[float]:
    """When each of so many idle units began."""
    bench = SlowBench()

    async def story() -> None:
        await loop_of(FakeSource(), bench, seed, duty).run(units)

    run(story())
    return bench.started


def test_pauses_keep_the_duty_and_are_jittered_by_the_seed() -> None:
    begun = starts(1, 0.25)
    pauses = [later - earlier - UNIT_SECONDS for earlier, later in pairwise(begun)]
    assert 1.5 <= min(pauses) < 2 < 4 < max(pauses) <= 4.5
    assert sum(pauses) / len(pauses) == pytest.approx(3, rel=0.1)
    assert begun == starts(1, 0.25)
    assert begun != starts(2, 0.25)
    assert starts(1, 1.0, 3) == [0, 1, 2]


@pytest.mark.parametrize(("held_up", "most"), [(3, 4.5), (20, 4 * 4.5)])
def test_pauses_do_not_stretch_after_units_that_the_machine_held_up(held_up: int, most: float) -> None:
    """Some units take a hundred times as long as usual; the pauses after them are those of usual units, or a little
    more where all that is remembered was held up."""

    class LoadedBench(SlowBench):
        async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
            if 10 <= len(self.started) < 10 + held_up:
                await asyncio.sleep(100 * UNIT_SECONDS)
                self.started.append(now())
                return function(*args, **kwargs)
            return await super().run(function, *args, **kwargs)

    bench = LoadedBench()

    async def story() -> None:
        await loop_of(FakeSource(), bench, 1, 0.25).run(40)

    run(story())
    pauses = [later - earlier for earlier, later in pairwise(bench.started)]
    assert max(pauses) <= 100 * UNIT_SECONDS + most
    assert max(pauses[10 + held_up :]) <= UNIT_SECONDS + 4.5


@dataclass(frozen=True)
class EndlessUnit(FakeUnit):
    number: int = 0

    def another(self) -> EndlessUnit:  # type: ignore[override]
        return EndlessUnit(self.core, self.seed, self.shape, self.number + 1)


def endless(target: int = NEVER) -> EndlessUnit:
    unit = unit_of(Zero(64, 4096, 64), target)
    return EndlessUnit(unit.core, unit.seed, unit.shape)


@pytest.mark.parametrize(("duty", "each"), [(1.0, 4), (0.999, 1)])
def test_at_full_duty_units_follow_each_other_on_the_bench(duty: float, each: int) -> None:
    async def story() -> None:
        source, bench, watch = FakeSource(*(endless() for _ in range(3))), SlowBench(), itertools.count()
        loop = MiningLoop(
            source,
            bench=bench,
            rng=random.Random(1),
            idle_duty=duty,
            stopwatch=lambda: next(watch) * TURN_SECONDS / 3.5,
        )
        await loop.run(3)
        assert len(bench.started) == 3
        assert loop.stats.idle_units == 3 * each
        assert loop.stats.macs == 3 * each * endless().shape.macs

    run(story())


@pytest.mark.parametrize(("target", "stale", "finished"), [(ALWAYS, False, 1), (NEVER, True, 0)])
def test_a_win_or_a_new_tip_ends_a_turn(target: int, stale: bool, finished: int) -> None:
    idled = evaluate_idle(endless(target), 1, lambda: stale, lambda: True)
    assert (idled.finished, idled.unit.number) == (finished, 0)
    assert (idled.win is not None) == (target == ALWAYS)


def test_the_unit_that_wins_is_the_one_that_is_named() -> None:
    asked = itertools.count(1)

    def another(unit: EndlessUnit) -> EndlessUnit:
        return endless(ALWAYS if next(asked) == 3 else NEVER)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EndlessUnit, "another", another)
        idled = evaluate_idle(endless(), 1, lambda: False, lambda: True)
    assert idled.finished == 4
    assert idled.unit.core.target_int == ALWAYS
    assert idled.win is not None


@virtual
async def test_without_a_duty_for_idle_units_it_waits_for_packets() -> None:
    source, bench = FakeSource(), SlowBench()
    loop = loop_of(source, bench, idle_duty=0)
    task = asyncio.ensure_future(loop.run())
    await asyncio.sleep(1000)
    assert (bench.started, source.asked_for_idle) == ([], [False])
    source.script = [unit_of(packet(1))]
    loop.wake()
    await asyncio.sleep(10)
    assert bench.started == [1000]
    await stop(task)


@virtual
async def test_a_packet_ends_a_pause_and_a_mere_block_does_not() -> None:
    source, bench = FakeSource(), SlowBench()
    loop = loop_of(source, bench, idle_duty=0.0001)
    task = asyncio.ensure_future(loop.run())
    await asyncio.sleep(10)
    loop.wake()
    await asyncio.sleep(10)
    assert bench.started == [0]
    source.script = [unit_of(packet(1)), unit_of(packet(2))]
    loop.wake()
    await asyncio.sleep(10)
    assert bench.started == [0, 20, 21], "packets run at full speed"
    await stop(task)


@virtual
async def test_a_tip_that_comes_during_the_question_is_not_missed() -> None:
    source = FakeSource()
    loop = loop_of(source, idle_duty=0)
    task = asyncio.ensure_future(loop.run())
    await asyncio.sleep(0)  # `next_unit` has begun, and has not answered
    loop.wake()
    await asyncio.sleep(1)
    assert source.asked_for_idle == [False, False]
    await stop(task)


# --- faults


@virtual
async def test_a_source_that_fails_for_a_while_is_asked_again() -> None:
    source = FakeSource(*[UnitLost("the node is busy")] * 3, unit_of(packet(1)))
    loop = loop_of(source, idle_duty=0)
    await loop.run(4)
    assert now() == 3 * RETRY_SECONDS + UNIT_SECONDS
    assert (loop.stats.units_lost, loop.stats.packet_units) == (3, 1)
    assert source.told == [("unit lost", "the node is busy")] * 3


@virtual
async def test_operands_out_of_range_lose_the_unit_only() -> None:
    source = FakeSource(unit_of(packet(1)))
    source.operand = lambda: np.full((64, 4096), 64, np.int8)
    loop = loop_of(source)
    await loop.run(2)
    assert (loop.stats.units_lost, loop.stats.idle_units) == (1, 1)


class Fatal(Exception):
    """A disk that fails, say."""


def fail(*_args: object) -> Any:
    raise Fatal


@pytest.mark.parametrize("where", ["next_unit", "operands", "publish", "submit", "is_stale"])
def test_what_is_no_lost_unit_ends_it(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        source = FakeSource(unit_of(packet(1), NEVER if where == "publish" else ALWAYS))
        monkeypatch.setattr(source, where, fail)
        task = asyncio.ensure_future(loop_of(source).run())
        with pytest.raises(ExceptionGroup) as caught:
            await task
        assert caught.group_contains(Fatal)

    run(story())


def test_a_fault_in_sending_ends_it_even_while_it_waits() -> None:
    async def story() -> None:
        source = FakeSource(unit_of(packet(1)))

        async def later(_packet: PacketUnit) -> None:
            await asyncio.sleep(5)
            raise Fatal

        source.publishing = later
        with pytest.raises(ExceptionGroup) as caught:
            await loop_of(source, idle_duty=0).run()
        assert caught.group_contains(Fatal)
        assert now() == UNIT_SECONDS + 5

    run(story())


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5, 2.5, 3.5, 8.5, 60.0])
def test_cancelling_ends_it_wherever_it_is(seconds: float) -> None:
    """Asking, on the bench, in a retry's pause, in submit, with a full line, at rest."""

    async def story() -> None:
        source = FakeSource(UnitLost("not yet"), unit_of(packet(1), ALWAYS), *(unit_of(packet(n)) for n in range(2, 9)))

        async def slowly() -> bool:
            await asyncio.sleep(0.9)
            return True

        async def never(_packet: PacketUnit) -> None:
            await asyncio.Event().wait()

        source.submitting, source.publishing = slowly, never
        task = asyncio.ensure_future(loop_of(source, idle_duty=0.0001).run())
        await asyncio.sleep(seconds)
        assert not task.done()
        await stop(task)
        assert now() == seconds

    run(story())


def test_cancelling_leaves_the_bench_at_once() -> None:
    async def story() -> None:
        bench = LowPriorityCompute()
        source = FakeSource(unit_of(Zero(64, 4096, 64), NEVER, Shape(2048, 4096, 2048)))
        task = asyncio.ensure_future(MiningLoop(source, bench=bench, rng=random.Random(1)).run())
        await asyncio.sleep(0.2)
        started = time.perf_counter()
        await stop(task)
        bench.close()
        assert time.perf_counter() - started < 2.0

    asyncio.run(story())
