"""What strangers try on a node, each as a process of its own: `python -m benchmarks._attacks NAME < facts`.

Facts are one line of JSON: the victim's ports, the file of its network's rules, and what some attacks need to know. All
of them stay within what an honest node might do by the protocol's rates, or cost the attacker next to nothing. They go
on until they are ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import secrets
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from consensus.codec import encode
from consensus.rules import payloads
from consensus.transaction import Output, Result, ResultBody, Transaction, Transfer, TxBody
from consensus.transition import genesis_transition
from devnet import keys
from node import genesis
from node.p2p.handshake import Introduction, Refused, greet_listener
from node.p2p.identity import from_seed
from node.p2p.limits import DEFAULT
from node.p2p.messages import (
    BY_CODE,
    Announce,
    GetHeaders,
    GetItems,
    GetState,
    GetTensor,
    Items,
    Kind,
    Message,
    Ping,
    Pong,
    Status,
    Strip,
    TensorStrips,
    decode_payload,
    encode_frame,
    read_prefix,
    strips_expected,
)
from node.p2p.transport import Connection, ConnectionLost, Endpoint, TlsTransport
from tests.builders import ChainBuilder, Key
from tests.node.p2p.door.test_frames import UPGRADE, frame

HOST = "127.0.0.1"
IDENTITIES = 10


class Stranger:
    """An identity that has shaken hands with the victim."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self._identity = from_seed(os.urandom(32))
        self._transport = TlsTransport(self._identity, DEFAULT)
        self.genesis = genesis_transition(genesis.load(Path(facts["genesis"])))[0].id

    @contextlib.asynccontextmanager
    async def connected(self, status: Status | None = None) -> AsyncIterator[Connection]:
        """A connection after the handshake. Raises ConnectionLost or Refused."""
        said = status or Status(0, self.genesis, bytes(32))
        introduction = Introduction(self._identity, self.genesis, "stranger", 0, lambda: said)
        try:
            connection = await self._transport.dial(Endpoint(HOST, self._facts["p2p"]))
            await greet_listener(connection, introduction)
            yield connection
        finally:
            await self._transport.close()


async def again(one: Callable[[], Awaitable[None]], pause_s: float = 0.5) -> None:
    """Do it, and again whenever it ended."""
    while True:
        with contextlib.suppress(ConnectionLost, Refused, OSError, TimeoutError):
            await one()
        await asyncio.sleep(pause_s)


async def together(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run them until one fails; then end the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def many(one: Callable[[], Awaitable[None]], count: int = IDENTITIES) -> None:
    """So many side by side, for ever."""
    await asyncio.gather(*(again(one) for _ in range(count)))


async def silent(facts: dict[str, Any]) -> None:
    """1,100 connections that say nothing."""

    async def one() -> None:
        _, writer = await asyncio.open_connection(HOST, facts["p2p"])
        await asyncio.sleep(4.5)
        writer.transport.abort()

    await many(one, 1_100)


async def bursts(facts: dict[str, Any]) -> None:
    """Forty connections opened and closed at once, each second."""
    while True:
        for _ in range(40):
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, facts["p2p"]), 1).close()
        await asyncio.sleep(1)


async def idle(facts: dict[str, Any]) -> None:
    """Seventy identities that answer pings and do nothing else."""

    async def one() -> None:
        async with Stranger(facts).connected() as connection:
            await _listen(connection)

    await many(one, 70)


