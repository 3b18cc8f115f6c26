"""The messages of the peer protocol: one table declares each (docs/protocol.md, section 13).

A frame is `type u8 ‖ request u32 (big-endian) ‖ canonical MessagePack array`. A request carries a number other than 0
that is not in use, its reply the same number; all other messages carry 0. Sizes are checked against the table before
anything is decoded. Rates bind both ends: a sender waits for its own, stricter, bucket, so only a flood meets the
receiver's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from consensus import codec
from consensus.block import MAX_HEADER_BYTES, Header
from consensus.codec import U16, U32, U63, Hash, PublicKey, Signature, Value
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_BODY_BYTES, MAX_TX_BYTES
from consensus.shape import MAX_DIMENSION, TILE_SIDE
from consensus.tensor import TensorSpec
from consensus.validation import Strips
from node.chain.checkpoints import StateKey
from node.p2p.limits import (
    MAX_ADDRESSES,
    MAX_ANNOUNCED,
    MAX_HEADERS,
    MAX_LOCATOR,
    MAX_MESSAGE_BYTES,
    MAX_REQUESTED,
    MAX_STATE_BYTES,
    MAX_STRIP_BYTES,
    PREFIX_BYTES,
)

P2P_VERSION = 2
"""Version of these messages; peers of different versions refuse each other."""

MAX_REQUEST_ID = 2**32 - 1

Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
Work = Annotated[bytes, Meta(min_length=32, max_length=32)]
Agent = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=128)]
Host = Annotated[str, Meta(min_length=2, max_length=45)]
Locator = Annotated[tuple[Hash, ...], Meta(min_length=1, max_length=MAX_LOCATOR)]
Ids = Annotated[tuple[Hash, ...], Meta(min_length=1, max_length=MAX_ANNOUNCED)]
FewIds = Annotated[tuple[Hash, ...], Meta(min_length=1, max_length=MAX_REQUESTED)]
Path = Annotated[tuple[Hash, ...], Meta(max_length=MAX_DIMENSION // TILE_SIDE)]


class Leave(IntEnum):
    """Why a connection is ended; sent in `Goodbye`."""

    STOPPING = 0
    WRONG_GENESIS = 1
    WRONG_VERSION = 2
    SELF = 3
    DUPLICATE = 4
    FULL = 5
    BAD_SIGNATURE = 6
    COOLING_DOWN = 7
    MISBEHAVED = 8
    TIMED_OUT = 9
    PROTOCOL_ERROR = 10


class Kind(IntEnum):
    """What an announced id names."""

    TRANSACTION = 0
    RESULT = 1


class Welcome(Value, frozen=True):
    """First word of the listener, whose TLS certificate has proved its key."""

    version: U16
    genesis: Hash
    nonce: Nonce
    agent: Agent


class Hello(Value, frozen=True):
    """The dialler's answer; the signature covers both nonces and the hash of the listener's certificate.

    `listen_port` is 0 where the dialler takes no connections itself.
    """

    version: U16
    genesis: Hash
    nonce: Nonce
    agent: Agent
    key: PublicKey
    listen_port: U16
    signature: Signature


class Goodbye(Value, frozen=True):
    """Last word: a `Leave` code and a sentence for the other side's log."""

    reason: U16
    text: Text = ""


class Ping(Value, frozen=True):
    """Are you there?"""


class Pong(Value, frozen=True):
    """Yes."""


class Status(Value, frozen=True):
    """The sender's executed tip. Ends the handshake, and is sent again when the tip has moved.

    `base` is the height of the snapshot that it joined from, 0 for none: it has no bodies at or below it.
    """

    height: U63
    tip: Hash
    total_work: Work
    base: U63 = 0

    @property
    def work(self) -> int:
        """Total work as an integer."""
        return int.from_bytes(self.total_work, "big")


class GetHeaders(Value, frozen=True):
    """Main-chain headers behind the first known id of the locator."""

    locator: Locator
    limit: Annotated[int, Meta(ge=1, le=MAX_HEADERS)]


class Headers(Value, frozen=True):
    """Headers in ascending order, each the parent of the next. Fewer than asked for: there are no more."""

    headers: Annotated[tuple[Header, ...], Meta(max_length=MAX_HEADERS)]


class GetHeaderCopy(Value, frozen=True):
    """The copy of a header that has this winning ticket."""

    id: Hash
    ticket: Hash


class HeaderCopy(Value, frozen=True):
    """That copy."""

    header: Header


