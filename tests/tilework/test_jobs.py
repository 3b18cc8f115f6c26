"""`tilework job` and `tilework demo`, against a real node."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from consensus.address import encode_address
from devnet import layout
from tests.wallet.network import ALICE, BOB, Running
from tests.wallet.proxy import lying_node
from tilework import jobs
from tilework.jobs import DEVNET, demo, job
from tilework.output import Group
from wallet.accounts.keystore import KdfParams, Keystore
from wallet.client.client import Client
from wallet.client.gateway import Gateway
from wallet.client.job import Job
from wallet.models import demorun
from wallet.models.demo import load_demo
from wallet.models.quantised import exact_product

LIGHT = KdfParams(memory_kib=8, iterations=1, lanes=1)
PASSWORD = "correct horse"


@click.group(cls=Group)
def root() -> None:
    """As tilework.main mounts them."""


root.add_command(job)
root.add_command(demo)


class Cli:
    """Runs commands in a directory with a keystore, and makes matrices there."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        keystore = Keystore(home / "ks")
        keystore.create("alice", ALICE, PASSWORD, "devnet", kdf_params=LIGHT)
        (home / "password").write_text(PASSWORD)
        self.environment: dict[str, str | None] = {
            "TILEWORK_WALLET_DIR": str(home / "ks"),
            "TILEWORK_PASSWORD_FILE": str(home / "password"),
            "TILEWORK_RPC_URL": url,
        }

    def matrices(self, m: int, k: int, n: int, seed: int = 0) -> tuple[Path, Path]:
        rng = np.random.default_rng(seed)
        np.save(self.home / "x.npy", rng.integers(-63, 64, (m, k)))
        np.save(self.home / "w.npy", rng.integers(-63, 64, (k, n)))
        return self.home / "x.npy", self.home / "w.npy"

    def run(self, *arguments: object, **options: Any) -> Result:
        return CliRunner().invoke(root, [str(a) for a in arguments], env=self.environment, **options)

    def ok(self, *arguments: object) -> dict[str, Any]:
        result = self.run(*arguments, "--json")
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def refused(self, status: int, code: str, *arguments: object) -> dict[str, str]:
        result = self.run(*arguments, "--json")
        assert (result.exit_code, result.stdout) == (status, ""), result.output
        error: dict[str, str] = json.loads(result.stderr)
        assert error["code"] == code
        assert error["fix"]
        return error

    @property
    def product(self) -> Path:
        return self.home / "c.npy"

    def is_right(self) -> bool:
        x, w = np.load(self.home / "x.npy"), np.load(self.home / "w.npy")
        return np.array_equal(np.load(self.product), x @ w)


@pytest.fixture
def cli(tmp_path: Path, network: Running) -> Cli:
    return Cli(tmp_path, network.url)


