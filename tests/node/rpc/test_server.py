"""The server on loopback, met by ordinary, careless and hostile clients."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Meta, Struct
from yarl import URL

from api.errors import INTERNAL_ERROR, NOT_FOUND
from api.params import NoParams, Params
from node.compute import InlineCompute, Shares, ThreadCompute
from node.rpc import places
from node.rpc.jsonrpc import MAX_BATCH_ANSWER_BYTES, RpcError
from node.rpc.places import LEAST_BYTES, STALL_SECONDS
from node.rpc.registry import Info, Table
from node.rpc.server import Probes, Readiness, RpcConfig, RpcServer, every_method
from node.rpc.subscriptions import Hub


class Head(Struct, frozen=True):
    height: int
    filler: str = ""


class Add(Params, frozen=True):
    a: Annotated[int, Meta(description="A summand.")]
    b: Annotated[int, Meta(description="Another.")]


class Wait(Params, frozen=True):
    seconds: Annotated[float, Meta(description="How long.")]


class Node:
    def __init__(self) -> None:
        self.waiting = 0
        self.most_waiting = 0
        self.finished = 0
        self.cancelled = 0
        self.began = asyncio.Event()
        self.stopped = asyncio.Event()
        self.compute = ThreadCompute(1)


TABLE: Table[Node] = Table()
HEADS = TABLE.topic("newHeads", Head, "Each new tip.")
JOBS = TABLE.topic("jobs", Head, "Jobs.")


@TABLE.method("math_add")
async def math_add(_node: Node, params: Add) -> int:
    """The sum."""
    return params.a + params.b


@TABLE.method("node_wait")
async def node_wait(node: Node, params: Wait) -> str:
    """Take some time."""
    node.waiting += 1
    node.began.set()
    node.most_waiting = max(node.most_waiting, node.waiting)
    try:
        await asyncio.sleep(params.seconds)
        node.finished += 1
    except asyncio.CancelledError:
        node.cancelled += 1
        node.stopped.set()
        raise
    finally:
        node.waiting -= 1
    return "done"


@TABLE.method("node_tell")
async def node_tell(_node: Node, params: Wait) -> str:
    """A MiB for every second."""
    return "x" * int(params.seconds * 2**20)


@TABLE.method("node_work")
async def node_work(node: Node, params: Wait) -> int:
    """Keep a thread busy."""

    def work() -> int:
        started = time.thread_time()
        while time.thread_time() - started < params.seconds:
            pass
        return 1

    return await node.compute.run(work)


@TABLE.method("node_known", at_hand=lambda _node, _params: b'"known"')
async def node_known(node: Node, _params: NoParams) -> str:
    """What is at hand."""
    node.finished += 1
    return "known"


@TABLE.method("node_break")
async def node_break(_node: Node, _params: NoParams) -> int:
    """Fail."""
    raise RuntimeError("secret")


class Harness:
    """A running server with everything that was injected into it."""

    def __init__(self, config: RpcConfig, shares: Shares | None = None) -> None:
        self.node = Node()
        self.hub = Hub(TABLE.topics)
        self.status = Readiness(True)
        self.observed: list[tuple[str, str]] = []
        self.uploads: list[int] = []
        self.server = RpcServer(
            config,
            Info("Test RPC", "1"),
            TABLE,
            self.node,
            self.hub,
            Probes(lambda: Readiness(True), lambda: self.status, lambda: b"tilework_height 7\n"),
            lambda method, _seconds, outcome: self.observed.append((method, outcome)),
            shares or Shares(InlineCompute(), 1e9),
            [web.put("/tensor/{name}", self.upload)],
        )

    async def upload(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["name"] == "none":
            raise RpcError(NOT_FOUND, "No such tensor")
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        self.uploads.append(size)
        return web.Response(status=204)


class Browser:
    """An HTTP client bound to the server's URL."""

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def post(self, body: str | bytes, **headers: str) -> tuple[int, Any]:
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with self.session.post(self.url, data=body, headers=sent) as response:
            text = await response.read()
            return response.status, json.loads(text) if text else None

    async def call(self, method: str, *params: object) -> Any:
        status, answer = await self.post(request(method, *params))
        assert status == 200
        return answer


def request(method: str, *params: object, request_id: int = 1) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": request_id})


@asynccontextmanager
async def running(shares: Shares | None = None, **config: Any) -> AsyncIterator[tuple[Harness, Browser]]:
    harness = Harness(RpcConfig(**{"shutdown_seconds": 0.2, **config}), shares)
    async with harness.server.serving() as url, aiohttp.ClientSession() as session:
        yield harness, Browser(url, session)


