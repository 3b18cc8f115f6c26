"""How frames travel: the small interface that the network needs, and TLS 1.3 WebSockets behind it.

A transport moves bounded frames and tells which key the listener has proved. Everything else (who the dialler is, what
frames mean) is the peer protocol's. Strangers are met as `node.p2p.door` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import aiohttp
from aiohttp import WSMsgType, web

from api.http import refuse_redirects
from node.p2p.door.frames import Watch
from node.p2p.door.lobby import Arrival, Lobby, Turns
from node.p2p.identity import Identity, certificate_hash, certified_key
from node.p2p.limits import MAX_MESSAGE_BYTES, PeerLimits

logger = logging.getLogger("tilework.network")

_BACKLOG = 128
"""Connections that the kernel may keep ready for the node to take."""
_ACCEPT_PAUSE_S = 0.2
"""Rest after a connection that could not be taken: descriptors or memory are short, and others give some back."""
_CLOSE_S = 1.0
"""A closing connection is cut off after this, whatever the other end does meanwhile."""


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


def household_of(host: str) -> str:
    """Whoever has one IPv6 address has its whole /64; an IPv4 address, or a name, is one household."""
    try:
        ip = ip_of(host)
    except ValueError:
        return host
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def is_local(host: str) -> bool:
    """Loopback and private networks: many nodes may share the host."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


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


class TlsTransport:
    """aiohttp WebSockets inside TLS 1.3. The server end presents the node's certificate, the client end none."""

    def __init__(self, identity: Identity, limits: PeerLimits) -> None:
        self._identity = identity
        self._limits = limits
        self._server: web.Server | None = None
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._lobby = Lobby(limits)
        self._turns = Turns(limits)
        self._arrivals: dict[web.RequestHandler, Arrival] = {}
        self._session: aiohttp.ClientSession | None = None
        self._client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client_tls.minimum_version = ssl.TLSVersion.TLSv1_3
        # The certificate is self-signed by design: its key is the peer's name, and TLS has it prove that key.
        self._client_tls.check_hostname = False
        self._client_tls.verify_mode = ssl.CERT_NONE

    async def listen(self, address: Endpoint, accept: Accept) -> Endpoint:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            arrival = self._arrivals.get(request.protocol)
            websocket = web.WebSocketResponse(
                timeout=1, max_msg_size=MAX_MESSAGE_BYTES, compress=False, autoping=False, decode_text=False
            )
            if arrival is None or request.body_exists or not websocket.can_prepare(request):
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
        except (aiohttp.ClientError, OSError, ValueError, AssertionError) as error:
            # aiohttp asserts that a connection still stands when its answer is here, which is up to the listener.
            raise ConnectionLost(f"{address}: {error}") from None
        assert isinstance(websocket, _DialledSocket)
        if websocket.watch is None:
            raise ConnectionLost(f"{address}: closed by the other side")
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
        if self._tasks:
            await asyncio.wait(self._tasks)
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
            arrival = Arrival(host_group(remote[0]), household_of(remote[0]), self._server(), self._leave)
            self._lobby.enter(arrival)
            self._arrivals[arrival.handler] = arrival
            arrival.begin(self._start(self._secure(arrival, connection, tls)), self._limits.handshake_s)
            await asyncio.sleep(0)  # in a flood nobody else would have a turn

    async def _secure(self, arrival: Arrival, connection: socket.socket, tls: ssl.SSLContext) -> None:
        """Bring TLS to a connection that has begun to speak, in its group's turn."""
        loop = asyncio.get_running_loop()
        try:
            await _spoken(connection)
            arrival.has_spoken = True
            await self._turns.take(arrival.group, arrival.household)
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

    def _leave(self, arrival: Arrival) -> None:
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
        watch: Watch,
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
        watch = Watch(handler)
        watch.transport = handler.transport
        watch.transport.set_protocol(watch)
        return handler


class _DialledSocket(aiohttp.ClientWebSocketResponse[Literal[True]]):
    """aiohttp's, and the watch in front of it; None where the connection is closed already."""

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
        below = transport.get_protocol() if transport is not None and not transport.is_closing() else None
        self.watch = below if isinstance(below, Watch) else None


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
