"""Every method of the table with every parameter out of range, of another type, or just odd: refused, never broken."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from api.errors import INTERNAL_ERROR
from node.rpc.jsonrpc import Dispatcher
from node.rpc.methods.table import TABLE
from node.rpc.registry import Method
from tests.builders import ALICE, MINER
from tests.node.rpc.world import World, small_job

INTEGERS = [0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**40, -(2**63), -(2**64), -(10**40)]
TEXTS = [
    *("", "x", "\n", "0" * 64, "0" * 63 + "\n", "f" * 64, "F" * 64, "٣" * 64, "\0" * 64, "é" * 45, "A" * 90),
    *(
        "00" * 64,
        "c0" * 200,
        "c1",
        "93",
        "df" + "ff" * 20,
        "127.0.0.1:0",
        "localhost:65536",
        "1.2.3.4:٣",
        "[::1:5",
        ":",
    ),
]
OTHERS: list[Any] = [None, True, 1.5, [], {}, [[]], {"a": 1}, [1, "x"]]


@pytest.fixture(scope="module")
def world() -> World:
    """Some blocks, a job, and accounts."""
    world = World()
    world.mine([small_job(world, ALICE).transaction])
    world.mine(count=2)
    return world


def odd_calls(method: Method[Any], world: World) -> list[dict[str, Any]]:
    known = {"address": world.text(ALICE), "miner": world.text(MINER), "owner": world.text(ALICE)}
    tip = world.chain.tip.id.hex()
    fields = msgspec.structs.fields(method.params)
    sound = {f.encode_name: known.get(f.encode_name, 0 if f.encode_name in "ij" else tip) for f in fields if f.required}
    values = [*INTEGERS, *TEXTS, *OTHERS, world.text(ALICE).upper(), world.text(ALICE)[:-1] + "q", tip]
    return [sound | {f.encode_name: value} for f, value in itertools.product(fields, values)]


@pytest.mark.parametrize("name", [method.name for method in TABLE])
def test_no_parameter_breaks_a_method(name: str, world: World, caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[str] = []

    async def call(method: str, params: Raw) -> bytes:
        return await TABLE[method].invoke(world.context, params)

    async def ask_all() -> None:
        dispatcher = Dispatcher({name}, call_seconds=10.0, observe=lambda *row: outcomes.append(row[2]))
        for params in [{}, *odd_calls(TABLE[name], world)]:
            request = {"jsonrpc": "2.0", "id": 1, "method": name, "params": params}
            answer = await dispatcher.respond(json.dumps(request), call, lambda _size: None)
            assert INTERNAL_ERROR.name not in (answer or b"").decode(), (params, caplog.text)

    asyncio.run(ask_all())
    assert INTERNAL_ERROR.name not in outcomes
    assert len(outcomes) == 1 + len(odd_calls(TABLE[name], world))
