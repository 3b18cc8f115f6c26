"""Where heavy work runs: never on the event loop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from worker.compute import run_on

P = ParamSpec("P")
T = TypeVar("T")


class Compute(Protocol):
    """Runs a function and awaits its result."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""


class ThreadCompute:
    """A pool of threads. The kernels, hashes and signatures release the GIL, so they truly run beside the loop."""

    def __init__(self, threads: int, raised: Callable[[Exception], None] = lambda _: None) -> None:
        """`raised` is told, on the event loop's thread, what a function raised; then its caller gets it."""
        self._raised = raised
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="compute")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await run_on(self._pool, function, *args, **kwargs)
        except Exception as error:
            self._raised(error)
            raise

    def close(self) -> None:
        """Wait for what runs; refuse what would come."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class InlineCompute:
    """Runs at once, in the caller's turn: for simulations, whose time is virtual."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)
