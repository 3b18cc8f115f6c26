"""Ten identities against one node that catches up: whatever they do, it follows the honest chain."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from msgspec.structs import replace

from consensus.block import Header
from consensus.crypto import H
from consensus.difficulty import block_work
from consensus.params import ChainParams
from consensus.validation import expected_target
from node.p2p.limits import DEFAULT
from node.p2p.messages import (
    BodyBytes,
    GetBody,
    GetHeaderCopy,
    GetHeaders,
    GetState,
    GetStrips,
    GetTensor,
    Headers,
    Message,
    NotFound,
    Status,
    TensorStrips,
)
from node.p2p.transport import Endpoint
from tests.builders import ALICE, BOB, ChainBuilder, regtest
from tests.node.p2p.hostile import Answer, in_memory, missing, never
from tests.node.p2p.net import PORT, Net, NetNode, until
from tests.node.p2p.test_sync import grow
from tests.node.virtual_time import virtual

RULES = regtest(retention=40, max_reorg=4)
CLAIM = Status(10**6, b"\x77" * 32, b"\x01" + bytes(31))


@virtual
async def test_identities_that_hang_on_headers_keep_nobody_waiting_under_whatever_name() -> None:
    """Ten of them have both places and the whole line, and come again under other names as soon as they are out."""
    net = Net()
    a = net.add("a")
    async with net, in_memory(net, a, 10, lambda: CLAIM, lambda _: {GetHeaders: never}, session_s=7.0) as swarm:
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
    async with net, in_memory(net, a, 10, lambda: CLAIM, lambda _: {GetHeaders: never}):
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
    async with net, in_memory(net, a, 10, lambda: CLAIM, lambda _: {GetHeaders: never}, session_s=7.0):
        for _ in range(8):
            await asyncio.sleep(3)
            await good.mine()
            a.now_ms = good.now_ms
        await until(lambda: a.chain.tip.id == good.chain.tip.id, 5)


# ---------------------------------------------------------------------- headers that nobody completes


def late(rules: ChainParams) -> int:
    """A time at which a young chain's headers have the easiest target for long; in ms."""
    return rules.genesis_time_ms + 500 * rules.spacing_ms


class Shadow:
    """Headers with work in them, above genesis, whose bodies nobody has. They take no time, long after genesis."""

    def __init__(self, count: int, name: bytes = b"", rules: ChainParams | None = None) -> None:
        builder = ChainBuilder(rules)
        parent = builder.tip.header
        first = builder.candidate().block.header.core
        self.headers: list[Header] = []
        self.total_work = builder.tip.total_work
        for height in range(1, count + 1):
            target = expected_target(builder.params, parent).to_bytes(32, "big")
            time_ms = late(builder.params) + height
            core = replace(first, height=height, parent=parent.id, parent_ticket=parent.ticket, time_ms=time_ms)
            parent, _ = builder.seal(replace(core, target=target, body_root=H("tw/test", name)))
            self.headers.append(parent)
            self.total_work += block_work(parent.core.target_int)

    def status(self) -> Status:
        return Status(len(self.headers), self.headers[-1].id, self.total_work.to_bytes(32))

    async def show(self, peer: Any, request: GetHeaders) -> Message:
        places = {header.id: place + 1 for place, header in enumerate(self.headers)}
        start = next((places[known] for known in request.locator if known in places), 0)
        return Headers(tuple(self.headers[start : start + request.limit]))


@virtual
async def test_chains_that_are_claimed_and_never_completed_do_not_pile_up() -> None:
    net = Net(max_headers=8)
    a = net.add("a")
    a.now_ms = late(a.params) + 1000
    a.chain.known.tree.max_loose = 16
    shadows = [Shadow(30, bytes([number])) for number in range(8)]
    claim = lambda: replace(shadows[0].status(), total_work=CLAIM.total_work)  # noqa: E731  (one expression, used once)
    async with net, in_memory(net, a, 8, claim, lambda number: {GetHeaders: shadows[number].show}) as swarm:
        await until(lambda: swarm.sessions > 24)  # expelled for their lies, again and again
        assert len(a.chain.known.tree._entries) <= 1 + 30 + 16 + 30


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("honest", [20, 60], ids=["replay", "join"])
@virtual
async def test_a_chain_that_nobody_completes_is_left_for_one_with_less_work(honest: int, leaves: bool) -> None:
    """A fresh node has taken in a long chain of cheap headers, and follows the honest one all the same."""
    net = Net(max_headers=16)
    a, good = net.add("a", rules=RULES), net.add("good", rules=RULES)
    a.now_ms = good.now_ms = late(RULES)
    await good.mine(honest)
    a.now_ms = good.now_ms = good.now_ms + 1000 * RULES.spacing_ms
    a.is_checked = False
    shadow = Shadow(100, rules=RULES)
    async with net:
        async with in_memory(net, a, 10, shadow.status, lambda _: {GetHeaders: shadow.show}):
            await until(lambda: a.chain.best_header.height == 100)
            good.network.add_peer(Endpoint(net.host("a"), PORT))
            if leaves:
                await asyncio.sleep(0.1)
            else:
                await until(lambda: a.chain.tip.id == good.chain.tip.id, 120)
        await until(lambda: a.chain.tip.id == good.chain.tip.id, 120)
        assert a.chain.base.height == (0 if honest == 20 else 56)
        assert a.chain.best_header is a.chain.tip, "what parts too deep from it counts no more"
        assert not a.has_expelled(good)
        await good.mine()
        await until(lambda: a.chain.tip.id == good.chain.tip.id)


