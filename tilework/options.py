"""Options that the wallet's commands share, how they find the account meant, and how they ask before they pay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consensus.address import NETWORK_PREFIXES
from tilework.output import CliError
from wallet.accounts.amounts import parse_tile
from wallet.accounts.keys import SigningKey
from wallet.accounts.keystore import Account, Keystore
from wallet.accounts.password import PASSWORD_FILE_VARIABLE, read_password
from wallet.errors import ExitCode

if TYPE_CHECKING:
    from worker.key import WorkerKey


DIRECTORY_VARIABLE = "TILEWORK_WALLET_DIR"
NETWORK_VARIABLE = "TILEWORK_NETWORK"
RPC_VARIABLE = "TILEWORK_RPC_URL"
DEFAULT_RPC = "http://127.0.0.1:8545"

_DEFAULT_DIRECTORY = "~/.tilework/keystore"


def _open_keystore(_context: click.Context, _option: click.Parameter, directory: Path) -> Keystore:
    return Keystore(directory.expanduser())


keystore_option = click.option(
    "--dir",
    "keystore",
    envvar=DIRECTORY_VARIABLE,
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(_DEFAULT_DIRECTORY),
    show_default=True,
    callback=_open_keystore,
    help=f"Directory of the accounts [env {DIRECTORY_VARIABLE}].",
)
"""Passes `keystore: Keystore`."""

network_option = click.option(
    "--network",
    envvar=NETWORK_VARIABLE,
    type=click.Choice(sorted(NETWORK_PREFIXES)),
    default="devnet",
    show_default=True,
    help=f"Network of the account; decides how its address begins [env {NETWORK_VARIABLE}].",
)
"""Passes `network: str`."""

password_option = click.option(
    "--password-file",
    envvar=PASSWORD_FILE_VARIABLE,
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"File that holds the password, instead of a prompt [env {PASSWORD_FILE_VARIABLE}].",
)
"""Passes `password_file: Path | None`, for `wallet.accounts.password.read_password`."""

account_option = click.option(
    "--account",
    "account_name",
    metavar="NAME",
    help="Which account; needed only where the directory holds several.",
)
"""Passes `account_name: str | None`, for `choose_account`."""

rpc_option = click.option(
    "--rpc",
    "url",
    envvar=RPC_VARIABLE,
    default=DEFAULT_RPC,
    show_default=True,
    help=f"RPC address of the node [env {RPC_VARIABLE}].",
)
"""Passes `url: str`."""

yes_option = click.option("--yes", is_flag=True, help="Do not ask before paying.")
"""Passes `yes: bool`, for `confirm`."""

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be sent and what it may cost; stop there."
)
"""Passes `dry_run: bool`."""

fee_option = click.option(
    "--fee", "max_fee", metavar="TILE", help="The most to pay in fees [default: 1 TILE; usually far less is asked]."
)
"""Passes `max_fee: str | None`, for `max_fee_grains`."""


def max_fee_grains(max_fee: str | None) -> int | None:
    """What --fee says, in grains; None where it was not given. Raises `WalletError` (amount-invalid)."""
    return None if max_fee is None else parse_tile(max_fee)


def confirm(question: str, yes: bool) -> None:
    """Ask before paying, unless `yes`. Raises `CliError`: no-terminal where nobody can answer, declined."""
    if yes:
        return
    if not sys.stdin.isatty():
        message = "cannot ask for confirmation: standard input is not a terminal"
        raise CliError("no-terminal", message, "give --yes to pay without being asked", ExitCode.USAGE)
    if not click.confirm(question, err=True):
        raise CliError("declined", "nothing was sent", "run it again and answer y, or give --yes")


def unlock(keystore: Keystore, account: Account, password_file: Path | None) -> SigningKey:
    """The account's key, for which the password is asked. Raises `WalletError`: wrong-password, no-terminal, …"""
    return keystore.unlock(account.name, read_password(f"Password of {account.name}", password_file))


def choose_account(keystore: Keystore, name: str | None) -> Account:
    """The account called `name`, or else the only one.

    Raises `WalletError`: account-not-found, account-needed, keystore-*.
    """
    if name is not None:
        return keystore.account(name)
    names = keystore.names()
    if not names:
        message = f"there is no account in {keystore.directory}"
        raise CliError("account-not-found", message, "make one: tilework wallet new NAME", ExitCode.NOT_FOUND)
    if len(names) > 1:
        message = f"there are {len(names)} accounts: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
        raise CliError("account-needed", message, "say which with --account NAME", ExitCode.USAGE)
    return keystore.account(names[0])


def load_worker_key(path: Path, malformed: ExitCode = ExitCode.REJECTED) -> WorkerKey:
    """The key in a worker's key file. Raises `CliError` (worker-key), with the status `malformed` where it is none."""
    from worker.key import WorkerKey, WorkerKeyError, WorkerKeyMalformed, WorkerKeyUnreadable  # help needs no numpy

    try:
        return WorkerKey.load(path)
    except WorkerKeyError as error:
        exit_code = ExitCode.REJECTED
        if isinstance(error, WorkerKeyUnreadable):
            exit_code = ExitCode.NOT_FOUND
        elif isinstance(error, WorkerKeyMalformed):
            exit_code = malformed
        raise CliError(error.code, error.message, error.fix, exit_code) from None
