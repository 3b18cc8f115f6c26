"""Answers to peers' requests, out of the chain and the tensor store.

One function per request; each gives the reply that the message table declares, or `NotFound`. What reads more than a
record or two runs off the event loop, on the peer's share of the node's time.
"""

from __future__ import annotations

from typing import Protocol

from consensus.block import Header
from consensus.codec import encode
from consensus.tensor import TensorSpec
from node.chain.checkpoints import CheckpointChain, Checkpoints
from node.chain.headers import HeaderEntry
from node.chain.known import KnownHeaders
from node.compute import Shares
from node.p2p.messages import (
    BodyBytes,
    GetBody,
    GetHeaderCopy,
    GetHeaders,
    GetState,
    GetStrips,
    GetTensor,
    HeaderCopy,
    Headers,
    HeaderStrips,
    Message,
    NotFound,
    State,
    Status,
    Strip,
    TensorStrips,
    strips_expected,
)
from node.p2p.peer import Peer


class ServedTensors(Protocol):
    """Tensors as they are given away."""

    def spec(self, commitment: bytes) -> TensorSpec | None: ...
    def strip(self, commitment: bytes, index: int) -> tuple[bytes, tuple[bytes, ...]] | None: ...


class ServedChain(CheckpointChain, Protocol):
    """What is given away."""

    @property
    def tip(self) -> HeaderEntry: ...
    @property
    def tensors(self) -> ServedTensors: ...
    @property
    def known(self) -> KnownHeaders: ...
    def headers_after(self, locator: list[bytes], limit: int) -> list[Header]: ...


class Server:
    """Serves one node's data."""

    def __init__(self, chain: ServedChain, shares: Shares, state_page_bytes: int) -> None:
        self._chain = chain
        self._shares = shares
        self._checkpoints = Checkpoints(chain, state_page_bytes)

    def status(self) -> Status:
        """Where this node stands."""
        tip = self._chain.tip
        return Status(tip.height, tip.id, tip.total_work.to_bytes(32), self._chain.base.height)

    async def headers(self, peer: Peer, request: GetHeaders) -> Message:
        """Main-chain headers after the locator."""
        named = await self._shares.run(peer.asker, self._chain.headers_after, list(request.locator), request.limit)
        return Headers(tuple(named))

    async def header_copy(self, peer: Peer, request: GetHeaderCopy) -> Message:
        """One copy of a header."""
        header = self._chain.known.header(request.id, request.ticket)
        return HeaderCopy(header) if header is not None else NotFound()

    async def strips(self, peer: Peer, request: GetStrips) -> Message:
        """What proves a packet header's tile."""
        strips = await self._shares.run(peer.asker, self._chain.known.strips, request.id, request.ticket)
        return HeaderStrips(strips) if strips is not None else NotFound()

    async def body(self, peer: Peer, request: GetBody) -> Message:
        """A block's body."""
        data = await self._shares.run(peer.asker, self._body, request.id)
        return BodyBytes(data) if data is not None else NotFound()

    async def tensor(self, peer: Peer, request: GetTensor) -> Message:
        """Some strips of a tensor."""
        return await self._shares.run(peer.asker, self._strips, request)

    async def state(self, peer: Peer, request: GetState) -> Message:
        """Some records of a checkpoint's state."""
        page = await self._shares.run(peer.asker, self._checkpoints.page, request.id, request.start)
        return State(*page) if page is not None else NotFound()

    def _body(self, block_id: bytes) -> bytes | None:
        body = self._chain.archive.body(block_id)
        return encode(body) if body is not None else None

    def _strips(self, request: GetTensor) -> Message:
        tensors = self._chain.tensors
        spec = tensors.spec(request.commitment)
        if spec is None or request.first >= spec.leaves:
            return NotFound()
        last = request.first + strips_expected(spec, request.first)
        pieces = [tensors.strip(request.commitment, index) for index in range(request.first, last)]
        # A strip can be gone between two looks: tensors are dropped when their time is over.
        strips = tuple(Strip(*strip) for strip in pieces if strip is not None)
        return TensorStrips(spec, request.first, strips) if len(strips) == len(pieces) else NotFound()
