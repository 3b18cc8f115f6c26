"""JSON-RPC over HTTP and WebSocket on aiohttp, with subscriptions, probes and whatever routes the caller adds.

Who may call: the server has no passwords, so what keeps strangers out is where it listens (loopback by default) and
three rules against web pages that a user happens to visit. The Host must be an IP address, `localhost` or a
configured name: a page that rebinds its own domain name to 127.0.0.1 is refused. An Origin other than the server's
own must be configured, for WebSockets as for posts. A post must be `application/json`, so that a browser asks first.

Limits, each met before memory is spent: connections (`node.rpc.places`: one more pushes out one at rest, or is answered
503), bytes of a body or a message, of all that is held for clients (`node.rpc.room`), requests of a batch, time of a
call, calls in flight and subscriptions of one WebSocket, bytes of events that wait for a slow reader. A client beyond
the last is disconnected rather than skipped: its stream never has holes.

A call made over a WebSocket is cancelled when the client leaves; one posted is carried out.
"""

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache, partial
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from aiohttp import WSCloseCode, WSMsgType, hdrs, web
from aiohttp.http import HttpProcessingError
from msgspec import Meta, Raw, Struct
from yarl import URL

from api.errors import FORBIDDEN, INVALID_REQUEST, LIMIT, NOT_FOUND, TIMEOUT, UNAVAILABLE, ErrorKind
from api.params import NoParams, Params
from node.compute import BYTE_S, Shares, metered
from node.rpc.jsonrpc import Call, Dispatcher, Observe, RpcError
from node.rpc.places import Connection, Places
from node.rpc.registry import Info, Method, Table, openrpc
from node.rpc.room import PushedOut, Room, Share
from node.rpc.subscriptions import Feed, Hub

logger = logging.getLogger(__name__)

N = TypeVar("N")
_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_CLOSE_SECONDS = 1.0
"""How long a closing WebSocket may take over its last frames before the connection is cut."""
_CHUNK_BYTES = 64 << 10
"""An answer leaves in pieces, so that the connection's buffer holds no second copy of it."""
_CALL_S = 0.0003
"""What a call costs on the event loop, besides its answer's bytes and what it has done elsewhere."""

_AT_HAND_S = 0.0001
"""The same, of one whose answer is at hand."""

_JSON = "application/json"
_KNOWN_HOSTS = 64
"""Spellings of `Host` that have been looked at already."""
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: %b\r\nContent-Length: %d\r\n\r\n"
_SMALL_BYTES = 4096
"""A body up to that, which came with its head, may be a call whose answer is at hand."""
_SPECIAL = (hdrs.ORIGIN, hdrs.CONTENT_ENCODING, hdrs.EXPECT)
"""Headers that take a closer look."""

_BODY: web.RequestKey[bytes] = web.RequestKey("body", bytes)
"""What has been read of the body already."""
_CONNECTION: web.RequestKey[Connection] = web.RequestKey("connection", Connection)


class RpcConfig(Struct, frozen=True):
    """Where to listen, for whom, and how much of everything. Port 0 lets the system choose."""

    host: str = "127.0.0.1"
    port: int = 0
    allowed_hosts: frozenset[str] = frozenset()
    """Host names beyond `localhost` and IP addresses: lower case, without port."""
    allowed_origins: frozenset[str] = frozenset()
    """Origins of foreign web pages that may call, exactly as a browser sends them: `https://explorer.example`."""
    body_bytes: int = 5 << 20
    message_bytes: int = 512 << 10
    """Of one WebSocket message: twice the largest transaction in hexadecimal. aiohttp keeps the parts of one that is on
    its way, where nobody counts them."""
    room_bytes: int = 64 << 20
    """Of all bodies and messages that are here, and answers that clients have not taken yet."""
    connections: int = 256
    connections_per_household: int = 64
    call_seconds: float = 10.0
    calls_in_flight: int = 16
    subscriptions: int = 32
    queue_bytes: int = 1 << 20
    idle_seconds: float = 30.0
    """An idle HTTP connection is closed after it; a WebSocket is pinged as often, and closed if it stays silent."""
    shutdown_seconds: float = 2.0
    """How long calls in flight may go on at shutdown before they are cancelled."""