def npy(array: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_submit_writes_the_exact_product_and_says_what_it_cost(cli: Cli) -> None:
    done = cli.ok("job", "submit", *cli.matrices(150, 90, 130), "-o", cli.product, "--packets", 4, "--yes")
    assert cli.is_right()
    assert (done["rows"], done["cols"], done["workers"]) == (150, 130, 1)
    assert done["cost"]["paid"] > 0
    status = cli.ok("job", "status", done["jobs"][0])
    assert (status["done"], status["packets"]) == (done["packets"], done["packets"])
    stories = cli.ok("job", "explain", done["jobs"][0])["packets"]
    assert len(stories) == done["packets"]
    listed = [view["job"] for view in cli.ok("job", "list")["jobs"]]
    assert listed[0] == done["jobs"][0]
    assert listed[0] in [view["job"] for view in cli.ok("job", "list", "--all")["jobs"]]


def test_what_it_costs_is_said_before_and_is_what_the_chain_took(cli: Cli) -> None:
    before = balance_of(cli)
    arguments = (*cli.matrices(150, 90, 130), "-o", cli.product, "--packets", 4)
    plan = cli.ok("job", "submit", *arguments, "--dry-run")
    assert (plan["status"], plan["max_cost_grains"]) == ("not sent", plan["escrow_grains"] + plan["max_fee_grains"])
    assert balance_of(cli) == before
    assert not cli.product.exists()
    words = cli.run("job", "submit", *arguments, "--dry-run").output
    for word in ("escrow", "fees", "in all  at most", "comes back"):
        assert word in words
    done = cli.ok("job", "submit", *arguments, "--yes")
    cost = done["cost"]
    assert (cost["held"], cost["escrowed"]) == (0, plan["escrow_grains"])
    assert cost["total"] == cost["paid"] + cost["fees"] == before - balance_of(cli)
    assert cost["total"] <= plan["max_cost_grains"]


def balance_of(cli: Cli) -> int:
    async def look() -> int:
        async with Gateway(str(cli.environment["TILEWORK_RPC_URL"])) as gateway:
            return (await gateway.account(encode_address(ALICE.address, "tdev"))).balance

    return asyncio.run(look())


def test_no_file_is_replaced_unless_that_is_wanted_and_no_input_ever(cli: Cli) -> None:
    x, w = cli.matrices(64, 64, 64, 6)
    cli.product.write_text("years of work")
    error = cli.refused(2, "file-exists", "job", "submit", x, w, "-o", cli.product, "--yes")
    assert "--force" in error["fix"]
    cli.refused(2, "file-exists", "job", "result", "ab" * 32, x, w, "-o", cli.product)
    assert cli.product.read_text() == "years of work"
    for force in ((), ("--force",)):
        for again in (x, w, cli.home / "ks" / ".." / "x.npy"):
            error = cli.refused(2, "file-exists", "job", "submit", x, w, "-o", again, "--yes", *force)
            assert "one of the matrices" in error["message"]
    cli.ok("job", "submit", x, w, "-o", cli.product, "--yes", "--force")
    assert cli.is_right()


def test_a_file_that_appears_meanwhile_stays(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = cli.matrices(64, 64, 64, 7)
    true = Job.result

    async def slowly(self: Job, *arguments: Any) -> Any:
        product = await true(self, *arguments)
        cli.product.write_text("years of work")
        return product

    monkeypatch.setattr(Job, "result", slowly)
    error = cli.refused(3, "file-exists", "job", "submit", x, w, "-o", cli.product, "--yes")
    assert error["txids"]
    assert cli.product.read_text() == "years of work"
    monkeypatch.undo()
    cli.ok("job", "result", ",".join(error["txids"]), x, w, "-o", cli.home / "other.npy")
    assert [file.name for file in cli.home.glob(".*.tmp")] == []


def test_people_get_words(cli: Cli) -> None:
    result = cli.run("job", "submit", *cli.matrices(64, 64, 64, 1), "-o", cli.product, "--yes")
    assert result.exit_code == 0, result.output
    assert "64×64 times 64×64: 1 packets" in result.stderr
    assert "tilework job result" in result.stderr
    assert "64×64, checked; cost" in result.stdout
    job_id = json.loads(cli.run("job", "list", "--json").stdout)["jobs"][0]["job"]
    assert "status      " in cli.run("job", "status", job_id).stdout
    assert "was paid" in cli.run("job", "explain", job_id).stdout
    assert job_id in cli.run("job", "list").stdout


def test_a_product_can_be_fetched_later(cli: Cli) -> None:
    x, w = cli.matrices(128, 64, 64, 2)
    sent = cli.ok("job", "submit", x, w, "-o", cli.product, "--packets", 2, "--no-wait", "--yes")
    assert not cli.product.exists()
    done = cli.ok("job", "result", ",".join(sent["jobs"]), x, w, "-o", cli.product, "--timeout", 30)
    assert done["jobs"] == sent["jobs"]
    assert cli.is_right()
    cli.refused(2, "operands-differ", "job", "result", sent["jobs"][0], w, w, "-o", cli.home / "other.npy")


def test_a_job_can_be_cancelled_once(cli: Cli) -> None:
    sent = cli.ok(
        "job", "submit", *cli.matrices(640, 64, 640, 3), "-o", cli.product, "--packets", 100, "--no-wait", "--yes"
    )
    (job_id,) = sent["jobs"]
    deadline = time.monotonic() + 20
    while cli.ok("job", "status", job_id)["status"] == "pending":
        assert time.monotonic() < deadline
    assert cli.ok("job", "cancel", job_id, "--yes")["transactions"]
    while cli.ok("job", "status", job_id)["status"] != "cancelled":
        assert time.monotonic() < deadline
    cli.refused(3, "not-open", "job", "cancel", job_id, "--yes")


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"no array", 2, "not-a-matrix-file"),
        (None, 4, "file-not-found"),
        (npy(np.array([[0.5]])), 2, "matrix-invalid"),
        (npy(np.array([[np.nan]])), 2, "matrix-invalid"),
        (npy(np.array([[64]])), 2, "matrix-invalid"),
        (npy(np.array([1, 2])), 2, "matrix-invalid"),
        (npy(np.ones((3, 3), int)), 2, "shape-mismatch"),
    ],
)
def test_files_that_are_no_operands(cli: Cli, content: bytes | None, status: int, code: str) -> None:
    _, w = cli.matrices(2, 2, 2)
    path = cli.home / "bad.npy"
    if content is not None:
        path.write_bytes(content)
    cli.refused(status, code, "job", "submit", path, w, "-o", cli.product, "--yes")


