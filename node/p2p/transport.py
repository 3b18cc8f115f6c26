"""How frames travel: the small interface that the network needs, and TLS 1.3 WebSockets behind it.

A transport moves bounded frames and tells which key the listener has proved. Everything else (who the dialler is, what
frames mean) is the peer protocol's. Strangers, whose key nobody has seen yet, are bounded here, where they arrive: in
number, in all and for each network group, in time, and in how often one group may ask for the work of TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import socket
import ssl
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import aiohttp
from aiohttp import WSMsgType, web

from api.http import refuse_redirects
from node.p2p.identity import Identity, certificate_hash, certified_key
from node.p2p.limits import MAX_MESSAGE_BYTES, PREFIX_BYTES, PeerLimits

logger = logging.getLogger("tilework.network")

_BACKLOG = 128
"""Connections that the kernel may keep ready for the node to take."""
_ACCEPT_PAUSE_S = 0.2
"""Rest after a connection that could not be taken: descriptors or memory are short, and others give some back."""
_CLOSE_S = 1.0
"""A closing connection is cut off after this, whatever the other end does meanwhile."""
_END_OF_HEAD = b"\r\n\r\n"
_MAX_HEAD_BYTES = 8 << 10
"""Head of a request or an answer; a node's own has some hundred bytes."""
_MAX_GROUPS = 256
"""Network groups whose TLS handshakes are remembered."""


class Endpoint(NamedTuple):
    """Where a node listens; `host` is an IP literal or a name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """`host:port` or `[IPv6]:port`; ValueError otherwise."""
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r} is no address: write an IPv6 host as [host]:port")
        if not colon or not host or not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
            raise ValueError(f"{text!r} is no address: write host:port")
        return cls(host, int(port))


def host_group(host: str) -> str:
    """The network that a host belongs to: the /16 of an IPv4 address, the /32 of an IPv6 one; a name is its own."""
    try:
        ip = ip_of(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((ip, 16 if ip.version == 4 else 32), strict=False))


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IP literal, an IPv4 one in an IPv6 one's clothes as itself; ValueError for a name."""
    ip = ipaddress.ip_address(host)
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


class ConnectionLost(Exception):
    """The connection cannot be made or has ended; the text says how."""


class FrameTooLarge(ConnectionLost):
    """The other side sent a frame above the limit of every type, or one that is no binary message."""


class Connection(Protocol):
    """One ordered stream of frames between two nodes.

    Attributes:
        remote: the other end's host and port (an inbound one's port is not where it listens).
        listener_key: the key that the listening end has proved.
        binding: hash of the listener's certificate.
    """

    @property
    def remote(self) -> Endpoint: ...
    @property
    def listener_key(self) -> bytes: ...
    @property
    def binding(self) -> bytes: ...

    async def send(self, frame: bytes) -> None:
        """Returns once the frame has left or is buffered below the transport's limit. Raises ConnectionLost."""

    async def receive(self) -> bytes:
        """The next frame. Raises ConnectionLost."""

    def settle(self) -> None:
        """The other end is known now: it stands no longer among the strangers, who are few and must hurry."""

    async def close(self) -> None:
        """End the connection, within a second whatever the other end does; never raises."""


Accept: TypeAlias = Callable[[Connection], Awaitable[None]]
"""Called for every inbound connection; the connection ends when it returns."""


class Transport(Protocol):
    """Listens and dials."""

    async def listen(self, address: Endpoint, accept: Accept) -> Endpoint:
        """Start to accept; the address in use (port 0 asks for a free one). Raises OSError."""

    async def dial(self, address: Endpoint) -> Connection:
        """Raises ConnectionLost."""

    async def close(self) -> None:
        """Stop listening and end what is left of the connections."""


