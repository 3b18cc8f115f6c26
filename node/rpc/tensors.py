"""Matrices over HTTP, as `.npy` files: `PUT /tensors?side=…`, `GET` and `HEAD /tensors/{commitment}`.

Heads are read strictly (`api.npy`), and then exactly the bytes that they promise. Hashing and the disk are left to
threads.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, TypeVar

import msgspec
import numpy as np
from aiohttp import StreamReader, hdrs, web

from api import npy
from api.errors import INVALID_PARAMS, INVALID_REQUEST, LIMIT, NOT_FOUND, REJECTED, TIMEOUT
from api.work import Uploaded
from consensus.params import MAX_TENSOR_BYTES
from consensus.tensor import COLUMNS, INT8, ROWS, Matrix, Tensor, TensorSpec, in_operand_range
from node.rpc.context import Context, refusals
from node.rpc.jsonrpc import RpcError
from node.rpc.places import Connection
from node.rpc.server import connection_of

R = TypeVar("R", bound=web.StreamResponse)

MAX_TRANSFERS = 8
"""Uploads and downloads at once: each may hold 32 MiB."""
MAX_TRANSFERS_PER_HOUSEHOLD = 4
"""The same for one address, unless it is local."""
CHUNK_BYTES = 256 << 10
"""An upload takes a place only when so much of it is here, and needs none if that is all."""
STALL_SECONDS = 10.0
"""A client that moves less than a chunk in so long is given up."""
HURRY_SECONDS = 1.0
"""The same while others wait for a place: whoever drips keeps nobody out for longer."""
TRANSFER_SECONDS = 120.0

_SIDES: dict[str, Literal[0, 1]] = {"rows": ROWS, "columns": COLUMNS}


class Transfers:
    """The places of uploads and downloads, and how fast those who have one must be."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._taken: Counter[str] = Counter()  # by household
        self._waiting = 0
        self._deadlines: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def place(self, connection: Connection) -> AsyncIterator[None]:
        """One of the places, once it is free."""
        household = connection.household
        self._waiting += 1
        self._hurry()
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._is_free_for(connection))
                self._taken[household] += 1
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._taken[household] -= 1
            self._taken += Counter()  # forgets those that have none
            async with self._changed:
                self._changed.notify_all()

    @asynccontextmanager
    async def chunk(self) -> AsyncIterator[None]:
        """The time in which who has a place moves a chunk. TimeoutError behind it."""
        async with asyncio.timeout(HURRY_SECONDS if self._waiting else STALL_SECONDS) as deadline:
            self._deadlines.add(deadline)
            try:
                yield
            finally:
                self._deadlines.discard(deadline)

    def _is_free_for(self, connection: Connection) -> bool:
        has_its_share = self._taken[connection.household] >= MAX_TRANSFERS_PER_HOUSEHOLD and not connection.is_local
        return self._taken.total() < MAX_TRANSFERS and not has_its_share

    def _hurry(self) -> None:
        """Somebody waits: chunks that have begun end soon, too."""
        soon = asyncio.get_running_loop().time() + HURRY_SECONDS
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(min(deadline.when() or soon, soon))


