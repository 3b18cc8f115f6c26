"""Matrices over HTTP, as `.npy` files: `PUT /tensors?side=…`, `GET` and `HEAD /tensors/{commitment}`.

The format is numpy's (NEP 1, versions 1.0 to 3.0), read strictly: a header of at most a kilobyte that says
little-endian int8 or int32 in C order, and then exactly the bytes that it promises. Nothing is unpickled, and nothing
is allocated before the shape is checked. Hashing and the disk are left to threads.
"""

from __future__ import annotations

import ast
import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from aiohttp import StreamReader, hdrs, web
from msgspec import Struct

from consensus.params import MAX_TENSOR_BYTES
from consensus.shape import MAX_DIMENSION, TILE_SIDE
from consensus.tensor import COLUMNS, INT8, ROWS, Matrix, Tensor, TensorSpec, in_operand_range
from node.rpc.context import Context, refusals
from node.rpc.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, LIMIT, NOT_FOUND, REJECTED, TIMEOUT, RpcError

R = TypeVar("R", bound=web.StreamResponse)

MAX_HEAD_BYTES = 1024
"""numpy writes 128 bytes; other programs pad differently."""
MAX_TRANSFERS = 8
"""Uploads and downloads at once: each may hold 32 MiB."""
STALL_SECONDS = 10.0
"""A client that sends or takes nothing for so long is given up."""
TRANSFER_SECONDS = 120.0

_CHUNK_BYTES = 1 << 18
_MAGIC = b"\x93NUMPY"
_DTYPES: dict[str, np.dtype[Any]] = {"|i1": np.dtype("i1"), "<i1": np.dtype("i1"), "<i4": np.dtype("<i4")}
_SIDES: dict[str, Literal[0, 1]] = {"rows": ROWS, "columns": COLUMNS}

_SAVE = "Save it with numpy.save from an int8 or int32 array in C order."


class Uploaded(Struct, frozen=True):
    """What an upload answers. `side` says how the tensor is cut: a right operand is cut by columns."""

    commitment: str
    root: str
    rows: int
    cols: int
    dtype: Literal["int8", "int32"]
    side: Literal["rows", "columns"]


class Head(NamedTuple):
    """What a `.npy` header says: `size` is the number of bytes behind it."""

    dtype: np.dtype[Any]
    rows: int
    cols: int

    @property
    def size(self) -> int:
        return self.rows * self.cols * self.dtype.itemsize


def parse_head(text: bytes) -> Head:
    """The header's dictionary, checked. Raises `RpcError`: INVALID_REQUEST, or LIMIT for too large a matrix."""
    try:
        fields = ast.literal_eval(text.decode("ascii").strip())
        description, is_fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        if len(fields) != 3:
            raise ValueError("unknown fields")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise RpcError(INVALID_REQUEST, "The .npy header cannot be read", fix=_SAVE) from None
    dtype = _DTYPES.get(description) if isinstance(description, str) else None
    if dtype is None:
        fix = "Convert it first: operands with .astype('int8'), products with .astype('<i4')."
        raise RpcError(INVALID_REQUEST, f"A tensor is int8 or little-endian int32, not {description!r:.40}", fix=fix)
    if is_fortran is not False:
        raise RpcError(INVALID_REQUEST, "The array is not in C order", fix="Save numpy.ascontiguousarray(array).")
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(side) is int for side in shape)):
        raise RpcError(INVALID_REQUEST, f"A tensor has two dimensions, not {shape!r:.40}", fix="Upload one matrix.")
    if any(side % TILE_SIDE or not TILE_SIDE <= side <= MAX_DIMENSION for side in shape):
        fix = f"Pad it with zeros, or slice it: both sides are multiples of {TILE_SIDE} up to {MAX_DIMENSION}."
        raise RpcError(INVALID_REQUEST, f"A tensor cannot have {shape[0]} × {shape[1]} entries", fix=fix)
    head = Head(dtype, *shape)
    if head.size > MAX_TENSOR_BYTES:
        fix = f"Slice it: at most {MAX_TENSOR_BYTES} bytes."
        raise RpcError(LIMIT, f"A tensor of {head.size} bytes is too large", fix=fix)
    return head