def test_nothing_is_paid_for_a_product_that_could_not_be_written(cli: Cli) -> None:
    x, w = cli.matrices(2, 2, 2)
    for place in (cli.home / "none" / "c.npy", Path("/proc/c.npy")):
        cli.refused(2, "file-not-written", "job", "submit", x, w, "-o", place, "--yes")


def test_without_a_terminal_only_yes_pays(cli: Cli) -> None:
    error = cli.refused(2, "no-terminal", "job", "submit", *cli.matrices(2, 2, 2), "-o", cli.product)
    assert "--yes" in error["fix"]


def test_terms_that_nobody_meets_and_jobs_that_nobody_knows(cli: Cli) -> None:
    x, w = cli.matrices(2, 2, 2)
    cli.refused(3, "no-able-worker", "job", "submit", x, w, "-o", cli.product, "--price", 1, "--yes")
    cli.refused(2, "usage", "job", "submit", x, w, "-o", cli.product, "--packets", 0, "--yes")
    cli.refused(2, "memory-bound", "job", "submit", x, w, "-o", cli.product, "--memory", 0.001, "--yes")
    cli.refused(3, "fee-too-low", "job", "submit", x, w, "-o", cli.product, "--fee", "0.000000001", "--yes")
    for command in (("status",), ("explain",)):
        cli.refused(4, "job-not-found", "job", *command, "ab" * 32)
        cli.refused(2, "job-invalid", "job", *command, "00ff")
    cli.refused(4, "job-not-found", "job", "cancel", "ab" * 32, "--yes")
    cli.refused(2, "job-invalid", "job", "cancel", "AB" * 32, "--yes")
    cli.refused(4, "job-not-found", "job", "result", "ab" * 32, x, w, "-o", cli.product)


def test_a_time_out_has_its_status_and_says_how_to_go_on(cli: Cli, network: Running) -> None:
    with lying_node(network.url) as liar:
        cli.environment["TILEWORK_RPC_URL"] = liar.url
        liar.changes["job_get"] = lambda _params, view: view | {"status": "pending", "done": 0}
        arguments = (*cli.matrices(64, 64, 64, 5), "-o", cli.product, "--timeout", 0.3, "--yes")
        error = cli.refused(6, "job-timeout", "job", "submit", *arguments)
    assert "tilework job result" in error["fix"]


