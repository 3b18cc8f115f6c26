"""The devnet as its user meets it: three nodes, money, work, a crash, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from consensus.params import TILE
from node.devnet import layout
from node.devnet.layout import Layout, Record
from tests.processes.harness import call, is_running, tilework, until

RECIPIENT = 9
"""An account that does nothing by itself."""


def variables(record: Record) -> dict[str, str]:
    return {
        "TILEWORK_RPC_URL": record.nodes[0].rpc,
        "TILEWORK_WALLET_DIR": record.wallet.directory,
        "TILEWORK_PASSWORD_FILE": record.wallet.password_file,
    }


def all_agree(record: Record, height: int) -> bool:
    """Whether the running nodes have reached `height` with one block."""
    urls = [node.rpc for node in record.nodes if node.pid]
    heights = [call(url, "chain_info")["height"] for url in urls]
    return min(heights) >= height and len({call(url, "chain_getHeader", height=height)["id"] for url in urls}) == 1


def test_three_nodes_pay_multiply_survive_a_crash_and_end(tmp_path: Path) -> None:
    place = Layout(tmp_path / "net")
    here = ("--dir", str(place.directory))
    ready = tilework("devnet", "up", *here, "--block-time", "0.5", "--detach")
    try:
        record = place.read()
        assert msgspec.convert(ready, Record) == record
        assert record.status == "ready"
        urls = [node.rpc for node in record.nodes]
        assert all(worker["active"] for worker in call(urls[0], "worker_list"))
        assert all(len(call(url, "node_peers")) == 2 for url in urls)
        environment = variables(record)

        recipient = record.accounts[RECIPIENT].address
        tilework("wallet", "send", recipient, "1.5", "--wait", "2", "--yes", environment=environment)
        for url in urls:
            until(
                lambda url=url: call(url, "state_getAccount", address=recipient)["balance"] == 1_000_001.5 * TILE,
                "the payment to show on every node",
            )

        rng = np.random.default_rng(7)
        a, b = (rng.integers(-63, 64, shape, dtype=np.int8) for shape in ((300, 500), (500, 200)))
        np.save(tmp_path / "a.npy", a)
        np.save(tmp_path / "b.npy", b)
        files = [str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy")]
        tilework("job", "submit", files[0], files[1], "-o", files[2], "--yes", environment=environment)
        assert np.array_equal(np.load(files[2]), a.astype(np.int64) @ b.astype(np.int64))

        tilework("devnet", "kill", "1", *here)
        dead = place.read()
        assert dead.nodes[1].pid is None
        assert not is_running(record.nodes[1].pid or 0)
        height = call(urls[0], "chain_info")["height"]
        until(lambda: all_agree(dead, height + 2), "the others to go on")
        tilework("devnet", "restart", "1", *here)
        back = place.read()
        until(lambda: all_agree(back, height + 3), "the third to catch up")
    finally:
        tilework("devnet", "stop", *here)
    assert place.supervisor() is None
    assert not any(is_running(node.pid) for node in (*record.nodes, *back.nodes) if node.pid)
    assert place.read().status == "stopped"


@pytest.mark.long
def test_no_node_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    place = Layout(tmp_path / "net")
    process = subprocess.Popen(
        layout.command("devnet", "up", "--dir", str(place.directory), "--nodes", "2", "--block-time", "0.5"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pids: list[int] = []
    try:
        until(lambda: place.record.exists() and place.read().status == "ready", "the devnet", patience_s=120)
        pids = [node.pid for node in place.read().nodes if node.pid]
        assert len(pids) == 2
        assert all(map(is_running, pids))
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(map(is_running, pids)), "the nodes to end")
    # What is left in the record is not believed.
    assert tilework("devnet", "status", "--dir", str(place.directory))["running"] is False
    again = tilework("devnet", "up", "--dir", str(place.directory), "--nodes", "2", "--detach")
    assert again["genesis_hash"] == place.read().genesis_hash
    tilework("devnet", "stop", "--dir", str(place.directory))
    tilework("devnet", "reset", "--dir", str(place.directory))
    assert not place.directory.exists()


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
