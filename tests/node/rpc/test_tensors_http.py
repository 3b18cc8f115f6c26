"""Tensors over HTTP: numpy's files in and out, and everything that is no such file."""

from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import pytest

from consensus.tensor import COLUMNS, ROWS, Tensor
from node.compute import Shares, ThreadCompute
from node.rpc import tensors
from node.rpc.context import Context
from node.rpc.methods.table import TABLE
from node.rpc.registry import Info
from node.rpc.server import Probes, Readiness, RpcConfig, RpcServer
from node.rpc.subscriptions import Hub
from node.rpc.tensors import TensorRoutes, Transfers
from tests.builders import operand
from tests.node.rpc.world import World

PRODUCT = np.arange(64 * 128, dtype=np.int32).reshape(64, 128)


class Site:
    """A running server over a world, and a client."""

    def __init__(self, world: World, url: str, session: aiohttp.ClientSession) -> None:
        self.world = world
        self.url = url
        self.session = session

    async def put(self, body: Any, side: str = "rows", **headers: str) -> tuple[int, Any]:
        url = f"{self.url}/tensors?side={side}"
        async with self.session.put(url, data=body, headers=headers) as response:
            return response.status, json.loads(await response.read())

    async def get(self, commitment: str, method: str = "GET") -> tuple[int, bytes, Any]:
        async with self.session.request(method, f"{self.url}/tensors/{commitment}") as response:
            return response.status, await response.read(), response.headers


@asynccontextmanager
async def running() -> AsyncIterator[Site]:
    world = World()
    base, compute = world.context, ThreadCompute(2)
    context = Context.of(base.chain, base.door, base.desk, base.host, compute)
    probes = Probes(lambda: Readiness(True), lambda: Readiness(True), lambda: b"")
    routes = TensorRoutes(context).routes
    config = RpcConfig(shutdown_seconds=0.2)
    server = RpcServer(
        config,
        Info("Test", "1"),
        TABLE,
        context,
        Hub(TABLE.topics),
        probes,
        lambda *_: None,
        Shares(compute, 1e9),
        routes,
    )
    async with server.serving() as url, aiohttp.ClientSession() as session:
        yield Site(world, str(url).rstrip("/"), session)
    compute.close()


