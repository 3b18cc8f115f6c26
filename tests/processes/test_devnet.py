"""The devnet as its user meets it: three nodes, money, work, a crash, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from consensus.params import TILE
from devnet import layout
from devnet.layout import Layout, Record
from tests.processes.harness import call, is_ready, is_running, tilework, until

RECIPIENT = 9
"""An account that does nothing by itself."""


def variables(record: Record) -> dict[str, str]:
    return {
        "TILEWORK_RPC_URL": record.nodes[0].rpc,
        "TILEWORK_WALLET_DIR": record.wallet.directory,
        "TILEWORK_PASSWORD_FILE": record.wallet.password_file,
    }


@contextmanager
def devnet(place: Layout, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`tilework devnet up`, on a leash, from "ready" on; however the test ends, nothing of it is left."""
    command = [sys.executable, "-m", "devnet.leash", "tilework", "devnet", "up", "--dir", str(place.directory)]
    command += ["--rpc-port", "0", *options]
    with (place.directory.parent / "up.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def has_come_up() -> bool:
        assert process.poll() is None, Path(log.name).read_text()
        return place.record.exists() and (found := place.read()).status == "ready" and found.pid == process.pid

    try:
        until(has_come_up, "the devnet to be ready", patience_s=180)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def all_agree(record: Record, height: int) -> bool:
    """Whether the running nodes have reached `height` with one block."""
    urls = [node.rpc for node in record.nodes if node.pid]
    heights = [call(url, "chain_info")["height"] for url in urls]
    return min(heights) >= height and len({call(url, "chain_getHeader", height=height)["id"] for url in urls}) == 1


def check_payment(record: Record) -> None:
    """A transfer by the command line arrives, and shows on every node."""
    recipient = record.accounts[RECIPIENT].address
    tilework("wallet", "send", recipient, "1.5", "--wait", "2", "--yes", environment=variables(record))
    for node in record.nodes:
        until(
            lambda url=node.rpc: call(url, "state_getAccount", address=recipient)["balance"] == 1_000_001.5 * TILE,
            f"the payment to show on {node.name}",
        )


def check_product(record: Record, directory: Path) -> None:
    """A job by the command line returns exactly A @ B."""
    rng = np.random.default_rng(7)
    a, b = (rng.integers(-63, 64, shape, dtype=np.int8) for shape in ((300, 500), (500, 200)))
    files = [str(directory / name) for name in ("a.npy", "b.npy", "c.npy")]
    np.save(files[0], a)
    np.save(files[1], b)
    tilework("job", "submit", files[0], files[1], "-o", files[2], "--yes", environment=variables(record))
    assert np.array_equal(np.load(files[2]), a.astype(np.int64) @ b.astype(np.int64))


def test_three_nodes_pay_multiply_survive_a_crash_and_end(tmp_path: Path) -> None:
    place = Layout(tmp_path / "net")
    here = ("--dir", str(place.directory))
    with devnet(place, "--block-time", "0.5") as process:
        record = place.read()
        urls = [node.rpc for node in record.nodes]
        assert all(is_ready(url) for url in urls)
        assert [worker["active"] for worker in call(urls[0], "worker_list")] == [True] * 3
        check_payment(record)
        check_product(record, tmp_path)

        tilework("devnet", "kill", "1", *here)
        dead = place.read()
        assert dead.nodes[1].pid is None
        assert record.nodes[1].pid is not None
        assert not is_running(record.nodes[1].pid)
        height = call(urls[0], "chain_info")["height"]
        until(lambda: all_agree(dead, height + 2), "the others to go on")
        tilework("devnet", "restart", "1", *here)
        back = place.read()
        until(lambda: all_agree(back, height + 3), "the third to catch up")
        network = tilework("devnet", "status", *here)["network"]
        assert [node["pid"] for node in network["nodes"]] == [node.pid for node in back.nodes]
        assert network["spread"] <= 2
        assert 0 < network["recent"] <= 50
        assert network["circulating_grains"] > 10_000_000 * TILE

        tilework("devnet", "stop", *here)
        assert process.wait(10) == 0
    assert not any(is_running(node.pid) for node in (*record.nodes, *back.nodes) if node.pid)
    assert place.read().status == "stopped"


@pytest.mark.long
def test_no_node_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    place = Layout(tmp_path / "net")
    here = ("--dir", str(place.directory))
    with devnet(place, "--nodes", "2", "--block-time", "0.5") as process:
        record = place.read()
        pids = [node.pid for node in record.nodes if node.pid]
        assert len(pids) == 2
        process.kill()
        process.wait()
        until(lambda: not any(map(is_running, pids)), "the nodes to end")
    # What the record says is not believed, and the same network comes up again.
    assert place.read().status == "ready"
    assert tilework("devnet", "status", *here)["running"] is False
    with devnet(place, "--nodes", "2"):
        assert place.read().genesis_hash == record.genesis_hash
    tilework("devnet", "reset", *here)
    assert not place.directory.exists()


@pytest.mark.long
def test_a_detached_devnet_runs_until_it_is_stopped(tmp_path: Path) -> None:
    place = Layout(tmp_path / "net")
    here = ("--dir", str(place.directory))
    try:
        ready = tilework(
            "devnet", "up", *here, "--nodes", "1", "--block-time", "0.5", "--rpc-port", "0", "--detach", patience_s=240
        )
        assert msgspec.convert(ready, Record) == place.read()
        status = tilework("devnet", "status", *here)
        assert status["running"]
        assert status["network"]["nodes"][0]["height"] >= 1
    finally:
        assert tilework("devnet", "stop", *here) == {"stopped": True}
    assert place.supervisor() is None


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_a_start_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    place = Layout(tmp_path / "net")
    process = subprocess.Popen(
        layout.command("devnet", "up", "--dir", str(place.directory), "--nodes", "2"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    until(
        lambda: place.record.exists() and all(node.pid for node in place.read().nodes), "the nodes to have been started"
    )
    pids = [node.pid for node in place.read().nodes if node.pid]
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert not any(map(is_running, pids))
    assert place.supervisor() is None
