"""Catching up: headers first, then bodies and tensors from several peers, some of whom lie, stall or withhold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from consensus import work
from consensus.block import Header, Proof
from consensus.codec import encode
from consensus.crypto import H
from consensus.shape import Shape
from consensus.tensor import Tensor, product_spec
from consensus.validation import obliged_tensors
from node.p2p.messages import (
    BodyBytes,
    GetBody,
    GetHeaderCopy,
    GetHeaders,
    GetStrips,
    GetTensor,
    HeaderCopy,
    Headers,
    HeaderStrips,
    Message,
    NewBlock,
    NotFound,
    Status,
    Strip,
    TensorStrips,
)
from tests.builders import ALICE, BOB, DAVE, operand
from tests.node.p2p.net import Net, NetNode, until
from tests.node.virtual_time import virtual

Handler = Callable[[Any, Any], Awaitable[Message]]


def tell(node: NetNode, message: Message) -> None:
    """Send a notice to everybody, true or not."""
    for peer in node.network._admission.present():
        assert peer.send(message)


async def never(peer: Any, request: Any) -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def missing(peer: Any, request: Any) -> Message:
    return NotFound()


async def grow(net: Net, count: int, *names: str) -> None:
    """The same chain of `count` blocks, every third with a job, on several nodes."""
    first, *others = (net.nodes[name] for name in names)
    for height in range(count):
        if height % 3 == 0:
            job = first.builder.job(ALICE, operand(64, 64, height), operand(64, 64, 1000 + height))
            await first.submit(job)
        block = await first.mine()
        for other in others:
            other.now_ms = first.now_ms
            for commitment in obliged_tensors(block):
                tensor = first.tensors.tensor(commitment)
                assert tensor is not None
                await other.intake.tensor(tensor, obliged=True)
            await other.intake.block(block)
    for node in net.nodes.values():
        node.now_ms = first.now_ms


async def win(node: NetNode, packet: bytes) -> None:
    """The packet's holder mines it, on the node's tip."""
    side = node.builder.fork()
    block = side.mine(packet=packet)
    for tensor in side.tensors:
        node.builder.tensors.add(tensor)
    await node.receive(block)


# ---------------------------------------------------------------------- the good case


@virtual
async def test_a_late_joiner_catches_up_over_several_replies_of_headers() -> None:
    net = Net(max_headers=16)
    a, b = net.add("a"), net.add("b", "a")
    count = 70
    await a.mine(count)
    b.now_ms = a.now_ms
    async with net:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: b.chain.tip.height == count)
        assert loop.time() - began < 20
        assert a.score_of(b) == b.score_of(a) == 0
        assert b.network._downloader._fetcher.budget.used == 0


@virtual
async def test_several_peers_share_the_load() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b"), net.add("c", "a", "b")
    await grow(net, 40, "a", "b")
    asked = {"a": 0, "b": 0}
    for node in (a, b):

        def counting(node: NetNode) -> Handler:
            async def serve(peer: Any, request: GetTensor) -> Message:
                asked[node.name] += 1
                return await node.network._server.tensor(peer, request)

            return serve

        node.serve(GetTensor, counting(node))
    async with net:
        await until(lambda: c.chain.tip.height == 40)
    assert sum(asked.values()) == 28, "both operands of every third block"
    assert min(asked.values()) >= 5


@virtual
async def test_packet_headers_are_checked_with_strips_that_travel_apart() -> None:
    net = Net()
    a = net.add("a")
    await a.with_workers(DAVE, packets=4)
    job = a.builder.job(ALICE, operand(128, 2048), operand(2048, 128, 1), rows=64)
    await a.submit(job)
    await a.mine()
    for packet in a.builder.held(job):
        await win(a, packet)
    await a.mine()
    b = net.add("b", "a")
    b.now_ms = a.now_ms
    strips: list[GetStrips] = []

    async def serve(peer: Any, request: GetStrips) -> Message:
        strips.append(request)
        return await a.network._server.strips(peer, request)

    a.serve(GetStrips, serve)
    async with net:
        await until(net.agree)
        assert strips
        assert a.score_of(b) == b.score_of(a) == 0


@virtual
async def test_a_header_ahead_of_the_clock_waits_and_nobody_is_blamed() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    async with net:
        await until(lambda: a.network.peers())
        a.now_ms += 60_000
        await a.mine()
        await asyncio.sleep(20)
        assert b.chain.tip.height == 0
        assert b.score_of(a) == 0
        b.now_ms += 60_000
        await until(lambda: b.chain.tip.height == 1, 10)


@virtual
async def test_the_copy_of_the_parent_that_a_child_names_is_fetched() -> None:
    net = Net()
    idle = Shape(128, 4096, 64)
    a, b = net.add("a", idle=idle), net.add("b", "a", idle=idle)
    async with net:
        await until(lambda: a.network.peers())
        block = await a.mine()
        await until(net.agree)
        a.is_checked = b.is_checked = False  # the builder knows one copy of each header
        core, proof = block.header.core, block.header.proof
        assert proof is not None
        evaluation = work.evaluate_idle(core.seed, idle)
        assert evaluation is not None
        assert evaluation.states is not None
        state = evaluation.states[1, 0].astype("<u4").tobytes()
        other = Header(core, Proof(1, 0, state))
        a.chain.add_header(other)
        builder = a.builder.fork()
        child = builder.candidate(core={"parent_ticket": other.ticket})
        for tensor in builder.tensors:
            await a.intake.tensor(tensor, obliged=True)
        await a.intake.block(child.block)
        assert a.chain.tip.height == 2
        await until(net.agree)
        assert len(b.chain.tip.parent.copies) == 2  # type: ignore[union-attr]
        assert b.score_of(a) == 0


# ---------------------------------------------------------------------- liars


async def catches_up_in_spite_of(faults: dict[type[Message], Handler], expelled: bool = True, **limits: Any) -> Net:
    """`c` knows an honest and a hostile node, both at height 30; it must get there, and see through the second."""
    net = Net(**limits)
    good, bad, c = net.add("good"), net.add("bad"), net.add("c", "good", "bad")
    await grow(net, 30, "good", "bad")
    for request, handler in faults.items():
        bad.serve(request, handler)
    c.now_ms = c.params.genesis_time_ms  # most headers are in its future until it knows both
    async with net:
        await until(lambda: len(c.network.peers()) == 2)
        c.now_ms = good.now_ms
        await until(lambda: c.chain.tip.height == 30, 600)
        if expelled:
            await until(lambda: c.has_expelled(bad), 60)
        assert not c.has_expelled(good)
        assert c.score_of(good) == 0
    return net


@virtual
async def test_a_peer_that_withholds_bodies() -> None:
    await catches_up_in_spite_of({GetBody: missing}, expelled=False)


@virtual
async def test_a_peer_that_withholds_tensors() -> None:
    await catches_up_in_spite_of({GetTensor: missing})


@virtual
async def test_a_peer_that_stalls_on_tensors() -> None:
    await catches_up_in_spite_of({GetTensor: never})


@virtual
async def test_a_peer_that_stalls_on_bodies() -> None:
    await catches_up_in_spite_of({GetBody: never}, expelled=False)


@virtual
async def test_a_peer_that_stalls_on_headers() -> None:
    await catches_up_in_spite_of({GetHeaders: never}, expelled=False)


@virtual
async def test_a_peer_that_sends_other_bodies() -> None:
    async def body(peer: Any, request: GetBody) -> Message:
        return BodyBytes(b"\x92\x90\x90")

    await catches_up_in_spite_of({GetBody: body})


@virtual
async def test_a_peer_that_sends_undecodable_bodies() -> None:
    async def body(peer: Any, request: GetBody) -> Message:
        return BodyBytes(b"\xc1")

    await catches_up_in_spite_of({GetBody: body})


def spoiled(change: Callable[[TensorStrips], TensorStrips]) -> Handler:
    """Tensors with something changed."""
    noise = Tensor(operand(64, 64).astype("int32"))

    async def serve(peer: Any, request: GetTensor) -> Message:
        return change(TensorStrips(noise.spec, request.first, (Strip(noise.strip(0), noise.path(0)),)))

    return serve


@virtual
async def test_a_peer_that_sends_another_tensor() -> None:
    await catches_up_in_spite_of({GetTensor: spoiled(lambda answer: answer)})


@virtual
async def test_a_peer_that_sends_wrong_strips_of_the_right_tensor() -> None:
    net = Net()
    good, bad, c = net.add("good"), net.add("bad"), net.add("c", "good", "bad")
    await grow(net, 30, "good", "bad")

    async def serve(peer: Any, request: GetTensor) -> Message:
        answer = await bad.network._server.tensor(peer, request)
        assert isinstance(answer, TensorStrips)
        strip = answer.strips[0]
        wrong = bytes([strip.data[0] ^ 1]) + strip.data[1:]
        return replace(answer, strips=(replace(strip, data=wrong), *answer.strips[1:]))

    bad.serve(GetTensor, serve)
    async with net:
        await until(lambda: c.chain.tip.height == 30)
        await until(lambda: c.has_expelled(bad))
        assert c.score_of(good) == 0


@pytest.mark.parametrize("change", ["count", "first", "size", "spec"])
def test_a_peer_whose_strips_do_not_fit(change: str) -> None:
    def spoil(answer: TensorStrips) -> TensorStrips:
        strip = answer.strips[0]
        match change:
            case "count":
                return replace(answer, strips=(strip, strip))
            case "first":
                return replace(answer, first=answer.first + 1)
            case "size":
                return replace(answer, strips=(replace(strip, data=strip.data[:-1]),))
        return replace(answer, spec=product_spec(4096, 4096, bytes(32)))

    @virtual
    async def story() -> None:
        net = Net()
        good, bad, c = net.add("good"), net.add("bad"), net.add("c", "good", "bad")
        await grow(net, 12, "good", "bad")

        async def serve(peer: Any, request: GetTensor) -> Message:
            answer = await bad.network._server.tensor(peer, request)
            assert isinstance(answer, TensorStrips)
            return spoil(answer)

        bad.serve(GetTensor, serve)
        async with net:
            await until(lambda: c.chain.tip.height == 12)
            await until(lambda: c.has_expelled(bad))
            assert c.score_of(good) == 0

    story()


def lying(node: NetNode, **changes: Any) -> None:
    """A node that claims another status than its own."""
    server = node.network._server
    true = server.status

    def status() -> Status:
        return replace(true(), **changes)

    server.status = status  # type: ignore[method-assign]


@virtual
async def test_a_peer_that_claims_work_that_it_has_not() -> None:
    net = Net()
    good, bad, c = net.add("good"), net.add("bad"), net.add("c", "good", "bad")
    await grow(net, 5, "good", "bad")
    lying(bad, height=10**6, tip=bytes(32), total_work=b"\xff" * 32)
    async with net:
        await until(lambda: c.chain.tip.height == 5)
        await until(lambda: c.has_expelled(bad))
        assert c.score_of(good) == 0


@virtual
async def test_a_peer_that_claims_another_height_than_its_tips() -> None:
    net = Net()
    bad, c = net.add("bad"), net.add("c", "bad")
    await grow(net, 5, "bad")
    lying(bad, height=10**6)
    async with net:
        await until(lambda: (c.score_of(bad) or 0) > 50 or c.has_expelled(bad))


@virtual
async def test_a_peer_whose_headers_are_no_chain() -> None:
    async def headers(peer: Any, request: GetHeaders) -> Message:
        return Headers(tuple(chain[::-1]))

    net = Net()
    good, bad, c = net.add("good"), net.add("bad"), net.add("c", "good", "bad")
    await grow(net, 5, "good", "bad")
    chain = bad.chain.headers_after([bad.chain.genesis_hash], 5)
    bad.serve(GetHeaders, headers)
    async with net:
        await until(lambda: c.has_expelled(bad) or c.chain.tip.height == 5)
        await until(lambda: c.chain.tip.height == 5)
        assert c.score_of(good) == 0


@virtual
async def test_a_peer_that_repeats_the_same_headers_for_ever() -> None:
    net = Net(max_headers=16)
    a, c = net.add("a"), net.add("c", "a")
    await a.mine(16)
    c.now_ms = a.now_ms
    all_headers = tuple(a.chain.headers_after([a.chain.genesis_hash], 16))
    lying(a, height=10**6, tip=bytes(32), total_work=b"\xff" * 32)

    async def again(peer: Any, request: GetHeaders) -> Message:
        return Headers(all_headers)

    a.serve(GetHeaders, again)
    async with net:
        await until(lambda: c.has_expelled(a))


def alien(header: Header, **changes: Any) -> Header:
    return Header(replace(header.core, **changes), header.proof)


@pytest.mark.parametrize(
    "changes",
    [
        {"time_ms": 1},
        {"target": b"\x00" * 31 + b"\x01"},
        {"height": 7},
        {"version": 9},
        {"chain_id": 1},
        {"nonce": b"\x01" * 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_invalid_header_expels(changes: dict[str, Any]) -> None:
    @virtual
    async def story() -> None:
        net = Net()
        a, b = net.add("a"), net.add("b", "a")
        async with net:
            await until(lambda: a.network.peers())
            await a.mine()
            await until(net.agree)
            block = a.builder.fork().candidate().block
            # A changed core has another seed, so the tile is wrong at the latest.
            tell(b, NewBlock(alien(block.header, **changes)))
            await until(lambda: a.has_expelled(b))
            assert a.chain.best_header.height == 1

    story()


@virtual
async def test_headers_that_start_nowhere_expel() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    async with net:
        await until(lambda: a.network.peers())
        orphan = alien(a.builder.fork().candidate().block.header, parent=bytes(32))

        async def headers(peer: Any, request: GetHeaders) -> Message:
            return Headers((orphan,))

        b.serve(GetHeaders, headers)
        tell(b, NewBlock(orphan))
        await until(lambda: a.has_expelled(b))


async def serving_block(node: NetNode, builder: Any, block: Any) -> None:
    """`node` offers a block that its own chain would not take."""

    async def headers(peer: Any, request: GetHeaders) -> Message:
        return Headers((block.header,))

    async def body(peer: Any, request: GetBody) -> Message:
        return BodyBytes(encode(block.body))

    for tensor in builder.tensors:
        await node.intake.tensor(tensor, obliged=True)
    node.serve(GetHeaders, headers)
    node.serve(GetBody, body)


@virtual
async def test_a_block_that_execution_refuses_expels_who_stands_for_it() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        builder = a.builder.fork()
        candidate = builder.candidate(core={"state_root": H("tw/test", b"no state")})
        await serving_block(b, builder, candidate.block)
        tell(b, NewBlock(candidate.block.header))
        await until(lambda: a.has_expelled(b))
        assert not a.has_expelled(c)
        assert a.chain.best_header.height == a.chain.tip.height == 0
        await c.mine()
        await until(lambda: a.chain.tip.height == 1)


@virtual
async def test_a_false_product_counts_against_its_giver_and_the_true_copy_is_taken() -> None:
    """DAVE has signed two products for one block: whoever hands on the false one is told, and nobody is stranded."""
    await two_products(withheld=False)


@virtual
async def test_a_product_that_cannot_be_had_is_replaced_by_the_other_that_was_signed() -> None:
    await two_products(withheld=True)


async def two_products(withheld: bool) -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        await a.with_workers(DAVE)
        job = a.builder.job(ALICE, operand(64, 4096), operand(4096, 64, 1))
        await a.submit(job)
        await a.mine()
        await until(net.agree)
        builder = a.builder.fork()
        candidate = builder.candidate(packet=job.packets[0])
        block, proof = candidate.block, candidate.block.header.proof
        assert proof is not None
        false = builder.tensors.add(Tensor(np.ones((64, 64), np.int32)))
        answer = builder.answer(job.packets[0], false.commitment)
        forged = replace(block, header=replace(block.header, proof=replace(proof, answer=answer)))
        assert forged.id == block.id
        assert forged.header.ticket == block.header.ticket
        await serving_block(b, builder, forged)
        if withheld:
            b.tensors.remove(false.commitment)
        tell(b, NewBlock(forged.header))
        entry = lambda: a.chain.entry(block.id)  # noqa: E731  (one expression, used twice)
        await until(lambda: entry() is not None)
        if not withheld:
            await until(lambda: a.has_expelled(b))
        for tensor in builder.tensors:
            if tensor is not false:
                await c.intake.tensor(tensor, obliged=True)
        await c.intake.block(block, candidate.strips)
        await until(lambda: a.chain.tip.id == block.id, 300)
        assert a.score_of(c) == 0


@virtual
async def test_a_heavier_chain_whose_data_nobody_gives_does_not_hold_up_the_others() -> None:
    net = Net()
    a, bad, good = net.add("a"), net.add("bad", "a"), net.add("good", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        net.world.partition({net.host("bad")}, {net.host("a"), net.host("good")})
        await bad.intake.transaction(bad.builder.transfer(ALICE, BOB, 1))
        await bad.mine(3, miner=BOB)
        bad.serve(GetBody, never)
        net.world.heal()
        await until(lambda: a.chain.best_header.height == 3)
        await good.mine(2)
        await until(lambda: a.chain.tip.height == 2, 60)
        assert a.chain.tip.id == good.chain.tip.id


@virtual
async def test_a_block_that_ten_peers_announce_and_none_hands_over_holds_up_nobody() -> None:
    """Each could use up its whole time-out, one after another; the honest chain is followed within seconds."""
    net = Net()
    a = net.add("a")
    bad = [net.add(f"evil{number}", "a") for number in range(10)]
    good = net.add("good", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 11)
        builder = a.builder.fork()
        block = builder.candidate([builder.transfer(ALICE, BOB, 1)], miner=BOB).block
        for node in bad:
            await serving_block(node, builder, block)
            node.serve(GetBody, never)
            tell(node, NewBlock(block.header))
        await until(lambda: a.chain.best_header.id == block.id)
        await good.mine(2)
        await until(lambda: a.chain.tip.id == good.chain.tip.id, 10)
        for _ in range(20):
            await good.mine()
            await until(lambda: a.chain.tip.id == good.chain.tip.id, 10)
            await asyncio.sleep(2)


@virtual
async def test_a_parent_copy_that_is_another_block_expels() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    async with net:
        await until(lambda: a.network.peers())
        block = await a.mine()
        await until(net.agree)

        async def copy(peer: Any, request: GetHeaderCopy) -> Message:
            return HeaderCopy(block.header)

        b.serve(GetHeaderCopy, copy)
        builder = a.builder.fork()
        child = builder.candidate(core={"parent_ticket": H("tw/test", b"no ticket")})
        tell(b, NewBlock(child.block.header))
        await until(lambda: a.has_expelled(b))


@virtual
async def test_strips_that_prove_nothing_expel() -> None:
    net = Net()
    a = net.add("a")
    await a.with_workers(DAVE)
    job = a.builder.job(ALICE, operand(64, 2048), operand(2048, 64, 1))
    await a.submit(job)
    await a.mine()
    await win(a, job.packets[0])
    b = net.add("b", "a")
    b.now_ms = a.now_ms

    async def strips(peer: Any, request: GetStrips) -> Message:
        answer = await a.network._server.strips(peer, request)
        assert isinstance(answer, HeaderStrips)
        return HeaderStrips(replace(answer.strips, a=answer.strips.a[::-1]))

    a.serve(GetStrips, strips)
    async with net:
        await until(lambda: b.has_expelled(a))
