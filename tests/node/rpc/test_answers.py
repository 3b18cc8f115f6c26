"""Answers that are at hand: the same bytes as fresh ones, gone with whatever they tell of, and few."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from consensus.codec import encode
from node.rpc import answers
from node.rpc.answers import Answers
from node.rpc.jsonrpc import Dispatcher
from node.rpc.methods.table import TABLE
from tests.builders import ALICE, BOB, ChainBuilder
from tests.node.rpc.world import World


def at_hand(world: World, method: str, **params: object) -> Any:
    """What is at hand for a call, decoded; None if nothing is."""
    answer = TABLE[method].at_hand(world.context, Raw(msgspec.json.encode(params)))
    return None if answer is None else msgspec.json.decode(answer)


def test_the_tip_is_at_hand_until_there_is_another() -> None:
    world = World()
    world.mine()
    assert at_hand(world, "chain_info") is None
    first = world.call("chain_info")
    assert at_hand(world, "chain_info") == first
    world.mine()
    assert at_hand(world, "chain_info") is None
    assert world.call("chain_info")["height"] == 2


def test_headers_ahead_of_the_tip_change_what_is_at_hand() -> None:
    world = World()
    world.mine()
    world.call("chain_info")
    other = world.builder.branch() if hasattr(world.builder, "branch") else None
    ahead = [world.builder.mine() for _ in range(2)]
    assert other is None or ahead
    for node in ahead:
        world.chain.add_header(node.block.header)
    assert at_hand(world, "chain_info") is None
    info = world.call("chain_info")
    assert (info["height"], info["best_header_height"], info["syncing"]) == (1, 3, True)


def test_an_account_is_at_hand_until_a_block_or_a_transaction_touches_the_pool() -> None:
    world = World()
    address = world.text(ALICE)
    world.mine()
    before = world.call("state_getAccount", address=address)
    assert at_hand(world, "state_getAccount", address=address) == before
    tx = world.builder.transfer(ALICE, BOB, 5)
    world.call("tx_send", transaction=encode(tx).hex())
    assert at_hand(world, "state_getAccount", address=address) is None
    pending = world.call("state_getAccount", address=address)
    assert (pending["next_nonce"], pending["pending_count"]) == (before["next_nonce"] + 1, 1)
    world.mine([tx])
    assert at_hand(world, "state_getAccount", address=address) is None
    after = world.call("state_getAccount", address=address)
    assert (after["nonce"], after["pending_count"]) == (before["nonce"] + 1, 0)
    assert after["balance"] < before["balance"]


def test_a_header_gains_confirmations_and_leaves_with_a_reorganisation() -> None:
    builder = ChainBuilder()
    world = World(builder)
    world.mine()
    fork = builder.tip
    lost = world.mine()
    for params in ({"height": 2}, {"id": lost.block.id.hex()}, {}):
        seen = world.call("chain_getHeader", **params)
        assert at_hand(world, "chain_getHeader", **params) == seen
        assert seen["confirmations"] == 1
    builder.tip = fork
    rival = [builder.mine(time_ms=fork.block.header.core.time_ms + 1), builder.mine()]
    for node in rival:
        world.take(node)
    assert at_hand(world, "chain_getHeader", height=2) is None
    assert world.call("chain_getHeader", height=2)["id"] == rival[0].block.id.hex()
    gone = world.call("chain_getHeader", id=lost.block.id.hex())
    assert (gone["main"], gone["confirmations"]) == (False, 0)
    assert at_hand(world, "chain_getHeader", id=lost.block.id.hex()) is None, "off the main chain nothing is kept"


def test_what_is_not_found_is_never_at_hand() -> None:
    world = World()
    world.refused("chain_getHeader", height=9)
    assert at_hand(world, "chain_getHeader", height=9) is None
    world.refused("state_getAccount", address="tdev1xxx")
    assert at_hand(world, "state_getAccount", address="tdev1xxx") is None


def test_an_answer_that_is_overtaken_while_it_is_made_is_not_kept() -> None:
    stamp = [1]
    kept = Answers(lambda: tuple(stamp))

    class Slow:
        async def run(self, function: Any) -> Any:
            stamp[0] += 1
            return function()

    assert asyncio.run(kept.make("key", Slow(), lambda: "old")) == "old"  # type: ignore[arg-type]
    assert kept.get("key") is None


def test_answers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_ANSWERS", 3)
    world = World()
    for height in (0, 0, 0):
        world.call("chain_getHeader", height=height)
    world.mine(count=6)
    for height in range(7):
        world.call("chain_getHeader", height=height)
        assert len(world.context.at_hand.headers._answers) <= 3
    assert at_hand(world, "chain_getHeader", height=6) is not None


# --- requests --------------------------------------------------------------------------------------------------------

_IDS = st.one_of(
    st.integers(), st.text(max_size=8), st.none(), st.floats(allow_nan=False), st.booleans(), st.lists(st.integers())
)
_PARAMS = st.one_of(
    st.just({}),
    st.just({"height": 0}),
    st.just([None, 0]),
    st.just([]),
    st.dictionaries(st.sampled_from(["height", "id", "more"]), st.integers(-1, 2)),
    st.just("text"),
)


@given(
    _IDS,
    _PARAMS,
    st.sampled_from(["chain_info", "chain_getHeader", "nonsense"]),
    st.sampled_from(["plain", "escaped", "twice", "cut", "spaces", "more", "no id", "version", "batch", "bytes"]),
)
def test_at_once_says_what_the_usual_way_says_or_nothing(request_id: Any, params: Any, method: str, form: str) -> None:
    world = _WORLD
    document = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    text = json.dumps(document, ensure_ascii=form == "escaped")
    match form:
        case "escaped":
            text = text.replace('"method"', '"\\u006dethod"')
        case "twice":
            text = text[:-1] + f', "method": "{method}"' + "}"
        case "cut":
            text = text[:-1]
        case "spaces":
            text = f"  {text}\n"
        case "more":
            text = text[:-1] + ', "more": 1}'
        case "no id":
            text = json.dumps({name: value for name, value in document.items() if name != "id"})
        case "version":
            text = text.replace('"2.0"', '"1.0"')
        case "batch":
            text = f"[{text}]"
    message = text.encode() + b"\xff" * (form == "bytes")
    observed: list[str] = []
    names = frozenset(row.name for row in TABLE)
    dispatcher = Dispatcher(
        names, call_seconds=5, observe=lambda name, _s, outcome: observed.append(f"{name} {outcome}")
    )

    def ready(name: str, raw: Raw) -> bytes | None:
        row = TABLE.get(name)
        return None if row is None else row.at_hand(world.context, raw)

    async def call(name: str, raw: Raw) -> bytes:
        return await TABLE[name].invoke(world.context, raw)

    at_once = dispatcher.at_once(message, ready)
    counted, observed[:] = list(observed), []
    usual = asyncio.run(dispatcher.respond(message, call, lambda _size: None))
    if at_once is None:
        assert counted == []
    else:
        assert at_once == usual
        assert counted == observed == [f"{method} OK"]
    if form == "plain" and method == "chain_info" and params == {} and type(request_id) is int and request_id >= 0:
        assert at_once is not None


_WORLD = World()
_WORLD.call("chain_info")
_WORLD.call("chain_getHeader", height=0)
_WORLD.call("chain_getHeader")
