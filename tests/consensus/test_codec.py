"""Canonical bytes: one encoding per value, bounded before it is parsed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import Annotated, Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from consensus import block, events, transaction, transition, validation  # noqa: F401  (all structs are declared)
from consensus.block import Block, Header, decode_header
from consensus.codec import U16, Value, decode, encode
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_TX_BYTES, ChainParams
from consensus.proofs import trie  # noqa: F401  (all structs are declared)
from consensus.transaction import Output, Payload, RetireWorker, Transaction, Transfer, decode_transaction
from tests.builders import ALICE, BOB, ChainBuilder
from tests.consensus.strategies import subclasses, values

STRUCTS = [kind for kind in subclasses(Value) if kind.__module__.startswith("consensus") and kind is not ChainParams]

SIGNED = ChainBuilder(worked=False).transfer(ALICE, BOB, 1)


class Pair(Value, frozen=True):
    small: U16
    data: Annotated[bytes, Meta(max_length=4)] = b""


class Left(Value, frozen=True, tag=0):
    pass


class Right(Value, frozen=True, tag=1):
    number: U16


def refusal(kind: Any, data: bytes, limit: int = 1000) -> Reason:
    with pytest.raises(ConsensusError) as caught:
        decode(kind, data, limit)
    return caught.value.reason


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_struct_makes_the_round_trip(kind: type[Value], data: st.DataObject) -> None:
    value = data.draw(values(kind))
    encoded = encode(value)
    again = decode(kind, encoded, len(encoded))
    assert again == value
    assert encode(again) == encoded


def test_a_value_is_an_array_of_its_fields() -> None:
    assert encode(Pair(7, b"ab")) == b"\x92\x07\xc4\x02ab"
    assert encode(Left()) == b"\x91\x00"
    assert encode(Right(300)) == b"\x92\x01\xcd\x01\x2c"


@pytest.mark.parametrize(
    "integer", [b"\xcc\x07", b"\xcd\x00\x07", b"\xce\x00\x00\x00\x07", b"\xcf" + bytes(7) + b"\x07", b"\xd0\x07"]
)
def test_integers_that_are_longer_than_need_be_are_not_canonical(integer: bytes) -> None:
    assert decode(Pair, b"\x92\x07\xc4\x00", 100) == Pair(7)
    assert refusal(Pair, b"\x92" + integer + b"\xc4\x00") == Reason.NOT_CANONICAL


@pytest.mark.parametrize(
    "data",
    [
        b"\xdc\x00\x02\x07\xc4\x00",  # an array of two in three bytes
        b"\x92\x07\xc5\x00\x00",  # no bytes in three bytes
        b"\x91\x07",  # the default left out
    ],
)
def test_other_encodings_of_the_same_value_are_not_canonical(data: bytes) -> None:
    assert refusal(Pair, data) == Reason.NOT_CANONICAL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92\x07",  # truncated
        b"\x92\x07\xc4\x04ab",
        b"\x92\x07\xc4\x00\x00",  # a byte behind
        b"\x93\x07\xc4\x00\x00",  # a field too many
        b"\x90",  # a field too few
        b"\x82\xa5small\x07\xa4data\xc4\x00",  # a map
        b"\x92\xcb\x40\x1c\x00\x00\x00\x00\x00\x00\xc4\x00"[:-1],  # a truncated one with a float
        b"\x92\xc0\xc4\x00",  # nil
        b"\x92\xff\xc4\x00",  # −1
        b"\x92\xce\x00\x01\x00\x00\xc4\x00",  # beyond u16
        b"\x92\x07\xc4\x05abcde",  # beyond the field's bound
        b"\xc1",
    ],
)
def test_what_is_no_such_value_is_malformed(data: bytes) -> None:
    assert refusal(Pair, data) == Reason.MALFORMED


def test_a_float_is_never_an_integer() -> None:
    assert refusal(Pair, b"\x92\xcb\x40\x1c\x00\x00\x00\x00\x00\x00\xc4\x00") in {
        Reason.MALFORMED,
        Reason.NOT_CANONICAL,
    }


@pytest.mark.parametrize("data", [b"\x91\x02", b"\x92\x02\x07", b"\x91\xa1x", b"\x90", b"\x91\x01", b"\x92\x00\x07"])
def test_a_union_needs_a_known_tag_and_its_own_fields(data: bytes) -> None:
    assert refusal(Left | Right, data) == Reason.MALFORMED


def test_a_long_form_tag_is_not_canonical() -> None:
    assert refusal(Left | Right, b"\x91\xcc\x00") == Reason.NOT_CANONICAL


def test_size_is_checked_before_anything_is_parsed() -> None:
    assert refusal(Pair, b"\xc1" * 11, limit=10) == Reason.OVERSIZE
    assert refusal(Pair, b"\xc1" * 10, limit=10) == Reason.MALFORMED


def test_deep_nesting_is_malformed() -> None:
    assert refusal(Pair, b"\x91" * 500_000, limit=10**6) == Reason.MALFORMED


@given(st.binary(max_size=80))
def test_garbage_raises_nothing_but_a_reason(data: bytes) -> None:
    for kind in (Header, Block, Transaction):
        with pytest.raises(ConsensusError):
            decode(kind, data, 80)


@given(st.data())
def test_every_flipped_bit_changes_the_value_or_is_refused(data: st.DataObject) -> None:
    encoded = encode(SIGNED)
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[bit // 8] ^= 1 << bit % 8
    with suppress(ConsensusError):
        assert decode_transaction(bytes(flipped)) != SIGNED


def test_payload_tags_are_fixed() -> None:
    tags = {kind.__name__: kind.__struct_config__.tag for kind in get_args(Payload)}
    assert tags == {"Transfer": 0, "RegisterWorker": 1, "RetireWorker": 2, "SubmitJob": 3, "CancelJob": 4}


def test_the_largest_transaction_is_128_kib() -> None:
    chain = ChainBuilder(worked=False)
    assert MAX_TX_BYTES == 128 * 1024
    tx = chain.tx(ALICE, Transfer((Output(BOB.address, 1),) * 6000))
    assert len(encode(tx)) > MAX_TX_BYTES
    with pytest.raises(ConsensusError, match="oversize"):
        decode_transaction(encode(tx))
    small = chain.tx(ALICE, RetireWorker())
    assert decode_transaction(encode(small)) == small


def test_blocks_and_headers_make_the_round_trip() -> None:
    chain = ChainBuilder()
    mined = chain.mine([chain.transfer(ALICE, BOB, 5)]).block
    assert decode(Block, encode(mined), 2**20) == mined
    assert decode_header(encode(mined.header)) == mined.header
    with pytest.raises(ConsensusError, match="oversize"):
        decode_header(encode(mined) + bytes(1024))


FIRST_AT_ONCE = """
import sys, threading
import msgspec
from consensus.codec import U63, Value, decode, encode

sys.setswitchinterval(1e-6)
for number in range(100):
    inner = msgspec.defstruct(f"Inner{number}", [(f"f{i}", U63) for i in range(12)], bases=(Value,), frozen=True)
    outer = msgspec.defstruct(f"Outer{number}", [(f"g{i}", inner) for i in range(6)], bases=(Value,), frozen=True)
    value = outer(*(inner(*range(12)) for _ in range(6)))
    data, read, together = encode(value), [], threading.Barrier(4)

    def first() -> None:
        together.wait()
        read.append(decode(outer, data, len(data)))

    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [value] * 4, read
"""


def test_threads_that_are_the_first_to_decode_a_kind_do_not_end_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", FIRST_AT_ONCE], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