def test_control_c_says_how_to_go_on(cli: Cli, network: Running) -> None:
    x, w = cli.matrices(64, 64, 64, 6)
    with lying_node(network.url) as liar:
        liar.changes["job_get"] = lambda _params, view: view | {"status": "pending", "done": 0}
        arguments = ["job", "submit", str(x), str(w), "-o", str(cli.product), "--yes", "--rpc", liar.url]
        process = subprocess.Popen(
            [sys.executable, "-c", "from tilework.main import main; main()", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {k: v for k, v in cli.environment.items() if v is not None},
        )
        assert process.stderr is not None
        seen = ""
        while "tilework job result" not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "(interrupted)" in rest
    assert "fix: for the product: tilework job result" in rest


# -- the demonstration


def test_the_demonstration_holds_and_is_told(cli: Cli) -> None:
    report = cli.ok("demo", "--packets", 8)
    assert report["failures"] == []
    assert report["equals_local"]
    assert report["correct"] == load_demo().manifest.quantised_correct
    assert report["blocks_won"]
    assert [layer["jobs"] for layer in report["layers"]]
    assert sum(worker["packets"] for worker in report["workers"]) == sum(layer["packets"] for layer in report["layers"])
    pay = sum(worker["pay_grains"] for worker in report["workers"])
    assert 0.87 * report["paid_grains"] < pay < 0.89 * report["paid_grains"]
    text = demorun.told(msgspec.convert(report, demorun.Report))
    assert "equal bit for bit" in text
    assert "96.75%" in text


def test_a_demonstration_in_which_something_does_not_hold_fails(
    cli: Cli, network: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demorun, "run_local", lambda net, x: np.zeros((len(x), 10), np.int32))
    with lying_node(network.url) as liar:
        cli.environment["TILEWORK_RPC_URL"] = liar.url
        # Claims a block that an idle unit won, which its header tells.
        liar.changes["job_get"] = lambda _params, view: view | {"blocks_won": [1]}
        result = cli.run("demo", "--packets", 4)
    assert result.exit_code == 1
    assert "FAILED: the answer differs from the local computation; no packet of the job won a block" in result.stdout


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_options_the_devnet_of_the_directory_is_meant(
    cli: Cli, network: Running, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reached(client: Client, *_rest: Any) -> demorun.Report:
        return demorun.Report(1, 1, 1, True, (), (), (1,), 0, 0, 0, 0.0, ())

    monkeypatch.setattr(demorun, "run", reached)
    keystore = Keystore(elsewhere / "devnet-wallet")
    keystore.create("devnet", BOB, PASSWORD, "devnet", kdf_params=LIGHT)
    DEVNET.mkdir()
    record = layout.describe(layout.Layout(DEVNET), layout.establish(layout.Layout(DEVNET), None), 1, "devnet")
    wallet = replace(record.wallet, directory=str(keystore.directory), password_file=str(elsewhere / "password"))
    nodes = (replace(record.nodes[0], rpc=network.url),)
    layout.Layout(DEVNET).write(replace(record, status="ready", wallet=wallet, nodes=nodes))
    cli.environment = dict.fromkeys(cli.environment)
    assert cli.run("demo").exit_code == 0
    layout.Layout(DEVNET).record.write_text("{}")
    assert jobs._local_devnet() is None


def test_jobs_of_the_demo_can_be_resumed(cli: Cli, network: Running) -> None:
    """Its jobs are like any other: whoever has the matrices can fetch the product again."""
    data = load_demo()
    images, weights = data.images, data.network.layers[0].weights

    async def body() -> None:
        async with Client(network.url, ALICE) as client:
            ordered = await client.submit(images, weights, packets=4, price=100)
            product = await (await client.attach(ordered.ids, images, weights)).result()
            assert np.array_equal(product, exact_product(images, weights))

    asyncio.run(body())
