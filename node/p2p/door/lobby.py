"""Strangers, whose key nobody has seen yet: few in all, fewer of one network group, not for long, and not too often."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from aiohttp import web

from node.p2p.door.frames import Watch
from node.p2p.limits import PeerLimits

_MAX_GROUPS = 256
"""Network groups whose TLS handshakes are remembered."""


class Arrival(Watch):
    """An inbound connection from accept to its end.

    Attributes:
        group, household: the network that it comes from, and the address or IPv6 /64.
        has_spoken: it has sent something.
    """

    def __init__(
        self, group: str, household: str, handler: web.RequestHandler, leave: Callable[[Arrival], None]
    ) -> None:
        """`leave` is called when the connection is lost."""
        super().__init__(handler)
        self.group = group
        self.household = household
        self.has_spoken = False
        self.handler = handler
        self._leave = leave
        self._handshake: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def begin(self, handshake: asyncio.Task[None], patience_s: float) -> None:
        """The task that brings TLS; the connection is cut off unless it becomes a WebSocket in time."""
        self._handshake = handshake
        self._deadline = handshake.get_loop().call_later(patience_s, self.drop)

    def upgrade(self) -> None:
        """It is a WebSocket: the deadline is met."""
        if self._deadline is not None:
            self._deadline.cancel()

    def drop(self) -> None:
        """Cut it off."""
        if self.transport is not None:
            self.transport.abort()
        elif self._handshake is not None:
            self._handshake.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upgrade()
        self._leave(self)
        super().connection_lost(exc)


class Lobby:
    """The connections of strangers, in the order of their arrival: few, and fewer of one network group.

    Where it is full a newcomer pushes somebody out of the most crowded group, and there of the most crowded household,
    so that nobody keeps others out: one that has said nothing if there is any, and the first that came.
    """

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._places: dict[Arrival, None] = {}

    def enter(self, arrival: Arrival) -> None:
        """Give a place."""
        crowds = Counter(other.group for other in self._places)
        if crowds[arrival.group] >= self._limits.max_strangers_per_group:
            self._push_out(arrival.group)
        elif len(self._places) >= self._limits.max_strangers:
            self._push_out(max(crowds, key=lambda group: crowds[group]))
        self._places[arrival] = None

    def leave(self, arrival: Arrival) -> None:
        """Its place is free."""
        self._places.pop(arrival, None)

    def clear(self) -> None:
        """Cut off everybody."""
        for arrival in list(self._places):
            arrival.drop()

    def _push_out(self, group: str) -> None:
        crowd = [other for other in self._places if other.group == group]
        households = Counter(other.household for other in crowd)
        victim = min(crowd, key=lambda other: (-households[other.household], other.has_spoken))
        self.leave(victim)
        victim.drop()


class Turns:
    """TLS handshakes of each network group: one after the other, and so many a second. They cost this node more than
    the stranger, so who comes too often waits, and leaves the queue at no cost when it is cut off. The households of a
    group take turns: a flood from one of them keeps no other one waiting."""

    def __init__(self, limits: PeerLimits) -> None:
        self._pause_s = 1 / limits.handshakes_per_s
        self._credit_s = (limits.handshakes_burst - 1) * self._pause_s
        self._queues: OrderedDict[str, asyncio.Lock] = OrderedDict()
        self._households: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._next: dict[str, float] = {}

    async def take(self, group: str, household: str) -> None:
        """Wait for the group's next turn; one of each household does so."""
        async with self._households.setdefault(household, asyncio.Lock()):
            await self._take(group)

    async def _take(self, group: str) -> None:
        loop = asyncio.get_running_loop()
        queue = self._queues.setdefault(group, asyncio.Lock())
        self._queues.move_to_end(group)
        self._forget()
        async with queue:
            due = self._next.get(group, -math.inf)
            await asyncio.sleep(due - loop.time())
            self._next[group] = max(due, loop.time() - self._credit_s) + self._pause_s

    def _forget(self) -> None:
        """Drop the group that has been quiet for longest."""
        if len(self._queues) > _MAX_GROUPS:
            quiet = next((group for group, queue in self._queues.items() if not queue.locked()), None)
            if quiet is not None:
                del self._queues[quiet]
                self._next.pop(quiet, None)
