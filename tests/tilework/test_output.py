"""The contract between commands and whoever runs them: streams, error fields, exit statuses."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from consensus.address import split_address
from consensus.errors import Refusal
from tilework.output import CliError, Group, emit, notice
from wallet.errors import ExitCode, WalletError

ERRORS: dict[str, BaseException] = {
    "wallet": WalletError("wrong-password", "no", "try again"),
    "refusal": Refusal("config", "no such setting", "correct it"),
    "refusal-by-rule": Refusal("odd-code", "not now", "wait"),
    "cli": CliError("job-unknown", "no such job", "list them", ExitCode.NOT_FOUND),
    "click": click.ClickException("cannot open"),
    "bad-value": click.BadParameter("not a number"),
    "interrupt": KeyboardInterrupt(),
    "end-of-input": EOFError(),
    "timeout": TimeoutError(),
    "connection": ConnectionRefusedError(111, "Connection refused"),
    "disk": OSError(28, "No space left on device"),
    "bug": ZeroDivisionError("division by zero"),
}


@click.group(cls=Group)
def root() -> None:
    """A program."""


@root.group()
def inner() -> None:
    """A group below it."""


@inner.command()
def succeed() -> None:
    """Prints."""
    notice("by the way")
    emit({"height": 7}, "height 7")


@inner.command()
@click.argument("how")
def fail(how: str) -> None:
    """Raises."""
    raise ERRORS[how]


@inner.command()
def address() -> None:
    """Reads no address."""
    split_address("nonsense")


@inner.command()
def partly() -> ExitCode:
    """Returns a status."""
    return ExitCode.TIMEOUT


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(root, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_results_are_text_for_people_and_json_for_scripts() -> None:
    assert run("inner", "succeed") == (0, "height 7\n", "by the way\n")
    assert run("inner", "succeed", "--json") == (0, '{"height":7}\n', "")


@pytest.mark.parametrize(
    ("how", "code", "status"),
    [
        ("wallet", "wrong-password", 3),
        ("refusal", "config", 2),
        ("refusal-by-rule", "odd-code", 3),
        ("cli", "job-unknown", 4),
        ("click", "usage", 2),
        ("bad-value", "usage", 2),
        ("interrupt", "interrupted", 130),
        ("end-of-input", "interrupted", 130),
        ("timeout", "timeout", 6),
        ("connection", "network", 5),
        ("disk", "io", 1),
        ("bug", "internal", 1),
    ],
)
def test_every_error_has_a_code_a_fix_and_a_status(how: str, code: str, status: int) -> None:
    exit_code, out, err = run("inner", "fail", how)
    assert (exit_code, out) == (status, "")
    assert f"({code})" in err
    assert "\n  fix: " in err

    exit_code, out, err = run("inner", "fail", how, "--json")
    assert (exit_code, out) == (status, "")
    error = json.loads(err)
    assert set(error) == {"code", "message", "fix"}
    assert error["code"] == code
    assert all(error.values())


def test_a_bad_address_is_a_usage_error_with_its_own_code() -> None:
    status, _, err = run("inner", "address", "--json")
    assert (status, json.loads(err)["code"]) == (2, "address-invalid")


def test_errors_before_the_options_are_parsed_are_json_too() -> None:
    status, _, err = run("inner", "fail", "--json", "--nonsense")
    assert (status, json.loads(err)["code"]) == (2, "usage")
    assert "inner fail --help" in json.loads(err)["fix"]
    status, _, err = run("nonsense", "--json")
    assert (status, json.loads(err)["code"]) == (2, "usage")


def test_an_argument_that_looks_like_the_option_does_not_switch_to_json() -> None:
    status, _, err = run("inner", "fail", "--", "--json", "surplus")
    assert status == 2
    assert err.startswith("error: ")


def test_a_command_may_return_its_status() -> None:
    assert run("inner", "partly")[0] == ExitCode.TIMEOUT


@pytest.mark.parametrize("arguments", [[], ["inner"], ["--help"], ["inner", "fail", "--help"]])
def test_help_is_a_success(arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Usage: ")


def test_a_bug_shows_its_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in run("inner", "fail", "bug")[2]
    monkeypatch.setenv("TILEWORK_DEBUG", "1")
    assert "Traceback" in run("inner", "fail", "bug")[2]


def test_exit_statuses_are_those_that_the_manual_promises() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "INTERNAL": 1,
        "USAGE": 2,
        "REJECTED": 3,
        "NOT_FOUND": 4,
        "NETWORK": 5,
        "TIMEOUT": 6,
        "INTERRUPTED": 130,
    }
