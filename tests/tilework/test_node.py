"""`tilework` as its users meet it: help without kernels, errors with statuses, a node that stops when it is told to."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from consensus import params
from consensus.address import encode_address
from consensus.params import TILE, Allocation
from node import genesis
from node.config import SETTINGS
from node.p2p.limits import DEFAULT
from node.rpc.methods.table import rpc_docs
from tilework.main import COMMANDS, main
from worker.key import WorkerKey

STOP_SECONDS = 5.0


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, list(arguments))


def fails(status: int, code: str, *arguments: str, **environment: str) -> str:
    """The message of a command that must be refused."""
    result = run(*arguments, "--json", **environment)
    assert result.exit_code == status, result.output
    error = json.loads(result.stderr)
    assert error["code"] == code
    assert error["fix"]
    return str(error["message"])


@contextmanager
def node_process(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A real node, and the line that it prints once it serves. Ends it in any case."""
    command = [sys.executable, "-m", "tilework", "node", "run", "--json", "--log-level", "warning"]
    command += ["--data-dir", str(directory), "--rpc-port", "0", "--p2p-port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Exit status and stderr after a signal, which must be obeyed in time."""
    started = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=STOP_SECONDS)
    assert time.monotonic() - started < STOP_SECONDS
    return process.returncode, errors


# --- help