def scenario(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await body()

    asyncio.run(bounded())


async def raw_exchange(url: URL, text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(text)
    answer = await reader.read()
    writer.close()
    return answer


# --- what is at hand


def test_what_is_at_hand_is_answered_without_its_handler_and_counted() -> None:
    async def body() -> None:
        async with running() as (harness, browser):
            status, answer = await browser.post(request("node_known"))
            assert (status, answer) == (200, {"result": "known", "id": 1, "jsonrpc": "2.0"})
            assert harness.node.finished == 0
            assert harness.observed == [("node_known", "OK")]
            for form in ({"Content_Type": "application/json; charset=utf-8"}, {"Origin": str(browser.url.origin())}):
                assert (await browser.post(request("node_known"), **form))[1]["result"] == "known"
            assert harness.node.finished == 2, "these take a closer look"
            batch = f"[{request('node_known')}]"
            assert (await browser.post(batch))[1][0]["result"] == "known"

    scenario(body)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Encoding": "gzip"}, 415),
    ],
)
def test_what_is_at_hand_has_the_same_door(headers: dict[str, str], status: int) -> None:
    async def body() -> None:
        async with running() as (harness, browser):
            assert (await browser.post(request("node_known"), **headers))[0] == status
            async with browser.session.post(browser.url / "elsewhere", data=request("node_known")) as response:
                assert response.status == 404
            assert harness.observed == []

    scenario(body)


@pytest.mark.parametrize(
    ("version", "extra", "ends"),
    [("1.1", "", False), ("1.1", "Connection: close\r\n", True), ("1.0", "", True)],
)
def test_a_connection_lasts_as_long_as_the_client_wants(version: str, extra: str, ends: bool) -> None:
    async def body() -> None:
        async with running() as (_, browser):
            reader, writer = await asyncio.open_connection(browser.url.host, browser.url.port)
            content = request("node_known")
            head = f"POST / HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}"
            for turn in range(1 if ends else 3):
                writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1."), turn
                assert b"Date: " in answer
                size = int(answer.partition(b"Content-Length: ")[2].partition(b"\r")[0])
                assert json.loads(await reader.readexactly(size))["result"] == "known"
            if ends:
                assert await reader.read() == b""
            writer.close()

    scenario(body)


def test_many_requests_in_one_piece_are_answered_in_order() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            reader, writer = await asyncio.open_connection(browser.url.host, browser.url.port)
            for number in range(20):
                content = request("node_known" if number % 3 else "math_add", *([] if number % 3 else [1, number]))
                content = content.replace('"id": 1', f'"id": {number}')
                head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
            for number in range(20):
                answer = await reader.readuntil(b"\r\n\r\n")
                size = int(answer.partition(b"Content-Length: ")[2].partition(b"\r")[0])
                found = json.loads(await reader.readexactly(size))
                assert (found["id"], found["result"]) == (number, "known" if number % 3 else 1 + number)
            writer.close()

    scenario(body)


def test_who_has_had_its_share_waits_for_what_is_at_hand_too() -> None:
    async def body() -> None:
        shares = Shares(InlineCompute(), share=0.001, burst_s=0.00001)
        async with running(shares) as (harness, browser):
            await browser.post(request("node_known"))
            assert harness.node.finished == 0
            started = time.monotonic()
            await browser.post(request("node_known"))
            assert time.monotonic() - started > 0.05
            assert harness.node.finished == 1

    scenario(body)


# --- calls


def test_post_call_batch_and_notification() -> None:
    async def body() -> None:
        async with running() as (harness, browser):
            assert await browser.post(request("math_add", 2, 3)) == (200, {"jsonrpc": "2.0", "result": 5, "id": 1})
            status, answers = await browser.post(f"[{request('math_add', 1, 1)},{request('math_add', 2, 2)}]")
            assert (status, [answer["result"] for answer in answers]) == (200, [2, 4])
            assert await browser.post('{"jsonrpc":"2.0","method":"math_add","params":[1,1]}') == (204, None)
            status, answer = await browser.post("{")
            assert (status, answer["error"]["code"]) == (200, -32700)
            assert harness.observed == [("math_add", "OK")] * 4 + [("(none)", "PARSE_ERROR")]

    scenario(body)


@pytest.mark.parametrize("method", ["math_add", "no_such"])
def test_who_calls_much_waits_for_itself_and_others_pass(method: str) -> None:
    """A hundred calls are a share at once, the next hundred take a second and a half, another connection's no time."""

    async def body() -> None:
        shares = Shares(InlineCompute(), share=0.02, burst_s=0.03)
        async with running(shares) as (_, browser), aiohttp.ClientSession() as session:
            crowd = Browser(browser.url, session)
            batch = f"[{','.join(request(method, 1, 1) for _ in range(100))}]"
            flood = [asyncio.create_task(crowd.post(batch)) for _ in range(2)]
            await asyncio.sleep(0.3)
            assert (await browser.call("math_add", 2, 3))["result"] == 5
            assert not all(task.done() for task in flood)
            assert [len(answers) for _, answers in await asyncio.gather(*flood)] == [100, 100]

    scenario(body)


