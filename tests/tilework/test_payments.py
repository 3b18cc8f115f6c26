"""The wallet's commands that talk to a node, against a real one."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from consensus.address import encode_address
from consensus.block import decode_header
from consensus.codec import encode
from consensus.params import TILE
from tests.wallet.network import ALICE, BOB, FUNDS, Running, key_of
from tests.wallet.proxy import lying_node
from tilework import payments as commands
from tilework.wallet import wallet
from wallet.accounts.keystore import KdfParams, Keystore
from wallet.accounts.payment import PaymentRequest
from wallet.client import payments
from wallet.client.payments import Received

LIGHT = KdfParams(memory_kib=8, iterations=1, lanes=1)
PASSWORD = "correct horse"
ALICE_TEXT, BOB_TEXT = encode_address(ALICE.address, "tdev"), encode_address(BOB.address, "tdev")


class Cli:
    """Runs commands with a keystore that holds alice and bob."""

    def __init__(self, home: Path, url: str) -> None:
        keystore = Keystore(home / "ks")
        keystore.create("alice", ALICE, PASSWORD, "devnet", kdf_params=LIGHT)
        keystore.create("bob", BOB, PASSWORD, "devnet", kdf_params=LIGHT)
        keystore.create("main", key_of("main"), PASSWORD, "mainnet", kdf_params=LIGHT)
        (home / "password").write_text(PASSWORD)
        self.environment = {
            "TILEWORK_WALLET_DIR": str(home / "ks"),
            "TILEWORK_PASSWORD_FILE": str(home / "password"),
            "TILEWORK_RPC_URL": url,
        }

    def run(self, *arguments: object, **options: Any) -> Result:
        return CliRunner().invoke(wallet, [str(a) for a in arguments], env=self.environment, obj=LIGHT, **options)

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


@pytest.fixture
def cli(tmp_path: Path, network: Running) -> Cli:
    return Cli(tmp_path, network.url)


def address_of(name: str) -> str:
    return encode_address(key_of(name).address, "tdev")


# -- balance and history


def test_balance_of_an_account_and_of_any_address(cli: Cli) -> None:
    mine = cli.ok("balance", "--account", "bob")
    assert mine["address"] == BOB_TEXT
    assert mine["balance_grains"] <= FUNDS
    assert cli.ok("balance", BOB_TEXT.upper())["balance_grains"] == mine["balance_grains"]
    assert cli.ok("balance", address_of("nobody"))["balance"] == "0"


def test_balance_proved_by_a_header(cli: Cli) -> None:
    for address in (BOB_TEXT, address_of("nobody")):
        result = cli.run("balance", address, "--verify")
        assert result.exit_code == 0, result.output
        assert "proved by block" in result.stdout


@pytest.mark.parametrize("field", ["value", "proof"])
def test_a_false_proof_is_refused(cli: Cli, network: Running, field: str) -> None:
    def false(_params: Any, proof: dict[str, Any]) -> dict[str, Any]:
        return proof | {field: proof[field][:-2] + ("00" if proof[field][-2:] != "00" else "01")}

    with lying_node(network.url) as liar:
        liar.changes["state_getProof"] = false
        cli.environment["TILEWORK_RPC_URL"] = liar.url
        cli.refused(5, "balance-unproved", "balance", BOB_TEXT, "--verify")


def test_a_header_of_another_place_or_that_nobody_worked_for_proves_nothing(cli: Cli, network: Running) -> None:
    chain = network.node.chain

    def elsewhere(_params: Any, view: dict[str, Any]) -> dict[str, Any]:
        header = chain.known.header(chain.archive.id_at(1) or b"")
        return view | {"raw": encode(header).hex()}

    def unworked(_params: Any, view: dict[str, Any]) -> dict[str, Any]:
        header = decode_header(bytes.fromhex(view["raw"]))
        hard = replace(header.core, target=bytes(31) + b"\x01")
        return view | {"raw": encode(replace(header, core=hard)).hex()}

    with lying_node(network.url) as liar:
        cli.environment["TILEWORK_RPC_URL"] = liar.url
        for lie, why in ((elsewhere, "another place"), (unworked, "does not win")):
            liar.changes["chain_getHeader"] = lie
            error = cli.refused(5, "balance-unproved", "balance", BOB_TEXT, "--verify")
            assert why in error["message"]


def test_history_shows_what_came_and_left(cli: Cli) -> None:
    sent = cli.ok("send", address_of("history"), "1.25", "--account", "alice", "--yes", "--wait", 1)
    received = cli.ok("history", address_of("history"))["movements"]
    assert [(m["kind"], m["amount"], m["reference"]) for m in received] == [("received", 1_250_000_000, sent["txid"])]
    mine = cli.ok("history", "--account", "alice", "--limit", 5)["movements"]
    assert ("sent", sent["txid"]) in [(m["kind"], m["reference"]) for m in mine]
    text = cli.run("history", address_of("history")).stdout
    assert "+1.25 TILE  received" in text
    assert "nothing yet" in cli.run("history", address_of("nobody")).stdout


# -- send


def test_send_and_wait_for_two_confirmations(cli: Cli) -> None:
    before = cli.ok("balance", address_of("carol"))["balance_grains"]
    sent = cli.ok("send", address_of("carol"), "2.5", "--memo", "for tea", "--account", "alice", "--yes", "--wait", 2)
    assert sent["status"] == "confirmed"
    assert sent["confirmations"] >= 2
    assert sent["fee_grains"] <= sent["max_fee_grains"]
    assert cli.ok("balance", address_of("carol"))["balance_grains"] == before + 5 * TILE // 2


def test_dry_run_sends_nothing_and_needs_no_password(cli: Cli) -> None:
    del cli.environment["TILEWORK_PASSWORD_FILE"]
    plan = cli.ok("send", address_of("dave"), "1", "--account", "alice", "--dry-run")
    assert (plan["status"], plan["amount_grains"], plan["to"]) == ("not sent", TILE, address_of("dave"))
    assert 0 < plan["max_fee_grains"] < TILE
    assert cli.ok("balance", address_of("dave"))["balance_grains"] == 0


def test_without_a_terminal_only_yes_pays(cli: Cli) -> None:
    error = cli.refused(2, "no-terminal", "send", BOB_TEXT, "1", "--account", "alice")
    assert "--yes" in error["fix"]


def test_the_fee_limit_holds(cli: Cli) -> None:
    cli.refused(3, "fee-too-low", "send", BOB_TEXT, "1", "--account", "alice", "--fee", "0.000000001", "--yes")
    sent = cli.ok("send", BOB_TEXT, "1", "--account", "alice", "--fee", "0.0001", "--yes", "--wait", 1)
    assert sent["fee_grains"] <= sent["max_fee_grains"] <= TILE // 10_000


@pytest.mark.parametrize(
    ("status", "code", "arguments"),
    [
        (2, "address-invalid", ("tdev1xxx", "1")),
        (2, "address-invalid", (BOB_TEXT[:-1] + "q", "1")),
        (2, "amount-invalid", (BOB_TEXT, "1e3")),
        (2, "usage", (BOB_TEXT,)),
        (2, "usage", (BOB_TEXT, "-1")),
        (2, "amount-invalid", (BOB_TEXT, "1", "--fee", "x")),
        (2, "payment-invalid", (BOB_TEXT, "0")),
        (2, "payment-invalid", (BOB_TEXT, "1", "--memo", "x" * 257)),
        (3, "insufficient-balance", (BOB_TEXT, "999999999")),
        (3, "network-mismatch", (encode_address(BOB.address, "tile"), "1")),
    ],
)
def test_bad_payments_are_refused_before_anything_is_signed(
    cli: Cli, status: int, code: str, arguments: tuple[str, ...]
) -> None:
    cli.refused(status, code, "send", *arguments, "--account", "alice", "--yes")


def test_an_account_of_another_network_pays_nothing_here(cli: Cli) -> None:
    cli.refused(3, "network-mismatch", "send", BOB_TEXT, "1", "--account", "main", "--yes")
    cli.refused(3, "network-mismatch", "balance", "--account", "main")


def test_an_account_that_is_not_named_or_not_there(cli: Cli) -> None:
    cli.refused(2, "account-needed", "send", BOB_TEXT, "1", "--yes")
    cli.refused(4, "account-not-found", "balance", "--account", "eve")


def test_a_wrong_password_sends_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong password")
    arguments = ("send", BOB_TEXT, "1", "--account", "alice", "--yes", "--password-file", tmp_path / "wrong")
    cli.refused(3, "wrong-password", *arguments)


def test_no_node_is_a_network_error_soon(cli: Cli) -> None:
    cli.environment["TILEWORK_RPC_URL"] = "http://127.0.0.1:1"
    begin = time.monotonic()
    cli.refused(5, "network", "balance", BOB_TEXT)
    assert time.monotonic() - begin < 5
    cli.environment["TILEWORK_RPC_URL"] = "nonsense"
    cli.refused(2, "bad-url", "balance", BOB_TEXT)


def test_a_confirmation_that_does_not_come_is_a_time_out(cli: Cli, network: Running) -> None:
    with lying_node(network.url) as liar:
        liar.changes["tx_get"] = lambda _params, view: view | {"status": "pending", "height": None, "confirmations": 0}
        cli.environment["TILEWORK_RPC_URL"] = liar.url
        arguments = ("send", BOB_TEXT, "1", "--account", "alice", "--yes", "--wait", 1, "--timeout", 0.5)
        error = cli.refused(6, "confirmation-timeout", *arguments)
    assert error["txid"] in error["message"]
    assert f"do not pay again: tilework wallet resend {error['txid']}" in error["fix"]


def test_a_payment_that_the_chain_refuses_is_told(cli: Cli, network: Running) -> None:
    with lying_node(network.url) as liar:
        failed = {
            "status": "confirmed",
            "height": 5,
            "ok": False,
            "reason": "insufficient-balance",
            "detail": "too little",
        }
        liar.changes["tx_get"] = lambda _params, view: view | failed
        cli.environment["TILEWORK_RPC_URL"] = liar.url
        error = cli.refused(3, "payment-failed", "send", BOB_TEXT, "1", "--account", "alice", "--yes", "--wait", 1)
    assert "too little" in error["message"]


def test_control_c_while_waiting_names_the_transaction(
    cli: Cli, network: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "notice", lambda line: interrupt(line) if "confirmations" in line else None)
    error = cli.refused(130, "interrupted", "send", BOB_TEXT, "1", "--account", "alice", "--yes", "--wait", 1)
    (txid,) = re.findall("[0-9a-f]{64}", error["message"])
    assert error["txid"] == txid
    assert f"tilework wallet resend {txid}" in error["fix"]
    monkeypatch.undo()
    cli.ok("send", BOB_TEXT, "1", "--account", "alice", "--yes", "--wait", 1)
    assert txid in [movement["reference"] for movement in cli.ok("history", "--account", "alice")["movements"]]


# -- payment requests


def watched(url: str, uri: str, confirmations: int) -> tuple[threading.Thread, list[Received]]:
    """What `wallet watch` does, meanwhile: click's runner is for one thread at a time."""
    found: list[Received] = []

    def look() -> None:
        request = PaymentRequest.parse(uri)
        found.append(asyncio.run(payments.watch(url, request, None, confirmations, 30, lambda _: None)))

    thread = threading.Thread(target=look)
    thread.start()
    return thread, found


