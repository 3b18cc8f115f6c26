"""The one way in which a node ends on an error, and the hooks that lead to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from node.chain.store import StorageError
from node.compute import InlineCompute, ThreadCompute
from node.failure import Failure


def full_disk() -> None:
    raise StorageError("No space left on device")


def other_fault() -> None:
    raise ValueError("a bug")


@pytest.mark.parametrize("make", [lambda failed: ThreadCompute(1, failed), InlineCompute], ids=["threads", "inline"])
def test_a_failing_disk_is_reported_by_whoever_runs_into_it_and_raised_all_the_same(
    make: Callable[[Callable[[StorageError], None]], ThreadCompute | InlineCompute],
) -> None:
    async def run() -> None:
        failure = Failure()
        compute = make(failure.report)
        with pytest.raises(ValueError, match="a bug"):
            await compute.run(other_fault)
        assert failure.error is None
        with pytest.raises(StorageError, match="No space"):
            await compute.run(full_disk)
        async with asyncio.timeout(1):
            await failure.wait()
        assert str(failure.error) == "No space left on device"

    asyncio.run(run())


def test_the_first_error_counts_and_groups_are_unwrapped() -> None:
    async def run() -> None:
        failure = Failure()
        first = StorageError("first")
        failure.report(ExceptionGroup("tasks", [ExceptionGroup("inner", [first]), ValueError()]))
        failure.report(StorageError("second"))
        assert failure.error is first

    asyncio.run(run())


def test_what_no_service_expects_ends_the_node_as_a_storage_error() -> None:
    async def run() -> None:
        failure = Failure()
        failure.report(RuntimeError("broken"))
        assert isinstance(failure.error, StorageError)
        assert str(failure.error) == "broken"

    asyncio.run(run())


def test_stopping_is_no_error() -> None:
    async def run() -> None:
        failure = Failure()
        failure.stop()
        await failure.wait()
        assert failure.error is None

    asyncio.run(run())
