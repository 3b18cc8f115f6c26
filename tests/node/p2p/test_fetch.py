"""Large tensors from several peers at once, and the bound on what is under way."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from consensus.tensor import COLUMNS, Tensor
from node.p2p.fetch import QUICK_BYTES_PER_S, ByteBudget, Unavailable, together
from node.p2p.messages import GetTensor, Message, NotFound, TensorStrips
from tests.builders import ALICE, WORKERS, operand
from tests.node.p2p.net import Net, NetNode, until
from tests.node.virtual_time import virtual


def large() -> Tensor:
    """8 MiB: 32 strips of 256 KiB, four in a message."""
    return Tensor(np.random.default_rng(1).integers(-(2**31), 2**31, (2048, 1024), dtype=np.int32))


async def holders(net: Net, tensor: Tensor, *names: str) -> NetNode:
    """`c` connected to nodes that hold the tensor."""
    for name in names:
        await net.add(name).intake.tensor(tensor)
    c = net.add("c", *names)
    await net.start()
    await until(lambda: len(c.network.peers()) == len(names))
    return c


async def fetch(node: NetNode, tensor: Tensor) -> None:
    await node.network._downloader._fetcher.tensor(tensor.commitment, node.network._admission.present)


def counting(node: NetNode, asked: list[tuple[str, int]]) -> None:
    async def serve(peer: Any, request: GetTensor) -> Message:
        asked.append((node.name, request.first))
        return await node.network._server.tensor(peer, request)

    node.serve(GetTensor, serve)


@virtual
async def test_a_large_tensor_comes_from_several_peers() -> None:
    net, tensor, asked = Net(), large(), list[tuple[str, int]]()
    c = await holders(net, tensor, "a", "b", "d")
    for name in ("a", "b", "d"):
        counting(net.nodes[name], asked)
    await fetch(c, tensor)
    got = c.tensors.tensor(tensor.commitment)
    assert got is not None
    assert np.array_equal(got.matrix, tensor.matrix)
    assert sorted(first for _, first in asked) == list(range(0, 32, 4))
    assert {name for name, _ in asked} == {"a", "b", "d"}
    await net.stop()


@virtual
async def test_a_right_operand_comes_by_columns() -> None:
    matrix = np.random.default_rng(2).integers(-63, 64, (4096, 1024), dtype=np.int8)
    net, tensor = Net(), Tensor(matrix, COLUMNS)
    c = await holders(net, tensor, "a")
    await fetch(c, tensor)
    assert c.tensors.has(tensor.commitment)
    await net.stop()


@virtual
async def test_one_false_strip_among_many_is_traced_to_its_giver() -> None:
    net, tensor = Net(), large()
    c = await holders(net, tensor, "a", "bad")
    bad = net.nodes["bad"]

    async def serve(peer: Any, request: GetTensor) -> Message:
        answer = await bad.network._server.tensor(peer, request)
        assert isinstance(answer, TensorStrips)
        strip = answer.strips[2]
        wrong = replace(strip, data=strip.data[:-1] + bytes([strip.data[-1] ^ 1]))
        return replace(answer, strips=(*answer.strips[:2], wrong, answer.strips[3]))

    bad.serve(GetTensor, serve)
    await fetch(c, tensor)
    assert c.tensors.has(tensor.commitment)
    await until(lambda: c.has_expelled(bad))
    assert c.score_of(net.nodes["a"]) == 0
    await net.stop()


@virtual
async def test_a_question_that_is_not_answered_is_put_to_the_next_one_and_the_slow_are_asked_less() -> None:
    net, tensor, asked = Net(), large(), list[tuple[str, int]]()
    c = await holders(net, tensor, "a", "slow")
    slow = net.nodes["slow"]

    async def drip(peer: Any, request: GetTensor) -> Message:
        asked.append(("slow", request.first))
        await asyncio.sleep(9)
        return await slow.network._server.tensor(peer, request)

    slow.serve(GetTensor, drip)
    counting(net.nodes["a"], asked)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await fetch(c, tensor)
    assert loop.time() - began < 7, "one such wait for the first strips, one for all the others"
    for seed in range(20):
        another = Tensor(np.full((64, 64), seed, np.int32))
        for name in ("a", "slow"):
            await net.nodes[name].intake.tensor(another)
        await fetch(c, another)
    assert loop.time() - began < 10
    assert c.score_of(slow) == 0, "slow is no offence"
    await net.stop()


@virtual
async def test_a_tensor_that_nobody_has_is_unavailable_and_costs_no_connection() -> None:
    net, tensor = Net(), large()
    c = await holders(net, tensor, "a", "b")
    unknown = Tensor(np.zeros((64, 64), np.int32))
    with pytest.raises(Unavailable):
        await fetch(c, unknown)
    assert len(c.network.peers()) == 2
    assert c.network._downloader._fetcher.budget.used == 0
    await net.stop()


@virtual
async def test_two_who_want_the_same_tensor_fetch_it_once() -> None:
    net, tensor, asked = Net(), large(), list[tuple[str, int]]()
    c = await holders(net, tensor, "a")
    counting(net.nodes["a"], asked)
    await asyncio.gather(fetch(c, tensor), fetch(c, tensor))
    assert len(asked) == 8
    await net.stop()


@virtual
async def test_a_peer_that_loses_a_tensor_halfway_is_passed_over() -> None:
    net, tensor = Net(), large()
    c = await holders(net, tensor, "a", "b")
    a = net.nodes["a"]

    async def serve(peer: Any, request: GetTensor) -> Message:
        return NotFound() if request.first else await a.network._server.tensor(peer, request)

    a.serve(GetTensor, serve)
    await fetch(c, tensor)
    assert c.tensors.has(tensor.commitment)
    await net.stop()


@virtual
async def test_bytes_under_way_are_bounded_and_come_in_turn() -> None:
    budget = ByteBudget(100)
    order: list[int] = []

    async def use(number: int, size: int) -> None:
        async with budget.take(size):
            assert budget.used <= 100 or number == 3
            order.append(number)
            await asyncio.sleep(1)

    await asyncio.gather(*(use(number, size) for number, size in enumerate((60, 30, 50, 500, 10))))
    assert order == [0, 1, 2, 3, 4]
    assert budget.used == 0


@virtual
async def test_who_gives_up_waiting_leaves_no_debt() -> None:
    budget = ByteBudget(100)
    async with budget.take(80):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), budget.take(50):
                raise AssertionError
        async with asyncio.timeout(1), budget.take(20):
            assert budget.used == 100
    assert budget.used == 0


@virtual
async def test_whoever_is_slow_makes_way_for_those_who_wait() -> None:
    """Three drip and hold all bytes, for ever if nobody waits; a newcomer has a place after two seconds."""
    budget, loop = ByteBudget(100, turn_s=2.0), asyncio.get_running_loop()
    gone: list[int] = []

    async def hold(pace: int) -> None:
        try:
            async with budget.take(25) as holding:
                while True:
                    holding.brought += pace
                    await asyncio.sleep(1)
        except Unavailable:
            gone.append(pace)

    tasks = [asyncio.create_task(hold(pace)) for pace in (1, 2, 3, QUICK_BYTES_PER_S)]
    await asyncio.sleep(60)
    assert gone == []
    started = loop.time()
    async with budget.take(25):
        assert loop.time() - started == 2
    await asyncio.sleep(0)
    assert sorted(gone) == [1, 2, 3]
    assert budget.used == 25
    tasks[-1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert budget.used == 0


@virtual
async def test_who_is_quick_keeps_its_bytes_whoever_waits() -> None:
    budget, loop = ByteBudget(100, turn_s=2.0), asyncio.get_running_loop()

    async def large() -> None:
        async with budget.take(100) as holding:
            for _ in range(5):
                holding.brought += QUICK_BYTES_PER_S
                await asyncio.sleep(1)

    task = asyncio.create_task(large())
    await asyncio.sleep(0)
    started = loop.time()
    async with budget.take(10):
        assert loop.time() - started == 5
    await task


@virtual
async def test_jobs_of_peers_that_drip_do_not_hold_up_an_honest_one() -> None:
    """Eight identities announce jobs, hand over the transactions, and let their operands come a strip at a time."""
    net = Net(gossip_bytes=2 << 20)
    a, good = net.add("a"), net.add("good", "a")
    evil = [net.add(f"evil{number}", "a") for number in range(8)]
    async with net:
        await until(lambda: len(a.network.peers()) == 9)
        rng = np.random.default_rng(3)

        async def drip(peer: Any, request: GetTensor, node: NetNode) -> Message:
            await asyncio.sleep(8)
            return await node.network._server.tensor(peer, request)

        for number, node in enumerate(evil):
            left, owner = rng.integers(-63, 64, (4096, 512), dtype=np.int8), WORKERS[number % 5]
            right, terms = operand(512, 64, number), {"nonce": 0, "max_base_fee": 2, "price": 1 << 20}
            job = node.builder.job(owner, left, right, rows=4096, **terms)
            node.serve(GetTensor, partial(drip, node=node))
            await node.submit(job)
        await asyncio.sleep(3)
        job = good.builder.job(ALICE, operand(1024, 512, 50), operand(512, 64, 51), rows=1024, max_base_fee=2)
        started = asyncio.get_running_loop().time()
        await good.submit(job)
        await until(lambda: a.pool.get(job.id) is not None, 60)
        assert asyncio.get_running_loop().time() - started < 12
        assert a.score_of(good) == 0


@virtual
async def test_a_tensor_that_a_slow_peer_brings_is_fetched_from_another_as_well() -> None:
    """The slow one announces the same job first: who has waited for its turn goes beside it."""
    net = Net()
    a, good, evil = net.add("a"), net.add("good", "a"), net.add("evil", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 2)

        async def drip(peer: Any, request: GetTensor) -> Message:
            await asyncio.sleep(9)
            return await evil.network._server.tensor(peer, request)

        evil.serve(GetTensor, drip)
        job = evil.builder.job(ALICE, operand(4096, 1024, 50), operand(1024, 64, 51), rows=4096, max_base_fee=2)
        await evil.submit(job)
        await asyncio.sleep(1)
        for tensor in evil.builder.tensors:
            good.builder.tensors.add(tensor)
        started = asyncio.get_running_loop().time()
        await good.submit(job)
        await until(lambda: a.pool.get(job.id) is not None, 60)
        assert asyncio.get_running_loop().time() - started < 7


@virtual
async def test_together_raises_the_first_error_and_ends_the_rest() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        await asyncio.sleep(1)
        raise Unavailable("x")

    with pytest.raises(Unavailable):
        await together([wait(), fail(), wait()])
    assert ended == ["cancelled"] * 2
