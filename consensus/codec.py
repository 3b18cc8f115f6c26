"""Canonical bytes of consensus values: MessagePack arrays, one encoding per value (docs/protocol.md, section 2).

MessagePack decoders accept several encodings of the same value (a small integer in five bytes, say). A hash must not
depend on which of them a peer chose, so a decoder here encodes what it decoded and compares.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from consensus.errors import ConsensusError, Reason

T = TypeVar("T")

MAX_AMOUNT = 2**63 - 1
"""Largest amount in grains; sums beyond it are errors, they never wrap."""

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Address = Annotated[bytes, Meta(min_length=20, max_length=20)]
PublicKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Nonce8 = Annotated[bytes, Meta(min_length=8, max_length=8)]
Amount = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U63 = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]

ZERO_HASH = bytes(32)


class Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything that is hashed or sent: a frozen struct whose encoding is an array of its fields."""


_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[object, msgspec.msgpack.Decoder[Any]] = {}
_making = threading.Lock()


def encode(value: object) -> bytes:
    """The canonical bytes of a `Value` (or of a list of plain values)."""
    return _encode(value)


def decode(kind: type[T], data: bytes, limit: int) -> T:
    """Decode `data` as `kind`, strictly.

    Args:
        kind: a `Value` subclass, or a union of tagged ones.
        data: the bytes; nothing is parsed before their length is checked.
        limit: the most bytes accepted.
    Raises:
        ConsensusError: OVERSIZE, MALFORMED, or NOT_CANONICAL (the value has another encoding).
    """
    if len(data) > limit:
        raise ConsensusError(Reason.OVERSIZE, f"{len(data)} bytes", f"at most {limit}")
    try:
        value: T = decoder_of(kind).decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ConsensusError(Reason.MALFORMED, str(error), getattr(kind, "__name__", str(kind))) from None
    if _encode(value) != data:
        raise ConsensusError(Reason.NOT_CANONICAL, f"{len(data)} bytes", f"{len(_encode(value))} bytes")
    return value


def decoder_of(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    """The one decoder of a declared type: the table is as large as the code, not as the input. On any thread.

    msgspec notes what it finds out about a struct on the struct itself, field by field, when the first decoder that
    needs it is made. A second thread that makes one meanwhile, and decodes, would end the process on a null pointer.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _making:
            decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder
