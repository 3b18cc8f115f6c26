"""A network in memory for any number of nodes: seeded delays, lost connections, partitions.

    world = MemoryWorld(seed=1)
    transport = world.transport(identity, "10.0.0.1")     # a `node.p2p.transport.Transport`

A connection is reliable and ordered, as TCP is: a partition holds frames back, and a heal delivers them. Whoever gives
up in between closes his own end; the other learns of it when the word gets through.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from node.p2p.identity import Identity, certificate_hash
from node.p2p.limits import MAX_MESSAGE_BYTES
from node.p2p.transport import Accept, ConnectionLost, Endpoint, FrameTooLarge

_BUFFER_BYTES = 1 << 20
_CLOSED = b""


class MemoryWorld:
    """All hosts, and what lies between them."""

    def __init__(self, seed: int = 0, delay_s: tuple[float, float] = (0.001, 0.02), bytes_per_s: float = 50e6) -> None:
        self.rng = random.Random(seed)
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self.listeners: dict[Endpoint, tuple[MemoryTransport, Accept]] = {}
        self.connections: set[MemoryConnection] = set()
        self._groups: list[frozenset[str]] = []

    def transport(self, identity: Identity, host: str) -> MemoryTransport:
        return MemoryTransport(self, identity, host)

    def partition(self, *groups: set[str]) -> None:
        """Hosts in different groups hear nothing of each other; hosts in none hear all."""
        self._groups = [frozenset(group) for group in groups]

    def heal(self) -> None:
        """End the partition."""
        self._groups = []
        for connection in list(self.connections):
            connection.flush()

    def is_cut(self, a: str, b: str) -> bool:
        sides = [next((n for n, group in enumerate(self._groups) if host in group), None) for host in (a, b)]
        return None not in sides and sides[0] != sides[1]

    def lose(self, count: int = 1) -> None:
        """Reset some connections, chosen by the seed."""
        alive = sorted(self.connections, key=lambda c: (str(c.local), str(c.remote)))
        for connection in self.rng.sample(alive, min(count, len(alive))):
            connection.reset()

    def reset(self, host: str) -> None:
        """Reset all connections of a host, as when its process dies."""
        for connection in list(self.connections):
            if host in (connection.local.host, connection.remote.host):
                connection.reset()


class MemoryConnection:
    """One end of a connection."""

    def __init__(self, world: MemoryWorld, local: Endpoint, remote: Endpoint, listener: Identity) -> None:
        self.world = world
        self.local = local
        self.remote = remote
        self.listener_key = listener.key
        self.binding = certificate_hash(listener.certificate)
        self.other: MemoryConnection
        self._inbox: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._held: deque[bytes] = deque()
        self._on_the_way = 0
        self._room = asyncio.Event()
        self._last_at = 0.0
        self._is_over = False
        world.connections.add(self)

    async def send(self, frame: bytes) -> None:
        while self._on_the_way + len(frame) > _BUFFER_BYTES + MAX_MESSAGE_BYTES and not self._is_over:
            self._room.clear()
            await self._room.wait()
        if self._is_over:
            raise ConnectionLost("closed")
        self._on_the_way += len(frame)
        self._ship(frame)

    async def receive(self) -> bytes:
        while not self._inbox:
            if self._is_over:
                raise ConnectionLost("closed")
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._inbox.popleft()
        if frame == _CLOSED:
            self.reset()
            raise ConnectionLost("closed by the other side")
        self.other._on_the_way -= len(frame)
        self.other._room.set()
        if len(frame) >= MAX_MESSAGE_BYTES:
            raise FrameTooLarge(f"{len(frame)} bytes")
        return frame

    def settle(self) -> None:
        """Strangers are not counted here."""

    async def close(self) -> None:
        if not self._is_over:
            self._ship(_CLOSED)
            self._end()

    def reset(self) -> None:
        """Both ends at once, nothing delivered any more."""
        self._end()
        self.other._end()

    def flush(self) -> None:
        """Send on what a partition held back."""
        held, self._held = self._held, deque()
        for frame in held:
            self._ship(frame)

    def _ship(self, frame: bytes) -> None:
        if self._held or self.world.is_cut(self.local.host, self.remote.host):
            self._held.append(frame)
            return
        loop = asyncio.get_running_loop()
        delay = self.world.rng.uniform(*self.world.delay_s) + len(frame) / self.world.bytes_per_s
        # Timers of equal time fire in no order, so each frame comes a little after the one before.
        self._last_at = max(self._last_at + 1e-6, loop.time() + delay)
        loop.call_at(self._last_at, self.other._deliver, frame)

    def _deliver(self, frame: bytes) -> None:
        if not self._is_over:
            self._inbox.append(frame)
            self._arrived.set()

    def _end(self) -> None:
        self._is_over = True
        self._arrived.set()
        self._room.set()
        if not self._held:
            self.world.connections.discard(self)


class MemoryTransport:
    """One host's transport."""

    def __init__(self, world: MemoryWorld, identity: Identity, host: str) -> None:
        self._world = world
        self._identity = identity
        self._host = host
        self._next_port = 40_000
        self._listening: list[Endpoint] = []
        self._accepted: set[asyncio.Task[None]] = set()

    async def listen(self, address: Endpoint, accept: Accept) -> Endpoint:
        actual = Endpoint(self._host, address.port or 9000)
        if actual in self._world.listeners:
            raise OSError(f"{actual} is in use")
        self._world.listeners[actual] = self, accept
        self._listening.append(actual)
        return actual

    async def dial(self, address: Endpoint) -> MemoryConnection:
        await asyncio.sleep(2 * self._world.rng.uniform(*self._world.delay_s))
        if self._world.is_cut(self._host, address.host):
            await asyncio.Event().wait()  # nobody answers; the dialler's patience ends
        if address not in self._world.listeners:
            raise ConnectionLost(f"{address}: refused")
        listener, accept = self._world.listeners[address]
        self._next_port += 1
        local = Endpoint(self._host, self._next_port)
        mine = MemoryConnection(self._world, local, address, listener._identity)
        theirs = MemoryConnection(self._world, address, local, listener._identity)
        mine.other, theirs.other = theirs, mine
        task = asyncio.get_running_loop().create_task(listener._run(accept, theirs))
        listener._accepted.add(task)
        task.add_done_callback(listener._accepted.discard)
        return mine

    async def close(self) -> None:
        for address in self._listening:
            del self._world.listeners[address]
        self._listening.clear()
        for task in list(self._accepted):
            task.cancel()
        if self._accepted:
            await asyncio.wait(self._accepted)

    async def _run(self, accept: Accept, connection: MemoryConnection) -> None:
        try:
            await accept(connection)
        finally:
            await connection.close()