def test_help_needs_no_kernels() -> None:
    script = """
import sys
from click.testing import CliRunner
from tilework.main import main
for arguments in (["--help"], ["--version"], ["node", "run", "--help"], ["worker", "register", "--help"], ["nonsense"]):
    CliRunner().invoke(main, arguments)
heavy = {"numba", "llvmlite"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_root_lists_every_command_and_each_can_be_loaded() -> None:
    text = run("--help").output
    for name, mounted in COMMANDS.items():
        assert name in text
        assert mounted.summary.split()[0] in text
        result = run(name, "--help")
        assert result.exit_code == 0
        assert name in result.output
    assert run("--version").output.startswith("tilework ")
    assert fails(2, "usage", "nonsense")


def test_run_help_shows_every_setting_in_every_spelling() -> None:
    words = " ".join(run("node", "run", "--help").output.split())
    for setting in SETTINGS:
        assert setting.flag in words
        assert setting.variable in words


# --- configuration


def test_wrong_settings_are_usage_errors(tmp_path: Path) -> None:
    assert "--rpc-port" in fails(2, "config", "node", "run", "--rpc-port", "99999")
    assert "TILEWORK_P2P_PORT" in fails(2, "config", "node", "run", TILEWORK_P2P_PORT="x")
    assert "none.toml" in fails(2, "config", "node", "run", "--config", str(tmp_path / "none.toml"))
    assert "devnet" in fails(2, "genesis", "node", "run", "--data-dir", str(tmp_path))
    fails(2, "usage", "node", "run", "--log-level", "loud")
    fails(2, "data-dir-unwritable", "node", "run", "--network", "regtest", "--data-dir", "/proc/none")
    file = tmp_path / "file"
    file.write_text("")
    fails(2, "log", "node", "run", "--network", "regtest", "--log-file", str(file / "x.log"))


def test_init_config_writes_a_file_once(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    assert json.loads(run("node", "init-config", str(path), "--json").output) == {"path": str(path)}
    assert path.read_text() == run("node", "init-config").output
    assert fails(3, "file-exists", "node", "init-config", str(path))


def test_rpc_docs_is_the_page() -> None:
    assert run("node", "rpc-docs").output == rpc_docs()


def test_status_of_a_node_that_is_not_there() -> None:
    fails(5, "network", "node", "status", "--rpc", "http://127.0.0.1:9")
    fails(2, "bad-url", "node", "status", "--rpc", "nonsense")


# --- real processes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_mining_node_stops_in_time(tmp_path: Path, number: int) -> None:
    with node_process(tmp_path, "--network", "regtest", "--mine", "--idle-duty", "0.2") as (process, info):
        status = json.loads(run("node", "status", "--rpc", info["rpc_address"], "--json").output)
        assert status["node"]["network"] == "regtest"
        assert status["mining"]["enabled"] is True
        assert "P2P" in run("node", "status", TILEWORK_RPC_URL=info["rpc_address"]).output
        code, errors = stop(process, number)
        assert (code, errors) == (0, "")


def test_a_second_node_on_the_directory_or_the_port(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with node_process(first, "--network", "regtest") as (process, info):
        port = info["rpc_address"].rpartition(":")[2]
        for code, arguments in (
            ("data-dir-in-use", ["--data-dir", str(first), "--rpc-port", "0"]),
            ("port-in-use", ["--data-dir", str(second), "--rpc-port", port]),
        ):
            command = [sys.executable, "-m", "tilework", "node", "run", "--json", "--network", "regtest"]
            command += ["--log-level", "error", "--p2p-port", "0", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 3
            assert json.loads(done.stderr)["code"] == code
        assert json.loads(run("node", "status", "--rpc", info["rpc_address"], "--json").output)
        assert stop(process, signal.SIGTERM)[0] == 0


def test_a_node_told_to_stop_while_it_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tilework", "node", "run", "--network", "regtest", "--data-dir", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--rpc-port", "0", "--p2p-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "chain").exists():
        time.sleep(0.01)
    code, _ = stop(process, signal.SIGINT)
    assert code in (0, 130)


def test_a_full_disk_stops_the_node_and_loses_nothing(tmp_path: Path) -> None:
    """The limit on file sizes hits the database's log, as a full disk would."""
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, resource.RLIM_INFINITY))
from tilework.main import main
main(sys.argv[1:])
"""
    arguments = ["node", "run", "--json", "--network", "regtest", "--data-dir", str(tmp_path), "--log-level", "error"]
    arguments += ["--rpc-port", "0", "--p2p-port", "0", "--mine"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stderr.splitlines()[-1])
    assert error["code"] == "storage"
    assert error["fix"]
    with node_process(tmp_path, "--network", "regtest") as (process, info):
        assert info["height"] > 0
        assert stop(process, signal.SIGTERM) == (0, "")


def test_silent_connections_by_the_hundred_take_few_descriptors_and_stop_nothing(tmp_path: Path) -> None:
    with node_process(tmp_path, "--network", "regtest") as (process, info):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 256))
        host, port = info["p2p_address"].rsplit(":", 1)
        descriptors = Path(f"/proc/{process.pid}/fd")
        before, most = len(list(descriptors.iterdir())), 0
        with ExitStack() as silent:
            for _ in range(400):
                silent.enter_context(socket.create_connection((host, int(port))))
                most = max(most, len(list(descriptors.iterdir())))
            time.sleep(0.2)
            most = max(most, len(list(descriptors.iterdir())))
            with urllib.request.urlopen(f"{info['rpc_address']}/health", timeout=5) as answer:
                assert answer.status == 200
        assert most - before <= DEFAULT.max_strangers_per_group + 16  # those on their way out, and files
        assert stop(process, signal.SIGTERM) == (0, "")


# --- workers


def test_a_worker_registers_and_retires(tmp_path: Path) -> None:
    key = WorkerKey.generate()
    path = tmp_path / "worker.key"
    key.create(path)
    rules = params.devnet(time.time_ns() // 10**6 - 3_600_000, (Allocation(key.address, 1_000 * TILE),))
    file = tmp_path / "genesis.json"
    file.write_bytes(genesis.dump(rules))
    address = encode_address(key.address, rules.address_prefix)
    arguments = ("--genesis", str(file), "--mine", "--idle-duty", "0.02", "--worker-key", str(path))
    with node_process(tmp_path / "node", *arguments) as (process, info):
        at = {"TILEWORK_RPC_URL": info["rpc_address"], "TILEWORK_MINING_WORKER_KEY": str(path)}
        assert info["miner"] == address

        def status() -> dict[str, Any]:
            return json.loads(run("worker", "status", "--json", **at).output)  # type: ignore[no-any-return]

        assert (status()["registered"], status()["address"]) == (False, address)
        assert "no worker" in run("worker", "status", **at).output
        assert "missing" in fails(3, "insufficient-balance", "worker", "register", "--bond", "5000", **at)
        sent = json.loads(run("worker", "register", "--packets", "2", "--json", **at).output)
        assert sent["height"] is not None
        state = status()
        assert (state["registered"], state["bond"], state["announced"]["places"]) == (True, 20 * TILE, 2)
        run("worker", "register", "--packets", "2", "--price", "5", **at)
        assert (status()["bond"], status()["announced"]["min_price"]) == (20 * TILE, 5)
        ideal = json.loads(run("worker", "price", "--json", **at).output)["grains"]
        assert ideal > 5
        assert json.loads(run("worker", "stop", "--json", **at).output)["address"] == address
        assert status()["retired_at"] is not None
        assert fails(3, "already-retired", "worker", "stop", **at)
        assert stop(process, signal.SIGINT)[0] == 0


def test_options_for_mining_are_refused_where_nothing_is_mined() -> None:
    for option in (("--price", "1.0x"), ("--idle-duty", "0.5"), ("--mine-threads", "2"), ("--payout-above", "7")):
        assert option[0] in fails(2, "config", "node", "run", *option)


def test_a_price_that_is_none_is_refused_as_a_setting() -> None:
    assert "--price = '1y'" in fails(2, "config", "node", "run", "--price", "1y")
    assert "--price TEXT" in run("node", "run", "--help").output


@pytest.mark.long
def test_a_mining_node_declares_the_price_that_it_was_given(tmp_path: Path) -> None:
    key, path, file = WorkerKey.generate(), tmp_path / "worker.key", tmp_path / "genesis.json"
    key.create(path)
    rules = params.devnet(time.time_ns() // 10**6 - 3_600_000, (Allocation(key.address, 1_000 * TILE),))
    file.write_bytes(genesis.dump(rules))
    arguments = ("--genesis", str(file), "--mine", "--worker-key", str(path), "--price", "77", "--idle-duty", "0.2")
    with node_process(tmp_path / "node", *arguments) as (_process, info):
        at = {"TILEWORK_RPC_URL": info["rpc_address"], "TILEWORK_MINING_WORKER_KEY": str(path)}
        run("worker", "register", "--packets", "2", "--price", "5", **at)
        deadline, price = time.monotonic() + 120, 0
        while price != 77 and time.monotonic() < deadline:
            time.sleep(0.5)
            price = json.loads(run("worker", "status", "--json", **at).output)["min_price"]
        assert price == 77


def test_worker_commands_without_a_key_or_a_node(tmp_path: Path) -> None:
    fails(4, "worker-key", "worker", "status", "--worker-key", str(tmp_path / "none"))
    path = tmp_path / "worker.key"
    WorkerKey.generate().create(path)
    fails(5, "network", "worker", "status", "--worker-key", str(path), "--rpc", "http://127.0.0.1:9")
    fresh = tmp_path / "new" / "worker.key"
    fails(5, "network", "worker", "register", "--worker-key", str(fresh), "--rpc", "http://127.0.0.1:9")
    assert (fresh.stat().st_mode & 0o777, fresh.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    path.chmod(0o644)
    fails(3, "worker-key", "worker", "status", "--worker-key", str(path))
    fails(2, "config", "worker", "status", TILEWORK_RPC_PORT="x")
    path.write_text("{}")
    os.chmod(path, 0o600)
    fails(3, "worker-key", "worker", "register", "--worker-key", str(path))
    fails(3, "worker-key", "worker", "status", "--worker-key", str(path))
