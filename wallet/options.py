"""Options that the wallet's commands share, and how they find the account meant."""

from __future__ import annotations

from pathlib import Path

import click

from consensus.address import NETWORK_PREFIXES
from wallet.errors import ExitCode
from wallet.keystore import Account, Keystore
from wallet.output import CliError
from wallet.password import PASSWORD_FILE_VARIABLE

DIRECTORY_VARIABLE = "TILEWORK_WALLET_DIR"
NETWORK_VARIABLE = "TILEWORK_NETWORK"

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
"""Passes `password_file: Path | None`, for `wallet.password.read_password`."""

account_option = click.option(
    "--account",
    "account_name",
    metavar="NAME",
    help="Which account; needed only where the directory holds several.",
)
"""Passes `account_name: str | None`, for `choose_account`."""


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
