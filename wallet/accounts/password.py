"""Where a password comes from: a file, or a person at a terminal. Never the command line, which others can list."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from wallet.errors import ExitCode, WalletError
from worker.files import text_of

PASSWORD_FILE_VARIABLE = "TILEWORK_PASSWORD_FILE"
MIN_NEW_CHARACTERS = 8
MAX_BYTES = 1024

PUBLIC_PASSWORD = "the devnet's keys are public"
"""Of the devnet's wallet, in a file beside it. It protects nothing, since everybody knows the keys."""


def read_password(prompt: str, password_file: Path | None, *, new: bool = False) -> str:
    """The password in `password_file` (its first and only line), or else what the user types.

    `new` wants at least 8 characters, and asks for them twice. Raises `WalletError`: no-terminal, password-file,
    password-too-short, password-differs. The mode of the file is its owner's business: secrets mounted into containers
    are often readable by all inside.
    """
    password = prompt_secret(prompt) if password_file is None else _from_file(password_file)
    if new and len(password) < MIN_NEW_CHARACTERS:
        message = f"the password has {len(password)} characters, a new one needs at least {MIN_NEW_CHARACTERS}"
        raise WalletError("password-too-short", message, "choose a longer one: a few random words will do")
    if new and password_file is None and prompt_secret(f"{prompt}, once more") != password:
        message = "the two passwords differ"
        raise WalletError("password-differs", message, "type the same twice; nothing was stored", ExitCode.USAGE)
    return password


def prompt_secret(prompt: str, *, instead: str | None = None) -> str:
    """What the user types, unseen. Raises `WalletError` (no-terminal) where nobody can: `instead` says what to do."""
    if not sys.stdin.isatty():
        message = f"cannot ask for the {prompt.lower()}: standard input is not a terminal"
        fix = instead or f"give --password-file PATH, or set {PASSWORD_FILE_VARIABLE}=PATH"
        raise WalletError("no-terminal", message, fix, ExitCode.USAGE)
    answer = click.prompt(prompt, hide_input=True, err=True)
    assert isinstance(answer, str)
    return answer


def _from_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _file_error(f"cannot read the password file {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise _file_error(f"the password file {path} is larger than {MAX_BYTES} bytes")
    try:
        text = text_of(content)
    except UnicodeDecodeError as error:
        raise _file_error(f"the password file {path} is not UTF-8 text") from error
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or "\n" in password:
        raise _file_error(f"the password file {path} must hold one line, the password")
    return password


def _file_error(message: str) -> WalletError:
    fix = f"check --password-file or {PASSWORD_FILE_VARIABLE}: one line of UTF-8 text"
    return WalletError("password-file", message, fix, ExitCode.USAGE)
