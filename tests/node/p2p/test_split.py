"""Two chains that part deeper than a node undoes by itself: who has less work says so, and follows if it is told to."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from consensus.block import Header
from node.p2p.messages import GetHeaders, Headers, Message
from tests.builders import ALICE, BOB, DAVE, operand, regtest
from tests.node.p2p.net import Net, NetNode, until
from tests.node.p2p.test_sync import win
from tests.node.virtual_time import virtual

RULES = regtest(max_reorg=3)


async def parted(net: Net, longer: int, shorter: int) -> tuple[NetNode, NetNode]:
    """Two nodes whose chains part above their second block."""
    a, b = net.add("a", rules=RULES), net.add("b", "a", rules=RULES)
    for node in (a, b):
        await node.mine(2)
    await a.intake.transaction(a.builder.transfer(ALICE, BOB, 1))
    await a.mine(longer)
    await b.mine(shorter)
    for node in (a, b):
        node.now_ms = max(a.now_ms, b.now_ms)
        node.is_checked = False
    return a, b


@virtual
async def test_a_split_too_deep_to_heal_is_found_by_the_side_with_less_work(caplog: pytest.LogCaptureFixture) -> None:
    net = Net(max_headers=4)
    a, b = await parted(net, 20, 8)
    async with net:
        await until(lambda: b.chain.split is not None)
        split = b.chain.split
        assert split is not None
        assert (split.fork_height, b.chain.tip.height) == (2, 10)
        assert split.work > b.chain.tip.total_work
        assert a.chain.split is None
        assert b.score_of(a) == 0
        await b.mine(20)
        assert b.chain.split is None
    assert "a chain with more work is too deep to follow" in caplog.text


@virtual
async def test_the_operators_word_heals_it() -> None:
    net = Net(max_headers=4)
    _, b = await parted(net, 20, 8)
    b.chain.allow_deep_reorg = True
    async with net:
        await until(lambda: net.agree("a", "b"))
        assert b.chain.tip.height == 22
        assert b.chain.split is None


@virtual
async def test_a_deep_chain_of_packets_is_weighed_with_its_strips() -> None:
    net = Net()
    a, b = net.add("a", rules=RULES), net.add("b", "a", rules=RULES)
    await a.with_workers(DAVE, packets=4)
    job = a.builder.job(ALICE, operand(128, 2048), operand(2048, 128, 1), rows=64)
    await a.submit(job)
    await a.mine()
    for packet in a.builder.held(job):
        await win(a, packet)
    await a.mine(6)
    await b.mine(6)
    for node in (a, b):
        node.now_ms = max(a.now_ms, b.now_ms)
        node.is_checked = False
    async with net:
        await until(lambda: b.chain.split is not None)
        assert not any(entry.height for entry in b.chain.known.tree._entries.values() if entry.height > 6)


@virtual
async def test_headers_that_claim_work_and_have_none_are_no_split() -> None:
    """Deep headers cost a liar nothing to send: they are worth nothing, and who sends them is out."""
    net = Net(max_headers=4, weigh_s=1.0)
    a, b = await parted(net, 20, 8)

    async def forged(peer: Any, request: GetHeaders) -> Message:
        first = a.chain.headers_after(list(request.locator), 1)[0]
        return Headers((Header(replace(first.core, nonce=bytes(8)), first.proof),))

    a.serve(GetHeaders, forged)
    async with net:
        await until(lambda: b.has_expelled(a))
        assert b.chain.split is None