class TensorRoutes:
    """The three requests. `routes` are what the RPC server adds."""

    def __init__(self, node: Context) -> None:
        self._node = node
        self._transfers = Transfers()

    @property
    def routes(self) -> list[web.AbstractRouteDef]:
        """For `RpcServer`."""
        return [
            web.put("/tensors", self._put),
            web.get("/tensors/{commitment}", self._get, allow_head=False),
            web.head("/tensors/{commitment}", self._head),
        ]

    async def _put(self, request: web.Request) -> web.Response:
        side = _SIDES.get(request.query.get("side", ""))
        if side is None:
            fix = "PUT /tensors?side=rows for left operands and products, ?side=columns for right operands."
            raise RpcError(INVALID_PARAMS, "Which side the tensor is cut along is not said", fix=fix)
        if hdrs.CONTENT_ENCODING in request.headers:
            raise RpcError(INVALID_REQUEST, "The body is compressed", fix="Send the .npy file as it is.")
        if (request.content_length or 0) > MAX_TENSOR_BYTES + npy.MAX_HEAD_BYTES:
            fix = f"Slice it: at most {MAX_TENSOR_BYTES} bytes of entries."
            raise RpcError(LIMIT, f"A body of {request.content_length} bytes is too large", fix=fix)
        async with _in_time(), AsyncExitStack() as stack:
            matrix = await self._receive(request, stack)
            stack.enter_context(connection_of(request).busy())
            tensor = await self._node.compute.run(_checked_tensor, matrix, side)
            with refusals():
                await self._node.door.tensor(tensor)
        spec = tensor.spec
        answer = Uploaded(
            commitment=tensor.commitment.hex(),
            root=spec.root.hex(),
            rows=spec.rows,
            cols=spec.cols,
            dtype="int8" if spec.dtype == INT8 else "int32",
            side="rows" if spec.side == ROWS else "columns",
        )
        return web.Response(status=201, body=msgspec.json.encode(answer), content_type="application/json")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        commitment = _commitment(request)
        connection = connection_of(request)
        with connection.busy():
            return await self._download(request, connection, commitment)

    async def _download(self, request: web.Request, connection: Connection, commitment: bytes) -> web.StreamResponse:
        async with _in_time(), self._transfers.place(connection):
            tensor = await self._node.compute.run(self._node.chain.tensors.tensor, commitment)
            if tensor is None:
                raise _not_here(commitment)
            head = _head_of(tensor.spec)
            response = _described(tensor.spec, web.StreamResponse())
            response.content_length = len(head) + tensor.spec.size
            await response.prepare(request)
            await response.write(head)
            data = tensor.matrix.data.cast("B")
            for start in range(0, len(data), CHUNK_BYTES):
                async with self._transfers.chunk():
                    await response.write(data[start : start + CHUNK_BYTES])
            await response.write_eof()
        return response

    async def _head(self, request: web.Request) -> web.Response:
        commitment = _commitment(request)
        spec = await self._node.compute.run(self._node.chain.tensors.spec, commitment)
        if spec is None:
            raise _not_here(commitment)
        length = len(_head_of(spec)) + spec.size
        return _described(spec, web.Response(headers={hdrs.CONTENT_LENGTH: str(length)}))

    async def _receive(self, request: web.Request, stack: AsyncExitStack) -> Matrix:
        """The matrix in a `.npy` body, read-only; nothing is kept of one that is too long or too short.

        A large one takes a place until `stack` is closed.
        """
        body = request.content
        try:
            async with asyncio.timeout(STALL_SECONDS):
                width = npy.length_bytes(bytes(await body.readexactly(npy.PREFIX_BYTES)))
                length = npy.text_bytes(bytes(await body.readexactly(width)))
                head = npy.parse_text(bytes(await body.readexactly(length)))
                data = bytearray(await body.readexactly(min(head.size, CHUNK_BYTES)))
            if len(data) < head.size:
                await stack.enter_async_context(self._transfers.place(connection_of(request)))
                await self._fill(data, body, head.size)
        except npy.HeadError as error:
            raise RpcError(LIMIT if error.too_large else INVALID_REQUEST, error.message, fix=error.fix) from None
        except asyncio.IncompleteReadError as error:
            why = f"The body ends {(error.expected or 0) - len(error.partial)} bytes early"
            raise RpcError(INVALID_REQUEST, why, fix="Send the whole .npy file.") from None
        if not body.at_eof() and await body.readany():
            raise RpcError(INVALID_REQUEST, "There are bytes behind the array", fix="Send one .npy file and no more.")
        matrix = np.frombuffer(data, head.dtype).reshape(head.rows, head.cols)
        matrix.flags.writeable = False  # nobody else holds the buffer, so the tensor need not copy it
        return matrix

    async def _fill(self, data: bytearray, body: StreamReader, size: int) -> None:
        """Up to `size` bytes as they come, so that memory grows with what was sent, not with what was promised."""
        while len(data) < size:
            async with self._transfers.chunk():
                data += await body.readexactly(min(size - len(data), CHUNK_BYTES))


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """A transfer that takes too long, in a place or before it, is ended."""
    try:
        async with asyncio.timeout(TRANSFER_SECONDS):
            yield
    except TimeoutError:
        raise RpcError(TIMEOUT, "The tensor's bytes came too slowly", fix="Try again, a few at a time.") from None


def _checked_tensor(matrix: Matrix, side: Literal[0, 1]) -> Tensor:
    """Range check and hashing: milliseconds, so not on the event loop."""
    if matrix.dtype == np.int8 and not in_operand_range(matrix):
        low, high = int(matrix.min()), int(matrix.max())
        message = f"Operands lie in [-63, 63], these in [{low}, {high}]"
        raise RpcError(REJECTED, message, fix="Scale or clip the matrix to 7 bits.", reason="operand-out-of-range")
    if matrix.dtype == np.int32 and side == COLUMNS:
        fix = "Upload a product with side=rows."
        raise RpcError(REJECTED, "A product is cut into strips of rows", fix=fix, reason="bad-side")
    return Tensor(matrix, side)


def _head_of(spec: TensorSpec) -> bytes:
    return npy.head(np.dtype(np.int8 if spec.dtype == INT8 else np.int32), spec.rows, spec.cols)


def _described(spec: TensorSpec, response: R) -> R:
    response.content_type = "application/octet-stream"
    response.headers["X-Tensor-Side"] = "rows" if spec.side == ROWS else "columns"
    response.headers[hdrs.CACHE_CONTROL] = "max-age=31536000, immutable"
    return response


def _commitment(request: web.Request) -> bytes:
    text = request.match_info["commitment"]
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        fix = "A commitment is 64 lower-case hexadecimal digits."
        raise RpcError(INVALID_PARAMS, "That is no commitment", fix=fix)
    return bytes.fromhex(text)


def _not_here(commitment: bytes) -> RpcError:
    fix = "It was never uploaded or fetched, or its time is over: ask another node."
    return RpcError(NOT_FOUND, f"There is no tensor {commitment.hex()} here", fix=fix)