class Readiness(Struct, frozen=True):
    """What a probe answers; `reason` says why not."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Probes:
    """What `/health` (alive), `/ready` (synced and serving) and `/metrics` (Prometheus text) answer."""

    health: Callable[[], Readiness]
    ready: Callable[[], Readiness]
    metrics: Callable[[], bytes]


# --- the server's own methods --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Client:
    """What the server's own methods may see of whoever calls; `feed` is None unless it is a WebSocket."""

    document: Raw
    hub: Hub
    feed: Feed | None

    def require_feed(self) -> Feed:
        if self.feed is None:
            raise RpcError(UNAVAILABLE, "Subscriptions need a WebSocket", fix="Connect to /ws and subscribe there.")
        return self.feed


class _Subscribe(Params, frozen=True):
    topic: Annotated[str, Meta(description="Name of the topic.")]


class _Unsubscribe(Params, frozen=True):
    subscription: Annotated[int, Meta(description="The number that `subscribe` returned on this connection.")]


_OWN: Table[_Client] = Table()


@_OWN.method("rpc.discover")
async def _discover(client: _Client, _params: NoParams) -> Raw:
    """This document: an OpenRPC description of every method, type and topic."""
    return client.document


@_OWN.method("subscribe", errors=[UNAVAILABLE, LIMIT])
async def _subscribe(client: _Client, params: _Subscribe) -> int:
    """Start a subscription, over a WebSocket only; gives its number, unique within the connection.

    Each event then comes as a notification `subscription` with `{"subscription": number, "topic": name, "event": …}`.
    A client that reads too slowly is disconnected (close code 1013) and loses nothing silently: it reconnects,
    subscribes again and asks for what it missed.
    """
    return client.require_feed().subscribe(client.hub.named(params.topic))


@_OWN.method("unsubscribe", errors=[UNAVAILABLE])
async def _unsubscribe(client: _Client, params: _Unsubscribe) -> bool:
    """End a subscription; tells whether there was one. Events already on their way still arrive."""
    return client.require_feed().unsubscribe(params.subscription)


def every_method(table: Table[Any]) -> list[Method[Any]]:
    """What `rpc.discover` and docs/rpc.md describe: the server's own methods and the table's."""
    return [*_OWN, *table]


# --- one WebSocket -------------------------------------------------------------------------------------------------