async def handshakes(facts: dict[str, Any]) -> None:
    """TLS handshakes without end, and fragments of WebSocket frames after some."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    async def one() -> None:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(HOST, facts["p2p"], ssl=context)
        try:
            writer.write(UPGRADE)
            async with asyncio.timeout(5):
                await reader.readuntil(b"\r\n\r\n")
            while True:
                writer.write(frame(b"", kind=0, last=False) * 500)
                await writer.drain()
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.transport.abort()

    await many(one, 20)


def asking(make: Callable[[Stranger, dict[str, Any]], Message], per_s: float) -> Callable[[dict[str, Any]], Any]:
    """Ten identities that ask at the rate that is allowed."""

    async def attack(facts: dict[str, Any]) -> None:
        async def one() -> None:
            stranger, room = Stranger(facts), asyncio.Semaphore(30)

            async def read(connection: Connection) -> None:
                while True:
                    data = await connection.receive()
                    await _answer_ping(connection, data)
                    if read_prefix(data)[1]:
                        room.release()

            async def ask(connection: Connection) -> None:
                for number in itertools.count(1):
                    await room.acquire()
                    await connection.send(encode_frame(make(stranger, facts), number))
                    await asyncio.sleep(1 / per_s)

            async with stranger.connected() as connection:
                await together(read(connection), ask(connection))

        await many(one)

    return attack


def unpayable(kind: Kind) -> Callable[[dict[str, Any]], Any]:
    """Ten identities that announce, and hand over, what nobody can pay for or was ever dealt."""

    async def attack(facts: dict[str, Any]) -> None:
        poor = Key(f"poor {secrets.token_hex(4)}")
        stranger = Stranger(facts)

        def make(number: int) -> tuple[bytes, bytes]:
            if kind == Kind.RESULT:
                result = Result(ResultBody(os.urandom(32), os.urandom(20), os.urandom(32)), bytes(64))
                return result.id(stranger.genesis), encode(result)
            payload = Transfer((Output(os.urandom(20), 5),))
            forged = Transaction(TxBody(poor.public, number % 60, 1, 10**6, 10**6, payload), bytes(64))
            return forged.body.txid(stranger.genesis), encode(forged)

        stock = dict(make(number) for number in range(20_000))
        ids = itertools.cycle(stock)

        async def announce(connection: Connection) -> None:
            while True:
                await connection.send(encode_frame(Announce(kind, tuple(itertools.islice(ids, 256)))))
                await asyncio.sleep(0.12)

        async def serve(connection: Connection) -> None:
            while True:
                data = await connection.receive()
                await _answer_ping(connection, data)
                code, request = read_prefix(data)
                message = decode_payload(BY_CODE[code], data)
                if isinstance(message, GetItems):
                    await _hand_over(connection, stock, message, request)

        async def one() -> None:
            async with Stranger(facts).connected() as connection:
                await together(announce(connection), serve(connection))

        await many(one)

    return attack


async def withheld(facts: dict[str, Any]) -> None:
    """Ten identities that announce ids, 256 each time, and never hand one over."""

    async def announce(connection: Connection) -> None:
        while True:
            ids = tuple(os.urandom(32) for _ in range(256))
            await connection.send(encode_frame(Announce(Kind.TRANSACTION, ids)))
            await asyncio.sleep(0.12)

    async def one() -> None:
        async with Stranger(facts).connected() as connection:
            await together(announce(connection), _listen(connection))

    await many(one)


def jobs(first_nonce: int, answer_s: float) -> Callable[[dict[str, Any]], Any]:
    """Ten identities that offer paid jobs with operands of a megabyte, and take `answer_s` for each message of them."""

    async def attack(facts: dict[str, Any]) -> None:
        rules = genesis.load(Path(facts["genesis"]))
        chain, hash_ = ChainBuilder(rules, worked=False), Stranger(facts).genesis
        noise = np.random.default_rng()

        def offer(number: int, nonce: int) -> Transaction:
            left, right = (noise.integers(-63, 64, (1024, 1024), dtype=np.int8) for _ in range(2))
            payload = chain.job(Key("poor"), left, right, expiry=facts["height"] + 90).payload
            owner = keys.account(number)
            body = TxBody(owner.public_key, nonce, 10, 1, 10**6, payload)
            return owner.transaction(replace(body, gas_limit=payloads.intrinsic_gas(rules, body)), hash_)

        offers = [offer(number, first_nonce + nonce) for number in range(8) for nonce in range(3)]
        stock = {tx.body.txid(hash_): encode(tx) for tx in offers}

        async def answer(connection: Connection, message: Message, request: int) -> None:
            if isinstance(message, GetItems):
                await _hand_over(connection, stock, message, request)
            elif isinstance(message, GetTensor):
                await asyncio.sleep(answer_s)
                tensor = chain.tensors.tensor(message.commitment)
                assert tensor is not None
                numbers = range(message.first, message.first + strips_expected(tensor.spec, message.first))
                strips = tuple(Strip(tensor.strip(number), tensor.path(number)) for number in numbers)
                await connection.send(encode_frame(TensorStrips(tensor.spec, message.first, strips), request))

        async def one() -> None:
            async with Stranger(facts).connected() as connection, asyncio.TaskGroup() as group:
                await connection.send(encode_frame(Announce(Kind.TRANSACTION, tuple(stock))))
                while True:
                    data = await connection.receive()
                    await _answer_ping(connection, data)
                    code, request = read_prefix(data)
                    group.create_task(answer(connection, decode_payload(BY_CODE[code], data), request))

        await many(one)

    return attack


async def known(facts: dict[str, Any]) -> None:
    """Ten identities that announce one known id, 256 times in each of fifty messages a second."""
    data = encode_frame(Announce(Kind.TRANSACTION, (bytes.fromhex(facts["txid"]),) * 256))

    async def one() -> None:
        async with Stranger(facts).connected() as connection:
            while True:
                await connection.send(data)
                await asyncio.sleep(0.021)

    await many(one)


async def unread(facts: dict[str, Any]) -> None:
    """Twenty identities that ask for forty pages of headers each, and never read."""

    async def one() -> None:
        stranger = Stranger(facts)
        async with stranger.connected() as connection:
            for number in range(1, 41):
                await connection.send(encode_frame(GetHeaders((stranger.genesis,), 512), number))
            await asyncio.sleep(30)

    await many(one, 20)


async def claims(facts: dict[str, Any]) -> None:
    """Ten identities that claim to stand at height 2⁶² with all the work of the world."""

    async def one() -> None:
        async with Stranger(facts).connected(Status(2**62, os.urandom(32), b"\xff" * 32)) as connection:
            await _listen(connection)

    await many(one)


async def rpc_silent(facts: dict[str, Any]) -> None:
    """300 connections to the RPC port that send half a request."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection(HOST, facts["rpc"])
        writer.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        await reader.read()
        writer.transport.abort()

    await many(one, 300)


