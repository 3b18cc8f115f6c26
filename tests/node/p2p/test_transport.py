"""TLS WebSockets on loopback: frames, keys, limits, and ends that do not behave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import errno
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.http import WS_KEY
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from node.p2p.identity import certificate_hash
from node.p2p.limits import DEFAULT, MAX_MESSAGE_BYTES, PeerLimits
from node.p2p.transport import Connection, ConnectionLost, Endpoint, FrameTooLarge, TlsTransport
from tests.node.p2p.door.test_frames import UPGRADE, frame
from tests.node.p2p.net import identity
from tests.node.rig import asynchronous

LOOPBACK = Endpoint("127.0.0.1", 0)
LISTENER = identity("listener")


@asynccontextmanager
async def listening(
    accept: Callable[[Connection], Awaitable[None]], limits: PeerLimits = DEFAULT
) -> AsyncIterator[tuple[Endpoint, TlsTransport]]:
    """A listener and a dialler's transport."""
    listener, dialler = TlsTransport(LISTENER, limits), TlsTransport(identity("dialler"), limits)
    address = await listener.listen(LOOPBACK, accept)
    try:
        yield address, dialler
    finally:
        await dialler.close()
        await listener.close()


async def echo(connection: Connection) -> None:
    while True:
        await connection.send(await connection.receive())


@asynchronous
async def test_frames_of_every_size_come_through_unchanged() -> None:
    async with listening(echo) as (address, dialler):
        connection = await dialler.dial(address)
        for size in (5, 125, 126, 65_536, MAX_MESSAGE_BYTES - 1):
            frame = bytes(range(256)) * (size // 256 + 1)
            await connection.send(frame[:size])
            assert await connection.receive() == frame[:size]
        await connection.close()


@asynchronous
async def test_both_ends_know_the_listeners_key_and_certificate() -> None:
    seen: asyncio.Queue[Connection] = asyncio.Queue()

    async def accept(connection: Connection) -> None:
        await seen.put(connection)

    async with listening(accept) as (address, dialler):
        ends = [await dialler.dial(address), await seen.get()]
        assert {end.listener_key for end in ends} == {LISTENER.key}
        assert {end.binding for end in ends} == {certificate_hash(LISTENER.certificate)}
        assert ends[1].remote.host == "127.0.0.1"


@asynchronous
async def test_an_oversize_frame_ends_the_connection_before_it_is_read() -> None:
    ended: asyncio.Queue[Exception] = asyncio.Queue()

    async def accept(connection: Connection) -> None:
        try:
            await connection.receive()
        except ConnectionLost as error:
            await ended.put(error)

    async with listening(accept) as (address, dialler):
        connection = await dialler.dial(address)
        await connection.send(bytes(MAX_MESSAGE_BYTES))
        assert isinstance(await ended.get(), FrameTooLarge)


@asynchronous
async def test_text_frames_are_refused() -> None:
    ended: asyncio.Queue[Exception] = asyncio.Queue()

    async def accept(connection: Connection) -> None:
        try:
            await connection.receive()
        except ConnectionLost as error:
            await ended.put(error)

    async with listening(accept) as (address, _), aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"https://{address}/", ssl=trusting())
        await socket.send_str("hello")
        assert isinstance(await ended.get(), FrameTooLarge)


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynchronous
async def test_what_is_no_websocket_is_told_so() -> None:
    async with listening(echo) as (address, _), aiohttp.ClientSession() as session:
        response = await session.get(f"https://{address}/", ssl=trusting())
        assert response.status == 426


@asynchronous
async def test_older_tls_is_refused() -> None:
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(echo) as (address, _), aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"https://{address}/", ssl=context)


@asynchronous
async def test_a_connection_that_asks_for_nothing_is_dropped() -> None:
    async with listening(echo, replace(DEFAULT, handshake_s=0.1)) as (address, _):
        reader, writer = await asyncio.open_connection(*address, ssl=trusting())
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        writer.close()


# ---------------------------------------------------------------------- what no node sends


@asynchronous
async def test_a_dialler_that_sends_empty_fragments_is_cut_off_before_they_cost_anything() -> None:
    ends: asyncio.Queue[Exception] = asyncio.Queue()

    async def accept(connection: Connection) -> None:
        try:
            await connection.receive()
        except ConnectionLost as error:
            await ends.put(error)

    async with listening(accept) as (address, _):
        reader, writer = await asyncio.open_connection(*address, ssl=trusting())
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(b"\x03", last=False) + frame(b"", kind=0, last=False) * 5000)
        async with asyncio.timeout(1):
            assert str(await ends.get()) == "a message in parts"
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()