def test_what_threads_did_for_a_call_and_the_bytes_of_its_answer_count() -> None:
    async def body() -> None:
        shares = Shares(InlineCompute(), share=1e-9, burst_s=0.002)
        async with running(shares, call_seconds=0.3) as (_, browser):
            assert "result" in await browser.call("node_tell", 4)
            assert (await browser.call("math_add", 2, 3))["error"]["data"]["name"] == "TIMEOUT"
        async with running(Shares(InlineCompute(), share=1e-9, burst_s=0.002), call_seconds=0.3) as (_, browser):
            assert "result" in await browser.call("node_work", 0.01)
            assert (await browser.call("math_add", 2, 3))["error"]["data"]["name"] == "TIMEOUT"

    scenario(body)


def test_amounts_beyond_doubles_survive() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            assert (await browser.call("math_add", 2**62, 2**62 - 1))["result"] == 2**63 - 1

    scenario(body)


def test_internal_error_shows_an_incident_only() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            error = (await browser.call("node_break"))["error"]
            assert error["code"] == INTERNAL_ERROR.code
            assert "secret" not in json.dumps(error)
            assert error["data"]["incident"]

    scenario(body)


def test_late_call_is_stopped() -> None:
    async def body() -> None:
        async with running(call_seconds=0.05) as (harness, browser):
            answer = await browser.call("node_wait", 60)
            assert answer["error"]["data"]["name"] == "TIMEOUT"
            assert harness.node.cancelled == 1

    scenario(body)


def test_discover_describes_the_servers_own_methods_too() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            document = (await browser.call("rpc.discover"))["result"]
            names = [method["name"] for method in document["methods"]]
            assert names == [
                "rpc.discover",
                "subscribe",
                "unsubscribe",
                "math_add",
                "node_wait",
                "node_tell",
                "node_work",
                "node_known",
                "node_break",
            ]
            assert names == [method.name for method in every_method(TABLE)]
            assert [topic["name"] for topic in document["x-topics"]] == ["newHeads", "jobs"]
            assert all(method["description"] for method in document["methods"])

    scenario(body)


def test_table_cannot_redeclare_the_servers_methods() -> None:
    mine: Table[Node] = Table()

    @mine.method("subscribe")
    async def subscribe(_node: Node, _params: NoParams) -> int:
        """Shadow the server's."""
        return 1

    probes = Probes(lambda: Readiness(True), lambda: Readiness(True), lambda: b"")
    with pytest.raises(AssertionError):
        RpcServer(
            RpcConfig(), Info("T", "1"), mine, Node(), Hub(()), probes, lambda *_row: None, Shares(InlineCompute(), 1.0)
        )


# --- HTTP


def test_probes_and_metrics() -> None:
    async def body() -> None:
        async with running() as (harness, browser):

            async def get(path: str) -> tuple[int, str, str]:
                async with browser.session.get(browser.url / path) as response:
                    return response.status, response.content_type, await response.text()

            assert await get("health") == (200, "application/json", '{"ok":true,"reason":""}')
            assert (await get("ready"))[0] == 200
            harness.status = Readiness(False, "syncing, 30 blocks behind")
            status, _, text = await get("ready")
            assert (status, json.loads(text)) == (503, {"ok": False, "reason": "syncing, 30 blocks behind"})
            assert (await get("health"))[0] == 200
            assert await get("metrics") == (200, "text/plain", "tilework_height 7\n")

    scenario(body)


def test_wrong_path_or_verb_says_what_to_do() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            for verb, path, status in [
                ("GET", "nothing", 404),
                ("DELETE", "", 405),
                ("GET", "", 426),
                ("GET", "ws", 426),
            ]:
                async with browser.session.request(verb, browser.url / path) as response:
                    assert response.status == status
                    assert "POST JSON-RPC" in (await response.json())["error"]["data"]["fix"]

    scenario(body)


def test_body_limit() -> None:
    async def body() -> None:
        async with running(body_bytes=1000) as (harness, browser):
            fits = request("math_add", 1, 2)
            assert (await browser.post(fits + " " * (1000 - len(fits))))[0] == 200
            status, answer = await browser.post(fits + " " * (1001 - len(fits)))
            assert (status, answer["error"]["data"]["name"]) == (413, "LIMIT")

            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(11):
                    yield b" " * 100

            headers = {"Content-Type": "application/json"}
            async with browser.session.post(browser.url, data=chunks(), headers=headers) as response:
                assert response.status == 413
            assert harness.observed == [("math_add", "OK")]

    scenario(body)


def test_default_limits_are_the_documented_ones() -> None:
    config = RpcConfig()
    assert (config.host, config.connections, config.connections_per_household, config.call_seconds) == (
        "127.0.0.1",
        256,
        64,
        10.0,
    )
    assert (config.body_bytes, config.message_bytes, config.room_bytes) == (5 << 20, 512 << 10, 64 << 20)
    assert (config.calls_in_flight, config.subscriptions, config.queue_bytes) == (16, 32, 1 << 20)
    assert (LEAST_BYTES, STALL_SECONDS, MAX_BATCH_ANSWER_BYTES) == (64 << 10, 10.0, 8 << 20)
    assert not config.allowed_hosts
    assert not config.allowed_origins


def test_announced_body_beyond_the_limit_is_not_awaited() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            reader, writer = await asyncio.open_connection(browser.url.host, browser.url.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: 99999999999\r\n\r\n[")
            assert b" 413 " in await reader.readline()
            writer.close()

    scenario(body)


def test_body_that_does_not_arrive_in_time() -> None:
    async def body() -> None:
        async with running(call_seconds=0.05) as (_, browser):
            reader, writer = await asyncio.open_connection(browser.url.host, browser.url.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: 50\r\n\r\n{")
            assert b" 408 " in await reader.readline()
            writer.close()

    scenario(body)


def test_compressed_body_is_refused_rather_than_blown_up() -> None:
    async def body() -> None:
        async with running() as (harness, browser):
            bomb = gzip.compress(b" " * 1_000_000 + request("math_add", 1, 1).encode())
            status, answer = await browser.post(bomb, Content_Encoding="gzip")
            assert status == 415
            assert "uncompressed" in answer["error"]["data"]["fix"]
            assert harness.observed == []

    scenario(body)


def test_extra_routes_stream_beyond_the_body_limit_under_the_same_rules() -> None:
    async def body() -> None:
        async with running(body_bytes=1000) as (harness, browser):

            async def put(name: str, data: bytes, **headers: str) -> tuple[int, bytes]:
                async with browser.session.put(browser.url / "tensor" / name, data=data, headers=headers) as response:
                    return response.status, await response.read()

            assert await put("a", b"x" * 1_000_000) == (204, b"")
            assert harness.uploads == [1_000_000]
            status, answer = await put("none", b"")
            assert (status, json.loads(answer)["error"]["message"]) == (404, "No such tensor")
            assert (await put("a", b"", Host="evil.example"))[0] == 403
            assert (await put("a", b"", Origin="https://evil.example"))[0] == 403
            assert len(harness.uploads) == 1

    scenario(body)


# --- who may call


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8545", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8545", 200),
        ("192.168.1.7", 200),
        ("node.example", 200),
        ("node.example:443", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("a b", 403),
        ("[", 403),
        ("evil.example@127.0.0.1", 403),
        ("127.0.0.1@evil.example", 403),
        ("127.0.0.1#evil.example", 403),
        ("127.0.0.1?evil.example", 403),
        ("127.0.0.1/evil.example", 403),
        ("127.0.0.1\\evil.example", 403),
        ("127.0.0.1:8545:1", 403),
        ("::1", 403),
        ("[localhost]", 403),
        ("localhost:", 403),
    ],
)
def test_host_must_be_ours_against_dns_rebinding(host: str, status: int) -> None:
    async def body() -> None:
        async with running(allowed_hosts=frozenset({"node.example"})) as (_, browser):
            seen, answer = await browser.post(request("math_add", 1, 1), Host=host)
            assert seen == status
            if status == 403:
                assert answer["error"]["data"]["name"] == "FORBIDDEN"

    scenario(body)


def test_request_without_host_is_refused() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            assert b" 403 " in await raw_exchange(browser.url, b"GET /health HTTP/1.0\r\n\r\n")

    scenario(body)


def test_post_that_a_browser_sends_without_asking_is_refused() -> None:
    async def body() -> None:
        async with running() as (harness, browser):
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"):
                status, _ = await browser.post(request("math_add", 1, 1), Content_Type=kind)
                assert status == 415
            assert (await browser.post(request("math_add", 1, 1), Content_Type="application/json; charset=utf-8"))[
                0
            ] == 200
            assert len(harness.observed) == 1

    scenario(body)


def test_foreign_origin_is_refused_by_default_and_no_cors_header_is_sent() -> None:
    async def body() -> None:
        async with running() as (harness, browser):
            assert (await browser.post(request("math_add", 1, 1), Origin="https://evil.example"))[0] == 403
            assert (await browser.post(request("math_add", 1, 1), Origin="null"))[0] == 403
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await browser.session.ws_connect(browser.url / "ws", headers={"Origin": "https://evil.example"})
            assert refused.value.status == 403
            assert harness.observed == []
            own = str(browser.url.origin())
            headers = {"Origin": own, "Content-Type": "application/json"}
            async with browser.session.post(browser.url, data=request("math_add", 1, 1), headers=headers) as response:
                assert response.status == 200
                assert not [name for name in response.headers if name.lower().startswith("access-control")]
            async with browser.session.ws_connect(browser.url / "ws", headers={"Origin": own}):
                pass

    scenario(body)


def test_configured_origin_may_call_after_preflight() -> None:
    page = "https://explorer.example"

    async def body() -> None:
        async with running(allowed_origins=frozenset({page})) as (_, browser):
            asking = {"Origin": page, "Access-Control-Request-Method": "POST"}
            async with browser.session.options(browser.url, headers=asking) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == page
                assert response.headers["Access-Control-Allow-Headers"] == "Content-Type"
                assert response.headers["Vary"] == "Origin"
            headers = {"Origin": page, "Content-Type": "application/json"}
            async with browser.session.post(browser.url, data=request("math_add", 1, 1), headers=headers) as response:
                assert response.status == 200
                assert response.headers["Access-Control-Allow-Origin"] == page
            for other in ("https://evil.example", "http://explorer.example", page + ".evil.example"):
                async with browser.session.options(browser.url, headers={**asking, "Origin": other}) as response:
                    assert response.status == 403
                    assert "Access-Control-Allow-Origin" not in response.headers

    scenario(body)


# --- connections


def test_connections_are_limited_and_freed() -> None:
    async def body() -> None:
        async with running(connections=3) as (_, browser):
            held = [await browser.session.ws_connect(browser.url / "ws") for _ in range(3)]
            refused = await raw_exchange(browser.url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 503 ")
            head, _, text = refused.partition(b"\r\n\r\n")
            assert b"Content-Length: %d" % len(text) in head
            assert json.loads(text)["error"]["data"]["name"] == "LIMIT"
            await held[0].close()
            await asyncio.sleep(0.05)
            assert (await browser.post(request("math_add", 1, 1)))[0] == 200

    scenario(body)


AT_REST = {
    "silent": b"",
    "half a request line": b"POST / HT",
    "headers without end": b"POST / HTTP/1.1\r\nHost: localhost\r\nX: ",
    "a body that never comes": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n\r\n{",
    "served, and kept": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("kind", AT_REST)
def test_connections_at_rest_keep_nobody_out(kind: str) -> None:
    async def body() -> None:
        async with running(connections=4) as (harness, browser), browser.session.ws_connect(browser.url / "ws") as ws:
            held = [await asyncio.open_connection(browser.url.host, browser.url.port) for _ in range(20)]
            for _, writer in held:
                writer.write(AT_REST[kind])
            await asyncio.sleep(0.05)
            for _ in range(3):
                begin = time.monotonic()
                assert (await browser.call("math_add", 1, 1))["result"] == 2
                assert time.monotonic() - begin < 1
            assert len(harness.server._places) == 4
            assert (await ask(ws, "math_add", 1, 1))["result"] == 2  # who is at work is not pushed out
            for _, writer in held:
                writer.close()

    scenario(body)


def test_a_call_under_way_is_not_pushed_out() -> None:
    async def body() -> None:
        async with running(connections=2) as (harness, browser):
            call = asyncio.create_task(browser.call("node_wait", 0.3))
            await harness.node.began.wait()
            held = [await asyncio.open_connection(browser.url.host, browser.url.port) for _ in range(10)]
            assert (await call)["result"] == "done"
            for _, writer in held:
                writer.close()

    scenario(body)


def test_burst_of_connections_does_not_slip_past_the_limit() -> None:
    async def body() -> None:
        async with running(connections=5) as (_, browser):
            ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

            async def try_one() -> tuple[bool, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_connection(browser.url.host, browser.url.port)
                writer.write(ask)
                return b" 200 " in await reader.readline(), writer

            tried = await asyncio.gather(*(try_one() for _ in range(40)))
            assert sum(served for served, _ in tried) == 5
            for _, writer in tried:
                writer.close()

    scenario(body)


def test_port_in_use_is_an_error() -> None:
    async def body() -> None:
        async with running() as (_, browser):
            with pytest.raises(OSError, match="in use"):
                async with running(port=browser.url.port):
                    pass

    scenario(body)


# --- WebSocket


async def ask(ws: aiohttp.ClientWebSocketResponse, method: str, *params: object, request_id: int = 1) -> Any:
    await ws.send_str(request(method, *params, request_id=request_id))
    return await ws.receive_json()


def event(subscription: int, topic: str, height: int, filler: str = "") -> dict[str, object]:
    params = {"subscription": subscription, "topic": topic, "event": {"height": height, "filler": filler}}
    return {"jsonrpc": "2.0", "method": "subscription", "params": params}


@pytest.mark.parametrize("path", ["ws", ""])
def test_calls_over_a_websocket(path: str) -> None:
    async def body() -> None:
        async with running() as (_, browser), browser.session.ws_connect(browser.url / path) as ws:
            assert (await ask(ws, "math_add", 2, 3)) == {"jsonrpc": "2.0", "result": 5, "id": 1}
            await ws.send_str(f"[{request('math_add', 1, 1)}]")
            assert [answer["result"] for answer in await ws.receive_json()] == [2]
            await ws.send_str("nonsense")
            assert (await ws.receive_json())["error"]["code"] == -32700
            await ws.send_str('{"jsonrpc":"2.0","method":"math_add","params":[1,1]}')
            assert (await ask(ws, "math_add", 4, 4))["result"] == 8

    scenario(body)


def test_a_slow_call_does_not_hold_up_the_next_one() -> None:
    async def body() -> None:
        async with running() as (_, browser), browser.session.ws_connect(browser.url / "ws") as ws:
            await ws.send_str(request("node_wait", 0.2, request_id=1))
            await ws.send_str(request("math_add", 1, 1, request_id=2))
            assert [(await ws.receive_json())["id"] for _ in range(2)] == [2, 1]

    scenario(body)


def test_calls_in_flight_are_limited_by_not_reading_on() -> None:
    async def body() -> None:
        async with (
            running(calls_in_flight=3) as (harness, browser),
            browser.session.ws_connect(browser.url / "ws") as ws,
        ):
            for number in range(10):
                await ws.send_str(request("node_wait", 0.02, request_id=number))
            assert sorted([(await ws.receive_json())["id"] for _ in range(10)]) == list(range(10))
            assert harness.node.most_waiting == 3

    scenario(body)


def test_leaving_cancels_calls_and_frees_the_feed() -> None:
    async def body() -> None:
        async with running() as (harness, browser):
            async with browser.session.ws_connect(browser.url / "ws") as ws:
                await ask(ws, "subscribe", "newHeads")
                await ws.send_str(request("node_wait", 60))
                await harness.node.began.wait()
            await harness.node.stopped.wait()
            harness.hub.publish(HEADS, Head(1))
            assert (await browser.call("math_add", 1, 1))["result"] == 2

    scenario(body)


def test_subscription_delivers_in_order_until_unsubscribed() -> None:
    async def body() -> None:
        async with running() as (harness, browser), browser.session.ws_connect(browser.url / "ws") as ws:
            harness.hub.publish(HEADS, Head(0))
            first = (await ask(ws, "subscribe", "newHeads"))["result"]
            second = (await ask(ws, "subscribe", "newHeads"))["result"]
            other = (await ask(ws, "subscribe", "jobs"))["result"]
            assert len({first, second, other}) == 3
            for height in (1, 2):
                harness.hub.publish(HEADS, Head(height))
            harness.hub.publish(JOBS, Head(9))
            assert [await ws.receive_json() for _ in range(5)] == [
                event(first, "newHeads", 1),
                event(second, "newHeads", 1),
                event(first, "newHeads", 2),
                event(second, "newHeads", 2),
                event(other, "jobs", 9),
            ]
            assert (await ask(ws, "unsubscribe", first))["result"] is True
            assert (await ask(ws, "unsubscribe", first))["result"] is False
            harness.hub.publish(HEADS, Head(3))
            assert await ws.receive_json() == event(second, "newHeads", 3)

    scenario(body)


def test_subscriptions_belong_to_one_connection() -> None:
    async def body() -> None:
        async with (
            running() as (harness, browser),
            browser.session.ws_connect(browser.url / "ws") as mine,
            browser.session.ws_connect(browser.url / "ws") as other,
        ):
            number = (await ask(mine, "subscribe", "newHeads"))["result"]
            assert (await ask(other, "unsubscribe", number))["result"] is False
            harness.hub.publish(HEADS, Head(1))
            assert await mine.receive_json() == event(number, "newHeads", 1)
            assert (await ask(other, "math_add", 1, 1))["result"] == 2

    scenario(body)


def test_answer_to_subscribe_comes_before_its_first_event() -> None:
    async def body() -> None:
        async with running() as (harness, browser), browser.session.ws_connect(browser.url / "ws") as ws:

            async def publish() -> None:
                while True:
                    harness.hub.publish(HEADS, Head(1))
                    await asyncio.sleep(0)

            publisher = asyncio.create_task(publish())
            try:
                seen: set[int] = set()
                for number in range(20):
                    await ws.send_str(request("subscribe", "newHeads", request_id=number))
                    while True:
                        message = await ws.receive_json()
                        if "result" in message:
                            break
                        assert message["params"]["subscription"] in seen
                    seen.add(message["result"])
                    await ask_until(ws, "unsubscribe", message["result"])
            finally:
                publisher.cancel()

    async def ask_until(ws: aiohttp.ClientWebSocketResponse, method: str, *params: object) -> None:
        await ws.send_str(request(method, *params))
        while "result" not in await ws.receive_json():
            pass

    scenario(body)


def test_subscribing_has_its_errors() -> None:
    async def body() -> None:
        async with running(subscriptions=2) as (_, browser), browser.session.ws_connect(browser.url / "ws") as ws:
            error = (await ask(ws, "subscribe", "newHead"))["error"]
            assert error["code"] == -32602
            assert "newHeads, jobs" in error["data"]["fix"]
            assert "result" in await ask(ws, "subscribe", "jobs")
            assert "result" in await ask(ws, "subscribe", "jobs")
            assert (await ask(ws, "subscribe", "jobs"))["error"]["data"]["name"] == "LIMIT"
            error = (await browser.call("subscribe", "newHeads"))["error"]
            assert error["data"]["name"] == "UNAVAILABLE"
            assert "/ws" in error["data"]["fix"]

    scenario(body)


def test_publishing_a_foreign_topic_is_a_programmers_error() -> None:
    with pytest.raises(AssertionError):
        Hub([JOBS]).publish(HEADS, Head(1))


async def deaf_subscriber(url: URL) -> socket.socket:
    """Subscribes by hand over a socket with a small buffer, and then never reads again."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (url.host, url.port))
    await loop.sock_sendall(
        sock,
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n",
    )
    assert b" 101 " in await loop.sock_recv(sock, 4096)
    text = request("subscribe", "newHeads").encode()
    await loop.sock_sendall(sock, bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    assert b'"result"' in await loop.sock_recv(sock, 4096)
    return sock


def test_slow_subscriber_is_cut_and_others_lose_nothing() -> None:
    async def body() -> None:
        async with (
            running(queue_bytes=300_000, connections=2) as (harness, browser),
            browser.session.ws_connect(browser.url / "ws") as good,
        ):
            number = (await ask(good, "subscribe", "newHeads"))["result"]
            sock = await deaf_subscriber(browser.url)
            for height in range(200):
                harness.hub.publish(HEADS, Head(height, "x" * 100_000))
                assert await good.receive_json() == event(number, "newHeads", height, "x" * 100_000)
            # It keeps its connection, one of the two that there are, from nobody.
            assert (await browser.call("math_add", 1, 1))["result"] == 2
            sock.close()

    scenario(body)


def test_burst_beyond_the_queue_ends_with_a_reason() -> None:
    async def body() -> None:
        async with (
            running(queue_bytes=1000) as (harness, browser),
            browser.session.ws_connect(browser.url / "ws") as ws,
        ):
            await ask(ws, "subscribe", "newHeads")
            for height in range(100):
                harness.hub.publish(HEADS, Head(height))
            heights = [json.loads(message.data)["params"]["event"]["height"] async for message in ws]
            assert ws.close_code == WSCloseCode.TRY_AGAIN_LATER
            assert heights == list(range(len(heights)))
            assert len(heights) < 100

    scenario(body)


def test_message_limit_and_kind() -> None:
    async def body() -> None:
        async with running(message_bytes=1000) as (_, browser):
            async with browser.session.ws_connect(browser.url / "ws") as ws:
                await ws.send_str(" " * 2000)
                assert (await ws.receive()).type is WSMsgType.CLOSE
                assert ws.close_code == WSCloseCode.MESSAGE_TOO_BIG
            async with browser.session.ws_connect(browser.url / "ws") as ws:
                await ws.send_bytes(request("math_add", 1, 1).encode())
                assert (await ws.receive()).type is WSMsgType.CLOSE
                assert ws.close_code == WSCloseCode.UNSUPPORTED_DATA

    scenario(body)


def test_silent_websocket_is_closed() -> None:
    async def body() -> None:
        async with (
            running(idle_seconds=0.1) as (harness, browser),
            browser.session.ws_connect(browser.url / "ws", autoping=False) as ws,
        ):
            await ask(ws, "subscribe", "newHeads")
            assert (await ws.receive()).type is WSMsgType.PING
            assert (await ws.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
            assert harness.hub

    scenario(body)


# --- what is held for clients


async def deaf_caller(url: URL, mebibytes: int) -> socket.socket:
    """Posts a call with a large answer and reads none of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (url.host, url.port))
    text = request("node_tell", mebibytes).encode()
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await loop.sock_sendall(sock, head % len(text) + text)
    return sock


def test_answers_that_nobody_takes_are_bounded_together_and_keep_nobody_from_theirs() -> None:
    async def body() -> None:
        async with running(room_bytes=16 << 20) as (harness, browser):
            most = 0
            deaf = []
            for _ in range(12):
                deaf.append(await deaf_caller(browser.url, 6))
                await asyncio.sleep(0.02)
                most = max(most, harness.server._room.total_bytes)
                assert len((await browser.call("node_tell", 4))["result"]) == 4 << 20
            assert 6 << 20 < most <= 16 << 20
            assert len(harness.server._places) < 6
            for sock in deaf:
                sock.close()
            await asyncio.sleep(0.1)
            assert harness.server._room.total_bytes == 0

    scenario(body)


def test_a_websocket_that_takes_no_answers_is_cut_where_others_need_the_room() -> None:
    async def body() -> None:
        async with running(room_bytes=8 << 20) as (harness, browser):
            deaf = await deaf_subscriber(browser.url)
            text = request("node_tell", 3).encode()
            frame = bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text
            await asyncio.get_running_loop().sock_sendall(deaf, frame * 10)
            await asyncio.sleep(0.1)
            assert harness.server._room.total_bytes <= 8 << 20
            assert len((await browser.call("node_tell", 7))["result"]) == 7 << 20
            assert len(harness.server._places) == 1
            deaf.close()

    scenario(body)


def test_a_client_that_takes_nothing_is_cut_and_a_steady_one_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "STALL_SECONDS", 0.2)

    async def body() -> None:
        async with running() as (harness, browser):
            deaf = await deaf_caller(browser.url, 8)
            reader, writer = await asyncio.open_connection(browser.url.host, browser.url.port, limit=1 << 16)
            text = request("node_tell", 8).encode()
            head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
            seen = 0
            while chunk := await reader.read(1 << 18):
                seen += len(chunk)
                await asyncio.sleep(0.02)
            assert seen > 8 << 20
            assert len(harness.server._places) == 0
            deaf.close()

    scenario(body)


def test_bodies_under_way_are_bounded_together() -> None:
    async def body() -> None:
        async with running(room_bytes=4 << 20, body_bytes=1 << 20) as (harness, browser):
            head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            head += b"Content-Length: 900001\r\n\r\n"
            held = [await asyncio.open_connection(browser.url.host, browser.url.port) for _ in range(12)]
            for _, writer in held:
                writer.write(head + b" " * 900_000)
            await asyncio.sleep(0.2)
            assert 2 << 20 < harness.server._room.total_bytes <= 4 << 20
            fits = request("math_add", 1, 2)
            assert (await browser.post(fits + " " * 900_000))[0] == 200
            for _, writer in held:
                writer.close()

    scenario(body)


NO_HTTP = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    "a bad version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "a bad header": b"GET / HTTP/1.1\r\nHost: localhost\r\nA B\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a length that is none": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a bad chunk": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "a long line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a bad upgrade": b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n",
    "a body that breaks off": AT_REST["a body that never comes"],
}


@pytest.mark.parametrize("kind", NO_HTTP)
def test_what_is_no_request_is_told_so_and_fills_no_log(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with running() as (_, browser):
            reader, writer = await asyncio.open_connection(browser.url.host, browser.url.port)
            writer.write(NO_HTTP[kind])
            writer.write_eof()
            answer = await reader.read(4096)
            assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
            writer.close()
            await asyncio.sleep(0.05)
            assert (await browser.call("math_add", 1, 1))["result"] == 2

    scenario(body)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# --- shutdown


def test_shutdown_finishes_short_calls_and_says_goodbye() -> None:
    async def body() -> None:
        harness = Harness(RpcConfig(shutdown_seconds=5))
        async with aiohttp.ClientSession() as session:
            async with harness.server.serving() as url:
                browser = Browser(url, session)
                ws = await session.ws_connect(url / "ws")
                call = asyncio.create_task(browser.call("node_wait", 0.2))
                await harness.node.began.wait()
                leaving = asyncio.create_task(ws.receive())
            assert (await call)["result"] == "done"
            assert (await leaving).type is WSMsgType.CLOSE
            assert ws.close_code == WSCloseCode.GOING_AWAY
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.get(url / "health")

    scenario(body)


def test_shutdown_does_not_wait_for_long_calls_idle_clients_or_deaf_ones() -> None:
    async def body() -> None:
        harness = Harness(RpcConfig(shutdown_seconds=0.2))
        async with aiohttp.ClientSession() as session:
            async with harness.server.serving() as url:
                browser = Browser(url, session)
                _, idle = await asyncio.open_connection(url.host, url.port)
                sock = await deaf_subscriber(url)
                harness.hub.publish(HEADS, Head(1, "x" * 3_000_000))
                call = asyncio.create_task(browser.call("node_wait", 60))
                await harness.node.began.wait()
                begin = time.monotonic()
            assert time.monotonic() - begin < 3
            assert harness.node.cancelled == 1
            with pytest.raises(aiohttp.ClientConnectionError):
                await call
            sock.close()
            idle.close()

    scenario(body)
