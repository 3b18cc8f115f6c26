"""The one way in which a node ends on an error: the first that is reported counts, whoever runs into it."""

from __future__ import annotations

import asyncio
import logging

from node.chain.store import StorageError

logger = logging.getLogger("tilework.node")


class Failure:
    """After it nothing may be written any more, so the node stops. Reported on the event loop's thread."""

    def __init__(self) -> None:
        self.error: StorageError | None = None
        self._stop = asyncio.Event()

    def report(self, error: BaseException) -> None:
        """Note an error that the node cannot survive; of a group, what it began with."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self.error is None:
            self.error = error if isinstance(error, StorageError) else StorageError(str(error))
            logger.critical("storage failed", extra={"error": str(error)})
        self._stop.set()

    def stop(self) -> None:
        """Ask the node to stop without an error."""
        self._stop.set()

    async def wait(self) -> None:
        """Until the node has to stop, for whatever reason."""
        await self._stop.wait()
