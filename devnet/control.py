"""How other commands reach the supervisor: one JSON line each way over a Unix socket that its user alone can open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from consensus.errors import Refusal
from devnet.layout import DevnetError

MAX_BYTES = 1 << 20
ORDER_SECONDS = 60.0
"""A restart waits until its node is ready."""


class Order(Struct, frozen=True):
    """What to do, and with which node."""

    do: Literal["status", "kill", "restart"]
    node: int = 0


class Refused(Struct, frozen=True):
    """A `Refusal` on its way."""

    code: str
    message: str
    fix: str


class Answer(Struct, frozen=True):
    """The supervisor's reply: a result or a refusal."""

    result: Raw = Raw(b"null")
    refusal: Refused | None = None


_order_decoder = msgspec.json.Decoder(Order)
_answer_decoder = msgspec.json.Decoder(Answer)


@asynccontextmanager
async def serve(path: Path, carry_out: Callable[[Order], Awaitable[Struct]]) -> AsyncIterator[None]:
    """Take orders at `path` for as long as the context lasts. The caller holds the devnet's lock: a socket that is
    there was left by a supervisor that was killed."""

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.closing(writer):
            answer = await _answer(await reader.readline(), carry_out)
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(attend, path, limit=MAX_BYTES)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


async def _answer(line: bytes, carry_out: Callable[[Order], Awaitable[Struct]]) -> Answer:
    try:
        return Answer(Raw(msgspec.json.encode(await carry_out(_order_decoder.decode(line)))))
    except Refusal as error:
        return Answer(refusal=Refused(error.code, error.message, error.fix))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Answer(refusal=Refused("bad-order", f"no order: {error}", "use the same version of tilework"))


def send(path: Path, order: Order) -> Raw:
    """The result of `order`, or what the supervisor refuses it with. Raises DevnetError (not-running, no-answer)."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ORDER_SECONDS)
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(order) + b"\n")
            with connection.makefile("rb") as replies:
                line = replies.readline(MAX_BYTES)
        answer = _answer_decoder.decode(line)
    except (FileNotFoundError, ConnectionRefusedError):
        message = f"no devnet is running in {path.parent}"
        raise DevnetError("not-running", message, "start it with `tilework devnet up`") from None
    except (OSError, msgspec.MsgspecError) as error:
        message = f"the devnet in {path.parent} does not answer: {error}"
        raise DevnetError("no-answer", message, "stop it with `tilework devnet stop`") from None
    if answer.refusal is not None:
        raise DevnetError(answer.refusal.code, answer.refusal.message, answer.refusal.fix)
    return answer.result
