"""Identities that mean no good: they dial one node, shake hands as any other, and then answer as they like."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from node.p2p.handshake import Introduction, Refused, greet_listener
from node.p2p.identity import Identity
from node.p2p.limits import DEFAULT, PeerLimits
from node.p2p.messages import DECLARATIONS, GetPeers, Message, NotFound, Peers, Role, Status
from node.p2p.peer import Handlers, Peer
from node.p2p.transport import ConnectionLost, Endpoint, Transport
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
    """`count` identities at a time, each of which comes again under another key as soon as its session ends, or after
    `session_s`."""

    def __init__(
        self,
        transport: Callable[[Identity, int], Transport],
        target: Endpoint,
        genesis: bytes,
        count: int,
        status: Callable[[], Status],
        answers: Callable[[int], dict[type[Message], Answer]],
        session_s: float = 1e9,
        limits: PeerLimits = DEFAULT,
        name: str = "",
    ) -> None:
        """`transport` gives an identity one; it and `answers` get the place in the swarm, from 0 to `count` - 1."""
        self.sessions = 0
        self._transport = transport
        self._target = target
        self._genesis = genesis
        self._count = count
        self._status = status
        self._answers = answers
        self._session_s = session_s
        self._limits = limits
        self._name = name

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
            who = identity(f"{self._name}, session {self.sessions}")
            transport = self._transport(who, number)
            try:
                await self._attend(transport, Introduction(who, self._genesis, "hostile", 0, self._status), number)
            except (ConnectionLost, Refused, TimeoutError):
                await asyncio.sleep(0.1)
            finally:
                await transport.close()

    async def _attend(self, transport: Transport, introduction: Introduction, number: int) -> None:
        """One session."""
        connection = await transport.dial(self._target)
        acquaintance = await greet_listener(connection, introduction)
        requests = {row.struct: missing for row in DECLARATIONS if row.role is Role.REQUEST}
        requests |= {GetPeers: nobody, **self._answers(number)}
        notices = {row.struct: lambda peer, message: None for row in DECLARATIONS if row.role is Role.NOTICE}
        peer = Peer(
            connection, False, acquaintance, Handlers(requests, notices, lambda _peer, _size: None), self._limits
        )
        async with asyncio.timeout(self._session_s):
            await peer.run()


def in_memory(
    net: Net,
    victim: NetNode,
    count: int,
    status: Callable[[], Status],
    answers: Callable[[int], dict[type[Message], Answer]],
    session_s: float = 1e9,
    group: str = "10.250",
) -> Swarm:
    """A swarm on hosts of one network group that `group` begins."""
    target, genesis = Endpoint(net.host(victim.name), PORT), victim.chain.genesis_hash
    transport = lambda who, number: net.world.transport(who, f"{group}.0.{number}")  # noqa: E731
    return Swarm(transport, target, genesis, count, status, answers, session_s, net.limits, group)