class _Frames:
    """Walks over one direction of a connection, from the first byte: the head of HTTP, then a WebSocket's frames.

    Nodes send every message in a frame of its own. aiohttp would take fragments of nothing for ever, and tiny frames by
    the ten thousand, before anybody who counts hears of them.
    """

    def __init__(self) -> None:
        self._http: bytes | None = b""
        self._head = b""
        self._payload = 0

    def fault_in(self, data: bytes) -> str:
        """What is wrong with the next bytes; empty if nothing is."""
        at = 0
        if self._http is not None:
            before = len(self._http)
            self._http += data
            end = self._http.find(_END_OF_HEAD)
            if end < 0:
                return "" if len(self._http) <= _MAX_HEAD_BYTES else "a head without an end"
            at = end + len(_END_OF_HEAD) - before
            self._http = None
        while at < len(data):
            if self._payload:
                step = min(self._payload, len(data) - at)
                self._payload -= step
            else:
                step = min(self._head_bytes() - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == self._head_bytes() and (fault := self._begin()):
                    return fault
            at += step
        return ""

    def _head_bytes(self) -> int:
        """Length of the head of the frame that begins, as far as it can be told."""
        if len(self._head) < 2:
            return 2
        length = self._head[1] & 0x7F
        return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if self._head[1] & 0x80 else 0)

    def _begin(self) -> str:
        """A frame's head is complete."""
        head, self._head = self._head, b""
        kind, length = head[0] & 0x0F, head[1] & 0x7F
        self._payload = (
            int.from_bytes(head[2:4]) if length == 126 else int.from_bytes(head[2:10]) if length == 127 else length
        )
        if not head[0] & 0x80 or kind == 0:
            return "a message in parts"
        if kind != WSMsgType.CLOSE and self._payload < PREFIX_BYTES:
            return "a frame too short for a message"
        return ""


class _Watch(asyncio.Protocol):
    """Stands in front of aiohttp's handler of one connection, and ends it at the first byte that no node would send.

    Attributes:
        transport: TLS, once its handshake is done.
        fault: what the other end sent; empty while there is nothing wrong.
    """

    def __init__(self, handler: asyncio.Protocol) -> None:
        self.transport: asyncio.Transport | None = None
        self.fault = ""
        self._handler = handler
        self._frames = _Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.fault = self.fault or self._frames.fault_in(data)
        if not self.fault:
            self._handler.data_received(data)
        elif self.transport is not None:
            self.transport.abort()

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)


class _Arrival(_Watch):
    """An inbound connection from accept to its end.

    Attributes:
        group: the network that it comes from.
        has_spoken: it has sent something.
    """

    def __init__(self, group: str, handler: web.RequestHandler, leave: Callable[[_Arrival], None]) -> None:
        """`leave` is called when the connection is lost."""
        super().__init__(handler)
        self.group = group
        self.has_spoken = False
        self.handler = handler
        self._leave = leave
        self._handshake: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def begin(self, handshake: asyncio.Task[None], patience_s: float) -> None:
        """The task that brings TLS; the connection is cut off unless it becomes a WebSocket in time."""
        self._handshake = handshake
        self._deadline = handshake.get_loop().call_later(patience_s, self.drop)

    def upgrade(self) -> None:
        """It is a WebSocket: the deadline is met."""
        if self._deadline is not None:
            self._deadline.cancel()

    def drop(self) -> None:
        """Cut it off."""
        if self.transport is not None:
            self.transport.abort()
        elif self._handshake is not None:
            self._handshake.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upgrade()
        self._leave(self)
        super().connection_lost(exc)


class _Lobby:
    """The connections of strangers, in the order of their arrival: few, and fewer of one network group.

    Where it is full a newcomer pushes somebody out of the most crowded group, so that no group keeps another one out:
    one that has said nothing if there is any, and the first that came.
    """

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._places: dict[_Arrival, None] = {}

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, arrival: _Arrival) -> None:
        """Give a place."""
        crowds = Counter(other.group for other in self._places)
        if crowds[arrival.group] >= self._limits.max_strangers_per_group:
            self._push_out(arrival.group)
        elif len(self._places) >= self._limits.max_strangers:
            self._push_out(max(crowds, key=lambda group: crowds[group]))
        self._places[arrival] = None

    def leave(self, arrival: _Arrival) -> None:
        """Its place is free."""
        self._places.pop(arrival, None)

    def clear(self) -> None:
        """Cut off everybody."""
        for arrival in list(self._places):
            arrival.drop()

    def _push_out(self, group: str) -> None:
        victim = min((other for other in self._places if other.group == group), key=lambda other: other.has_spoken)
        self.leave(victim)
        victim.drop()


