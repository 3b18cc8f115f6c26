"""Who is connected: so many in all, fewer of one household, and a place for whoever comes.

A connection is at rest unless a call is being answered on it or it has become a WebSocket: it waits for a request or
for the rest of one, or it is closing. Where the places are taken, a newcomer pushes out one at rest, of the household
that has most of them the one that has been quiet for longest. So connections that say nothing, or half of something,
keep nobody out, however many there are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from node.compute import Asker
from node.p2p.transport import household_of, is_local

LEAST_BYTES = 64 << 10
"""A client must take so much of its answers, or all that is left, …"""
STALL_SECONDS = 10.0
"""… in such a time, or it is cut off: answers wait in memory."""


class Connection(asyncio.Protocol):
    """Stands before aiohttp's handler of one connection.

    Attributes:
        household: whose it is: an address, of IPv6 the /64.
        asker: to whom work is charged that is asked for over it.
        is_local: of this machine or its private network, where many clients may share an address.
        is_cut: it has ended, or is being aborted.
        heard_at: when something last came, in the event loop's time.
    """

    def __init__(self, handler: web.RequestHandler, places: Places) -> None:
        self.handler = handler
        self.household = ""
        self.asker = Asker("", b"")
        self.is_local = True
        self.is_cut = False
        self.heard_at = 0.0
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._calls = 0
        self._stall: asyncio.TimerHandle | None = None
        self._was_admitted = False

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is lost but waiting when it is cut off."""
        return not self._calls or self._transport is None or self._transport.is_closing()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a call is being answered, or it is a WebSocket."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def cut(self) -> None:
        """End it now, whatever is unsent."""
        self.is_cut = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if peer:
            self.household, self.is_local = household_of(peer[0]), is_local(peer[0])
        self.asker = Asker(self.household, id(self).to_bytes(8))
        self.heard_at = self._loop.time()
        self._was_admitted = self._places.enter(self)
        if self._was_admitted:
            self.handler.connection_made(transport)
            return
        self.is_cut = True
        transport.write(self._places.refusal)
        transport.close()

    def data_received(self, data: bytes) -> None:
        if not self.is_cut:
            self.heard_at = self._loop.time()
            self.handler.data_received(data)

    def eof_received(self) -> None:
        self.handler.eof_received()

    def pause_writing(self) -> None:
        """The client takes less than it is given."""
        self.handler.pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self._end_watch()
        self.handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_cut = True
        self._end_watch()
        self._places.leave(self)
        if self._was_admitted:
            self.handler.connection_lost(exc)

    def _watch(self) -> None:
        assert self._transport is not None
        self._stall = self._loop.call_later(STALL_SECONDS, self._look, self._transport.get_write_buffer_size())

    def _look(self, unsent_before: int) -> None:
        assert self._transport is not None
        if unsent_before - self._transport.get_write_buffer_size() < LEAST_BYTES:
            self.cut()
        else:
            self._watch()

    def _end_watch(self) -> None:
        if self._stall is not None:
            self._stall.cancel()


class Places:
    """`limit` connections, `per_household` of them of one household unless it is local."""

    def __init__(self, limit: int, per_household: int, refusal: bytes) -> None:
        """`refusal` is what somebody is sent for whom there is no place."""
        self.refusal = refusal
        self._limit = limit
        self._per_household = per_household
        self._taken: dict[web.RequestHandler, Connection] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def of(self, request: web.BaseRequest) -> Connection:
        """The connection that a request came over. ConnectionResetError if it has ended meanwhile."""
        connection = self._taken.get(request.protocol)
        if connection is None:
            raise ConnectionResetError("the client has left")
        return connection

    def enter(self, newcomer: Connection) -> bool:
        """Give a place, somebody else's if need be; False if whoever could go is busy."""
        crowds = Counter(other.household for other in self._taken.values())
        mine = newcomer.household
        has_its_share = crowds[mine] >= self._per_household and not newcomer.is_local
        if has_its_share or len(self._taken) >= self._limit:
            resting = [
                other
                for other in self._taken.values()
                if other.is_at_rest and (other.household == mine or not has_its_share)
            ]
            if not resting:
                return False
            victim = min(resting, key=lambda other: (-crowds[other.household], other.heard_at))
            self.leave(victim)
            victim.cut()
        self._taken[newcomer.handler] = newcomer
        return True

    def leave(self, connection: Connection) -> None:
        """Its place is free."""
        self._taken.pop(connection.handler, None)