async def rpc_unread(facts: dict[str, Any]) -> None:
    """Twenty clients that ask for all rules and blocks, a hundred times over, and never read."""
    calls = [{"jsonrpc": "2.0", "id": n, "method": "chain_getBlock", "params": {"height": 1}} for n in range(100)]
    data = json.dumps(calls).encode()
    head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def one() -> None:
        _, writer = await asyncio.open_connection(HOST, facts["rpc"], limit=1)
        for _ in range(20):
            writer.write(head % len(data) + data)
        await asyncio.sleep(20)
        writer.transport.abort()

    await many(one, 20)


async def rpc_names(facts: dict[str, Any]) -> None:
    """Ten clients that call methods that do not exist, a hundred names at a time."""
    head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def one() -> None:
        reader, writer = await asyncio.open_connection(HOST, facts["rpc"])
        try:
            while True:
                calls = [{"jsonrpc": "2.0", "id": n, "method": secrets.token_hex(8)} for n in range(100)]
                data = json.dumps(calls).encode()
                writer.write(head % len(data) + data)
                answered = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in answered.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
        except (asyncio.IncompleteReadError, StopAsyncIteration):
            return
        finally:
            writer.transport.abort()

    await many(one)


ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "1,100 silent connections": silent,
    "bursts of connect and close": bursts,
    "70 idle identities": idle,
    "handshakes and fragments": handshakes,
    "header requests": asking(lambda stranger, _: GetHeaders((stranger.genesis,), 512), 18),
    "state requests": asking(lambda stranger, facts: GetState(bytes.fromhex(facts["tip"]), b"a"), 18),
    "tensor requests": asking(lambda stranger, facts: GetTensor(bytes.fromhex(facts["tensor"]), 0), 200),
    "items nobody has": asking(lambda *_: GetItems(0, tuple(os.urandom(32) for _ in range(64))), 90),
    "unpayable transactions": unpayable(Kind.TRANSACTION),
    "Results of nobody": unpayable(Kind.RESULT),
    "one known id, again and again": known,
    "ids never handed over": withheld,
    "jobs whose operands drip": jobs(0, 8.0),
    "jobs behind a gap of nonces": jobs(1, 0.0),
    "peers that never read": unread,
    "claims of work": claims,
    "300 silent RPC connections": rpc_silent,
    "RPC clients that never read": rpc_unread,
    "names of no method": rpc_names,
}


async def _hand_over(connection: Connection, stock: dict[bytes, bytes], message: GetItems, request: int) -> None:
    found = tuple(stock[name] for name in message.ids if name in stock)
    await connection.send(encode_frame(Items(found), request))


async def _listen(connection: Connection) -> None:
    """Answer pings, and do nothing else."""
    while True:
        await _answer_ping(connection, await connection.receive())


async def _answer_ping(connection: Connection, data: bytes) -> None:
    code, request = read_prefix(data)
    if BY_CODE[code].struct is Ping:
        await connection.send(encode_frame(Pong(), request))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    asyncio.run(ATTACKS[sys.argv[1]](json.loads(sys.stdin.readline())))
