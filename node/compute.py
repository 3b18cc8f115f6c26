"""Where heavy work runs: never on the event loop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from node.chain.store import StorageError
from worker.compute import run_on

P = ParamSpec("P")
T = TypeVar("T")


Failed = Callable[[StorageError], None]


def _nobody(_error: StorageError) -> None:
    pass


class Compute(Protocol):
    """Runs a function and awaits its result."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""


class ThreadCompute:
    """A pool of threads. The kernels, hashes and signatures release the GIL, so they truly run beside the loop."""

    def __init__(self, threads: int, failed: Failed = _nobody) -> None:
        """`failed` hears, on the event loop's thread, of a failing disk, whoever runs into it."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="compute")
        self._failed = failed

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await run_on(self._pool, function, *args, **kwargs)
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
