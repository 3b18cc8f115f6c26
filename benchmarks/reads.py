"""RPC reads against the library that serves them: the same client at a node and at a bare aiohttp handler, in turns.

The bare server answers a post with a constant of the size that the node's answer has. The client speaks just enough
HTTP to count answers, so that it is the servers that are measured. The node does not mine, but for the last rows.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._bench import Row, main
from benchmarks._chains import call, free_port, lived_chain, node_process, store_chain
from consensus.address import encode_address
from tests.builders import BOB

TURN_SECONDS = 0.4
TURNS = 8
CLIENTS = 8
MINING_SECONDS = 6.0

_BARE = """
import sys
from aiohttp import web

def handler(size):
    body = b"x" * size
    async def answer(request):
        await request.read()
        return web.Response(body=body, content_type="application/json")
    return answer

app = web.Application()
for size in map(int, sys.argv[2:]):
    app.router.add_post(f"/{size}", handler(size))
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, until `until`; `times` are those of single calls."""

    def __init__(self, request: bytes, until: float) -> None:
        self.times: list[float] = []
        self.ended = asyncio.get_running_loop().create_future()
        self._request = request
        self._until = until
        self._buffer = b""
        self._asked_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        assert head.startswith(b"HTTP/1.1 200 "), head[:200]
        begin = head.index(b"Content-Length: ") + 16
        if len(body) < int(head[begin:].partition(b"\r")[0]):
            return
        assert b'"error"' not in body, body[:200]
        self._buffer = b""
        now = time.perf_counter()
        self.times.append(now - self._asked_at)
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self._transport.write(self._request)


def run() -> list[Row]:
    """All rows."""
    builder = lived_chain(30)
    address = encode_address(BOB.address, builder.params.address_prefix)
    methods = {"chain_info": {}, "state_getAccount": {"address": address}, "chain_getHeader": {"height": 20}}
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root) / "node"
        store_chain(builder, directory)
        flags = ("--network", "regtest", "--p2p-port", "0")
        with node_process(directory, *flags, "--no-mine") as (url, _):
            sizes = {name: len(json.dumps(call(url, name, **params))) for name, params in methods.items()}
            with _bare_server(sizes) as bare:
                rows = [row for clients in (1, CLIENTS) for row in _against(url, bare, sizes, methods, clients)]
        threads = ("--mine", "--mine-threads", str(os.cpu_count() or 1), "--idle-duty", "1.0")
        with node_process(directory, *flags, *threads) as (url, _):
            time.sleep(3)  # the target leaves its easiest, so that blocks come at a devnet's pace
            return [*rows, *_while_mining(url, methods)]


measure = run


def _against(
    url: str, bare: str, sizes: dict[str, int], methods: dict[str, dict[str, object]], clients: int
) -> Iterator[Row]:
    """The node's rate ÷ the bare server's, for each method; all of them take turns."""
    requests = {}
    for name, params in methods.items():
        requests[name] = url, _post(url, name, params)
        requests[f"bare {name}"] = bare, _post(bare, name, params, f"/{sizes[name]}")
    rates: dict[str, list[float]] = {name: [] for name in requests}
    for turn in range(TURNS + 1):
        for name, (target, request) in requests.items():
            rate = len(asyncio.run(_hammer(target, request, clients, TURN_SECONDS))) / TURN_SECONDS
            if turn:  # the first warms up
                rates[name].append(rate)
    median = {name: statistics.median(values) for name, values in rates.items()}
    of = "1 connection" if clients == 1 else f"{clients} connections"
    for name in methods:
        bare_rate = median[f"bare {name}"]
        note = f"{median[name]:,.0f} calls/s, bare {bare_rate:,.0f}"
        yield Row(f"{name} ÷ a bare aiohttp handler, {of}", median[name] / bare_rate, "×", 0.85, note)


def _while_mining(url: str, methods: dict[str, dict[str, object]]) -> list[Row]:
    """Eight clients, each with one of the methods, while the node mines idle units on all cores."""
    requests = [_post(url, name, params) for name, params in methods.items()]

    async def all_at_once() -> list[float]:
        shares = [_hammer(url, requests[n % len(requests)], 1, MINING_SECONDS) for n in range(CLIENTS)]
        return sorted(time for times in await asyncio.gather(*shares) for time in times)

    times = asyncio.run(all_at_once())
    p99 = 1000 * times[len(times) * 99 // 100]
    note = f"median {1000 * statistics.median(times):.1f} ms, {CLIENTS} clients"
    return [
        Row("RPC reads while mining on all cores", len(times) / MINING_SECONDS, "calls/s", None, note),
        Row("RPC p99 while mining on all cores", p99, "ms", 20, better="lower"),
    ]


async def _hammer(url: str, request: bytes, clients: int, seconds: float) -> list[float]:
    """Times of single calls by clients that each wait for their answer."""
    loop, (host, port) = asyncio.get_running_loop(), url.removeprefix("http://").split(":")
    until = time.perf_counter() + seconds
    connections = [
        (await loop.create_connection(lambda: _Client(request, until), host, int(port)))[1] for _ in range(clients)
    ]
    await asyncio.gather(*(connection.ended for connection in connections))
    return [taken for connection in connections for taken in connection.times]


def _post(url: str, method: str, params: dict[str, object], path: str = "/") -> bytes:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    head = (f"POST {path} HTTP/1.1", f"Host: {url.removeprefix('http://')}", "Content-Type: application/json")
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


@contextmanager
def _bare_server(sizes: dict[str, int]) -> Iterator[str]:
    """What aiohttp makes of posts without anything of ours."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", _BARE, str(port), *map(str, set(sizes.values()))])
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 20
        while True:
            try:
                asyncio.run(_hammer(url, _post(url, "", {}, f"/{next(iter(sizes.values()))}"), 1, 0.01))
                break
            except OSError:
                assert time.monotonic() < deadline, "the bare server does not answer"
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    main(run, measure)
