"""Large tensors from several peers at once, and the bound on what is under way."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from consensus.tensor import COLUMNS, Tensor
from node.p2p.fetch import ByteBudget, Unavailable, together
from node.p2p.messages import GetTensor, Message, NotFound, TensorStrips
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
