"""Whole nodes on a network in memory: a real chain and intake each (`Rig`), one world between them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from consensus.block import Block
from consensus.crypto import H
from node.chain.chain import Import
from node.compute import Shares
from node.p2p.identity import Identity, from_seed
from node.p2p.limits import DEFAULT, PeerLimits
from node.p2p.messages import Message
from node.p2p.network import Network, NetworkConfig
from node.p2p.transport import Endpoint, Transport
from tests.node.p2p.memory_transport import MemoryWorld
from tests.node.rig import Rig

PORT = 9000


def identity(name: str) -> Identity:
    """A node key that follows from a name."""
    return from_seed(H("tw/test", b"node" + name.encode()))


class NetNode(Rig):
    """A rig with a network around it."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        listen: Endpoint | None,
        dial: Iterable[Endpoint] = (),
        limits: PeerLimits = DEFAULT,
        **rig: Any,
    ) -> None:
        super().__init__(**rig)
        self.name = name
        self.identity = identity(name)
        self.errors: list[BaseException] = []
        self.is_checked = True
        self.shares = Shares(self.compute, share=1.0, timer=lambda: 0.0)
        config = NetworkConfig(listen, tuple(dial), allow_private=True, limits=limits)
        rng = random.Random(name)
        self.network = Network(
            config,
            self.identity,
            self.chain,
            self.intake,
            transport,
            self.clock,
            rng,
            self.compute,
            self.shares,
            self.errors.append,
        )

    def serve(self, request: type[Message], handler: Callable[[Any, Any], Awaitable[Message]]) -> None:
        """Answer a type of request in another way: how a node becomes hostile."""
        requests = self.network._handlers.requests
        assert isinstance(requests, dict)
        requests[request] = handler

    def score_of(self, other: NetNode) -> float | None:
        """What this node thinks of another; None while they are not connected."""
        return next((peer.score for peer in self.network.peers() if peer.id == other.identity.key.hex()), None)

    def has_expelled(self, other: NetNode) -> bool:
        return other.identity.key in self.network._admission._cooling

    def clock(self) -> int:
        return self.now_ms

    def _check_again(self, block: Block) -> None:
        if self.is_checked:
            super()._check_again(block)

    def new_tip(self, change: Import) -> None:
        """The clock never goes back: others may be ahead."""
        now_ms = self.now_ms
        super().new_tip(change)
        self.now_ms = max(now_ms, self.now_ms)


class Net:
    """Nodes by name, each on a host of its own."""

    def __init__(self, seed: int = 1, **limits: Any) -> None:
        self.world = MemoryWorld(seed)
        self.limits = replace(DEFAULT, **limits)
        self.nodes: dict[str, NetNode] = {}

    def add(self, name: str, *dial: str, **rig: Any) -> NetNode:
        """A node that is configured to dial others."""
        host = self.host(name)
        targets = [Endpoint(self.host(other), PORT) for other in dial]
        transport = self.world.transport(identity(name), host)
        listen = Endpoint(host, PORT)
        node = NetNode(name, transport, listen=listen, dial=targets, limits=self.limits, **rig)
        self.nodes[name] = node
        return node

    def host(self, name: str) -> str:
        return f"10.{sum(name.encode()) % 250}.0.1"

    async def start(self) -> None:
        for node in self.nodes.values():
            await node.network.start()

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.network.stop()
        for node in self.nodes.values():
            assert not node.errors, node.errors
            assert not node.failures

    async def __aenter__(self) -> Net:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    def agree(self, *names: str) -> bool:
        """Whether these nodes (all, if none is named) have one tip."""
        return len({self.nodes[name].chain.tip.id for name in names or self.nodes}) == 1


async def until(condition: Callable[[], object], patience_s: float = 60.0) -> None:
    """Wait for something to come true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while not condition():
        assert loop.time() < deadline, "waited in vain"
        await asyncio.sleep(0.01)
