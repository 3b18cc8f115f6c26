"""How two nodes get to know each other.

    listener → dialler   Welcome: version, genesis, a nonce     (TLS has proved the listener's key)
    dialler → listener   Hello: the same, its key, its signature over both nonces and the listener's certificate
    listener → dialler   Status: you are taken                  (or Goodbye, with the reason)
    dialler → listener   Status

The signature names the listener's certificate, so that a node in the middle cannot pass it on to another listener, and
both nonces, so that it cannot be used twice. Each end refuses with a reason code before it hangs up.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from consensus import crypto
from consensus.errors import ConsensusError
from node.p2p.identity import Identity
from node.p2p.messages import (
    BY_CODE,
    P2P_VERSION,
    Goodbye,
    Hello,
    Leave,
    Message,
    Status,
    Welcome,
    check_size,
    decode_payload,
    encode_frame,
    read_prefix,
)
from node.p2p.transport import Connection, ConnectionLost

M = TypeVar("M", bound=Message)


class Refused(Exception):
    """One end does not want the connection. `theirs`: the other end said so."""

    def __init__(self, reason: Leave, text: str = "", theirs: bool = False) -> None:
        self.reason = reason
        self.theirs = theirs
        super().__init__(f"{reason.name}: {text}" if text else reason.name)


@dataclass(frozen=True)
class Introduction:
    """What one end says about itself."""

    identity: Identity
    genesis: bytes
    agent: str
    listen_port: int
    status: Callable[[], Status]


@dataclass(frozen=True)
class Acquaintance:
    """What one end has learnt about the other; `listen_port` is 0 where it takes no connections."""

    key: bytes
    agent: str
    listen_port: int
    status: Status


def hello_message(genesis: bytes, welcome_nonce: bytes, hello_nonce: bytes, binding: bytes) -> bytes:
    """What a hello signs."""
    return crypto.H("tw/hello", genesis + welcome_nonce + hello_nonce + binding)


async def greet_listener(connection: Connection, own: Introduction) -> Acquaintance:
    """The dialler's side.

    Raises:
        Refused, ConnectionLost: no connection came about; the other end has been told why.
    """
    async with _explained(connection):
        if connection.listener_key == own.identity.key:
            raise Refused(Leave.SELF)
        welcome = await _receive(connection, Welcome)
        _check_network(own, welcome)
        nonce = secrets.token_bytes(32)
        signature = own.identity.sign(hello_message(own.genesis, welcome.nonce, nonce, connection.binding))
        hello = Hello(P2P_VERSION, own.genesis, nonce, own.agent, own.identity.key, own.listen_port, signature)
        await connection.send(encode_frame(hello))
        status = await _receive(connection, Status)
        await connection.send(encode_frame(own.status()))
        return Acquaintance(connection.listener_key, welcome.agent, 0, status)


async def greet_dialler(
    connection: Connection, own: Introduction, admit: Callable[[bytes], Leave | None]
) -> Acquaintance:
    """The listener's side; `admit` tells by the proved key why a peer is not wanted.

    Raises:
        Refused, ConnectionLost: no connection came about; the other end has been told why.
    """
    async with _explained(connection):
        nonce = secrets.token_bytes(32)
        await connection.send(encode_frame(Welcome(P2P_VERSION, own.genesis, nonce, own.agent)))
        hello = await _receive(connection, Hello)
        _check_network(own, hello)
        message = hello_message(own.genesis, nonce, hello.nonce, connection.binding)
        if not crypto.verify(hello.key, message, hello.signature):
            raise Refused(Leave.BAD_SIGNATURE)
        if hello.key == own.identity.key:
            raise Refused(Leave.SELF)
        if (unwanted := admit(hello.key)) is not None:
            raise Refused(unwanted)
        await connection.send(encode_frame(own.status()))
        status = await _receive(connection, Status)
        return Acquaintance(hello.key, hello.agent, hello.listen_port, status)


def _check_network(own: Introduction, other: Welcome | Hello) -> None:
    if other.version != P2P_VERSION:
        raise Refused(Leave.WRONG_VERSION, f"this node speaks version {P2P_VERSION}, the other {other.version}")
    if other.genesis != own.genesis:
        raise Refused(Leave.WRONG_GENESIS, f"this network starts with {own.genesis.hex()[:16]}")


async def _receive(connection: Connection, expected: type[M]) -> M:
    """The next message, which must be an `expected` one."""
    frame = await connection.receive()
    code, request = read_prefix(frame)
    row = BY_CODE.get(code)
    if row is None or request != 0 or row.struct not in (expected, Goodbye):
        raise Refused(Leave.PROTOCOL_ERROR, f"type {code:#04x} where a {expected.__name__} is due")
    check_size(row, frame)
    message = decode_payload(row, frame)
    if isinstance(message, Goodbye):
        raise Refused(leave_of(message), message.text, theirs=True)
    assert isinstance(message, expected)
    return message


def leave_of(message: Goodbye) -> Leave:
    """The reason of a goodbye; a code that this version does not know is a protocol error."""
    return Leave(message.reason) if message.reason in set(Leave) else Leave.PROTOCOL_ERROR


@contextlib.asynccontextmanager
async def _explained(connection: Connection) -> AsyncIterator[None]:
    """Tell the other end why the connection ends here."""
    try:
        yield
    except ConsensusError as error:
        await say_goodbye(connection, Leave.PROTOCOL_ERROR, error.reason.value)
        raise Refused(Leave.PROTOCOL_ERROR, str(error)) from None
    except Refused as refusal:
        if not refusal.theirs:
            await say_goodbye(connection, refusal.reason, str(refusal))
        raise


async def say_goodbye(connection: Connection, reason: Leave, text: str = "") -> None:
    """Tell the other end why, if it still listens."""
    with contextlib.suppress(ConnectionLost):
        await connection.send(encode_frame(Goodbye(reason, text[:128])))
