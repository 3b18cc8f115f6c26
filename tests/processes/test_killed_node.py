"""The node is killed (SIGKILL) at every step of a payment and of a job, and comes back: the advice pays once."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from consensus.address import encode_address
from consensus.params import TILE
from devnet import keys, layout
from tests.processes.harness import RealNode, rig, until
from tests.tilework.shell import Shell
from tests.wallet.network import key_of
from wallet.accounts.keys import SigningKey

STEPS = (
    "turn before -",
    "prepare after -",
    "note after -",
    "call before tx_send",
    "call after tx_send",
    "wait before -",
)
QUICK = "call after tx_send"


@contextlib.contextmanager
def one_node(directory: Path) -> Iterator[tuple[RealNode, Shell]]:
    """A mining devnet node whose worker serves, and somebody with money."""
    (directory / "net").mkdir()
    with rig(directory / "net") as made:
        node = made.node()
        node.directory.mkdir()
        keys.account(1).create(node.directory / "worker.key")
        node.start()
        node.wait_ready()
        yield node, Shell(directory, node.url, SigningKey(keys.SECRETS[0]))


def killed_at(node: RealNode, shell: Shell, step: str, *arguments: object) -> tuple[int, str, str]:
    """Run a command; when it comes to `step`, the node dies, and comes back two seconds later."""
    command = shell.start(*arguments, "--json", pause_at=step, patience_s=20.0)
    assert command.stderr is not None
    assert command.stdin is not None
    assert command.stderr.readline() == "paused\n"
    node.end(signal.SIGKILL)
    command.stdin.write("go on\n")
    command.stdin.flush()
    time.sleep(2)
    node.start()
    node.wait_ready()
    out, err = command.communicate(timeout=100)
    return command.returncode, out, err


@pytest.mark.parametrize("step", [pytest.param(s, marks=[] if s == QUICK else pytest.mark.long) for s in STEPS])
def test_a_payment_survives_the_node_at_every_step(tmp_path: Path, step: str) -> None:
    to = encode_address(key_of("payee").address, "tdev")
    with one_node(tmp_path) as (node, shell):
        status, out, err = killed_at(node, shell, step, "wallet", "send", to, "1", "--yes", "--wait", 1)
        if status:
            error = msgspec.json.decode(err)
            if error.get("txid"):
                txid = error["txid"]
                assert shell.follow(error["fix"])["txid"] == txid
            else:  # nothing was signed
                txid = shell.ok("wallet", "send", to, "1", "--yes")["txid"]
        else:
            txid = msgspec.json.decode(out)["txid"]
        shell.wait_paid(txid)
        assert node.call("state_getAccount", address=to)["balance"] == TILE


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
def test_a_job_survives_the_node_at_every_step(tmp_path: Path, step: str) -> None:
    rng = np.random.default_rng(3)
    x, w = rng.integers(-63, 64, (128, 64)), rng.integers(-63, 64, (64, 64))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", w)
    submit = ("job", "submit", "x.npy", "w.npy", "-o", "c.npy", "--packets", 2, "--yes")
    with one_node(tmp_path) as (node, shell):
        register(node, shell)
        status, _out, err = killed_at(node, shell, step, *submit)
        if status:
            error = msgspec.json.decode(err)
            if error.get("txid"):
                shell.follow(error["fix"])
            else:
                shell.ok(*submit)
        assert np.array_equal(np.load(tmp_path / "c.npy"), x @ w)
        assert len(shell.ok("job", "list")["jobs"]) == 1


def register(node: RealNode, shell: Shell) -> None:
    done = subprocess.run(
        layout.command("worker", "register", "--packets", "4", "--price", "0"),
        env=shell.environment
        | {"TILEWORK_RPC_URL": node.url, "TILEWORK_MINING_WORKER_KEY": str(node.directory / "worker.key")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    until(lambda: node.call("worker_list", active_only=True), "the worker to be dealt to")
