"""Node processes: how quickly a new one catches up, and what it weighs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks._bench import Row, main
from benchmarks._chains import call, free_port, lived_chain, node_process, resident_mb, store_chain

SYNC_SECONDS = 120.0


def run() -> list[Row]:
    """All rows."""
    return [*_sync(100), *_sync(1_000)]


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


if __name__ == "__main__":
    main(run, measure)
