"""Where heavy work runs: never on the event loop; and how much of it strangers may ask for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from node.chain.store import StorageError
from worker.compute import run_on

P = ParamSpec("P")
T = TypeVar("T")


OVERHEAD_S = 0.0003
"""What a piece of strangers' work costs besides: its frames, on the event loop."""
BYTE_S = 1.5e-9
"""What a byte of an answer costs there: copied, encrypted, handed to the system."""
_HALF_LIFE_S = 10.0
"""What somebody had so long ago counts half."""
_LITTLE_S = 0.1
"""As long as more is left, nobody needs to know exactly how much."""
_MOMENT_S = 0.1
"""What was had within it counts as had at once."""
_MAX_REMEMBERED = 1024

Failed = Callable[[StorageError], None]


def _nobody(_error: StorageError) -> None:
    pass


class Compute(Protocol):
    """Runs a function and awaits its result."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""


_worked: ContextVar[list[float]] = ContextVar("worked")


@contextmanager
def metered() -> Iterator[list[float]]:
    """Collects the seconds of processor time of what this task has a `ThreadCompute` do meanwhile."""
    seconds: list[float] = []
    token = _worked.set(seconds)
    try:
        yield seconds
    finally:
        _worked.reset(token)


class ThreadCompute:
    """A pool of threads. The kernels, hashes and signatures release the GIL, so they truly run beside the loop."""

    def __init__(self, threads: int, failed: Failed = _nobody) -> None:
        """`failed` hears, on the event loop's thread, of a failing disk, whoever runs into it."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="compute")
        self._failed = failed

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        worked = _worked.get(None)

        def timed() -> T:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                if worked is not None:
                    worked.append(time.thread_time() - started)

        try:
            return await run_on(self._pool, timed)
        except StorageError as error:
            self._failed(error)
            raise

    def close(self) -> None:
        """Wait for what runs; refuse what would come."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class InlineCompute:
    """Runs at once, in the caller's turn: for simulations, whose time is virtual."""

    def __init__(self, failed: Failed = _nobody) -> None:
        self._failed = failed

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except StorageError as error:
            self._failed(error)
            raise


class Asker(NamedTuple):
    """Who asks: `household` is an address, or an IPv6 /64; `key` tells its peers apart."""

    household: str
    key: bytes


class Shares:
    """Work that strangers ask for: one piece at a time, of the household that has had least, a bounded share of a core.

    So whoever asks much waits for itself: others' requests pass its own, and what the node does for itself, in other
    pools of threads, waits for neither. Used on one event loop.
    """

    def __init__(
        self,
        compute: Compute,
        share: float,
        burst_s: float = 2.0,
        timer: Callable[[], float] = time.thread_time,
    ) -> None:
        """
        Args:
            compute: where the work runs; a thread of its own.
            share: seconds of work per second, on average.
            burst_s: seconds of work that may be done without a pause, once in a while.
            timer: seconds of work of the thread that calls it.
        """
        self._compute = compute
        self._share = share
        self._burst_s = burst_s
        self._timer = timer
        self._left_s = burst_s
        self._left_at = -1.0
        self._busy = False
        self._waiting: dict[Asker, deque[asyncio.Future[None]]] = {}
        self._had: dict[object, _Had] = {}
        self._alarm: asyncio.TimerHandle | None = None

    def of(self, asker: Asker) -> Compute:
        """The share of one peer."""
        return _Share(self, asker)

    async def run(self, asker: Asker, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises, once it is the asker's turn."""
        await self._turn(asker)
        worked = 0.0

        def timed() -> T:
            nonlocal worked
            started = self._timer()
            try:
                return function(*args, **kwargs)
            finally:
                worked = self._timer() - started

        def done(task: asyncio.Task[T]) -> None:
            if not task.cancelled():
                task.exception()  # whoever asked may have left
            self.charge(asker, worked + OVERHEAD_S)
            self._release()

        # A thread cannot be stopped: what has begun is finished, and paid for, even if the asker has left.
        task = asyncio.get_running_loop().create_task(self._compute.run(timed))
        task.add_done_callback(done)
        return await asyncio.shield(task)

    def has_spare(self) -> bool:
        """Whether work may be done at once: there is time left, and nobody waits for it."""
        if self._waiting or self._busy:
            return False
        if self._left_s <= _LITTLE_S:
            self._refill()
        return self._left_s > 0

    async def pay(self, asker: Asker, seconds: float) -> None:
        """Wait for the asker's turn to do so much work elsewhere."""
        if self.has_spare():
            self.charge(asker, seconds)
            return
        await self._turn(asker)
        self.charge(asker, seconds)
        self._release()

    async def _turn(self, asker: Asker) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asker, deque()).append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self._busy = False
        self._admit()

    def _admit(self) -> None:
        """Let the next one go: of those who wait the one whose household, and then who itself, has had least."""
        now = self._refill()
        while self._waiting and not self._busy:
            if self._left_s <= 0:
                if self._alarm is None:
                    pause_s = max(OVERHEAD_S, -self._left_s / self._share)
                    self._alarm = asyncio.get_running_loop().call_later(pause_s, self._wake)
                return
            asker = min(self._waiting, key=lambda one: (self._had_by(one.household, now), self._had_by(one, now)))
            turn = self._waiting[asker].popleft()
            if not self._waiting[asker]:
                del self._waiting[asker]
            if not turn.done():
                self._busy = True
                turn.set_result(None)

    def _refill(self) -> float:
        """Add what the share has brought since; gives the loop's time."""
        now = asyncio.get_running_loop().time()
        if self._left_at >= 0:
            self._left_s = min(self._burst_s, self._left_s + (now - self._left_at) * self._share)
        self._left_at = now
        return now

    def _wake(self) -> None:
        self._alarm = None
        self._admit()

    def charge(self, asker: Asker, seconds: float) -> None:
        """Let work that was done elsewhere count."""
        now = asyncio.get_running_loop().time()
        self._left_s -= seconds
        for one in (asker.household, asker):
            had = self._had.get(one)
            if had is None:
                self._had[one] = _Had(seconds, now)
            elif now - had.at < _MOMENT_S:
                had.seconds += seconds
            else:
                had.seconds, had.at = self._had_by(one, now) + seconds, now
        if len(self._had) > _MAX_REMEMBERED:
            self._had = {one: had for one, had in self._had.items() if self._had_by(one, now) > OVERHEAD_S}

    def _had_by(self, one: object, now: float) -> float:
        """Seconds of work that somebody has had lately."""
        had = self._had.get(one)
        return 0.0 if had is None else had.seconds * 0.5 ** ((now - had.at) / _HALF_LIFE_S)


@dataclass(slots=True)
class _Had:
    seconds: float
    at: float


@dataclass(frozen=True)
class _Share:
    shares: Shares
    asker: Asker

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.shares.run(self.asker, function, *args, **kwargs)
