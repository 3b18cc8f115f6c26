"""Sharing out numbered tasks among threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Event, Lock

from consensus.work.unit import Interrupted


class Stage:
    """Tasks 0 … count − 1 of one kind. `work` does those that it draws, up to `grain` at a time, from its iterator."""

    def __init__(self, count: int, work: Callable[[Iterator[range]], None], grain: int = 1) -> None:
        self.count = count
        self._grain = grain
        self.given = 0
        self._work = work
        self._finished = 0
        self._lock = Lock()
        self._over = Event()

    def run(self, interrupted: Interrupted = None) -> None:
        """Work until no task is left, and until those that other threads have drawn are finished."""
        try:
            self._work(self._drawn(interrupted))
        except BaseException:
            self._over.set()  # nobody must wait for a task that will never be finished; the caller gets the error
            raise
        if self.given == self.count:
            self._over.wait()

    def _drawn(self, interrupted: Interrupted) -> Iterator[range]:
        while interrupted is None or not interrupted():
            with self._lock:
                if self.given == self.count:
                    return
                tasks = range(self.given, min(self.given + self._grain, self.count))
                self.given = tasks.stop
            yield tasks
            with self._lock:
                self._finished += len(tasks)
                if self._finished == self.count:
                    self._over.set()


def share(threads: int, *stages: Stage, interrupted: Interrupted = None) -> int:
    """Run the stages one after the other in that many threads, the caller's among them, with one hand-over for all.

    `interrupted` is asked between two draws of the last stage. Returns how many of its tasks were done: all, or
    only the first ones if it came true.
    """
    *first, last = stages

    def run() -> None:
        for stage in first:
            stage.run()
        last.run(interrupted)

    helpers = min(threads, last.count) - 1
    if not helpers:
        run()
        return last.given
    elsewhere = _other_processors()
    shares = [_pool(helpers).submit(_help, elsewhere, run) for _ in range(helpers)]
    try:
        run()
    finally:
        # A share that no thread was free to begin has nothing left to do.
        for share in shares:
            if not share.cancel():
                share.result()
    return last.given


def _help(processors: set[int], run: Callable[[], None]) -> None:
    if processors:
        os.sched_setaffinity(0, processors)  # 0 is the calling thread
    run()


def _other_processors() -> set[int]:
    """Where helpers may run: where the caller may, but not where it is. Empty: anywhere.

    A woken thread may be put behind its waker on one processor, and stay there for a whole unit while another is idle.
    """
    if not hasattr(os, "sched_setaffinity"):
        return set()
    return os.sched_getaffinity(0) - {int(_libc().sched_getcpu())}


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    """Threads that live on: to start them anew would cost more than a small unit gains."""
    return ThreadPoolExecutor(size, thread_name_prefix="tilework-kernel")
