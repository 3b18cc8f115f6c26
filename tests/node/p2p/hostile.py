"""Identities that mean no good: they dial one node, shake hands as any other, and then answer as they like."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from node.p2p.handshake import Introduction, Refused, greet_listener
from node.p2p.messages import DECLARATIONS, GetPeers, Message, NotFound, Peers, Role, Status
from node.p2p.peer import Handlers, Peer
from node.p2p.transport import ConnectionLost, Endpoint
from tests.node.p2p.net import PORT, Net, NetNode, identity

Answer = Callable[[Any, Any], Awaitable[Message]]


async def never(peer: Any, request: Any) -> Message:
    """Hang."""
    await asyncio.Event().wait()
    raise AssertionError


async def missing(peer: Any, request: Any) -> Message:
    """Lack it."""
    return NotFound()


async def nobody(peer: Any, request: Any) -> Message:
    return Peers(())


class Swarm:
    """`count` identities at a time on hosts of one network group, each of which comes again under another key as soon
    as its session ends, or after `session_s`."""

    def __init__(
        self,
        net: Net,
        victim: NetNode,
        count: int,
        status: Callable[[], Status],
        answers: Callable[[int], dict[type[Message], Answer]],
        session_s: float = 1e9,
        group: str = "10.250",
    ) -> None:
        self.sessions = 0
        self.scores: list[float] = []
        self._net = net
        self._victim = victim
        self._count = count
        self._status = status
        self._answers = answers
        self._session_s = session_s
        self._group = group

    async def __aenter__(self) -> Swarm:
        self._tasks = [asyncio.get_running_loop().create_task(self._live(number)) for number in range(self._count)]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result

    async def _live(self, number: int) -> None:
        while True:
            self.sessions += 1
            who = identity(f"{self._group}, session {self.sessions}")
            transport = self._net.world.transport(who, f"{self._group}.0.{number}")
            with contextlib.suppress(ConnectionLost, Refused, TimeoutError):
                connection = await transport.dial(Endpoint(self._net.host(self._victim.name), PORT))
                genesis = self._victim.chain.genesis_hash
                introduction = Introduction(who, genesis, "hostile", 0, self._status)
                acquaintance = await greet_listener(connection, introduction)
                requests = {row.struct: missing for row in DECLARATIONS if row.role is Role.REQUEST}
                requests |= {GetPeers: nobody, **self._answers(number)}
                notices = {row.struct: lambda peer, message: None for row in DECLARATIONS if row.role is Role.NOTICE}
                peer = Peer(connection, False, acquaintance, Handlers(requests, notices), self._net.limits)
                async with asyncio.timeout(self._session_s):
                    await peer.run()
            await asyncio.sleep(0.1)
