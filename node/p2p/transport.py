"""How frames travel: the small interface that the network needs, and TLS 1.3 WebSockets behind it.

A transport moves bounded frames and tells which key the listener has proved. Everything else (who the dialler is, what
frames mean) is the peer protocol's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import aiohttp
from aiohttp import WSMsgType, web

from api.http import refuse_redirects
from node.p2p.identity import Identity, certificate_hash, certified_key
from node.p2p.limits import MAX_MESSAGE_BYTES, PeerLimits


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


class ConnectionLost(Exception):
    """The connection cannot be made or has ended; the text says how."""


class FrameTooLarge(ConnectionLost):
    """The other side sent a frame above the limit of every type, or one that is not binary."""


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

    async def close(self) -> None:
        """End the connection without delay; never raises."""


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
        self._sockets: asyncio.Server | None = None
        self._session: aiohttp.ClientSession | None = None
        self._waiting: set[web.RequestHandler] = set()
        self._client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client_tls.minimum_version = ssl.TLSVersion.TLSv1_3
        # The certificate is self-signed by design: its key is the peer's name, and TLS has it prove that key.
        self._client_tls.check_hostname = False
        self._client_tls.verify_mode = ssl.CERT_NONE

    async def listen(self, address: Endpoint, accept: Accept) -> Endpoint:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            self._waiting.discard(request.protocol)
            socket = web.WebSocketResponse(
                timeout=1, max_msg_size=MAX_MESSAGE_BYTES, compress=False, autoping=False, decode_text=False
            )
            if not socket.can_prepare(request):
                return web.Response(status=426, headers={"Upgrade": "websocket"}, text="this is a Tilework node\n")
            await socket.prepare(request)
            peer_name = request.transport.get_extra_info("peername") if request.transport else None
            remote = Endpoint(*peer_name[:2]) if peer_name else Endpoint("unknown", 0)
            connection = _WebSocketConnection(socket, remote, self._identity.key, self._identity.certificate)
            try:
                await accept(connection)
            finally:
                await connection.close()
            return socket

        self._server = web.Server(handle, access_log=None, lingering_time=0, keepalive_timeout=1)
        self._sockets = await asyncio.get_running_loop().create_server(
            self._protocol,
            address.host,
            address.port,
            ssl=self._server_tls(),
            ssl_handshake_timeout=self._limits.handshake_s,
            ssl_shutdown_timeout=1,
        )
        return Endpoint(address.host, self._sockets.sockets[0].getsockname()[1])

    async def dial(self, address: Endpoint) -> Connection:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=self._client_tls)
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, middlewares=(refuse_redirects,)
            )
        try:
            socket = await self._session.ws_connect(
                f"https://{address}/",
                max_msg_size=MAX_MESSAGE_BYTES,
                compress=0,
                autoping=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=1),
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ConnectionLost(f"{address}: {error}") from None
        tls = socket.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        key = certified_key(certificate) if certificate else None
        if certificate is None or key is None:
            await socket.close()
            raise ConnectionLost(f"{address}: the listener's certificate carries no Ed25519 key")
        return _WebSocketConnection(socket, address, key, certificate)

    async def close(self) -> None:
        if self._sockets is not None:
            self._sockets.close()
        if self._server is not None:
            await self._server.shutdown(self._limits.stop_s / 2)
        if self._session is not None:
            await self._session.close()

    def _protocol(self) -> asyncio.Protocol:
        """One HTTP handler. It must ask for its WebSocket soon: aiohttp itself would wait for ever."""
        assert self._server is not None
        protocol = self._server()
        if len(self._waiting) >= self._limits.max_handshakes:
            return _Refusal()
        self._waiting.add(protocol)
        asyncio.get_running_loop().call_later(2 * self._limits.handshake_s, self._drop_silent, protocol)
        return protocol

    def _drop_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._waiting:
            self._waiting.discard(protocol)
            protocol.force_close()

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
        socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse[bool],
        remote: Endpoint,
        listener_key: bytes,
        certificate: bytes,
    ) -> None:
        self._socket = socket
        self.remote = remote
        self.listener_key = listener_key
        self.binding = certificate_hash(certificate)

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send_bytes(frame)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ConnectionLost(str(error) or "closed") from None

    async def receive(self) -> bytes:
        try:
            message = await self._socket.receive()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ConnectionLost(str(error) or "closed") from None
        if message.type is WSMsgType.BINARY:
            return bytes(message.data)
        if message.type is WSMsgType.ERROR:
            raise FrameTooLarge(str(message.data))
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
            raise ConnectionLost("closed by the other side")
        raise FrameTooLarge(f"a {message.type.name} frame instead of a binary one")

    async def close(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):  # then it is closed
            await self._socket.close()


class _Refusal(asyncio.Protocol):
    """Too many connections say nothing: end this one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
