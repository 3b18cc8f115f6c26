"""The wallet's offline commands, as a user and as a script meets them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from consensus.address import decode_address
from tilework.output import Command
from tilework.wallet import wallet
from wallet.accounts.keys import account_key, account_path
from wallet.accounts.keystore import KdfParams, Keystore
from wallet.accounts.password import PUBLIC_PASSWORD
from wallet.accounts.payment import PaymentRequest
from worker.key import WorkerKey

LIGHT = KdfParams(memory_kib=8, iterations=1, lanes=1)
WORDS = "abandon " * 11 + "about"
PASSWORD = "correct horse"


class Cli:
    """Runs commands against a directory of their own, with a password file and cheap key derivation."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.keystore = Keystore(home / "ks")
        (home / "password").write_text(PASSWORD + "\n")
        (home / "words").write_text(WORDS + "\n")
        self.environment: dict[str, str | None] = {
            "TILEWORK_WALLET_DIR": str(home / "ks"),
            "TILEWORK_PASSWORD_FILE": str(home / "password"),
            "TILEWORK_NETWORK": None,
        }

    def run(self, *arguments: object, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(
            wallet,
            [str(argument) for argument in arguments],
            input=stdin,
            env=self.environment,
            obj=LIGHT,
            prog_name="tilework wallet",
        )

    def ok(self, *arguments: object, stdin: str | bytes = "") -> dict[str, Any]:
        result = self.run(*arguments, "--json", stdin=stdin)
        assert (result.exit_code, result.stderr) == (0, "")
        answer = json.loads(result.stdout)
        assert isinstance(answer, dict)
        return answer

    def refused(self, status: int, code: str, *arguments: object) -> str:
        result = self.run(*arguments, "--json")
        assert (result.exit_code, result.stdout) == (status, "")
        error = json.loads(result.stderr)
        assert error["code"] == code
        assert PASSWORD not in result.stderr
        return str(error["message"])

    def import_alice(self) -> str:
        return str(self.ok("import", "alice", "--from-file", self.home / "words")["address"])


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


# -- making and showing accounts


def test_new_writes_the_words_to_a_private_file_that_restores_the_account(cli: Cli) -> None:
    words_file = cli.home / "backup"
    made = cli.ok("new", "alice", "--words-file", words_file)
    assert "mnemonic" not in made
    assert words_file.stat().st_mode & 0o777 == 0o600
    assert len(words_file.read_text().split()) == 24
    restored = cli.ok("import", "again", "--from-file", words_file)
    assert restored["address"] == made["address"]
    assert made["address"].startswith("tdev1")
    assert made["path"] == account_path(0)


def test_new_never_puts_words_into_a_pipe(cli: Cli) -> None:
    assert "terminal" in cli.refused(2, "no-terminal", "new", "alice")
    assert cli.keystore.names() == []


def test_new_with_twelve_words_for_mainnet(cli: Cli) -> None:
    made = cli.ok("new", "shop", "--words", "12", "--network", "mainnet", "--words-file", cli.home / "backup")
    assert len((cli.home / "backup").read_text().split()) == 12
    assert made["address"].startswith("tile1")


def test_new_keeps_what_exists(cli: Cli) -> None:
    cli.import_alice()
    before = (cli.home / "ks" / "alice.json").read_bytes()
    cli.refused(3, "account-exists", "new", "alice", "--words-file", cli.home / "backup")
    assert not (cli.home / "backup").exists()
    cli.refused(3, "file-exists", "new", "bob", "--words-file", cli.home / "words")
    assert (cli.home / "words").read_text() == WORDS + "\n"
    assert (cli.home / "ks" / "alice.json").read_bytes() == before
    assert cli.keystore.names() == ["alice"]


def test_new_leaves_no_words_behind_when_the_account_cannot_be_written(cli: Cli) -> None:
    # The password file stands where a directory would have to be made.
    result = cli.run("new", "alice", "--words-file", cli.home / "backup", "--dir", cli.home / "password" / "ks")
    assert result.exit_code == 1
    assert not (cli.home / "backup").exists()


def test_import_takes_words_at_any_index(cli: Cli) -> None:
    for index in (0, 3):
        key = account_key(WORDS, index)
        made = cli.ok("import", f"a{index}", "--from-file", cli.home / "words", "--index", index)
        assert made["public_key"] == key.public_key.hex()
        assert cli.keystore.unlock(f"a{index}", PASSWORD).private_key == key.private_key


def test_import_reads_standard_input(cli: Cli) -> None:
    made = cli.ok("import", "alice", "--from-file", "-", stdin=WORDS.upper())
    assert made["public_key"] == account_key(WORDS).public_key.hex()


@pytest.mark.parametrize(
    "written",
    [
        WORDS.replace(" ", "\r\n").encode(),
        b"\xef\xbb\xbf" + WORDS.encode() + b"\r\n",
        WORDS.encode("utf-16"),
        "\n".join(f"{n:>2} {word}" for n, word in enumerate(WORDS.split(), 1)).encode(),
        "\r\n".join(f"{n}. {word}" for n, word in enumerate(WORDS.split(), 1)).encode("utf-8-sig"),
        " ".join(f"{n}){word}" for n, word in enumerate(WORDS.split(), 1)).encode(),
    ],
    ids=["crlf", "bom", "utf-16", "numbered", "numbered-list", "close-together"],
)
def test_words_are_read_as_people_keep_them(cli: Cli, written: bytes) -> None:
    (cli.home / "kept").write_bytes(written)
    assert cli.ok("import", "kept", "--from-file", cli.home / "kept")["address"] == cli.import_alice()


def test_a_workers_key_file_is_imported_as_the_account_that_it_earns_for(cli: Cli) -> None:
    key = WorkerKey.load_or_create(cli.home / "worker.key")
    made = cli.ok("import", "earnings", "--from-file", cli.home / "worker.key")
    assert decode_address(made["address"], "tdev") == key.address
    assert cli.keystore.unlock("earnings", PASSWORD).address == key.address
    cli.refused(2, "usage", "import", "second", "--from-file", cli.home / "worker.key", "--index", 1)
    (cli.home / "worker.key").write_text('{"version": 1, "ed25519": "00"}')
    cli.refused(2, "worker-key", "import", "third", "--from-file", cli.home / "worker.key")


def test_no_account_of_value_is_made_in_a_devnets_wallet_or_under_its_password(cli: Cli) -> None:
    public = Keystore(cli.home / "public")
    public.mark_public()
    made = ("new", "savings", "--words-file", cli.home / "backup")
    message = cli.refused(3, "devnet-only", *made, "--network", "mainnet", "--dir", public.directory)
    assert "devnet reset" in message
    (cli.home / "password").write_text(PUBLIC_PASSWORD)
    message = cli.refused(3, "devnet-only", *made, "--network", "mainnet")
    assert "everybody knows" in message
    cli.refused(3, "devnet-only", "import", "savings", "--from-file", cli.home / "words", "--network", "mainnet")
    assert not (cli.home / "backup").exists()
    assert cli.keystore.names() == public.names() == []
    assert cli.ok(*made, "--network", "devnet", "--dir", public.directory)["address"].startswith("tdev1")


def test_an_exported_key_can_be_imported(cli: Cli) -> None:
    address = cli.import_alice()
    out = cli.home / "key"
    assert cli.ok("export", "alice", "--out", out)["out"] == str(out)
    assert out.stat().st_mode & 0o777 == 0o600
    again = cli.ok("import", "again", "--from-file", out)
    assert (again["address"], again["path"]) == (address, "")
    cli.refused(2, "usage", "import", "third", "--from-file", out, "--index", "1")


@pytest.mark.parametrize(
    ("secret", "complaint"),
    [
        ("", "this one 0"),
        ("abandon " * 12, "checksum"),
        ("11" * 31, "this one 1"),
        ("zz" * 32, "this one 1"),
        ("\x00" * 10, "this one 1"),
    ],
)
def test_import_refuses_what_is_no_secret(cli: Cli, secret: str, complaint: str) -> None:
    (cli.home / "bad").write_text(secret)
    assert complaint in cli.refused(2, "mnemonic-invalid", "import", "alice", "--from-file", cli.home / "bad")
    assert cli.keystore.names() == []


def test_import_bounds_what_it_reads(cli: Cli) -> None:
    (cli.home / "bad").write_text("abandon " * 10_000)
    cli.refused(2, "too-large", "import", "alice", "--from-file", cli.home / "bad")


def test_import_refuses_a_file_that_is_not_there(cli: Cli) -> None:
    cli.refused(2, "usage", "import", "alice", "--from-file", cli.home / "nowhere")


def test_list_shows_accounts_of_every_network(cli: Cli) -> None:
    assert "tilework wallet new" in cli.run("list").stdout
    address = cli.import_alice()
    cli.ok("import", "bob", "--from-file", cli.home / "words", "--index", 1, "--network", "mainnet")
    listed = cli.ok("list")
    assert [account["name"] for account in listed["accounts"]] == ["alice", "bob"]
    assert listed["problems"] == []
    lines = cli.run("list").stdout.splitlines()
    assert lines[0] == f"alice  {address}"
    assert lines[1].startswith("bob    tile1")


def test_one_bad_file_does_not_hide_the_other_accounts(cli: Cli) -> None:
    cli.import_alice()
    (cli.home / "ks" / "broken.json").write_text("{")
    (cli.home / "ks" / "broken.json").chmod(0o600)
    listed = cli.ok("list")
    assert [account["name"] for account in listed["accounts"]] == ["alice"]
    assert [problem["code"] for problem in listed["problems"]] == ["keystore-damaged"]
    result = cli.run("list")
    assert result.exit_code == 0
    assert result.stdout.startswith("alice  ")
    assert "keystore-damaged" in result.stderr


def test_show_needs_no_password(cli: Cli) -> None:
    address = cli.import_alice()
    cli.environment["TILEWORK_PASSWORD_FILE"] = None
    result = cli.run("show", "alice")
    assert result.exit_code == 0
    assert address in result.stdout
    cli.refused(4, "account-not-found", "show", "bob")
    cli.refused(2, "account-name", "show", "../alice")


# -- signing


def test_a_signature_verifies_and_a_changed_message_does_not(cli: Cli) -> None:
    address = cli.import_alice()
    signed = cli.ok("sign", "alice", "I owe you two coffees")
    assert signed["address"] == address
    signature = signed["signature"]
    assert cli.ok("verify", address, signature, "I owe you two coffees")["valid"] is True
    cli.refused(3, "signature-invalid", "verify", address, signature, "I owe you ten coffees")
    cli.refused(3, "signature-invalid", "verify", address, "zz", "I owe you two coffees")
    cli.refused(3, "signature-invalid", "verify", address, signature[:-2], "I owe you two coffees")
    cli.refused(2, "address-invalid", "verify", address[:-1], signature, "I owe you two coffees")


def test_files_are_signed_byte_for_byte(cli: Cli) -> None:
    address = cli.import_alice()
    document = cli.home / "document"
    document.write_bytes(bytes(range(256)))
    signature = cli.ok("sign", "alice", "--file", document)["signature"]
    result = cli.run("verify", address, signature, "--file", "-", stdin=bytes(range(256)))
    assert result.exit_code == 0
    document.write_bytes(bytes(range(255)))
    cli.refused(3, "signature-invalid", "verify", address, signature, "--file", document)
    cli.refused(2, "usage", "sign", "alice")
    cli.refused(2, "usage", "sign", "alice", "text", "--file", document)


def test_a_message_has_a_limit(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.import_alice()
    monkeypatch.setattr("tilework.wallet.MAX_MESSAGE_BYTES", 10)
    (cli.home / "long").write_text("x" * 11)
    cli.refused(2, "too-large", "sign", "alice", "--file", cli.home / "long")


def test_a_wrong_password_signs_nothing(cli: Cli) -> None:
    cli.import_alice()
    (cli.home / "wrong").write_text("incorrect horse\n")
    cli.refused(3, "wrong-password", "sign", "alice", "text", "--password-file", cli.home / "wrong")
    cli.refused(3, "wrong-password", "export", "alice", "--out", cli.home / "k", "--password-file", cli.home / "wrong")
    assert not (cli.home / "k").exists()
    cli.refused(2, "password-file", "sign", "alice", "text", "--password-file", cli.home / "nowhere")


def test_a_private_key_never_goes_into_a_pipe(cli: Cli) -> None:
    cli.import_alice()
    assert "terminal" in cli.refused(2, "no-terminal", "export", "alice")


# -- payment requests


def test_a_request_is_a_uri_and_a_qr_code(cli: Cli) -> None:
    address = cli.import_alice()
    asked = cli.ok("request", "1.5", "--memo", "two coffees")
    assert asked["uri"] == f"tilework:{address}?amount=1.5&memo=two%20coffees"
    assert (asked["amount_grains"], asked["amount"]) == (1_500_000_000, "1.5")
    parsed = PaymentRequest.parse(asked["uri"])
    assert parsed.address == decode_address(address, "tdev")
    shown = cli.run("request", "1.5", "--memo", "two coffees").stdout
    assert shown.startswith(asked["uri"] + "\n\n")
    assert "█▀" in shown
    assert cli.run("request", "1.5", "--memo", "two coffees", "--no-qr").stdout == asked["uri"] + "\n"


@pytest.mark.parametrize("amount", ["nan", "1e3", "1.0000000001", "9223372036.854775808", "ten"])
def test_a_request_for_no_amount_is_refused(cli: Cli, amount: str) -> None:
    cli.import_alice()
    cli.refused(2, "amount-invalid", "request", amount)


def test_a_request_for_nothing_or_with_a_huge_memo_is_refused(cli: Cli) -> None:
    cli.import_alice()
    cli.refused(2, "payment-invalid", "request", "0")
    cli.refused(2, "payment-invalid", "request", "1", "--memo", "x" * 257)
    cli.refused(2, "usage", "request", "-1")


def test_the_account_must_be_named_only_where_there_are_several(cli: Cli) -> None:
    cli.refused(4, "account-not-found", "request", "1")
    cli.import_alice()
    bob = cli.ok("import", "bob", "--from-file", cli.home / "words", "--index", 1)["address"]
    assert "alice, bob" in cli.refused(2, "account-needed", "request", "1")
    assert cli.ok("request", "1", "--account", "bob")["address"] == bob


# -- the terminal


def test_every_command_has_help_and_json() -> None:
    for name, command in wallet.commands.items():
        assert isinstance(command, Command), name
        assert command.help, name
        context = click.Context(command, info_name=name)
        assert "--json" in command.get_help(context)
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def test_no_prompt_without_a_terminal(cli: Cli) -> None:
    cli.import_alice()
    cli.environment["TILEWORK_PASSWORD_FILE"] = None
    message = cli.refused(2, "no-terminal", "sign", "alice", "text")
    assert "password of alice" in message
    message = cli.refused(2, "no-terminal", "import", "bob")
    assert "words or private key" in message


PROGRAM = """
from tilework.wallet import wallet
from wallet.accounts.keystore import KdfParams
wallet(prog_name="tilework wallet", obj=KdfParams(memory_kib=8, iterations=1, lanes=1))
"""


class Terminal:
    """A real pseudo-terminal with one command in it."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.screen = ""

    def wait_for(self, text: str, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        seen = len(self.screen)
        while text not in self.screen[seen:]:
            assert time.monotonic() < deadline, self.screen
            assert self._read(deadline - time.monotonic()), self.screen

    def type(self, line: str) -> None:
        os.write(self._master, line.encode() + b"\n")

    def finish(self, timeout_s: float = 20) -> int:
        deadline = time.monotonic() + timeout_s
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(timeout_s)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], max(timeout_s, 0))[0]:
            return False
        try:
            data = os.read(self._master, 4096)
        except OSError:  # Linux reports the end of a terminal as an I/O error.
            return False
        self.screen += data.decode()
        return bool(data)


@contextmanager
def terminal(cli: Cli, *arguments: str, stdin: int | None = None) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    environment = os.environ | {"TILEWORK_WALLET_DIR": str(cli.home / "ks"), "TERM": "dumb"}
    environment.pop("TILEWORK_PASSWORD_FILE", None)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=slave if stdin is None else stdin,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_at_a_terminal_the_password_is_asked_twice_and_never_shown(cli: Cli) -> None:
    with terminal(cli, "new", "alice") as screen:
        screen.wait_for("New password:")
        screen.type(PASSWORD)
        screen.wait_for("New password, once more:")
        screen.type(PASSWORD)
        assert screen.finish() == 0
    assert PASSWORD not in screen.screen
    words = [part for part in screen.screen.split("only backup:")[1].split() if part.isalpha()]
    assert account_key(" ".join(words)).private_key == cli.keystore.unlock("alice", PASSWORD).private_key


def test_a_password_that_is_too_short_is_refused_before_it_is_asked_for_again(cli: Cli) -> None:
    with terminal(cli, "new", "alice") as screen:
        screen.wait_for("New password:")
        screen.type("short")
        assert screen.finish() == 3
    assert "(password-too-short)" in screen.screen
    assert "once more" not in screen.screen


def test_passwords_that_differ_store_nothing(cli: Cli) -> None:
    with terminal(cli, "new", "alice") as screen:
        screen.wait_for("New password:")
        screen.type(PASSWORD)
        screen.wait_for("once more:")
        screen.type(PASSWORD + "s")
        assert screen.finish() == 2
    assert "(password-differs)" in screen.screen
    assert cli.keystore.names() == []


def test_with_input_from_elsewhere_nothing_is_asked_even_at_a_terminal(cli: Cli) -> None:
    cli.import_alice()
    with open(os.devnull, "rb") as nothing, terminal(cli, "sign", "alice", "x", stdin=nothing.fileno()) as screen:
        assert screen.finish() == 2
    assert "(no-terminal)" in screen.screen
    assert "--password-file" in screen.screen


def test_control_c_at_the_prompt_changes_nothing(cli: Cli) -> None:
    with terminal(cli, "new", "alice") as screen:
        screen.wait_for("New password:")
        screen.process.send_signal(signal.SIGINT)
        assert screen.finish() == 130
    assert "(interrupted)" in screen.screen
    assert cli.keystore.names() == []


def test_export_shows_the_key_at_a_terminal(cli: Cli) -> None:
    cli.import_alice()
    with terminal(cli, "export", "alice") as screen:
        screen.wait_for("Password of alice:")
        screen.type(PASSWORD)
        assert screen.finish() == 0
    assert account_key(WORDS).private_key.hex() in screen.screen
