"""Memory that clients may take together: bodies as they come in, answers until they are taken.

Each holder counts what it holds as it grows. Beyond the limit somebody else is cut off: of the household that holds
most, who has held something for longest. Whoever asks for much and reads nothing so pays with its own connections, and
never keeps room from the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from node.rpc.places import Connection


class PushedOut(ConnectionError):
    """The client is cut off: others need the room, or it has left."""


class Share:
    """What is held for one client's message, and its answer."""

    def __init__(self, room: Room, connection: Connection) -> None:
        self.connection = connection
        self.size = 0
        self._room = room

    def grow(self, size: int) -> None:
        """Hold so many bytes more. Raises `PushedOut` where nobody waits for them any longer."""
        self._room.make(self, size)


class Room:
    """At most `limit_bytes` in all, but for what a single message and its answer take: those are bounded themselves."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._shares: dict[Share, None] = {}  # oldest first
        self._total = 0

    @property
    def total_bytes(self) -> int:
        """How much is held."""
        return self._total

    @contextmanager
    def share(self, connection: Connection) -> Iterator[Share]:
        """Hold something for a client, until the end of the context."""
        share = Share(self, connection)
        self._shares[share] = None
        try:
            yield share
        finally:
            self._drop(share)

    def make(self, share: Share, size: int) -> None:
        """Let a share grow; cut off others until it fits. Raises `PushedOut`."""
        if share.connection.is_cut:
            raise PushedOut("the client is cut off")
        share.size += size
        self._total += size
        while self._total > self._limit_bytes and (victim := self._oldest_of_the_largest(share)):
            self._push_out(victim.connection)
        if share.connection.is_cut:
            raise PushedOut("the client is cut off")

    def _oldest_of_the_largest(self, growing: Share) -> Share | None:
        held: Counter[str] = Counter()
        for share in self._shares:
            held[share.connection.household] += share.size
        others = (share for share in self._shares if share is not growing and share.size)
        return max(others, key=lambda share: held[share.connection.household], default=None)

    def _push_out(self, connection: Connection) -> None:
        connection.cut()
        for share in [share for share in self._shares if share.connection is connection]:
            self._drop(share)

    def _drop(self, share: Share) -> None:
        if share in self._shares:
            del self._shares[share]
            self._total -= share.size
