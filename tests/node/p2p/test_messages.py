"""The message table: complete, documented, bounded; and frames that are not what they should be."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.block import Answer, Header, HeaderCore, PacketUnit, Proof
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_BODY_BYTES, MAX_TX_BYTES
from consensus.tensor import INT8, INT32, ROWS, TensorSpec, product_spec, right_spec
from consensus.validation import Strips
from node.p2p import messages
from node.p2p.limits import (
    MAX_ADDRESSES,
    MAX_ANNOUNCED,
    MAX_HEADERS,
    MAX_LOCATOR,
    MAX_MESSAGE_BYTES,
    MAX_REQUESTED,
    MAX_STATE_BYTES,
    MAX_STRIP_BYTES,
)
from node.p2p.messages import (
    BY_CODE,
    BY_STRUCT,
    DECLARATIONS,
    MAX_FRAME_BYTES,
    Announce,
    BodyBytes,
    Declaration,
    GetBody,
    GetHeaderCopy,
    GetHeaders,
    GetItems,
    GetPeers,
    GetState,
    GetStrips,
    GetTensor,
    Goodbye,
    HeaderCopy,
    Headers,
    HeaderStrips,
    Hello,
    Items,
    Leave,
    Message,
    NewBlock,
    NotFound,
    PeerAddress,
    Peers,
    Ping,
    Pong,
    Role,
    State,
    Status,
    Strip,
    TensorStrips,
    Welcome,
    check_size,
    decode_payload,
    encode_frame,
    read_prefix,
    strips_expected,
    strips_per_message,
)

ID = b"\xff" * 32
CORE = HeaderCore(
    version=2**32 - 1,
    chain_id=2**32 - 1,
    height=2**63 - 1,
    parent=ID,
    parent_ticket=ID,
    time_ms=2**63 - 1,
    target=ID,
    miner=b"\xff" * 20,
    state_root=ID,
    body_root=ID,
    unit=PacketUnit(ID, ID, ID, 4096, 4096, 4096),
    nonce=b"\xff" * 8,
)
HEADER = Header(CORE, Proof(2**32 - 1, 2**32 - 1, b"\xff" * 64, Answer(ID, ID, b"\xff" * 64)))
PATH = (ID,) * 6
OPERAND_STRIP = b"\xff" * (64 * 4096)
PRODUCT = product_spec(4096, 4096, ID)
AGENT = "\U0001f9ee" * 64

LARGEST: dict[type[Message], Message] = {
    Welcome: Welcome(2**16 - 1, ID, ID, AGENT),
    Hello: Hello(2**16 - 1, ID, ID, AGENT, ID, 2**16 - 1, b"\xff" * 64),
    Goodbye: Goodbye(2**16 - 1, "\U0001f9ee" * 128),
    Ping: Ping(),
    Pong: Pong(),
    Status: Status(2**63 - 1, ID, ID, 2**63 - 1),
    GetHeaders: GetHeaders((ID,) * MAX_LOCATOR, MAX_HEADERS),
    Headers: Headers((HEADER,) * MAX_HEADERS),
    GetHeaderCopy: GetHeaderCopy(ID, ID),
    HeaderCopy: HeaderCopy(HEADER),
    GetStrips: GetStrips(ID, ID),
    HeaderStrips: HeaderStrips(Strips(OPERAND_STRIP, PATH, OPERAND_STRIP, PATH)),
    GetBody: GetBody(ID),
    BodyBytes: BodyBytes(bytes(MAX_BODY_BYTES)),
    NewBlock: NewBlock(HEADER),
    Announce: Announce(1, (ID,) * MAX_ANNOUNCED),
    GetItems: GetItems(1, (ID,) * MAX_REQUESTED),
    Items: Items((bytes(MAX_TX_BYTES - 64),) * 8),
    GetTensor: GetTensor(ID, 2**32 - 1),
    TensorStrips: TensorStrips(PRODUCT, 63, (Strip(bytes(MAX_STRIP_BYTES), PATH),)),
    GetState: GetState(ID, b"\xff" * 128),
    State: State(bytes(MAX_STATE_BYTES), True),
    GetPeers: GetPeers(),
    Peers: Peers((PeerAddress("\U0001f9ee" * 45, 65535),) * MAX_ADDRESSES),
    NotFound: NotFound(),
}
"""The largest honest message of every type."""


@pytest.mark.parametrize("row", DECLARATIONS, ids=lambda row: row.struct.__name__)
def test_every_message_is_documented_and_bounded(row: Declaration) -> None:
    assert row.struct.__doc__
    assert "Struct" not in row.struct.__doc__
    assert 0 < row.max_bytes < MAX_MESSAGE_BYTES
    assert (row.reply is not None) == (row.role is Role.REQUEST or row.struct is Ping)
    assert (row.per_s > 0) == (row.role not in (Role.REPLY, Role.HANDSHAKE))
    assert row.burst >= row.per_s or row.struct is Goodbye
    if row.reply is not None:
        assert BY_STRUCT[row.reply].role is Role.REPLY


def test_the_table_holds_every_message_once() -> None:
    assert set(BY_STRUCT) == set(get_args(Message))
    assert len(BY_CODE) == len(BY_STRUCT) == len(DECLARATIONS)
    assert all(0 <= code <= 255 for code in BY_CODE)
    replies = {row.reply for row in DECLARATIONS if row.reply is not None} | {NotFound}
    assert replies == {row.struct for row in DECLARATIONS if row.role is Role.REPLY}


def test_every_struct_of_the_module_is_in_the_table_or_part_of_a_message() -> None:
    structs = {value for value in vars(messages).values() if isinstance(value, type)}
    own = {value for value in structs if issubclass(value, msgspec.Struct) and value.__module__ == messages.__name__}
    assert own - set(BY_STRUCT) == {PeerAddress, Strip}


@pytest.mark.parametrize("row", DECLARATIONS, ids=lambda row: row.struct.__name__)
def test_the_largest_message_fits_and_comes_back(row: Declaration) -> None:
    message = LARGEST[row.struct]
    frame = encode_frame(message, 2**32 - 1)
    assert len(frame) <= MAX_FRAME_BYTES < MAX_MESSAGE_BYTES
    assert read_prefix(frame) == (row.code, 2**32 - 1)
    check_size(row, frame)
    assert decode_payload(row, frame) == message


@pytest.mark.parametrize("row", DECLARATIONS, ids=lambda row: row.struct.__name__)
def test_a_message_above_its_limit_is_refused_before_it_is_decoded(row: Declaration) -> None:
    frame = bytes([row.code]) + bytes(4) + b"\xc1" * (row.max_bytes + 1)  # 0xc1 is no MessagePack at all
    with pytest.raises(ConsensusError) as error:
        check_size(row, frame)
    assert error.value.reason is Reason.OVERSIZE


@pytest.mark.parametrize(
    "row", [row for row in DECLARATIONS if row.struct.__struct_fields__], ids=lambda r: r.struct.__name__
)
def test_truncated_frames_are_malformed(row: Declaration) -> None:
    frame = encode_frame(LARGEST[row.struct])
    for end in {5, 6, len(frame) // 2, len(frame) - 1}:
        with pytest.raises(ConsensusError) as error:
            decode_payload(row, frame[:end])
        assert error.value.reason is Reason.MALFORMED


def test_a_frame_without_a_prefix_is_malformed() -> None:
    for frame in (b"", b"\x03", b"\x03\x00\x00\x00"):
        with pytest.raises(ConsensusError):
            read_prefix(frame)


def test_a_second_encoding_of_a_message_is_refused() -> None:
    row = BY_STRUCT[Status]
    frame = encode_frame(Status(5, ID, ID))
    assert frame[6] == 5
    longer = frame[:6] + b"\xcc\x05" + frame[7:]  # 5 in two bytes
    with pytest.raises(ConsensusError) as error:
        decode_payload(row, longer)
    assert error.value.reason is Reason.NOT_CANONICAL


@pytest.mark.parametrize(
    "message",
    [
        GetHeaders((), 1),
        GetHeaders((ID,) * (MAX_LOCATOR + 1), 1),
        GetHeaders((ID,), MAX_HEADERS + 1),
        GetHeaders((ID,), 0),
        Announce(0, ()),
        Announce(2, (ID,)),
        Announce(0, (ID,) * (MAX_ANNOUNCED + 1)),
        GetItems(0, (ID,) * (MAX_REQUESTED + 1)),
        GetBody(b"short"),
        Peers((PeerAddress("10.0.0.1", 1),) * (MAX_ADDRESSES + 1)),
        Peers((PeerAddress("10.0.0.1", 0),)),
        Status(-1, ID, ID),
    ],
)
def test_values_out_of_bounds_are_malformed(message: Message) -> None:
    row = BY_STRUCT[type(message)]
    with pytest.raises(ConsensusError) as error:
        decode_payload(row, encode_frame(message))
    assert error.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("spec", "together"),
    [
        (PRODUCT, 1),
        (product_spec(256, 256, ID), 16),
        (right_spec(4096, 4096, ID), 4),
        (TensorSpec(INT8, ROWS, 64, 64, 1, ID), 256),
        (TensorSpec(INT32, ROWS, 128, 2048, 2, ID), 2),
    ],
)
def test_as_many_strips_travel_together_as_fit(spec: TensorSpec, together: int) -> None:
    assert strips_per_message(spec) == together
    assert spec.strip_size * together <= MAX_STRIP_BYTES
    assert sum(strips_expected(spec, first) for first in range(0, spec.leaves, together)) == spec.leaves


@given(st.sampled_from(DECLARATIONS), st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_whatever_arrives_is_refused_or_means_exactly_its_bytes(
    row: Declaration, noise: bytes, position: int, value: int
) -> None:
    small = encode_frame(LARGEST[row.struct])[:1000]
    mutated = small[: 5 + position] + bytes([value]) + small[6 + position :]
    for frame in (bytes([row.code]) + bytes(4) + noise, mutated):
        try:
            check_size(row, frame)
            message = decode_payload(row, frame)
        except ConsensusError:
            continue
        assert encode_frame(message)[5:] == frame[5:]


def test_codes_of_goodbyes_never_change() -> None:
    assert [leave.name for leave in Leave] == [
        "STOPPING",
        "WRONG_GENESIS",
        "WRONG_VERSION",
        "SELF",
        "DUPLICATE",
        "FULL",
        "BAD_SIGNATURE",
        "COOLING_DOWN",
        "MISBEHAVED",
        "TIMED_OUT",
        "PROTOCOL_ERROR",
    ]


@pytest.mark.parametrize("element_bytes", [1, 4])
def test_strips_of_every_shape_fit_into_a_message_with_their_paths(element_bytes: int) -> None:
    """A matrix of 4096 × 512 has 64 strips of 32 KiB: 32 of them are a mebibyte, and their paths more."""
    row = BY_STRUCT[TensorStrips]
    for leaves in range(1, 65):
        for columns in range(64, 4097, 64):
            spec = TensorSpec(INT8 if element_bytes == 1 else INT32, ROWS, 64 * leaves, columns, leaves, ID)
            count = strips_expected(spec, 0)
            assert 1 <= count <= leaves
            path = (ID,) * (leaves - 1).bit_length()
            strips = (Strip(bytes(spec.strip_size), path),) * count
            size = 64 + sum(spec.strip_size + 34 * len(path) + 16 for _ in strips)
            assert size <= row.max_bytes
            if (leaves, columns) in {(64, 512), (64, 256), (33, 448), (64, 4096), (2, 64)}:
                assert len(encode_frame(TensorStrips(spec, 0, strips), 1)) <= MAX_MESSAGE_BYTES
