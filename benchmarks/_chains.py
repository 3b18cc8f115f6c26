"""Chains on disk for the benchmarks, and node processes over them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node import genesis
from node.chain.chain import Chain
from node.chain.store import LevelStore
from node.chain.tensors import TensorStore
from tests.builders import ALICE, BOB, CAROL, DAVE, ERIN, FRANK, ChainBuilder, Node, operand

READY_SECONDS = 60.0


def lived_chain(blocks: int) -> ChainBuilder:
    """A mined chain of `blocks`: each with five transfers, every fourth with a job of four packets or their answers."""
    builder = ChainBuilder()
    builder.mine([builder.register(worker, packets=4) for worker in (DAVE, ERIN, FRANK)])
    builder.mine(count=builder.params.registration_delay)
    number = 0
    while builder.height < blocks:
        number += 1
        transfers = [builder.transfer(ALICE, BOB, number) for _ in range(5)]
        if number % 4 == 0:
            job = builder.job(CAROL, operand(128, 512, number), operand(512, 128, number + 1), rows=64, cols=64)
            builder.mine([*transfers, job.transaction])
            if builder.height < blocks:
                builder.mine(results=builder.answers(job))
        else:
            builder.mine(transfers)
    return builder


def lineage(tip: Node) -> Iterator[Node]:
    """The nodes from height 1 to `tip`."""
    found = []
    node = tip
    while node.parent is not None:
        found.append(node)
        node = node.parent
    return reversed(found)


def open_chain(builder: ChainBuilder, directory: Path) -> tuple[Chain, LevelStore]:
    """An empty chain of the builder's network in `directory`, laid out as a node's, with all tensors at hand."""
    directory.mkdir(parents=True)
    store = LevelStore(directory / "chain")
    tensors = TensorStore(directory / "tensors")
    for tensor in builder.tensors:
        tensors.add(tensor)
    (directory / "genesis.json").write_bytes(genesis.dump(builder.params))
    return Chain(builder.params, store, tensors, lambda: time.time_ns() // 10**6), store


def store_chain(builder: ChainBuilder, directory: Path) -> None:
    """The builder's whole chain in `directory`, laid out as a node's."""
    chain, store = open_chain(builder, directory)
    for node in lineage(builder.tip):
        chain.add_block(node.block)
    store.close()


@contextmanager
def node_process(directory: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A node on free ports over `directory`, ready; yields its RPC URL and the process."""
    port = free_port()
    command = [sys.executable, "-m", "tilework", "node", "run", "--data-dir", str(directory), "--rpc-port", str(port)]
    log = (directory / "bench.log").open("wb")
    process = subprocess.Popen([*command, *flags], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _is_up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((directory / "bench.log").read_text()[-2000:])
            time.sleep(0.05)
        yield url, process
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def call(url: str, method: str, **params: Any) -> Any:
    """One JSON-RPC call."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=15) as response:
        return json.loads(response.read())["result"]


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process in MB, from /proc."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_up(url: str) -> bool:
    try:
        call(url, "chain_info")
    except OSError:
        return False
    return True
