"""Node processes: how quickly a new one catches up, what it weighs, and how RPC answers while it mines."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from benchmarks._bench import Row, main
from benchmarks._chains import call, free_port, lived_chain, node_process, resident_mb, store_chain

READS_SECONDS = 6.0
CLIENTS = 8
SYNC_SECONDS = 120.0


def run() -> list[Row]:
    """All rows."""
    return [*_sync(100), *_sync(1_000), *_reads()]


measure = run


def _sync(blocks: int) -> list[Row]:
    """A node with an empty directory fetches a chain with transfers and jobs from one peer over TLS."""
    builder = lived_chain(blocks)
    with tempfile.TemporaryDirectory() as root:
        old, new = Path(root) / "old", Path(root) / "new"
        store_chain(builder, old)
        new.mkdir()
        (new / "genesis.json").write_bytes((old / "genesis.json").read_bytes())
        port = free_port()
        network = ("--network", "regtest", "--no-mine")
        with node_process(old, *network, "--p2p-port", str(port)):
            started = time.perf_counter()
            flags = (*network, "--p2p-port", "0", "--peer", f"127.0.0.1:{port}")
            with node_process(new, *flags) as (url, process):
                first = _await_height(url, 1) - started
                taken = _await_height(url, blocks) - started - first
                weight = resident_mb(process)
    rows = [Row(f"sync, {blocks:,} blocks", blocks / taken, "blocks/s", None, f"first block after {first:.1f} s")]
    if blocks >= 1_000:
        rows.append(Row(f"memory of a node after {blocks:,} blocks", weight, "MB", 500, better="lower"))
    return rows


def _await_height(url: str, height: int) -> float:
    deadline = time.perf_counter() + SYNC_SECONDS
    while call(url, "chain_info")["height"] < height:
        assert time.perf_counter() < deadline, f"no height {height} in {SYNC_SECONDS} s"
        time.sleep(0.01)
    return time.perf_counter()


def _reads() -> list[Row]:
    """Eight clients read accounts and headers while the node mines idle units on all cores."""
    builder = lived_chain(30)
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root) / "node"
        store_chain(builder, directory)
        cores = str(os.cpu_count() or 1)
        flags = ("--network", "regtest", "--p2p-port", "0", "--mine", "--mine-threads", cores, "--idle-duty", "1.0")
        with node_process(directory, *flags) as (url, _):
            time.sleep(3)  # the target leaves its easiest, so that blocks come at a devnet's pace
            times = asyncio.run(_hammer(url))
    times.sort()
    p99 = 1e3 * times[len(times) * 99 // 100]
    rate = len(times) / READS_SECONDS
    note = f"median {1e3 * statistics.median(times):.1f} ms, {CLIENTS} clients"
    return [
        Row("RPC reads while mining on all cores", rate, "calls/s", None, note),
        Row("RPC p99 while mining on all cores", p99, "ms", 100, better="lower"),
    ]


async def _hammer(url: str) -> list[float]:
    """Times of single calls by clients that each wait for their answer, for a few seconds."""
    times: list[float] = []
    calls = [{"jsonrpc": "2.0", "id": 1, "method": "chain_info"}, {"jsonrpc": "2.0", "id": 2, "method": "chain_supply"}]
    until = time.perf_counter() + READS_SECONDS

    async def client(session: aiohttp.ClientSession) -> None:
        number = 0
        while time.perf_counter() < until:
            started = time.perf_counter()
            async with session.post(url, json=calls[number % len(calls)]) as response:
                assert (await response.json())["result"]
            times.append(time.perf_counter() - started)
            number += 1

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client(session))
    return times


if __name__ == "__main__":
    main(run, measure)
