"""A worker's evening: from zero coins to earnings that are spent, by documented commands; and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from api.chain import MovementView
from consensus.address import encode_address
from consensus.params import TILE
from tests.tilework.test_node import node_process
from tests.wallet.network import Running, key_of
from tilework.history import csv_of
from worker.key import WorkerKey

PAYEE = encode_address(key_of("savings").address, "tdev")


class Person:
    """Somebody at a shell with a directory of their own, who types what the README and the help say."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.key = home / "worker.key"
        (home / "password").write_text("correct horse\n")
        self.environment = os.environ | {
            "TILEWORK_WALLET_DIR": str(home / "ks"),
            "TILEWORK_PASSWORD_FILE": str(home / "password"),
            "TILEWORK_MINING_WORKER_KEY": str(self.key),
            "TILEWORK_RPC_URL": url,
        }

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tilework", *map(str, arguments)]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.environment, timeout=100
        )

    def ok(self, *arguments: object) -> dict[str, Any]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def refused(self, status: int, code: str, *arguments: object) -> dict[str, Any]:
        done = self.run(*arguments, "--json")
        error: dict[str, Any] = json.loads(done.stderr)
        assert (done.returncode, error["code"]) == (status, code), error
        return error

    def until(self, look: Any, what: str) -> Any:
        deadline = time.monotonic() + 60
        while not (found := look()):
            assert time.monotonic() < deadline, what
            time.sleep(0.2)
        return found


@pytest.fixture
def person(tmp_path: Path, network: Running) -> Person:
    return Person(tmp_path, network.url)


def test_from_zero_coins_to_earnings_that_are_spent(person: Person) -> None:
    error = person.refused(3, "insufficient-balance", "worker", "register", "--packets", 1)
    assert "mine idle units" in error["fix"]
    with subprocess.Popen(
        [sys.executable, "-m", "tilework", "mine", "--key", str(person.key)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=person.environment,
    ) as miner:
        person.until(lambda: person.ok("worker", "status")["balance"] > 20 * TILE, "rewards that have matured")
        miner.send_signal(signal.SIGINT)
    person.ok("worker", "register", "--packets", 1)
    person.refused(3, "bond-below-present", "worker", "register", "--packets", 1, "--bond", 5)
    person.refused(3, "bond-too-low", "worker", "register", "--packets", 3, "--bond", 20)
    assert person.ok("wallet", "import", "earnings", "--from-file", person.key)["name"] == "earnings"
    person.ok("wallet", "send", PAYEE, "5", "--yes", "--wait", 1)
    assert person.ok("wallet", "balance", PAYEE)["balance"] == "5"

    entries = person.ok("wallet", "history", "--since", 0)["movements"]
    assert {"block", "bond", "sent"} <= {entry["kind"] for entry in entries}
    sent = next(entry for entry in entries if entry["kind"] == "sent")
    assert (sent["counterparty"], sent["amount"]) == (PAYEE, -5 * TILE - sent["fee"])
    table = list(csv.DictReader(io.StringIO(person.run("wallet", "history", "--since", "2020-01-01", "--csv").stdout)))
    assert len(table) >= len(entries)
    row = next(row for row in table if row["kind"] == "sent")
    assert (row["counterparty"], row["reference"]) == (PAYEE, sent["reference"])
    assert float(row["amount"]) < -5
    words = person.run("wallet", "history", "--limit", 1000).stdout
    assert "mined a block" in words
    assert "bond as a worker" in words
    assert person.ok("wallet", "history", "--since", 2**40)["movements"] == []
    person.refused(2, "since-invalid", "wallet", "history", "--since", "yesterday")
    person.refused(2, "usage", "wallet", "history", "--csv")

    person.ok("worker", "stop")
    person.refused(3, "already-retired", "worker", "stop")
    lines = person.run("worker", "status").stdout.splitlines()
    assert lines[0].startswith("lost")
    assert "0 TILE of the bond" in lines[0]


@pytest.mark.parametrize("memo", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_memo_is_no_formula(memo: str) -> None:
    movement = MovementView(7, "received", TILE, "ab" * 32, 0, memo=memo.encode().hex(), counterparty=PAYEE)
    (row,) = csv.DictReader(io.StringIO(csv_of([movement])))
    assert row["memo"] == f"'{memo}"
    assert (row["amount"], row["time"]) == ("1", "1970-01-01T00:00:00Z")


def test_a_worker_that_is_none_has_nothing_to_stop(person: Person) -> None:
    WorkerKey.generate().create(person.key)
    person.refused(3, "unknown-worker", "worker", "stop")


def test_a_mining_node_pays_out_to_the_address_that_it_was_given(tmp_path: Path) -> None:
    arguments = ("--network", "regtest", "--mine", "--payout", PAYEE, "--payout-above", "60")
    with node_process(tmp_path / "node", *arguments) as (_process, info):
        person = Person(tmp_path, info["rpc_address"])
        person.until(lambda: person.ok("wallet", "balance", PAYEE)["balance_grains"] > 58 * TILE, "a payout")
        history = person.ok("wallet", "history", PAYEE)["movements"]
        assert history[-1]["counterparty"] == info["miner"]


def test_a_payout_to_what_is_no_address_of_the_network_does_not_start(tmp_path: Path) -> None:
    person = Person(tmp_path, "http://127.0.0.1:9")
    run = ("node", "run", "--network", "regtest", "--data-dir", tmp_path / "node", "--rpc-port", 0, "--p2p-port", 0)
    elsewhere = encode_address(key_of("savings").address, "tile")
    assert "--payout" in person.refused(2, "config", *run, "--mine", "--payout", elsewhere)["message"]
    assert "--mine" in person.refused(2, "config", *run, "--payout", PAYEE)["fix"]
