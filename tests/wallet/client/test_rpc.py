"""The RPC client against the node's real server on loopback, and against servers that misbehave."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from aiohttp import web
from msgspec import Meta, Struct

from api.errors import NOT_FOUND, REJECTED
from api.params import NoParams, Params
from node.compute import InlineCompute, Shares
from node.rpc.jsonrpc import RpcError as ServerError
from node.rpc.registry import Info, Table
from node.rpc.server import Probes, Readiness, RpcConfig, RpcServer
from node.rpc.subscriptions import Hub
from wallet.client import rpc
from wallet.client.rpc import NetworkError, RequestTimeout, RpcClient, RpcError
from wallet.errors import ExitCode, WalletError


class Head(Struct, frozen=True):
    height: int


class Add(Params, frozen=True):
    a: Annotated[int, Meta(description="A summand.")]
    b: Annotated[int, Meta(description="Another.")] = 1


TABLE: Table[None] = Table()
HEADS = TABLE.topic("newHeads", Head, "Each new tip.")


@TABLE.method("math_add")
async def math_add(_node: None, params: Add) -> int:
    """The sum."""
    return params.a + params.b


@TABLE.method("chain_head")
async def chain_head(_node: None, params: NoParams) -> Head | None:
    """The tip."""
    return Head(7)


@TABLE.method("chain_missing", errors=[NOT_FOUND])
async def chain_missing(_node: None, params: NoParams) -> int:
    """Nothing."""
    raise ServerError(NOT_FOUND, "No block 7", fix="The tip is 6.")


@TABLE.method("tx_send", errors=[REJECTED])
async def tx_send(_node: None, params: NoParams) -> int:
    """Refuse."""
    raise ServerError(REJECTED, "Nonce 3, expected 4", fix="Sign it again.", reason="wrong-nonce")


@TABLE.method("node_wait")
async def node_wait(_node: None, params: NoParams) -> int:
    """Take long."""
    await asyncio.sleep(60)
    return 1


def scenario(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await body()

    asyncio.run(bounded())


@asynccontextmanager
async def running(**config: Any) -> AsyncIterator[tuple[Hub, str]]:
    hub = Hub(TABLE.topics)
    probes = Probes(lambda: Readiness(True), lambda: Readiness(True), lambda: b"")
    config = {"shutdown_seconds": 0.2, **config}
    server = RpcServer(
        RpcConfig(**config),
        Info("Test", "1"),
        TABLE,
        None,
        hub,
        probes,
        lambda *_row: None,
        Shares(InlineCompute(), 1e9),
    )
    async with server.serving() as url:
        yield hub, str(url)


@asynccontextmanager
async def answering(
    body: bytes, status: int = 200, kind: str = "application/json", delay_seconds: float = 0.0
) -> AsyncIterator[str]:
    """A server that gives the same answer to everything."""

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(delay_seconds)
        return web.Response(body=body, status=status, content_type=kind)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def test_calls_with_parameters_of_each_kind_and_typed_results() -> None:
    async def body() -> None:
        async with running() as (_, url), RpcClient(url) as rpc:
            assert await rpc.call("math_add", [2, 3], result=int) == 5
            assert await rpc.call("math_add", (2,), result=int) == 3
            assert await rpc.call("math_add", {"b": 3, "a": 2**62}, result=int) == 2**62 + 3
            assert await rpc.call("math_add", Add(a=4, b=5), result=int) == 9
            assert await rpc.call("chain_head", result=Head) == Head(7)
            assert await rpc.call("chain_head", result=Head | None) == Head(7)

    scenario(body)


def test_many_calls_at_once() -> None:
    async def body() -> None:
        async with running() as (_, url), RpcClient(url) as rpc:
            sums = await asyncio.gather(*(rpc.call("math_add", [i], result=int) for i in range(50)))
            assert sums == list(range(1, 51))

    scenario(body)


def test_errors_of_the_node_keep_code_message_and_fix() -> None:
    async def refused(rpc: RpcClient, method: str, params: list[object] | None = None) -> RpcError:
        with pytest.raises(RpcError) as caught:
            await rpc.call(method, params, result=int)
        return caught.value

    async def body() -> None:
        async with running(call_seconds=0.05) as (_, url), RpcClient(url) as rpc:
            error = await refused(rpc, "chain_missing")
            assert (error.code, error.message, error.fix) == ("not-found", "No block 7", "The tip is 6.")
            assert (error.number, error.exit_code) == (-32001, ExitCode.NOT_FOUND)
            error = await refused(rpc, "tx_send")
            assert (error.code, error.reason, error.exit_code) == ("wrong-nonce", "wrong-nonce", ExitCode.REJECTED)
            error = await refused(rpc, "math_add", ["1"])
            assert (error.code, error.exit_code) == ("invalid-params", ExitCode.USAGE)
            assert error.fix == "Call it as math_add(a, b?)."
            error = await refused(rpc, "math_ad")
            assert (error.code, error.number) == ("method-not-found", -32601)
            error = await refused(rpc, "node_wait")
            assert (error.code, error.exit_code) == ("timeout", ExitCode.TIMEOUT)

    scenario(body)


def test_refusals_outside_json_rpc_are_errors_of_the_node_too() -> None:
    async def body() -> None:
        async with running(body_bytes=100) as (_, url), RpcClient(url) as rpc:
            with pytest.raises(RpcError) as caught:
                await rpc.call("math_add", {"a": 1, "b" * 200: 1}, result=int)
            assert caught.value.code == "limit"
        async with running(connections=0) as (_, url), RpcClient(url) as rpc:
            with pytest.raises(RpcError) as caught:
                await rpc.call("math_add", [1], result=int)
            assert caught.value.message == "Too many connections"

    scenario(body)


def test_error_without_data_is_understood() -> None:
    async def body() -> None:
        refusal = b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"no"},"id":1}'
        async with answering(refusal) as url, RpcClient(url) as rpc:
            with pytest.raises(RpcError) as caught:
                await rpc.call("x", result=int)
            assert (caught.value.number, caught.value.message, caught.value.exit_code) == (
                -32000,
                "no",
                ExitCode.INTERNAL,
            )
            assert caught.value.fix

    scenario(body)


def test_nobody_there_is_a_network_error() -> None:
    async def body() -> None:
        async with answering(b"") as url:
            pass
        async with RpcClient(url) as rpc:
            with pytest.raises(NetworkError, match="Cannot connect") as caught:
                await rpc.call("x", result=int)
            assert (caught.value.code, caught.value.exit_code) == ("network", ExitCode.NETWORK)
            assert "running" in caught.value.fix
            with pytest.raises(NetworkError, match="Cannot connect"):
                async with rpc.subscribe("newHeads", Head):
                    pass

    scenario(body)


def test_slow_node_is_a_timeout() -> None:
    async def body() -> None:
        async with answering(b"", delay_seconds=60) as url, RpcClient(url, timeout_seconds=0.1) as rpc:
            begin = time.monotonic()
            with pytest.raises(RequestTimeout, match=r"within 0\.1 s") as caught:
                await rpc.call("x", result=int)
            assert (caught.value.code, caught.value.exit_code) == ("timeout", ExitCode.TIMEOUT)
            with pytest.raises(RequestTimeout):
                async with rpc.subscribe("newHeads", Head):
                    pass
            assert time.monotonic() - begin < 5

    scenario(body)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"<html>", 200, "text/html"),
        (b"<html>", 502, "text/html"),
        (b"", 302, "text/plain"),
        (b"", 200, "application/json"),
        (b"{", 200, "application/json"),
        (b"[]", 200, "application/json"),
        (b"[" * 100_000, 200, "application/json"),
        (b'{"jsonrpc":"2.0","id":1}', 200, "application/json"),
        (b'{"jsonrpc":"2.0","result":1,"id":2}', 200, "application/json"),
        (b'{"jsonrpc":"2.0","result":1}', 200, "application/json"),
        (b'{"jsonrpc":"2.0","result":"1","id":1}', 200, "application/json"),
        (b'{"jsonrpc":"2.0","result":1.5,"id":1}', 200, "application/json"),
        (b'{"jsonrpc":"2.0","result":"\xff","id":1}', 200, "application/json"),
        (b'{"jsonrpc":"2.0","error":{"code":"x","message":1},"id":1}', 200, "application/json"),
    ],
)
def test_answer_that_makes_no_sense_is_a_network_error(body: bytes, status: int, kind: str) -> None:
    async def scene() -> None:
        async with answering(body, status, kind) as url, RpcClient(url) as rpc:
            with pytest.raises(NetworkError, match="makes no sense") as caught:
                await rpc.call("x", result=int)
            assert "RPC address" in caught.value.fix

    scenario(scene)


def test_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MAX_ANSWER_BYTES", 1000)

    async def body() -> None:
        async with answering(b" " * 1001) as url, RpcClient(url) as rpc:
            with pytest.raises(NetworkError, match="more than 1000 bytes"):
                await rpc.call("x", result=int)

    scenario(body)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8545", "ftp://x", "http://", "http://[", "file:///etc/passwd"])
def test_url_of_another_kind_is_refused(url: str) -> None:
    async def body() -> None:
        with pytest.raises(WalletError, match="not the address of a node") as caught:
            RpcClient(url)
        assert caught.value.exit_code == ExitCode.USAGE

    scenario(body)


def test_subscription_delivers_typed_events_in_order() -> None:
    async def body() -> None:
        async with running() as (hub, url), RpcClient(url) as rpc, rpc.subscribe("newHeads", Head) as heads:
            for height in range(5):
                hub.publish(HEADS, Head(height))
            seen = []
            async for head in heads:
                seen.append(head)
                if len(seen) == 5:
                    break
            assert seen == [Head(height) for height in range(5)]
            assert await rpc.call("math_add", [1], result=int) == 2

    scenario(body)


def test_subscriptions_and_their_end_are_independent() -> None:
    async def body() -> None:
        async with running() as (hub, url), RpcClient(url) as rpc, rpc.subscribe("newHeads", Head) as first:
            async with rpc.subscribe("newHeads", Head) as second:
                hub.publish(HEADS, Head(1))
                assert await anext(second) == Head(1)
            hub.publish(HEADS, Head(2))
            assert [await anext(first), await anext(first)] == [Head(1), Head(2)]

    scenario(body)


def test_unknown_topic_is_an_error_of_the_node() -> None:
    async def body() -> None:
        async with running() as (_, url), RpcClient(url) as rpc:
            with pytest.raises(RpcError, match="no topic"):
                async with rpc.subscribe("newHeds", Head):
                    pass

    scenario(body)


def test_server_that_speaks_no_websocket_is_a_network_error() -> None:
    async def body() -> None:
        async with answering(b"{}") as url, RpcClient(url) as rpc:
            with pytest.raises(NetworkError, match="failed"):
                async with rpc.subscribe("newHeads", Head):
                    pass

    scenario(body)


def test_subscription_ends_loudly_when_the_node_stops_or_cuts_it() -> None:
    async def body() -> None:
        async with running() as (_, url):
            rpc = RpcClient(url)
            subscription = rpc.subscribe("newHeads", Head)
            heads = await subscription.__aenter__()
        with pytest.raises(NetworkError, match="stopping") as caught:
            await anext(heads)
        assert "Connect again" in caught.value.fix
        await subscription.__aexit__(None, None, None)
        await rpc.close()
        async with (
            running(queue_bytes=100) as (hub, url),
            RpcClient(url) as rpc,
            rpc.subscribe("newHeads", Head) as heads,
        ):
            for height in range(10):
                hub.publish(HEADS, Head(height))
            with pytest.raises(NetworkError, match="too slow"):
                _ = [head async for head in heads]

    scenario(body)


def test_event_of_another_type_is_a_network_error() -> None:
    async def body() -> None:
        async with running() as (hub, url), RpcClient(url) as rpc, rpc.subscribe("newHeads", str) as heads:
            hub.publish(HEADS, Head(1))
            with pytest.raises(NetworkError, match="makes no sense"):
                await anext(heads)

    scenario(body)


def test_callers_own_time_limit_passes_through() -> None:
    async def body() -> None:
        async with running() as (hub, url), RpcClient(url) as rpc, rpc.subscribe("newHeads", Head) as heads:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(heads)
            hub.publish(HEADS, Head(1))
            assert await anext(heads) == Head(1)

    scenario(body)
