"""A node that wants to fill the wallet's memory, or to hold it for ever: neither happens."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from wallet.client import rpc
from wallet.client.rpc import RpcClient
from wallet.errors import WalletError

MIB = 1 << 20
PATIENCE_SECONDS = 0.5
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


def endlessly(head: bytes, piece: bytes, pause_seconds: float = 0.0) -> Behaviour:
    """Send a head, and then one piece after the other for as long as anybody takes them."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return behave


ANSWERS = {
    "a body without end": endlessly(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n%b\r\n" % (b" " * 65536)),
    "a body as long as it says": endlessly(HEAD + b"Content-Length: %d\r\n\r\n" % 10**15, b" " * 65536),
    "a body that drips": endlessly(HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.05),
    "heads that drip": endlessly(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.05),
    "heads without end": endlessly(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1000),
    "a line without end": endlessly(b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 65536),
    "interim answers without end": endlessly(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100),
    "nothing": endlessly(b"", b"", 0.05),
}


def frame(data: bytes, first: int = 0x81) -> bytes:
    assert len(data) < 65536
    return bytes([first, 126]) + len(data).to_bytes(2) + data


STREAMS = {
    "bytes behind a protocol error": endlessly(frame(b"x", first=0xF1), b"\xff" * 65536),
    "events without end": endlessly(b"", frame(b'{"params":{"subscription":1,"event":"%b"}}' % (b"a" * 10_000))),
    "a message in parts without end": endlessly(frame(b"[", first=0x01), frame(b"1," * 30_000, first=0x00)),
    "pings without end": endlessly(b"", frame(b"", first=0x89) * 1000),
    "frames that drip": endlessly(b"", frame(b"{}"), 0.05),
}


@asynccontextmanager
async def node(behave: Behaviour) -> AsyncIterator[str]:
    """A server of one behaviour: from the start of an answer, or once a subscription has begun."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if "upgrade: websocket" in head.lower():
                await _begin(head, reader, writer)
            await behave(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _begin(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept a WebSocket, and answer its first call with the number 1."""
    key = next(line.split(": ")[1] for line in head.splitlines() if line.lower().startswith("sec-websocket-key"))
    accepted = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: %b\r\n\r\n" % accepted)
    size = (await reader.readexactly(2))[1] & 0x7F
    assert size < 126
    mask = await reader.readexactly(4)
    call = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await reader.readexactly(size)))
    writer.write(frame(json.dumps({"jsonrpc": "2.0", "id": json.loads(call)["id"], "result": 1}).encode()))


def held_bytes(body: Callable[[], Awaitable[None]]) -> int:
    """The most memory that Python held beyond what it held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        asyncio.run(_bounded(body))
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


async def _bounded(body: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(20):
        await body()


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_fills_no_memory_and_ends_in_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MAX_ANSWER_BYTES", MIB)

    async def body() -> None:
        async with node(ANSWERS[kind]) as url:
            begin = time.monotonic()
            async with RpcClient(url, timeout_seconds=PATIENCE_SECONDS) as client:
                with pytest.raises(WalletError):
                    await client.call("chain_info", result=dict)
            assert time.monotonic() - begin < PATIENCE_SECONDS + rpc._CLOSE_SECONDS + 1

    assert held_bytes(body) < 8 * MIB


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "idle"])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_subscription_fills_no_memory_and_is_left_in_time(kind: str, is_read: bool) -> None:
    async def body() -> None:
        async with node(STREAMS[kind]) as url, RpcClient(url, timeout_seconds=PATIENCE_SECONDS) as client:
            async with client.subscribe("newHeads", str) as events:
                with suppress(WalletError, TimeoutError):
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        while is_read:
                            await anext(events)
                        await asyncio.sleep(PATIENCE_SECONDS)
                begin = time.monotonic()
            assert time.monotonic() - begin < rpc._CLOSE_SECONDS + 1

    assert held_bytes(body) < 8 * MIB