class _Socket:
    """A WebSocket client: its requests run concurrently up to a limit, then it is not read until one is answered."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        connection: Connection,
        room: Room,
        feed: Feed,
        dispatcher: Dispatcher,
        call: Call,
        slots: int,
    ) -> None:
        self._ws = ws
        self._connection = connection
        self._room = room
        self._feed = feed
        self._dispatcher = dispatcher
        self._call = call
        self._slots = asyncio.Semaphore(slots)
        # Fair, so that the answer to `subscribe` leaves before the subscription's first event.
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Until the client leaves, is too slow, or the server closes."""
        calls: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self._feed.pump(self._send))
            guard = tasks.create_task(self._cut_slow_reader())
            try:
                async for message in self._ws:
                    if message.type is not WSMsgType.TEXT:
                        await self._ws.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"send JSON-RPC as text")
                        break
                    await self._slots.acquire()
                    task = tasks.create_task(self._answer(message.data))
                    calls.add(task)
                    task.add_done_callback(calls.discard)
            finally:
                if not self._feed.overflow.is_set():
                    guard.cancel()
                for task in (pump, *calls):
                    task.cancel()

    async def close(self, code: WSCloseCode, message: bytes) -> None:
        """Say why and close; whoever lets the closing frame wait is cut off."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._ws.close(code=code, message=message, drain=False)
        except TimeoutError:
            self._connection.cut()

    async def _answer(self, message: str) -> None:
        try:
            with suppress(PushedOut), self._room.share(self._connection) as share:
                share.grow(len(message))
                answer = await self._dispatcher.respond(message, self._call, share.grow)
                if answer is not None:
                    await self._send(answer)
        finally:
            self._slots.release()

    async def _send(self, frame: bytes) -> None:
        async with self._turn:
            with suppress(ConnectionError):  # the reader sees it too, and ends the session
                await self._ws.send_frame(frame, WSMsgType.TEXT)

    async def _cut_slow_reader(self) -> None:
        await self._feed.overflow.wait()
        logger.warning("a subscriber reads too slowly and is disconnected")
        await self.close(WSCloseCode.TRY_AGAIN_LATER, b"too slow: reconnect")


# --- HTTP ----------------------------------------------------------------------------------------------------------

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
"""A name or an address, an IPv6 one in brackets, and perhaps a port."""


_quiet = logging.getLogger(f"{__name__}.http")
"""What aiohttp has to say of requests."""


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether the node is to blame: of what is no HTTP a stranger could fill the log with tracebacks."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError | ConnectionError)


_quiet.addFilter(_is_ours)


def _no_place() -> bytes:
    """What somebody is sent who finds every place taken by calls and WebSockets."""
    body = RpcError(LIMIT, "Too many connections", fix="Close idle connections, or try again later.").response()
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def connection_of(request: web.Request) -> Connection:
    """The connection that a request came over."""
    return request[_CONNECTION]


def _refusal(status: int, kind: ErrorKind, message: str, fix: str) -> web.Response:
    return web.Response(
        status=status, body=RpcError(kind, message, fix=fix).response(), content_type="application/json"
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class RpcServer(Generic[N]):
    """Serves a table of methods about `node`, the hub's topics, the probes, and extra `routes` under the same rules.

    A handler of an extra route may raise `RpcError`: the client gets it as JSON with the kind's HTTP status. Calls have
    their share of the node's time: whoever calls much waits for itself.
    """

    def __init__(
        self,
        config: RpcConfig,
        info: Info,
        table: Table[N],
        node: N,
        hub: Hub,
        probes: Probes,
        observe: Observe,
        shares: Shares,
        routes: Iterable[web.AbstractRouteDef] = (),
    ) -> None:
        assert not any(method.name in table for method in _OWN), "the table redeclares a method of the server"
        self._config = config
        self._table = table
        self._node = node
        self._hub = hub
        self._shares = shares
        self._probes = probes
        names = frozenset(method.name for method in every_method(table))
        self._dispatcher = Dispatcher(names, call_seconds=config.call_seconds, observe=observe)
        self._places = Places(config.connections, config.connections_per_household, _no_place())
        self._room = Room(config.room_bytes)
        self._document = Raw(msgspec.json.encode(openrpc(info, every_method(table), hub.topics)))
        self._sockets: set[_Socket] = set()
        self._serves_host = lru_cache(_KNOWN_HOSTS)(self._is_own_host)
        self._app = web.Application(middlewares=[self._gate])
        self._app.add_routes(
            [
                web.post("/", self._post),
                web.get("/", self._websocket, allow_head=False),
                web.get("/ws", self._websocket, allow_head=False),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/metrics", self._metrics),
                *routes,
            ]
        )
        if config.allowed_origins:
            self._app.on_response_prepare.append(self._allow_origin)
        self._app.on_shutdown.append(self._close_sockets)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[URL]:
        """Listen while the context lasts; gives the URL. Raises `OSError` if the address cannot be had.

        At the end: nobody new, WebSockets closed (1001), calls in flight get `shutdown_seconds` and are then cancelled.
        """
        runner = web.AppRunner(
            self._app,
            access_log=None,
            logger=_quiet,
            auto_decompress=False,  # what a client sends is as large as it looks
            lingering_time=_CLOSE_SECONDS,
            keepalive_timeout=self._config.idle_seconds,
            shutdown_timeout=self._config.shutdown_seconds,
        )
        await runner.setup()
        try:
            server = runner.server
            assert server is not None
            server.request_handler = partial(self._front, server.request_handler)
            listener = await asyncio.get_running_loop().create_server(
                lambda: Connection(server(), self._places), self._config.host, self._config.port
            )
            try:
                host, port = listener.sockets[0].getsockname()[:2]
                yield URL.build(scheme="http", host=host, port=port)
            finally:
                listener.close()
        finally:
            await runner.cleanup()

    # What is at hand

    async def _front(self, application: _Handler, request: web.BaseRequest) -> web.StreamResponse:
        """Before the routes: answer what is at hand, and pass on the rest.

        A call of a few dozen bytes whose answer is ready takes less time than to route it and to put its answer
        together header by header.
        """
        headers, content, transport = request.headers, request.content, request.transport
        if (
            request.method == hdrs.METH_POST
            and headers.get(hdrs.CONTENT_TYPE) == _JSON
            and content.is_eof()
            and 0 < content.total_bytes <= _SMALL_BYTES
            and headers.keys().isdisjoint(_SPECIAL)
            and request.rel_url.raw_path == "/"
            and request.keep_alive
            and transport is not None
            and not transport.get_write_buffer_size()  # whoever does not read gets no answers ahead
            and self._serves_host(headers.get(hdrs.HOST, ""))
            and self._shares.has_spare()
        ):
            body = request[_BODY] = content.read_nowait()
            answer = self._dispatcher.at_once(body, self._at_hand)
            if answer is not None:
                self._shares.charge(self._places.of(request).asker, _AT_HAND_S + len(answer) * BYTE_S)
                return _Whole(transport, answer)
        return await application(request)

    def _at_hand(self, name: str, params: Raw) -> bytes | None:
        method = self._table.get(name)
        return None if method is None else method.at_hand(self._node, params)

    # Who may call

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not self._serves_host(request.headers.get(hdrs.HOST, "")):
            fix = "Use the IP address or localhost, or add the name to the node's allowed hosts."
            return _refusal(403, FORBIDDEN, "This Host is not served", fix)
        if not self._is_allowed_origin(request):
            fix = "Add the page's origin to the node's allowed origins."
            return _refusal(403, FORBIDDEN, "Pages of this Origin may not call", fix)
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204)
        try:
            request[_CONNECTION] = self._places.of(request)
            return await handler(request)
        except RpcError as error:
            return web.Response(status=error.kind.status, body=error.response(), content_type=_JSON)
        except web.HTTPError as error:
            kind = LIMIT if error.status == 413 else NOT_FOUND if error.status == 404 else INVALID_REQUEST
            fix = f"Send at most {self._config.body_bytes} bytes." if kind is LIMIT else "POST JSON-RPC to /."
            return _refusal(error.status, kind, error.reason, fix)
        except (ConnectionError, web.RequestPayloadError):  # the client has left, was cut off, or broke its own chunks
            return _refusal(400, INVALID_REQUEST, "The body broke off", "Send all of it.")

    def _is_own_host(self, text: str) -> bool:
        # No reader of URLs: to one `evil.example@127.0.0.1` and `127.0.0.1#evil.example` are both 127.0.0.1.
        host = _HOST.fullmatch(text)
        if host is None:
            return False
        name = host["name"].strip("[]").lower()
        return name == "localhost" or name in self._config.allowed_hosts or _is_address(name)

    def _is_allowed_origin(self, request: web.Request) -> bool:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or origin in self._config.allowed_origins:
            return True
        return origin == f"{request.scheme}://{request.headers[hdrs.HOST]}"

    async def _allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[hdrs.VARY] = hdrs.ORIGIN
        origin = request.headers.get(hdrs.ORIGIN)
        if origin not in self._config.allowed_origins:
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        if request.method == hdrs.METH_OPTIONS:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST, PUT"
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = "Content-Type"
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"

    # Calls

    def _call(self, connection: Connection, feed: Feed | None) -> Call:
        client, shares, asker = _Client(self._document, self._hub, feed), self._shares, connection.asker

        async def invoke(name: str, params: Raw) -> bytes:
            if name in _OWN:
                return await _OWN[name].invoke(client, params)
            return await self._table[name].invoke(self._node, params)

        async def call(name: str, params: Raw) -> bytes:
            await shares.pay(asker, _CALL_S)
            with metered() as seconds:
                try:
                    answer = await invoke(name, params)
                finally:
                    shares.charge(asker, sum(seconds))
            shares.charge(asker, len(answer) * BYTE_S)
            return answer

        return call

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != _JSON or hdrs.CONTENT_ENCODING in request.headers:
            fix = "Send the header `Content-Type: application/json` and an uncompressed body."
            return _refusal(415, INVALID_REQUEST, "The body is not plain application/json", fix)
        if (request.content_length or 0) > self._config.body_bytes:
            raise web.HTTPRequestEntityTooLarge(self._config.body_bytes, request.content_length or 0)
        connection = connection_of(request)
        with self._room.share(connection) as share:
            try:
                async with asyncio.timeout(self._config.call_seconds):
                    body = await self._body(request, share)
            except TimeoutError:
                return _refusal(408, TIMEOUT, "The body did not arrive in time", "Send it faster.")
            with connection.busy():
                answer = await self._dispatcher.respond(body, self._call(connection, None), share.grow)
                if answer is None:
                    return web.Response(status=204)
                if len(answer) <= _CHUNK_BYTES:
                    return web.Response(body=answer, content_type=_JSON)
                return await _sent(request, answer)

    async def _body(self, request: web.Request, share: Share) -> bytes:
        """The whole body, as it comes. Raises `HTTPRequestEntityTooLarge`."""
        body = bytearray()

        def take(chunk: bytes) -> None:
            nonlocal body
            share.grow(len(chunk))
            body += chunk
            if len(body) > self._config.body_bytes:
                raise web.HTTPRequestEntityTooLarge(self._config.body_bytes, len(body))

        take(request.get(_BODY, b""))
        async for chunk in request.content.iter_any():
            take(chunk)
        return bytes(body)

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(
            max_msg_size=self._config.message_bytes,
            compress=False,
            heartbeat=self._config.idle_seconds,
            timeout=_CLOSE_SECONDS,
        )
        if not ws.can_prepare(request):
            return _refusal(
                426, INVALID_REQUEST, "This is a WebSocket", "Connect with a WebSocket, or POST JSON-RPC to /."
            )
        connection = connection_of(request)
        await ws.prepare(request)
        feed = Feed(self._config.subscriptions, self._config.queue_bytes)
        slots = self._config.calls_in_flight
        socket = _Socket(ws, connection, self._room, feed, self._dispatcher, self._call(connection, feed), slots)
        self._sockets.add(socket)
        self._hub.attach(feed)
        try:
            with connection.busy():
                await socket.run()
        finally:
            self._hub.detach(feed)
            self._sockets.discard(socket)
            # A closed connection lives on until all is sent: one whose client does not read must not for long.
            asyncio.get_running_loop().call_later(_CLOSE_SECONDS, connection.cut)
        return ws

    async def _close_sockets(self, _app: web.Application) -> None:
        reason = b"the node is stopping"
        await asyncio.gather(*(socket.close(WSCloseCode.GOING_AWAY, reason) for socket in self._sockets))

    # Probes

    async def _health(self, _request: web.Request) -> web.Response:
        return _status(self._probes.health())

    async def _ready(self, _request: web.Request) -> web.Response:
        return _status(self._probes.ready())

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = self._probes.metrics()
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4; charset=utf-8"})


async def _sent(request: web.Request, answer: bytes) -> web.StreamResponse:
    """An answer that the client has taken, but for what its connection still buffers."""
    response = web.StreamResponse()
    response.content_type = _JSON
    response.content_length = len(answer)
    await response.prepare(request)
    view = memoryview(answer)
    for start in range(0, len(answer), _CHUNK_BYTES):
        await response.write(view[start : start + _CHUNK_BYTES])
    await response.write_eof()
    return response


class _Whole(web.StreamResponse):
    """An answer that leaves in one piece, and leaves the connection open."""

    def __init__(self, transport: asyncio.Transport, body: bytes) -> None:
        # Nothing of the base is used: no headers, no cookies, no state.
        self._transport = transport
        self._whole = _HEAD % (_date(int(time.time())), len(body)) + body

    @property
    def keep_alive(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        if not self._transport.is_closing():
            self._transport.write(self._whole)


@lru_cache(1)
def _date(seconds: int) -> bytes:
    """The time as HTTP writes it (RFC 9110, 5.6.7)."""
    return formatdate(seconds, usegmt=True).encode()


def _status(status: Readiness) -> web.Response:
    body = msgspec.json.encode(status)
    return web.Response(status=200 if status.ok else 503, body=body, content_type=_JSON)