class _Turns:
    """TLS handshakes of each network group: one after the other, and so many a second. They cost this node more than
    the stranger, so who comes too often waits, and leaves the queue at no cost when it is cut off."""

    def __init__(self, limits: PeerLimits) -> None:
        self._pause_s = 1 / limits.handshakes_per_s
        self._credit_s = (limits.handshakes_burst - 1) * self._pause_s
        self._queues: OrderedDict[str, asyncio.Lock] = OrderedDict()
        self._next: dict[str, float] = {}

    async def take(self, group: str) -> None:
        """Wait for the group's next turn."""
        loop = asyncio.get_running_loop()
        queue = self._queues.setdefault(group, asyncio.Lock())
        self._queues.move_to_end(group)
        self._forget()
        async with queue:
            due = self._next.get(group, -math.inf)
            await asyncio.sleep(due - loop.time())
            self._next[group] = max(due, loop.time() - self._credit_s) + self._pause_s

    def _forget(self) -> None:
        """Drop the group that has been quiet for longest."""
        if len(self._queues) > _MAX_GROUPS:
            quiet = next((group for group, queue in self._queues.items() if not queue.locked()), None)
            if quiet is not None:
                del self._queues[quiet]
                self._next.pop(quiet, None)


class TlsTransport:
    """aiohttp WebSockets inside TLS 1.3. The server end presents the node's certificate, the client end none."""

    def __init__(self, identity: Identity, limits: PeerLimits) -> None:
        self._identity = identity
        self._limits = limits
        self._server: web.Server | None = None
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._lobby = _Lobby(limits)
        self._turns = _Turns(limits)
        self._arrivals: dict[web.RequestHandler, _Arrival] = {}
        self._session: aiohttp.ClientSession | None = None
        self._client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client_tls.minimum_version = ssl.TLSVersion.TLSv1_3
        # The certificate is self-signed by design: its key is the peer's name, and TLS has it prove that key.
        self._client_tls.check_hostname = False
        self._client_tls.verify_mode = ssl.CERT_NONE

    async def listen(self, address: Endpoint, accept: Accept) -> Endpoint:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            arrival = self._arrivals[request.protocol]
            websocket = web.WebSocketResponse(
                timeout=1, max_msg_size=MAX_MESSAGE_BYTES, compress=False, autoping=False, decode_text=False
            )
            if request.body_exists or not websocket.can_prepare(request):
                refusal = web.Response(status=426, headers={"Upgrade": "websocket"}, text="this is a Tilework node\n")
                refusal.force_close()  # or a place would be kept by asking again and again
                return refusal
            arrival.upgrade()
            await websocket.prepare(request)
            peer_name = request.transport.get_extra_info("peername") if request.transport else None
            remote = Endpoint(*peer_name[:2]) if peer_name else Endpoint("unknown", 0)
            connection = _WebSocketConnection(
                websocket,
                remote,
                self._identity.key,
                self._identity.certificate,
                arrival,
                lambda: self._lobby.leave(arrival),
            )
            try:
                await accept(connection)
            finally:
                await connection.close()
            return websocket

        self._server = web.Server(handle, access_log=None, lingering_time=0, keepalive_timeout=1)
        loop, tls = asyncio.get_running_loop(), self._server_tls()
        names = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, name in dict.fromkeys(names):
            listener = socket.create_server(name, family=family, backlog=_BACKLOG)
            listener.setblocking(False)
            self._listeners.append(listener)
            self._start(self._take(listener, tls))
        return Endpoint(address.host, self._listeners[0].getsockname()[1])

    async def dial(self, address: Endpoint) -> Connection:
        if self._session is None:
            connector = _Connector(limit=0, force_close=True, ssl=self._client_tls)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                middlewares=(refuse_redirects,),
                ws_response_class=_DialledSocket,
            )
        try:
            websocket = await self._session.ws_connect(
                f"https://{address}/",
                max_msg_size=MAX_MESSAGE_BYTES,
                compress=0,
                autoping=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=1),
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ConnectionLost(f"{address}: {error}") from None
        assert isinstance(websocket, _DialledSocket)
        assert isinstance(websocket.watch, _Watch)
        tls = websocket.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        key = certified_key(certificate) if certificate else None
        connection = _WebSocketConnection(websocket, address, key or b"", certificate or b"", websocket.watch)
        if certificate is None or key is None:
            await connection.close()
            raise ConnectionLost(f"{address}: the listener's certificate carries no Ed25519 key")
        return connection

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for listener in self._listeners:
            listener.close()
        if self._server is not None:
            await self._server.shutdown(self._limits.stop_s / 2)
        self._lobby.clear()
        if self._session is not None:
            await self._session.close()

    async def _take(self, listener: socket.socket, tls: ssl.SSLContext) -> None:
        """Take connections, for ever; whether there is a place is decided before anything is spent on them."""
        loop = asyncio.get_running_loop()
        is_short = False
        while True:
            try:
                connection, remote = await loop.sock_accept(listener)
            except OSError as error:  # a passing shortage of descriptors or memory: others give some back
                if not is_short:
                    logger.warning("no connection can be taken", extra={"why": error.strerror or str(error)})
                is_short = True
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            is_short = False
            assert self._server is not None
            arrival = _Arrival(host_group(remote[0]), self._server(), self._leave)
            self._lobby.enter(arrival)
            self._arrivals[arrival.handler] = arrival
            arrival.begin(self._start(self._secure(arrival, connection, tls)), self._limits.handshake_s)
            await asyncio.sleep(0)  # in a flood nobody else would have a turn

    async def _secure(self, arrival: _Arrival, connection: socket.socket, tls: ssl.SSLContext) -> None:
        """Bring TLS to a connection that has begun to speak, in its group's turn."""
        loop = asyncio.get_running_loop()
        try:
            await _spoken(connection)
            arrival.has_spoken = True
            await self._turns.take(arrival.group)
            await loop.connect_accepted_socket(
                lambda: arrival,
                connection,
                ssl=tls,
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=_CLOSE_S,
            )
        except OSError as error:
            logger.debug("no TLS came about", extra={"group": arrival.group, "why": str(error)})
        finally:
            if arrival.transport is None:
                arrival.upgrade()
                connection.close()
                self._leave(arrival)

    def _leave(self, arrival: _Arrival) -> None:
        self._lobby.leave(arrival)
        self._arrivals.pop(arrival.handler, None)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _server_tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Resumption would save nothing here, and session tickets cost a signature's time each.
        context.num_tickets = 0
        # Python's ssl reads keys from files alone; this one is gone before anybody connects.
        with tempfile.TemporaryDirectory(prefix="tilework-") as directory:
            path = Path(directory) / "node.pem"
            path.touch(0o600)
            path.write_bytes(self._identity.private_pem + self._identity.certificate_pem)
            context.load_cert_chain(path)
        return context