def scenario(body: Callable[[Site], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30), running() as site:
            await body(site)

    asyncio.run(bounded())


def npy(array: npt.NDArray[Any], version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


def with_head(head: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head.encode() + data


def test_upload_and_download_give_the_same_matrix() -> None:
    left, right = operand(128, 64), operand(64, 192, 1)

    async def body(site: Site) -> None:
        for matrix, side, kind in ((left, "rows", "int8"), (right, "columns", "int8"), (PRODUCT, "rows", "int32")):
            tensor = Tensor(matrix, ROWS if side == "rows" else COLUMNS)
            for version in ((1, 0), (2, 0), (3, 0)):
                status, answer = await site.put(npy(matrix, version), side)
                assert (status, answer) == (
                    201,
                    {
                        "commitment": tensor.commitment.hex(),
                        "root": tensor.spec.root.hex(),
                        "rows": matrix.shape[0],
                        "cols": matrix.shape[1],
                        "dtype": kind,
                        "side": side,
                    },
                )
            status, data, headers = await site.get(answer["commitment"])
            assert status == 200
            assert headers["X-Tensor-Side"] == side
            loaded = np.load(io.BytesIO(data), allow_pickle=False)
            assert loaded.dtype == matrix.dtype
            assert np.array_equal(loaded, matrix)
            status, nothing, headers = await site.get(answer["commitment"], "HEAD")
            assert (status, nothing, int(headers["Content-Length"])) == (200, b"", len(data))

    scenario(body)


def test_a_chunked_upload_needs_no_length() -> None:
    matrix = operand(1024, 256)

    async def pieces() -> AsyncIterator[bytes]:
        data = npy(matrix)
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]

    async def body(site: Site) -> None:
        status, answer = await site.put(pieces())
        assert (status, answer["commitment"]) == (201, Tensor(matrix).commitment.hex())

    scenario(body)


HEAD = "{'descr': '|i1', 'fortran_order': False, 'shape': (64, 64), }\n"

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "early"),
    "no npy file": (b"hello world, this is text", 400, "no .npy"),
    "cut off in the header": (npy(PRODUCT)[:40], 400, "early"),
    "cut off in the data": (npy(PRODUCT)[:-1], 400, "1 bytes early"),
    "bytes behind the array": (npy(PRODUCT) + b"x", 400, "behind"),
    "two arrays": (npy(PRODUCT) * 2, 400, "behind"),
    "floats": (npy(PRODUCT.astype(np.float32)), 400, "int8"),
    "NaN": (npy(np.full((64, 64), math.nan)), 400, "int8"),
    "big-endian": (npy(PRODUCT.astype(">i4")), 400, "int8"),
    "int64": (npy(PRODUCT.astype(np.int64)), 400, "int8"),
    "unsigned": (npy(np.zeros((64, 64), np.uint8)), 400, "int8"),
    "Fortran order": (npy(np.asfortranarray(PRODUCT)), 400, "C order"),
    "a vector": (npy(np.zeros(64, np.int8)), 400, "two dimensions"),
    "three dimensions": (npy(np.zeros((64, 64, 64), np.int8)), 400, "two dimensions"),
    "no multiple of 64": (npy(np.zeros((65, 64), np.int8)), 400, "65 × 64"),
    "no rows": (npy(np.zeros((0, 64), np.int8)), 400, "0 × 64"),
    "too long a side": (with_head(HEAD.replace("64, 64", "4160, 64")), 400, "4160"),
    "too many bytes": (with_head(HEAD.replace("|i1", "<i4").replace("64, 64", "4096, 4096")), 413, "too large"),
    "objects": (with_head(HEAD.replace("|i1", "|O")), 400, "int8"),
    "a long header": (with_head(HEAD + " " * 2000), 400, "header of"),
    "a header that is code": (with_head("__import__('os').system('true')"), 400, "cannot be read"),
    "a nested header": (with_head("(" * 900), 400, "cannot be read"),
    "a header of the wrong kind": (with_head("[1, 2, 3]"), 400, "cannot be read"),
    "another version": (b"\x93NUMPY\4\0" + b"\0" * 64, 400, "no .npy"),
    "an operand of 64": (npy(np.full((64, 64), 64, np.int8)), 422, "64"),
    "an operand of -128": (npy(np.full((64, 64), -128, np.int8)), 422, "-128"),
}


def test_what_is_no_tensor_is_refused_and_leaves_nothing() -> None:
    async def body(site: Site) -> None:
        for name, (data, status, words) in REFUSED.items():
            got, answer = await site.put(data)
            assert got == status, (name, answer)
            assert words in answer["error"]["message"], (name, answer)
            assert answer["error"]["data"]["fix"], name
        assert not site.world.tensors.commitments()
        status, answer = await site.put(npy(PRODUCT), "columns")
        assert (status, answer["error"]["data"]["reason"]) == (422, "bad-side")
        for side in ("", "diagonal"):
            assert (await site.put(npy(PRODUCT), side))[0] == 400
        assert (await site.put(npy(PRODUCT), **{"Content-Encoding": "gzip"}))[0] == 400

    scenario(body)


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    async def body(site: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(site.url.rsplit(":", 1)[1]))
        writer.write(
            b"PUT /tensors?side=rows HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n\x93NUMPY\1\0"
        )
        assert b" 413 " in await reader.readline()
        writer.close()

    scenario(body)