class GetStrips(Value, frozen=True):
    """The strips under the winning tile of a header's copy."""

    id: Hash
    ticket: Hash


class HeaderStrips(Value, frozen=True):
    """Both strips and their Merkle paths."""

    strips: Strips


class GetBody(Value, frozen=True):
    """The body of a block."""

    id: Hash


class BodyBytes(Value, frozen=True):
    """An encoded body: decoding a megabyte of transactions is no work for an event loop."""

    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]


class NewBlock(Value, frozen=True):
    """The sender has a new tip: its header at once, which saves a round trip."""

    header: Header


class Announce(Value, frozen=True):
    """The sender holds these verified transactions or results."""

    kind: Annotated[int, Meta(ge=Kind.TRANSACTION.value, le=Kind.RESULT.value)]
    ids: Ids


class GetItems(Value, frozen=True):
    """Transactions or results by id."""

    kind: Annotated[int, Meta(ge=Kind.TRANSACTION.value, le=Kind.RESULT.value)]
    ids: FewIds


class Items(Value, frozen=True):
    """Those of the first ids that are at hand and fit into one message, encoded, in the order asked for."""

    items: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_TX_BYTES)], ...], Meta(max_length=MAX_REQUESTED)]


class GetTensor(Value, frozen=True):
    """Strips of a tensor from index `first` on."""

    commitment: Hash
    first: U32


class Strip(Value, frozen=True):
    """One strip's bytes and Merkle path."""

    data: Annotated[bytes, Meta(max_length=MAX_STRIP_BYTES)]
    path: Path


