"""Nodes among their peers: connecting, relaying, catching up, falling apart and finding together again."""

from __future__ import annotations

from tests.node.net import Net, until
from tests.node.virtual_time import virtual


@virtual
async def test_a_block_reaches_everybody() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "b")
    async with net:
        await until(lambda: len(b.network.peers()) == 2)
        await a.mine(3)
        await until(lambda: net.agree() and c.chain.tip.height == 3)


@virtual
async def test_a_late_joiner_catches_up() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    await a.mine(100)
    async with net:
        b.now_ms = a.now_ms
        await until(lambda: b.chain.tip.height == 100)