class _WebSocketConnection:
    """Either end of a WebSocket."""

    def __init__(
        self,
        websocket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse[bool],
        remote: Endpoint,
        listener_key: bytes,
        certificate: bytes,
        watch: _Watch,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """`watch` stands below; `settled` is told of `settle`."""
        self._websocket = websocket
        self._watch = watch
        self._settled = settled
        self.remote = remote
        self.listener_key = listener_key
        self.binding = certificate_hash(certificate)

    async def send(self, frame: bytes) -> None:
        try:
            await self._websocket.send_bytes(frame)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ConnectionLost(str(error) or "closed") from None

    async def receive(self) -> bytes:
        try:
            message = await self._websocket.receive()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise self._ended(str(error) or "closed") from None
        if message.type is WSMsgType.BINARY:
            return bytes(message.data)
        if message.type is WSMsgType.ERROR:
            raise FrameTooLarge(str(message.data))
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
            raise self._ended("closed by the other side")
        raise FrameTooLarge(f"a {message.type.name} frame instead of a binary one")

    def _ended(self, why: str) -> ConnectionLost:
        return FrameTooLarge(self._watch.fault) if self._watch.fault else ConnectionLost(why)

    def settle(self) -> None:
        self._settled()

    async def close(self) -> None:
        # aiohttp gives every frame of a closing connection a second of its own, so there is a deadline around it.
        try:
            with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):  # then it is closed
                async with asyncio.timeout(_CLOSE_S):
                    await self._websocket.close()
        finally:
            if self._watch.transport is not None:
                self._watch.transport.abort()


class _Connector(aiohttp.TCPConnector):
    """aiohttp's, with a watch in front of every connection."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> aiohttp.client_proto.ResponseHandler:
        handler = await super()._create_connection(*args, **kwargs)
        assert isinstance(handler.transport, asyncio.Transport)
        watch = _Watch(handler)
        watch.transport = handler.transport
        watch.transport.set_protocol(watch)
        return handler


class _DialledSocket(aiohttp.ClientWebSocketResponse[Literal[True]]):
    """aiohttp's, and the watch in front of it."""

    def __init__(
        self,
        reader: Any,
        writer: Any,
        protocol: str | None,
        response: aiohttp.ClientResponse,
        *rest: Any,
        **more: Any,
    ) -> None:
        super().__init__(reader, writer, protocol, response, *rest, **more)
        transport = response.connection.transport if response.connection is not None else None
        self.watch = transport.get_protocol() if isinstance(transport, asyncio.Transport) else None


async def _spoken(connection: socket.socket) -> None:
    """Wait for a connection's first byte. ConnectionError where it ends instead."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
    if not connection.recv(1, socket.MSG_PEEK):
        raise ConnectionResetError("it said nothing")
