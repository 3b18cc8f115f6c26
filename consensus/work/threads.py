"""Sharing out numbered tasks among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock

from consensus.work.unit import Interrupted


def share(
    threads: int,
    tasks: int,
    work: Callable[[Iterator[int]], None],
    interrupted: Interrupted = None,
) -> int:
    """Run `work` in so many threads, the caller's among them, over task numbers that they draw from one iterator.

    Returns how many tasks were done: all, or the first so many if `interrupted` came true between two.
    """
    given, lock = 0, Lock()

    def numbers() -> Iterator[int]:
        nonlocal given
        while interrupted is None or not interrupted():
            with lock:
                if given == tasks:
                    return
                number, given = given, given + 1
            yield number

    helpers = min(threads, tasks) - 1
    if not helpers:
        work(numbers())
        return given
    shares = [_pool(helpers).submit(work, numbers()) for _ in range(helpers)]
    try:
        work(numbers())
    finally:
        # A share that no thread was free to begin has nothing left to do.
        for share in shares:
            if not share.cancel():
                share.result()
    return given


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    """Threads that live on: to start them anew would cost more than a small unit gains."""
    return ThreadPoolExecutor(size, thread_name_prefix="tilework-kernel")