def test_a_client_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "STALL_SECONDS", 0.1)

    async def never() -> AsyncIterator[bytes]:
        yield npy(PRODUCT)[:100]
        await asyncio.sleep(5)

    async def body(site: Site) -> None:
        started = time.monotonic()
        status, answer = await site.put(never())
        assert (status, answer["error"]["data"]["name"]) == (504, "TIMEOUT")
        assert time.monotonic() - started < 3

    scenario(body)


def test_uploads_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the number of transfers at once; the others wait and are then served."""
    monkeypatch.setattr(tensors, "MAX_TRANSFERS", 1)

    async def body(site: Site) -> None:
        matrices = [operand(1024, 512, seed) for seed in range(6)]
        answers = await asyncio.gather(*(site.put(npy(matrix)) for matrix in matrices))
        assert [status for status, _ in answers] == [201] * 6

    scenario(body)


async def begun_upload(url: str, sent: bytes) -> asyncio.StreamWriter:
    """An upload of 16 MiB of which a part has come."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    head = f"PUT /tensors?side=rows HTTP/1.1\r\nHost: localhost\r\nContent-Length: {(16 << 20) + 128}\r\n\r\n"
    writer.write(head.encode() + sent)
    return writer


@pytest.mark.parametrize("begun_bytes", [1000, tensors.CHUNK_BYTES + 1000])
def test_dripping_uploads_keep_nobody_out(begun_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "HURRY_SECONDS", 0.3)

    async def drip(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"\0")
            await asyncio.sleep(0.05)

    async def body(site: Site) -> None:
        whole = npy(np.zeros((4096, 4096), np.int8))
        writers = [await begun_upload(site.url, whole[:begun_bytes]) for _ in range(tensors.MAX_TRANSFERS + 4)]
        drips = [asyncio.create_task(drip(writer)) for writer in writers]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        assert (await site.put(npy(operand(64, 64))))[0] == 201
        assert time.monotonic() - started < 0.2
        assert (await site.put(npy(operand(1024, 1024))))[0] == 201
        assert time.monotonic() - started < 2
        for task, writer in zip(drips, writers, strict=True):
            task.cancel()
            writer.close()

    scenario(body)


def test_one_household_takes_half_of_the_places_unless_it_is_local() -> None:
    async def body() -> None:
        transfers = Transfers()
        async with AsyncExitStack() as stack:
            for _ in range(tensors.MAX_TRANSFERS_PER_HOUSEHOLD):
                await stack.enter_async_context(transfers.place(client("192.0.2.1")))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), transfers.place(client("192.0.2.1")):
                    pass
            for _ in range(tensors.MAX_TRANSFERS - tensors.MAX_TRANSFERS_PER_HOUSEHOLD):
                await stack.enter_async_context(transfers.place(client("127.0.0.1", is_local=True)))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), transfers.place(client("192.0.2.2")):
                    pass
        async with transfers.place(client("192.0.2.1")):
            assert dict(transfers._taken) == {"192.0.2.1": 1}

    def client(household: str, is_local: bool = False) -> Any:
        return SimpleNamespace(household=household, is_local=is_local)

    asyncio.run(body())


def test_what_is_not_here_is_not_found() -> None:
    async def body(site: Site) -> None:
        for method in ("GET", "HEAD"):
            assert (await site.get("00" * 32, method))[0] == 404
            for bad in ("xyz", "00" * 31, "AA" * 32):
                assert (await site.get(bad, method))[0] == 400
        _, data, _ = await site.get("00" * 32)
        assert json.loads(data)["error"]["data"]["name"] == "NOT_FOUND"

    scenario(body)


def test_the_upload_quota_is_a_clear_refusal() -> None:
    async def body(site: Site) -> None:
        site.world.intake._uploads._quota_bytes = 4096
        assert (await site.put(npy(operand(64, 64))))[0] == 201
        status, answer = await site.put(npy(operand(64, 64, 9)))
        assert (status, answer["error"]["data"]["reason"]) == (422, "upload-quota")

    scenario(body)