async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a dialler as a WebSocket's listener does."""
    head = await reader.readuntil(b"\r\n\r\n")
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
    accept = base64.b64encode(hashlib.sha1(key.split(b": ")[1] + WS_KEY).digest())
    switching = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    writer.write(switching + accept + b"\r\n\r\n")


@asynccontextmanager
async def dialling(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[Endpoint, TlsTransport]]:
    """A listener that answers as it likes, and a dialler's transport."""
    tls = TlsTransport(LISTENER, DEFAULT)._server_tls()
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    dialler = TlsTransport(identity("dialler"), DEFAULT)
    try:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1]), dialler
    finally:
        await dialler.close()
        server.close()


@asynchronous
async def test_a_listener_that_sends_empty_fragments_is_left() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await switch(reader, writer)
        writer.write(frame(b"12345", masked=False))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(frame(b"", last=False, masked=False) + frame(b"", kind=0, last=False, masked=False) * 5000)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with dialling(answer) as (address, dialler):
        connection = await dialler.dial(address)
        assert await connection.receive() == b"12345"
        async with asyncio.timeout(1):
            with pytest.raises(FrameTooLarge, match="in parts"):
                await connection.receive()
        await connection.close()


@pytest.mark.parametrize("end", [lambda writer: writer.close(), lambda writer: writer.transport.abort()])
@pytest.mark.parametrize("greets", [True, False])
def test_a_listener_that_leaves_at_once_is_a_lost_connection(
    end: Callable[[asyncio.StreamWriter], None], greets: bool
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greets:
            await switch(reader, writer)
        end(writer)

    async def story() -> None:
        async with dialling(answer) as (address, dialler):
            for _ in range(10):
                with pytest.raises(ConnectionLost):
                    await (await dialler.dial(address)).receive()

    asyncio.run(story())


# ---------------------------------------------------------------------- strangers

HERE, ELSEWHERE = "127.0.0.1", "127.1.0.1"
"""Two network groups of this machine."""
FEW = replace(DEFAULT, max_strangers=6, max_strangers_per_group=4)


async def plain(address: Endpoint, local: str = HERE) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP connection that says nothing."""
    return await asyncio.open_connection(*address, local_addr=(local, 0))


async def ended(connections: Iterable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
    """How many of them the listener has cut off, a moment later."""
    await asyncio.sleep(0.1)
    return sum(reader.at_eof() or reader.exception() is not None for reader, _ in connections)


async def silent(connection: Connection) -> None:
    await asyncio.Event().wait()


async def settled(connection: Connection) -> None:
    connection.settle()
    await silent(connection)


@asynchronous
async def test_connections_that_say_nothing_are_few_and_keep_nobody_out() -> None:
    async with listening(echo, FEW) as (address, dialler):
        idle = [await plain(address) for _ in range(40)]
        assert await ended(idle) == 40 - FEW.max_strangers_per_group
        connection = await dialler.dial(address)
        await connection.send(b"hello")
        assert await connection.receive() == b"hello"
        for _, writer in idle:
            writer.close()


@asynchronous
async def test_the_most_crowded_network_group_makes_room_for_a_newcomer() -> None:
    async with listening(silent, FEW) as (address, _):
        crowd = [await plain(address) for _ in range(4)]
        others = [await plain(address, ELSEWHERE) for _ in range(2)]
        assert await ended(crowd + others) == 0
        newcomer = await plain(address, ELSEWHERE)
        assert await ended([*others, newcomer]) == 0
        assert await ended(crowd[:1]) == await ended(crowd) == 1
        for _, writer in [*crowd, *others, newcomer]:
            writer.close()


@asynchronous
async def test_a_flood_from_one_address_pushes_out_its_own() -> None:
    async with listening(silent, FEW) as (address, _):
        neighbours = [await plain(address, "127.0.0.2"), await plain(address, "127.0.0.3")]
        flood = [await plain(address) for _ in range(40)]
        assert await ended(neighbours) == 0
        assert await ended(flood) == 40 - (FEW.max_strangers_per_group - len(neighbours))
        for _, writer in [*neighbours, *flood]:
            writer.close()


@asynchronous
async def test_who_has_not_introduced_itself_is_a_stranger_still_and_who_has_is_none() -> None:
    for accept, survivors in ((silent, FEW.max_strangers_per_group), (settled, 10)):
        async with listening(accept, FEW) as (address, dialler):
            connections = [await dialler.dial(address) for _ in range(10)]
            reading = [asyncio.ensure_future(connection.receive()) for connection in connections]
            await asyncio.sleep(0.1)
            assert sum(not task.done() for task in reading) == survivors
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)


@asynchronous
async def test_places_of_those_who_left_are_free_at_once() -> None:
    async with listening(echo, FEW) as (address, dialler):
        standing = [await plain(address)]
        for _ in range(60):
            _, writer = await plain(address)
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.001)
        connection = await dialler.dial(address)
        assert await ended(standing) == 0, "the dead push nobody out"
        await connection.close()
        standing[0][1].close()


@asynchronous
async def test_a_passing_shortage_of_descriptors_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    take = loop.sock_accept
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "Too many open files in system")]

    async def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            raise failures.pop()
        return await take(listener)

    monkeypatch.setattr(loop, "sock_accept", accept)
    async with listening(echo) as (address, dialler):
        await (await dialler.dial(address)).close()
    assert not failures


@asynchronous
async def test_a_plain_request_is_answered_and_the_connection_closed() -> None:
    async with listening(echo) as (address, _):
        reader, writer = await asyncio.open_connection(*address, ssl=trusting())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(1):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 426")
        assert answer.endswith(b"node\n")
        writer.close()


@asynchronous
async def test_a_listener_that_goes_on_talking_cannot_put_off_the_end() -> None:
    async def babble(connection: Connection) -> None:
        with contextlib.suppress(ConnectionLost):
            while True:
                await connection.send(b"and another thing")
                await asyncio.sleep(0.3)

    async with listening(babble) as (address, dialler):
        connection = await dialler.dial(address)
        async with asyncio.timeout(1.5):
            await connection.close()
        with pytest.raises(ConnectionLost):
            await connection.receive()


@asynchronous
async def test_nobody_listens() -> None:
    async with listening(echo) as (address, dialler):
        pass
    with pytest.raises(ConnectionLost):
        await dialler.dial(address)
    await dialler.close()


def test_a_listener_whose_certificate_cannot_be_parsed_is_no_peer(tmp_path: Path) -> None:
    _dial_foreign(certificate_of_another_version(tmp_path))


@asynchronous
async def test_a_port_in_use_is_an_error() -> None:
    async with listening(echo) as (address, _):
        second = TlsTransport(LISTENER, DEFAULT)
        with pytest.raises(OSError, match="in use"):
            await second.listen(address, echo)
        await second.close()


@asynchronous
async def test_a_lost_connection_is_noticed_by_the_other_end() -> None:
    async def accept(connection: Connection) -> None:
        await connection.receive()

    async with listening(accept) as (address, dialler):
        connection = await dialler.dial(address)
        await connection.send(b"and now leave")
        with pytest.raises(ConnectionLost):
            await connection.receive()
        with pytest.raises(ConnectionLost):
            await connection.send(b"anybody there?")


def foreign_certificate(directory: Path) -> Path:
    """A certificate with a key of another kind."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    day = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, day, day + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "foreign.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return path


def certificate_of_another_version(directory: Path) -> Path:
    """The listener's, well signed, but of X.509 version 2: TLS takes it, parsers of certificates do not."""
    body = x509.load_der_x509_certificate(LISTENER.certificate).tbs_certificate_bytes
    version = b"\xa0\x03\x02\x01"
    changed = body.replace(version + b"\x02", version + b"\x01", 1)
    assert changed != body
    der = LISTENER.certificate.replace(body, changed)[:-64] + LISTENER.sign(changed)
    path = directory / "v2.pem"
    path.write_bytes(LISTENER.private_pem + ssl.DER_cert_to_PEM_cert(der).encode())
    return path


@asynchronous
async def _dial_foreign(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    server = web.Server(handle)
    sockets = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=context)
    dialler = TlsTransport(identity("dialler"), DEFAULT)
    with pytest.raises(ConnectionLost, match="no Ed25519 key"):
        await dialler.dial(Endpoint("127.0.0.1", sockets.sockets[0].getsockname()[1]))
    await dialler.close()
    sockets.close()
    await server.shutdown(0.1)


def test_a_certificate_of_another_kind_is_refused(tmp_path: Path) -> None:
    _dial_foreign(foreign_certificate(tmp_path))
