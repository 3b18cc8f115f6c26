"""Ten identities against one node that catches up: whatever they do, it follows the honest chain."""

from __future__ import annotations

import asyncio
from typing import Any

from node.p2p.limits import DEFAULT
from node.p2p.messages import GetHeaders, Message, Status
from tests.builders import regtest
from tests.node.p2p.hostile import Swarm, never
from tests.node.p2p.net import Net, until
from tests.node.virtual_time import virtual

RULES = regtest(retention=40, max_reorg=4)
CLAIM = Status(10**6, b"\x77" * 32, b"\x01" + bytes(31))


@virtual
async def test_identities_that_hang_on_headers_keep_nobody_waiting_under_whatever_name() -> None:
    """Ten of them have both places and the whole line, and come again under other names as soon as they are out."""
    net = Net()
    a = net.add("a")
    async with net, Swarm(net, a, 10, lambda: CLAIM, lambda _: {GetHeaders: never}, session_s=7.0) as swarm:
        await until(lambda: len(a.network.peers()) == 10)
        await asyncio.sleep(30)
        assert swarm.sessions > 30
        good = net.add("good", "a")
        await good.mine(20)
        a.now_ms = good.now_ms
        await good.network.start()
        await until(lambda: any(peer.id == good.identity.key.hex() for peer in a.network.peers()))
        await until(lambda: a.chain.best_header.height == 20, 2 * DEFAULT.header_turn_s)


@virtual
async def test_a_slow_honest_peer_brings_its_headers_while_others_hang() -> None:
    """An answer that takes longer than a turn waits for a place again, and is taken in."""
    net = Net(max_headers=8)
    a = net.add("a")
    async with net, Swarm(net, a, 10, lambda: CLAIM, lambda _: {GetHeaders: never}):
        await until(lambda: len(a.network.peers()) == 10)
        good = net.add("good", "a")
        await good.mine(20)
        a.now_ms = good.now_ms

        async def slowly(peer: Any, request: GetHeaders) -> Message:
            await asyncio.sleep(2 * DEFAULT.header_turn_s)
            return await good.network._server.headers(peer, request)

        good.serve(GetHeaders, slowly)
        await good.network.start()
        await until(lambda: a.chain.best_header.height == 20, 60)
        assert a.score_of(good) == 0


@virtual
async def test_claims_that_are_never_shown_delay_a_fresh_node_once() -> None:
    """Neither another identity nor the next honest header renews the patience with which a node waits for headers."""
    net = Net()
    a, good = net.add("a", "good", rules=RULES), net.add("good", rules=RULES)
    await good.mine(3)
    a.now_ms = good.now_ms
    async with net, Swarm(net, a, 10, lambda: CLAIM, lambda _: {GetHeaders: never}, session_s=7.0):
        for _ in range(8):
            await asyncio.sleep(3)
            await good.mine()
            a.now_ms = good.now_ms
        await until(lambda: a.chain.tip.id == good.chain.tip.id, 5)
