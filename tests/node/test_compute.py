"""Where heavy work runs, and who is told what it raised."""

from __future__ import annotations

import asyncio
import threading

import pytest

from node.chain.store import StorageError
from node.compute import ThreadCompute


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