@virtual
async def test_a_heavier_chain_that_begins_with_less_work_is_followed() -> None:
    """A fresh node has taken in a chain that nobody completes; the honest one forks from it at genesis."""
    net = Net(max_headers=8)
    a, good = net.add("a"), net.add("good")
    good.now_ms = late(good.params)
    await good.intake.transaction(good.builder.transfer(ALICE, BOB, 1))
    await good.mine(75)
    a.now_ms = good.now_ms
    shadow = Shadow(60)
    a.chain.known.tree.max_loose = 4  # which does not count what is being followed

    async def crowded(peer: Any, request: GetHeaders) -> Message:
        """Headers that nobody completes come all the while."""
        for _ in range(20):
            a.chain.add_header(Shadow(1, next(numbers).to_bytes(4)).headers[0])
        return await good.network._server.headers(peer, request)

    async def body(peer: Any, request: GetBody) -> Message:
        """Blocks come last."""
        if a.chain.best_header.height < 75:
            return NotFound()
        return await good.network._server.body(peer, request)

    numbers = itertools.count(1)
    good.serve(GetHeaders, crowded)
    good.serve(GetBody, body)
    async with net, in_memory(net, a, 10, shadow.status, lambda _: {GetHeaders: shadow.show}):
        await until(lambda: a.chain.best_header.height == 60)
        assert a.chain.tip.height == 0
        good.network.add_peer(Endpoint(net.host("a"), PORT))
        await until(lambda: a.chain.tip.id == good.chain.tip.id)
        assert not a.has_expelled(good)


@virtual
async def test_headers_below_a_state_that_is_being_fetched_are_not_dropped() -> None:
    """They have less work than all the others, and it comes slowly."""
    net = Net()
    a, good = net.add("a", rules=RULES), net.add("good", rules=RULES)
    good.now_ms = late(RULES)
    await good.mine(60)
    a.now_ms = good.now_ms = good.now_ms + 1000 * RULES.spacing_ms
    a.is_checked = False
    a.chain.known.tree.max_loose = 4
    best, crowd = Shadow(100, rules=RULES), Shadow(80, b"crowd", RULES)

    async def slowly(peer: Any, request: GetState) -> Message:
        for header in crowd.headers:
            a.chain.add_header(header)
        return await good.network._server.state(peer, request)

    good.serve(GetState, slowly)
    async with net, in_memory(net, a, 1, best.status, lambda _: {GetHeaders: best.show}):
        await until(lambda: a.chain.best_header.height == 100)
        good.network.add_peer(Endpoint(net.host("a"), PORT))
        await until(lambda: a.chain.tip.id == good.chain.tip.id)
        assert all(a.chain.entry(entry.id) is entry for entry in a.chain.tip.ancestors())


# ---------------------------------------------------------------------- the first download


def behaviours(good: NetNode) -> dict[str, dict[type[Message], Answer]]:
    """What an identity that knows all headers of the honest chain makes of the rest."""
    server = good.network._server

    async def false_body(peer: Any, request: GetBody) -> Message:
        return BodyBytes(b"\x92\x90\x90")

    async def false_tensor(peer: Any, request: GetTensor) -> Message:
        answer = await server.tensor(peer, request)
        if not isinstance(answer, TensorStrips):
            return answer
        strip = answer.strips[0]
        return replace(answer, strips=(replace(strip, data=bytes(len(strip.data))), *answer.strips[1:]))

    def dripping(serve: Answer) -> Answer:
        async def drip(peer: Any, request: Any) -> Message:
            await asyncio.sleep(0.9 * DEFAULT.request_s)
            return await serve(peer, request)

        return drip

    everything: dict[type[Message], Answer] = {
        GetHeaders: server.headers,
        GetHeaderCopy: server.header_copy,
        GetStrips: server.strips,
        GetBody: server.body,
        GetTensor: server.tensor,
    }
    return {
        "stall": everything | {GetBody: never, GetTensor: never},
        "lack": everything | {GetBody: missing, GetTensor: missing},
        "falsify": everything | {GetBody: false_body, GetTensor: false_tensor},
        "drip": everything | {GetBody: dripping(server.body), GetTensor: dripping(server.tensor)},
    }


@pytest.mark.parametrize("kind", ["stall", "lack", "falsify", "drip", "all of them"])
@virtual
async def test_a_fresh_node_follows_the_one_honest_peer_among_ten_that_are_hostile(kind: str) -> None:
    net = Net(max_headers=16)
    good, a = net.add("good"), net.add("a")
    await grow(net, 100, "good")
    known = behaviours(good)
    kinds = list(known.values()) if kind == "all of them" else [known[kind]]
    async with net, in_memory(net, a, 10, good.network._server.status, lambda number: kinds[number % len(kinds)]):
        await until(lambda: len(a.network.peers()) == 10)
        await asyncio.sleep(1)
        a.network.add_peer(Endpoint(net.host("good"), PORT))
        await until(lambda: a.chain.tip.id == good.chain.tip.id, 45)
        assert not a.has_expelled(good)