def test_a_shop_sees_its_payment_and_no_other(cli: Cli, network: Running) -> None:
    uri = cli.ok("request", "0.5", "--memo", "two coffees", "--account", "bob")["uri"]
    thread, found = watched(network.url, uri, 2)
    time.sleep(0.5)
    wrong = (("0.5", "one coffee"), ("0.4", "two coffees"), ("0.5", ""))
    for amount, memo in wrong:
        cli.ok("send", BOB_TEXT, amount, "--memo", memo, "--account", "alice", "--yes", "--wait", 1)
    assert not found
    paid = cli.ok("pay", uri, "--account", "alice", "--yes")
    thread.join(30)
    (seen,) = found
    assert (seen.txid, seen.amount, seen.sender) == (paid["txid"], "0.5", ALICE_TEXT)
    assert seen.confirmations >= 2
    # The command itself, once the payment is past: it counts only on demand.
    cli.refused(6, "payment-timeout", "watch", uri, "--timeout", 0.5)
    assert cli.ok("watch", uri, "--since", 0)["txid"] == paid["txid"]


def test_pay_wants_an_amount_exactly_where_the_request_has_none(cli: Cli) -> None:
    open_uri = PaymentRequest(BOB.address, "tdev", None, "tip").uri
    cli.refused(2, "usage", "pay", open_uri, "--account", "alice", "--yes")
    plan = cli.ok("pay", open_uri, "--amount", "0.1", "--account", "alice", "--dry-run")
    assert (plan["amount"], plan["memo"]) == ("0.1", "tip")
    fixed = PaymentRequest(BOB.address, "tdev", 5, "").uri
    cli.refused(2, "usage", "pay", fixed, "--amount", "0.1", "--account", "alice", "--yes")
    cli.refused(2, "payment-invalid", "pay", "bitcoin:abc", "--account", "alice", "--yes")
    cli.refused(2, "payment-invalid", "watch", fixed + "&label=x")


def test_help_names_what_there_is() -> None:
    text = CliRunner().invoke(wallet, ["--help"]).stdout
    for name in ("balance", "send", "history", "pay", "watch", "new", "request"):
        assert f"  {name} " in text
