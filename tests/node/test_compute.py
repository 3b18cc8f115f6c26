"""Where heavy work runs, and who is told what it raised."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from node.chain.store import StorageError
from node.compute import Asker, InlineCompute, Shares, ThreadCompute, metered


def test_the_hook_is_told_on_the_loop_and_the_caller_gets_the_error() -> None:
    told: list[tuple[Exception, int]] = []
    error = StorageError("No space left on device")

    def fail() -> None:
        raise error

    async def story() -> None:
        compute = ThreadCompute(1, lambda raised: told.append((raised, threading.get_ident())))
        try:
            assert await compute.run(lambda: 1) == 1
            assert told == []
            with pytest.raises(StorageError) as caught:
                await compute.run(fail)
            assert caught.value is error
        finally:
            compute.close()

    asyncio.run(story())
    assert told == [(error, threading.get_ident())]


class Clockwork:
    """A compute whose work takes the seconds that it is told, of the loop's time and of the timer's alike."""

    def __init__(self) -> None:
        self.worked = 0.0
        self.done: list[str] = []

    def timer(self) -> float:
        return self.worked

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    def work(self, name: str, seconds: float) -> None:
        self.worked += seconds
        self.done.append(name)


def asker(household: str, name: str = "") -> Asker:
    return Asker(household, name.encode())


def test_what_strangers_ask_for_takes_its_share_and_no_more() -> None:
    async def story() -> None:
        clockwork = Clockwork()
        shares = Shares(clockwork, share=0.5, burst_s=0.1, timer=clockwork.timer)
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(shares.run(asker("a"), clockwork.work, "a", 0.02) for _ in range(15)))
        taken = asyncio.get_running_loop().time() - started
        # 0.3 s of work: 0.1 s of it at once, the rest at half the pace of time, less the last piece.
        assert taken >= (0.3 - 0.1 - 0.02) / 0.5

    asyncio.run(story())


def test_of_those_who_wait_the_household_that_had_least_goes_first() -> None:
    """Ten identities of one host ask for much; whoever asks for little passes them all."""

    async def story() -> None:
        clockwork = Clockwork()
        shares = Shares(clockwork, share=10.0, burst_s=0.02, timer=clockwork.timer)
        crowd = [
            asyncio.create_task(shares.run(asker("crowd", str(n)), clockwork.work, "crowd", 0.02))
            for n in range(10)
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        late = asyncio.create_task(shares.run(asker("b"), clockwork.work, "late", 0.02))
        await asyncio.gather(late, *crowd)
        assert clockwork.done.index("late") <= 2

    asyncio.run(story())


def test_of_one_household_the_peer_that_had_least_goes_first() -> None:
    async def story() -> None:
        clockwork = Clockwork()
        shares = Shares(clockwork, share=10.0, burst_s=0.02, timer=clockwork.timer)
        greedy = [
            asyncio.create_task(shares.run(asker("h", "greedy"), clockwork.work, "greedy", 0.02)) for _ in range(9)
        ]
        await asyncio.sleep(0)
        modest = asyncio.create_task(shares.of(asker("h", "modest")).run(clockwork.work, "modest", 0.02))
        await asyncio.gather(modest, *greedy)
        assert clockwork.done.index("modest") <= 2

    asyncio.run(story())


def test_errors_cancellations_and_those_who_left_hold_up_nobody() -> None:
    async def story() -> None:
        clockwork = Clockwork()
        shares = Shares(clockwork, share=10.0, burst_s=0.02, timer=clockwork.timer)
        await shares.run(asker("a"), clockwork.work, "first", 0.03)
        waiting = [asyncio.create_task(shares.run(asker("a"), clockwork.work, str(n), 0.03)) for n in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        with pytest.raises(ZeroDivisionError):
            await shares.run(asker("b"), lambda: 1 // 0)
        await asyncio.gather(waiting[0], waiting[2])
        assert clockwork.done == ["first", "0", "2"]
        assert waiting[1].cancelled()

    asyncio.run(story())


def test_work_that_is_cancelled_under_way_is_paid_for_all_the_same() -> None:
    async def story() -> None:
        compute = ThreadCompute(1)
        shares = Shares(compute, share=0.1, burst_s=0.001, timer=time.perf_counter)
        began, go_on = threading.Event(), threading.Event()

        def work() -> None:
            began.set()
            go_on.wait(10)

        task = asyncio.create_task(shares.run(asker("a"), work))
        await asyncio.to_thread(began.wait, 10)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go_on.set()
        started = asyncio.get_running_loop().time()
        await shares.run(asker("a"), lambda: None)
        assert asyncio.get_running_loop().time() - started >= 0.25, "0.05 s of work, at a tenth of the time"
        compute.close()

    asyncio.run(story())


def test_what_is_paid_for_elsewhere_counts_against_the_share() -> None:
    async def story() -> None:
        clockwork = Clockwork()
        shares = Shares(clockwork, share=0.5, burst_s=0.1, timer=clockwork.timer)
        started = asyncio.get_running_loop().time()
        for _ in range(5):
            await shares.pay(asker("a"), 0.02)
        assert asyncio.get_running_loop().time() - started < 0.1, "a burst is free"
        shares.charge(asker("a"), 0.1)
        await shares.run(asker("b"), clockwork.work, "b", 0.01)
        assert asyncio.get_running_loop().time() - started >= 0.1 / 0.5, "a debt is everybody's"

    asyncio.run(story())


def test_a_turn_that_is_cancelled_holds_up_nobody() -> None:
    async def story() -> None:
        shares = Shares(InlineCompute(), share=0.5, burst_s=0.01)
        shares.charge(asker("a"), 0.1)
        waiting = [asyncio.create_task(shares.pay(asker("a"), 0.0)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting[1:])
        assert waiting[0].cancelled()

    asyncio.run(story())


def test_what_a_task_has_done_on_threads_is_metered_for_it_alone() -> None:
    def busy(seconds: float) -> None:
        started = time.thread_time()
        while time.thread_time() - started < seconds:
            pass

    async def story() -> None:
        compute = ThreadCompute(2)

        async def task(seconds: float) -> float:
            with metered() as worked:
                await compute.run(busy, seconds)
                await asyncio.create_task(compute.run(busy, seconds))
            await compute.run(busy, 0.05)
            assert len(worked) == 2
            return sum(worked)

        long, short = await asyncio.gather(task(0.03), task(0.01))
        assert long >= 0.06
        assert 0.02 <= short < long
        compute.close()

    asyncio.run(story())
