"""A look at whatever comes from a peer, before aiohttp has it: a WebSocket of whole messages, and nothing else."""

from __future__ import annotations

import asyncio

from aiohttp import WSMsgType

from node.p2p.limits import PREFIX_BYTES

_END_OF_HEAD = b"\r\n\r\n"
_MAX_HEAD_BYTES = 8 << 10
"""Head of a request or an answer; a node's own has some hundred bytes."""


class Frames:
    """Walks over one direction of a connection, from the first byte: the head of HTTP, then a WebSocket's frames.

    Nodes send every message in a frame of its own. aiohttp would take fragments of nothing for ever, and tiny frames by
    the ten thousand, before anybody who counts hears of them.
    """

    def __init__(self) -> None:
        self._http: bytes | None = b""
        self._head = b""
        self._payload = 0

    def fault_in(self, data: bytes) -> str:
        """What is wrong with the next bytes; empty if nothing is."""
        at = 0
        if self._http is not None:
            before = len(self._http)
            self._http += data
            end = self._http.find(_END_OF_HEAD)
            if end < 0:
                return "" if len(self._http) <= _MAX_HEAD_BYTES else "a head without an end"
            at = end + len(_END_OF_HEAD) - before
            self._http = None
        while at < len(data):
            if self._payload:
                step = min(self._payload, len(data) - at)
                self._payload -= step
            else:
                step = min(self._head_bytes() - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == self._head_bytes() and (fault := self._begin()):
                    return fault
            at += step
        return ""

    def _head_bytes(self) -> int:
        """Length of the head of the frame that begins, as far as it can be told."""
        if len(self._head) < 2:
            return 2
        length = self._head[1] & 0x7F
        return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if self._head[1] & 0x80 else 0)

    def _begin(self) -> str:
        """A frame's head is complete."""
        head, self._head = self._head, b""
        kind, length = head[0] & 0x0F, head[1] & 0x7F
        self._payload = (
            int.from_bytes(head[2:4]) if length == 126 else int.from_bytes(head[2:10]) if length == 127 else length
        )
        if not head[0] & 0x80 or kind == 0:
            return "a message in parts"
        if kind != WSMsgType.CLOSE and self._payload < PREFIX_BYTES:
            return "a frame too short for a message"
        return ""


class Watch(asyncio.Protocol):
    """Stands in front of aiohttp's handler of one connection, and ends it at the first byte that no node would send.

    Attributes:
        transport: TLS, once its handshake is done.
        fault: what the other end sent; empty while there is nothing wrong.
    """

    def __init__(self, handler: asyncio.Protocol) -> None:
        self.transport: asyncio.Transport | None = None
        self.fault = ""
        self._handler = handler
        self._frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.fault = self.fault or self._frames.fault_in(data)
        if not self.fault:
            self._handler.data_received(data)
        elif self.transport is not None:
            self.transport.abort()

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)
