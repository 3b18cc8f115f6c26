"""The thread on which units are evaluated."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NICENESS = 10


class Bench(Protocol):
    """Where units are evaluated: a thread, or, in a simulation, whatever lets virtual time pass."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""


async def run_on(pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises on a thread of `pool`; a StopIteration comes as a RuntimeError (PEP 479)."""

    def call() -> T:
        try:
            return function(*args, **kwargs)
        except StopIteration as error:  # no future can carry it: whoever waits would wait for ever
            raise RuntimeError("a function on a thread ran out of an iterator") from error

    return await asyncio.get_running_loop().run_in_executor(pool, call)


class LowPriorityCompute:
    """One long-lived thread that yields to everything else on the machine.

    Linux keeps a priority per thread, and the threads that the kernels start inherit it; elsewhere the thread runs as
    any other.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="miner", initializer=_lower_priority)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""
        return await run_on(self._pool, function, *args, **kwargs)

    def close(self) -> None:
        """Wait for what runs; refuse what would come."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _lower_priority() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
