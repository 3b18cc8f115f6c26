"""Valid values made from their types alone, and bytes that are nearly valid, all from a seed."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence

from msgspec import inspect

Mutation = Callable[[random.Random, bytes, bytes], bytes]
"""Bytes made of a sample and of another one."""

MAX_BYTES = 1 << 18
"""A mutated sample is cut off here: what is longer than its limit is refused by its length alone."""

_MARKS = bytes((0x00, 0x7F, 0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC2, 0xC4, 0xC7, 0xCA, 0xCB, 0xCF, 0xD3, 0xD4, 0xD9, 0xFF))
"""Bytes that begin each kind of MessagePack value."""
_LENGTHS = tuple(
    mark + length
    for mark in (b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf", b"")
    for length in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x0f\xff\xff", b"\x00\x00\x00\x00")
)
_NESTS = (b"\x91", b"\x81\xa1a", b"[", b'{"a":', b"(", b"-", b"a.", b"\x30\x80")
_WORDS = (
    b"9" * 5000, b"0x" + b"f" * 5000, b"-1", b"1e999", b"-0.0", b"NaN", b"nan", b"inf", b"null", b"true", b"True",
    b"{}", b"[]", b'""', b"18446744073709551616", b"-" + b"9" * 40, b'"\\u0000"', b'"\\ud800"', b'"~nobody/x"', b"()",
    b"\xff", b"\x00", b"\xed\xa0\x80", b"\xef\xbb\xbf", "\N{SUPERSCRIPT TWO}".encode(),
)  # fmt: skip
"""What stands in text in place of a number or a word."""


def mutated(rng: random.Random, sample: bytes, other: bytes) -> bytes:
    """One to four mutations of a sample."""
    data = sample
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(MUTATIONS)(rng, data, other)[:MAX_BYTES]
    return data


def _flip(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    at, end = _span(rng, data)
    return data[:at] + data[end:]


def _repeat(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    at, end = _span(rng, data)
    return data[:end] + data[at:end] * rng.choice((1, 2, 300)) + data[end:]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at, end = _span(rng, other)
    place = rng.randrange(len(data) + 1)
    return data[:place] + other[at:end] + data[place + rng.choice((0, end - at)) :]


def _retype(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """A value of another kind in one's place."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes((rng.choice(_MARKS),)) + data[at + 1 :]


def _lengthen(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """A length that promises far more than there is."""
    at, length = rng.randrange(len(data) + 1), rng.choice(_LENGTHS)
    return data[:at] + length + data[at + rng.choice((0, len(length))) :]


def _nest(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_NESTS) * rng.choice((3, 500, 30_000)) + data[at:]


def _reword(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """Another word in place of one in text, or in between."""
    at = end = rng.randrange(len(data) + 1)
    letters = string.ascii_letters.encode() + string.digits.encode()
    while at > 0 and data[at - 1] in letters:
        at -= 1
    while end < len(data) and data[end] in letters:
        end += 1
    return data[:at] + rng.choice(_WORDS) + data[end:]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    at = rng.randrange(len(data) + 1)
    return at, min(len(data), at + rng.choice((1, 4, 32, 1000)))


MUTATIONS: Sequence[Mutation] = (_flip, _truncate, _delete, _repeat, _splice, _retype, _lengthen, _nest, _reword)


def value(rng: random.Random, info: inspect.Type) -> object:
    """Any value of a type (`msgspec.inspect.type_info`), within the bounds that it declares."""
    match info:
        case inspect.StructType():
            return info.cls(**{field.name: value(rng, field.type) for field in info.fields})
        case inspect.UnionType():
            return value(rng, rng.choice(info.types))
        case inspect.VarTupleType() | inspect.ListType():
            low = info.min_length or 0
            most = low + 3 if info.max_length is None else min(low + 3, info.max_length)
            items = [value(rng, info.item_type) for _ in range(rng.randint(low, most))]
            return items if isinstance(info, inspect.ListType) else tuple(items)
        case inspect.TupleType():
            return tuple(value(rng, item) for item in info.item_types)
        case inspect.DictType():
            return {value(rng, info.key_type): value(rng, info.value_type) for _ in range(rng.randrange(3))}
        case inspect.IntType():
            low, high = info.ge or 0, 2**63 - 1 if info.le is None else info.le
            return rng.choice((low, high, rng.randint(low, min(high, low + 300)), rng.randint(low, high)))
        case inspect.FloatType():
            return rng.random()
        case inspect.BytesType():
            low = info.min_length or 0
            return rng.randbytes(rng.randint(low, min(low + 40, info.max_length or low + 40)))
        case inspect.StrType():
            return _text(rng, info)
        case inspect.LiteralType():
            return rng.choice(info.values)
        case inspect.EnumType():
            return rng.choice(list(info.cls))
        case inspect.Metadata():
            return value(rng, info.type)
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.NoneType():
            return None
    raise NotImplementedError(type(info).__name__)


def _text(rng: random.Random, info: inspect.StrType) -> str:
    if info.pattern and "a-f" in info.pattern:
        return rng.randbytes((info.min_length or 64) // 2).hex()
    if info.pattern:
        return str(rng.randrange(2**64))
    low = info.min_length or 0
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(low, min(low + 8, info.max_length or low + 8))))
