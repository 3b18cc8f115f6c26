"""A node that lies: stands before a true one, and changes what passes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web


class LyingNode:
    """What to do with which method, and with tensors. Attributes may be set at any time."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.changes: dict[str, Callable[[Any, Any], Any]] = {}
        """Method → function of (parameters, true result) that gives the false one; KeyError answers NOT_FOUND."""
        self.swallowed: set[str] = set()
        """Methods that are answered as if they had been carried out, once."""
        self.tensor: Callable[[bytes], bytes | None] = lambda data: data
        """Applied to downloads; None answers NOT_FOUND."""
        self.stored: Callable[[bytes], bytes] = lambda answer: answer
        """Applied to the answers to uploads."""
        self.mangled: dict[str, str] = {}
        """Method → what is done to its answer, which the true node has given: drop (the connection is cut), garble (no
        JSON), gateway (an HTML page with status 502), withhold (never sent); or lose (the connection is cut before the
        true node hears of the call)."""
        self.goes_down_after = ""
        """A method after whose answer, mangled or not, nothing is answered any more."""
        self.is_down = False
        self.calls: list[str] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.is_down:
            return self._cut(request)
        if "Upgrade" in request.headers:
            return web.Response(status=404)  # no subscriptions: whoever waits must ask
        body = await request.read()
        if request.method == "POST":
            return await self._call(request, body)
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self.target + request.path_qs, data=body) as answer,
        ):
            data: bytes | None = await answer.read()
            if request.method == "GET" and answer.status == 200:
                assert data is not None
                data = self.tensor(data)
            elif request.method == "PUT":
                data = self.stored(data or b"")
            status = 404 if data is None else answer.status
            return web.Response(body=data, status=status, content_type=answer.content_type)

    async def _call(self, request: web.BaseRequest, body: bytes) -> web.Response:
        call = msgspec.json.decode(body)
        method = call["method"]
        self.calls.append(method)
        mangling = self.mangled.get(method, "")
        if mangling == "lose":
            return self._cut(request)
        if method in self.swallowed:
            self.swallowed.discard(method)
            answer = {"jsonrpc": "2.0", "id": call["id"], "result": {"txid": "00" * 32, "id": "00" * 32}}
            return web.json_response(answer)
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.target, data=body, headers=headers) as response,
        ):
            answer = msgspec.json.decode(await response.read())
        change = self.changes.get(method)
        if change is not None and "result" in answer:
            try:
                answer["result"] = change(call.get("params"), answer["result"])
            except KeyError:
                del answer["result"]
                answer["error"] = {"code": -32001, "message": "gone", "data": {"name": "NOT_FOUND", "fix": "none"}}
        self.is_down |= method == self.goes_down_after
        if mangling == "drop":
            return self._cut(request)
        if mangling == "withhold":
            await asyncio.sleep(60)
        if mangling == "gateway":
            return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")
        body = b'{"jsonrpc": "2.0", "id": 1, "res' if mangling == "garble" else msgspec.json.encode(answer)
        return web.Response(body=body, content_type="application/json")

    def _cut(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


@contextmanager
def lying_node(target: str) -> Iterator[LyingNode]:
    """A `LyingNode` before the node at `target`, with a thread and an event loop of its own."""
    liar = LyingNode(target)
    started = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    ended = asyncio.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        runner = web.ServerRunner(web.Server(liar.handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        liar.url = f"http://{host}:{port}"
        started.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="liar")
    thread.start()
    try:
        assert started.wait(10)
        yield liar
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join(10)