class TensorStrips(Value, frozen=True):
    """The tensor's spec and `strips_per_message(spec)` strips, or those that are left at the end."""

    spec: TensorSpec
    first: U32
    strips: Annotated[tuple[Strip, ...], Meta(min_length=1, max_length=MAX_DIMENSION // TILE_SIDE)]


class GetState(Value, frozen=True):
    """Records of the state after a checkpoint's block, in key order from `start` on."""

    id: Hash
    start: StateKey


class State(Value, frozen=True):
    """An encoded `node.chain.checkpoints.Page`: decoding it is no work for an event loop. `more`: others follow."""

    records: Annotated[bytes, Meta(max_length=MAX_STATE_BYTES)]
    more: bool


class GetPeers(Value, frozen=True):
    """Addresses of other nodes."""


class PeerAddress(Value, frozen=True):
    """An IPv4 or IPv6 literal and a port."""

    host: Host
    port: Annotated[int, Meta(ge=1, le=65535)]


class Peers(Value, frozen=True):
    """Some addresses out of the sender's book."""

    addresses: Annotated[tuple[PeerAddress, ...], Meta(max_length=MAX_ADDRESSES)]


class NotFound(Value, frozen=True):
    """Reply to any request for something that is not here."""


Message: TypeAlias = (
    Welcome | Hello | Goodbye | Ping | Pong | Status
    | GetHeaders | Headers | GetHeaderCopy | HeaderCopy | GetStrips | HeaderStrips | GetBody | BodyBytes | NewBlock
    | Announce | GetItems | Items | GetTensor | TensorStrips | GetState | State | GetPeers | Peers | NotFound
)  # fmt: skip


class Role(IntEnum):
    """Who handles a message. Every request and notice has its entry in the handler table of `node.p2p.network`."""

    HANDSHAKE = 0
    CONTROL = 1
    REQUEST = 2
    REPLY = 3
    NOTICE = 4


@dataclass(frozen=True)
class Declaration:
    """One row of the table.

    Attributes:
        code: the type byte.
        struct: what the payload decodes to.
        max_bytes: most bytes of the payload.
        role: who handles it.
        reply: the struct that answers it (`NotFound` may stand in for any but `Pong`).
        per_s, burst: the receiver's token bucket; replies need none, for they are counted by their requests.
    """

    code: int
    struct: type[Message]
    max_bytes: int
    role: Role
    reply: type[Message] | None = None
    per_s: float = 0.0
    burst: float = 0.0


_HEADER = MAX_HEADER_BYTES + 16
_LARGEST = MAX_MESSAGE_BYTES - PREFIX_BYTES - 1
"""The WebSocket layer refuses a frame that is as long as its limit."""

DECLARATIONS: tuple[Declaration, ...] = (
    Declaration(0x00, Welcome, 512, Role.HANDSHAKE),
    Declaration(0x01, Hello, 512, Role.HANDSHAKE),
    Declaration(0x02, Goodbye, 1 << 10, Role.CONTROL, per_s=1, burst=1),
    Declaration(0x03, Ping, 16, Role.CONTROL, Pong, per_s=1, burst=10),
    Declaration(0x04, Pong, 16, Role.REPLY),
    Declaration(0x05, Status, 128, Role.NOTICE, per_s=2, burst=20),
    Declaration(0x10, GetHeaders, 4 << 10, Role.REQUEST, Headers, per_s=20, burst=200),
    Declaration(0x11, Headers, MAX_HEADERS * _HEADER, Role.REPLY),
    Declaration(0x12, GetHeaderCopy, 128, Role.REQUEST, HeaderCopy, per_s=20, burst=200),
    Declaration(0x13, HeaderCopy, _HEADER, Role.REPLY),
    Declaration(0x14, GetStrips, 128, Role.REQUEST, HeaderStrips, per_s=200, burst=2000),
    Declaration(0x15, HeaderStrips, _LARGEST, Role.REPLY),
    Declaration(0x16, GetBody, 64, Role.REQUEST, BodyBytes, per_s=500, burst=5000),
    Declaration(0x17, BodyBytes, MAX_BODY_BYTES + 16, Role.REPLY),
    Declaration(0x20, NewBlock, _HEADER, Role.NOTICE, per_s=10, burst=100),
    Declaration(0x21, Announce, 16 << 10, Role.NOTICE, per_s=50, burst=500),
    Declaration(0x22, GetItems, 4 << 10, Role.REQUEST, Items, per_s=25, burst=250),
    Declaration(0x23, Items, _LARGEST, Role.REPLY),
    Declaration(0x30, GetTensor, 64, Role.REQUEST, TensorStrips, per_s=1000, burst=10_000),
    Declaration(0x31, TensorStrips, _LARGEST, Role.REPLY),
    Declaration(0x32, GetState, 256, Role.REQUEST, State, per_s=20, burst=40),
    Declaration(0x33, State, _LARGEST, Role.REPLY),
    Declaration(0x40, GetPeers, 16, Role.REQUEST, Peers, per_s=0.1, burst=5),
    Declaration(0x41, Peers, 16 << 10, Role.REPLY),
    Declaration(0x7F, NotFound, 16, Role.REPLY),
)

BY_CODE: dict[int, Declaration] = {row.code: row for row in DECLARATIONS}
BY_STRUCT: dict[type[Message], Declaration] = {row.struct: row for row in DECLARATIONS}

MAX_FRAME_BYTES = PREFIX_BYTES + max(row.max_bytes for row in DECLARATIONS)


def encode_frame(message: Message, request: int = 0) -> bytes:
    """The bytes of one message; `request` is its own number, or that of the request that it answers."""
    row = BY_STRUCT[type(message)]
    payload = codec.encode(message)
    assert len(payload) <= row.max_bytes, f"a {row.struct.__name__} of {len(payload)} bytes"
    return b"".join((row.code.to_bytes(1), request.to_bytes(4), payload))


def read_prefix(frame: bytes) -> tuple[int, int]:
    """(type, request number) of a frame; ConsensusError where there is none."""
    if len(frame) < PREFIX_BYTES:
        raise ConsensusError(Reason.MALFORMED, f"a frame of {len(frame)} bytes", f"at least {PREFIX_BYTES}")
    return frame[0], int.from_bytes(frame[1:PREFIX_BYTES])


def check_size(row: Declaration, frame: bytes) -> None:
    """Refuse a frame that is larger than its type allows; nothing is decoded before."""
    if len(frame) - PREFIX_BYTES > row.max_bytes:
        raise ConsensusError(
            Reason.OVERSIZE, f"a {row.struct.__name__} of {len(frame) - PREFIX_BYTES} bytes", f"at most {row.max_bytes}"
        )


def decode_payload(row: Declaration, frame: bytes) -> Message:
    """The message of a frame of this type.

    Raises:
        ConsensusError: OVERSIZE, MALFORMED or NOT_CANONICAL.
    """
    return codec.decode(row.struct, frame[PREFIX_BYTES:], row.max_bytes)


def strips_per_message(spec: TensorSpec) -> int:
    """Strips of a tensor that travel together: as many as fit into 1 MiB, and at least one."""
    return max(1, MAX_STRIP_BYTES // spec.strip_size)


def strips_expected(spec: TensorSpec, first: int) -> int:
    """Strips that answer a request from index `first` on."""
    return min(strips_per_message(spec), spec.leaves - first)