class TensorRoutes:
    """The three requests. `routes` are what the RPC server adds."""

    def __init__(self, node: Context) -> None:
        self._node = node
        self._transfers = asyncio.Semaphore(MAX_TRANSFERS)

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
        if (request.content_length or 0) > MAX_TENSOR_BYTES + MAX_HEAD_BYTES:
            fix = f"Slice it: at most {MAX_TENSOR_BYTES} bytes of entries."
            raise RpcError(LIMIT, f"A body of {request.content_length} bytes is too large", fix=fix)
        async with self._transfer():
            matrix = await _receive(request.content)
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
        async with self._transfer():
            tensor = await self._node.compute.run(self._node.chain.tensors.tensor, commitment)
            if tensor is None:
                raise _not_here(commitment)
            head = npy_head(tensor.spec)
            response = _described(tensor.spec, web.StreamResponse())
            response.content_length = len(head) + tensor.spec.size
            await response.prepare(request)
            await response.write(head)
            data = tensor.matrix.data.cast("B")
            for start in range(0, len(data), _CHUNK_BYTES):
                async with asyncio.timeout(STALL_SECONDS):
                    await response.write(data[start : start + _CHUNK_BYTES])
            await response.write_eof()
        return response

    async def _head(self, request: web.Request) -> web.Response:
        commitment = _commitment(request)
        spec = await self._node.compute.run(self._node.chain.tensors.spec, commitment)
        if spec is None:
            raise _not_here(commitment)
        length = len(npy_head(spec)) + spec.size
        return _described(spec, web.Response(headers={hdrs.CONTENT_LENGTH: str(length)}))

    @asynccontextmanager
    async def _transfer(self) -> AsyncIterator[None]:
        """One of the few transfers at a time, and not for ever."""
        try:
            async with asyncio.timeout(TRANSFER_SECONDS), self._transfers:
                yield
        except TimeoutError:
            raise RpcError(TIMEOUT, "The tensor's bytes came too slowly", fix="Try again, a few at a time.") from None


async def _receive(body: StreamReader) -> Matrix:
    """The matrix in a `.npy` body, read-only; nothing is kept of one that is too long or too short."""
    try:
        prefix = bytes(await _exactly(body, 8))
        if prefix[:6] != _MAGIC or prefix[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
            raise RpcError(INVALID_REQUEST, "The body is no .npy file", fix=_SAVE)
        width = 2 if prefix[6] == 1 else 4
        length = int.from_bytes(await _exactly(body, width), "little")
        if length > MAX_HEAD_BYTES:
            raise RpcError(INVALID_REQUEST, f"A .npy header of {length} bytes", fix=_SAVE)
        head = parse_head(bytes(await _exactly(body, length)))
        data = await _exactly(body, head.size)
    except asyncio.IncompleteReadError as error:
        why = f"The body ends {(error.expected or 0) - len(error.partial)} bytes early"
        raise RpcError(INVALID_REQUEST, why, fix="Send the whole .npy file.") from None
    if not body.at_eof() and await body.readany():
        raise RpcError(INVALID_REQUEST, "There are bytes behind the array", fix="Send one .npy file and no more.")
    matrix = np.frombuffer(data, head.dtype).reshape(head.rows, head.cols)
    matrix.flags.writeable = False  # nobody else holds the buffer, so the tensor need not copy it
    return matrix


async def _exactly(body: StreamReader, size: int) -> bytearray:
    """`size` bytes as they come, so that memory grows with what was sent, not with what was promised."""
    data = bytearray()
    while len(data) < size:
        async with asyncio.timeout(STALL_SECONDS):
            chunk = await body.read(min(size - len(data), _CHUNK_BYTES))
        if not chunk and body.at_eof():
            raise asyncio.IncompleteReadError(b"", size - len(data))
        data += chunk
    return data


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


def npy_head(spec: TensorSpec) -> bytes:
    """Magic, version and header of the `.npy` file of a tensor."""
    head = io.BytesIO()
    description = "|i1" if spec.dtype == INT8 else "<i4"
    fields = {"descr": description, "fortran_order": False, "shape": (spec.rows, spec.cols)}
    np.lib.format.write_array_header_1_0(head, fields)
    return head.getvalue()


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
