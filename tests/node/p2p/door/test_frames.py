"""What passes the look at a peer's bytes, and what is seen at its first byte."""

from __future__ import annotations

import pytest

from node.p2p.door.frames import Frames

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def frame(payload: bytes, kind: int = 2, last: bool = True, masked: bool = True) -> bytes:
    """A frame of a WebSocket, masked with zeros as diallers' must be."""
    size = len(payload)
    length = (
        bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 1 << 16 else b"\x7f" + size.to_bytes(8)
    )
    return bytes([kind | 0x80 * last, length[0] | 0x80 * masked]) + length[1:] + bytes(4 * masked) + payload


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000, 1 << 20])
@pytest.mark.parametrize("masked", [True, False])
def test_whole_messages_pass_however_the_stream_is_cut(piece: int, masked: bool) -> None:
    frames = Frames()
    sizes = (5, 125, 126, 300, 65_535, 65_536) if piece > 2 else (5, 126)
    stream = (
        (UPGRADE if masked else SWITCHING) + b"".join(frame(bytes(n), masked=masked) for n in sizes) + frame(b"", 8)
    )
    assert {frames.fault_in(stream[at : at + piece]) for at in range(0, len(stream), piece)} == {""}


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (frame(b"12345", last=False), "a message in parts"),
        (frame(b"12345", kind=0), "a message in parts"),
        (frame(b"", kind=0, last=False), "a message in parts"),
        (frame(b""), "a frame too short for a message"),
        (frame(b"", kind=9), "a frame too short for a message"),
        (b"GET / HTTP/1.1\r\n\r\n", "a message in parts"),
    ],
)
def test_what_is_no_whole_message_is_seen_at_its_first_byte(sent: bytes, fault: str) -> None:
    frames = Frames()
    assert frames.fault_in(UPGRADE + frame(bytes(500))) == ""
    assert frames.fault_in(sent) == fault


def test_a_head_without_end_is_cut() -> None:
    frames = Frames()
    assert frames.fault_in(b"GET / HTTP/1.1\r\n") == ""
    assert frames.fault_in(b"a" * (8 << 10)) == "a head without an end"
