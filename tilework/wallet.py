"""`tilework wallet`: the group, and the commands that need no node.

Those that do (balance, send, history, pay, watch) are in `tilework.payments`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from consensus.address import split_address
from tilework import history, payments
from tilework.options import account_option, choose_account, keystore_option, network_option, password_option
from tilework.output import CliError, Group, emit, notice
from wallet.accounts.amounts import format_tile, parse_tile
from wallet.accounts.files import write_secret
from wallet.accounts.keys import (
    MAX_INDEX,
    PRIVATE_KEY_BYTES,
    SigningKey,
    account_key,
    account_path,
    clean_mnemonic,
    new_mnemonic,
    verify_message,
)
from wallet.accounts.keystore import Account, KdfParams, Keystore
from wallet.accounts.password import prompt_secret, read_password
from wallet.accounts.payment import PaymentRequest
from wallet.errors import ExitCode, WalletError
from worker.files import text_of

MAX_MESSAGE_BYTES = 16 << 20
MAX_SECRET_BYTES = 4096


@click.group(cls=Group)
def wallet() -> None:
    """Accounts, payments and signatures.

    Each account is one encrypted file on this machine. Its words are its only backup: write them down when
    `new` shows them.

    \b
    tilework wallet new alice             make an account, show its words once
    tilework wallet list                  the accounts here, with their addresses
    tilework wallet balance               what the account holds
    tilework wallet send ADDRESS 1.5      pay
    tilework wallet request 1.5           ask for a payment, as URI and QR code
    """


for _command in (*payments.COMMANDS, history.history):
    wallet.add_command(_command)


@wallet.command()
@click.argument("name")
@click.option(
    "--words", type=click.Choice(["12", "24"]), default="24", show_default=True, help="Length of the mnemonic."
)
@click.option(
    "--words-file",
    type=click.Path(path_type=Path),
    help="Write the words to this new file (mode 0600) instead of showing them.",
)
@network_option
@password_option
@keystore_option
@click.pass_context
def new(
    context: click.Context,
    name: str,
    words: str,
    words_file: Path | None,
    network: str,
    password_file: Path | None,
    keystore: Keystore,
) -> None:
    """Make an account called NAME, with fresh words.

    The words appear once, on the terminal or in --words-file, and nowhere else. Whoever has them has the money.
    """
    keystore.check_free(name, network)
    _check_secret_destination(words_file, "--words-file")
    password = read_password("New password", password_file, new=True)
    mnemonic = new_mnemonic(int(words))
    key = account_key(mnemonic)
    if words_file is not None:
        write_secret(words_file, mnemonic.encode() + b"\n")
    try:
        account = keystore.create(name, key, password, network, account_path(0), context.find_object(KdfParams))
    except BaseException:
        # Words without an account would only be taken for another account's.
        if words_file is not None:
            words_file.unlink()
        raise
    result = _public(account)
    if words_file is None:
        result["mnemonic"] = mnemonic
        backup = f"Write these words down, in order. They are the only backup:\n\n{_numbered(mnemonic)}"
    else:
        backup = f"The words are in {words_file}: move them off this machine, they are the only backup."
    emit(result, f"{_described(account)}\n\n{backup}")


@wallet.command("import", short_help="Store an account from its words or its key.")
@click.argument("name")
@click.option(
    "--from-file",
    "source",
    type=click.File("rb"),
    help="File with the words (numbered or not), with a private key in hexadecimal, or a worker's key file; "
    '"-" reads standard input. Without it, a prompt.',
)
@click.option(
    "--index",
    type=click.IntRange(0, MAX_INDEX),
    default=0,
    show_default=True,
    help="Which account of the words.",
)
@network_option
@password_option
@keystore_option
@click.pass_context
def import_(
    context: click.Context,
    name: str,
    source: BinaryIO | None,
    index: int,
    network: str,
    password_file: Path | None,
    keystore: Keystore,
) -> None:
    """Store an account called NAME from its words, from an exported key, or from a worker's key file.

    With the last, what a worker has earned is spent like any other money:

    \b
    tilework wallet import earnings --from-file ~/.tilework/mainnet/worker.key
    """
    keystore.check_free(name, network)
    if source is None:
        secret = prompt_secret("Words or private key", instead="give them in a file: --from-file PATH")
    else:
        secret = _secret_text(_read_bounded(source, MAX_SECRET_BYTES, "the secret"))
    key, path = _key_from(secret, index)
    password = read_password("New password", password_file, new=True)
    account = keystore.create(name, key, password, network, path, context.find_object(KdfParams))
    emit(_public(account), _described(account))


@wallet.command("list")
@keystore_option
def list_(keystore: Keystore) -> None:
    """Show the accounts of this machine."""
    accounts: list[Account] = []
    problems: list[WalletError] = []
    for name in keystore.names():
        try:
            accounts.append(keystore.account(name))
        except WalletError as problem:
            # One bad file must not hide the other accounts.
            problems.append(problem)
            notice(f"warning: {problem.message} ({problem.code})\n    fix: {problem.fix}")
    width = max((len(account.name) for account in accounts), default=0)
    lines = [f"{account.name:<{width}}  {account.address_text}" for account in accounts]
    emit(
        {
            "directory": str(keystore.directory),
            "accounts": [_public(account) for account in accounts],
            "problems": [{"code": p.code, "message": p.message, "fix": p.fix} for p in problems],
        },
        "\n".join(lines) or f"no accounts in {keystore.directory}; make one: tilework wallet new NAME",
    )


@wallet.command()
@click.argument("name")
@keystore_option
def show(name: str, keystore: Keystore) -> None:
    """Show the public side of account NAME; no password is needed."""
    account = keystore.account(name)
    emit(_public(account), _described(account))


@wallet.command()
@click.argument("name")
@click.argument("message", required=False)
@click.option("--file", "source", type=click.File("rb"), help='Sign this file\'s bytes instead; "-" is standard input.')
@password_option
@keystore_option
def sign(
    name: str, message: str | None, source: BinaryIO | None, password_file: Path | None, keystore: Keystore
) -> None:
    """Sign MESSAGE with the key of account NAME.

    The signature proves that the owner of the address wrote the message. It can never serve as a transaction:
    messages are hashed under a tag of their own.
    """
    account = keystore.account(name)
    content = _message(message, source)
    key = keystore.unlock(name, read_password(f"Password of {name}", password_file))
    signature = key.sign_message(content).hex()
    emit({"address": account.address_text, "signature": signature}, signature)


@wallet.command()
@click.argument("address")
@click.argument("signature")
@click.argument("message", required=False)
@click.option(
    "--file", "source", type=click.File("rb"), help='Check against this file\'s bytes; "-" is standard input.'
)
def verify(address: str, signature: str, message: str | None, source: BinaryIO | None) -> None:
    """Check that the owner of ADDRESS made SIGNATURE for MESSAGE. Exits with 3 if not."""
    _, owner = split_address(address)
    content = _message(message, source)
    try:
        signed = bytes.fromhex(signature)
    except ValueError as error:
        fix = "copy all 192 digits that `tilework wallet sign` printed"
        raise CliError("signature-invalid", "the signature is not hexadecimal", fix) from error
    if not verify_message(owner, content, signed):
        fix = "compare the address, and the message to the byte; a newline at its end counts"
        raise CliError("signature-invalid", f"{address} did not sign this message", fix)
    emit({"valid": True, "address": address}, f"valid: {address} signed this message")


@wallet.command()
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the key to this new file (mode 0600) instead of showing it."
)
@password_option
@keystore_option
def export(name: str, out: Path | None, password_file: Path | None, keystore: Keystore) -> None:
    """Reveal the private key of account NAME.

    Whoever has it has the money. For a backup, copying the account's encrypted file (see `show`) is safer.
    """
    account = keystore.account(name)
    _check_secret_destination(out, "--out")
    key = keystore.unlock(name, read_password(f"Password of {name}", password_file))
    private_key = key.private_key.hex()
    if out is None:
        emit(_public(account) | {"private_key": private_key}, private_key)
    else:
        write_secret(out, private_key.encode() + b"\n")
        emit(_public(account) | {"out": str(out)}, f"the private key of {name} is in {out}")


@wallet.command()
@click.argument("amount")
@click.option("--memo", default="", help="What the payment is for; the payer sees it, and it goes on the chain.")
@click.option("--qr/--no-qr", default=True, help="Whether to draw the QR code.")
@account_option
@keystore_option
def request(amount: str, memo: str, qr: bool, account_name: str | None, keystore: Keystore) -> None:
    """Ask for AMOUNT TILE: a URI to send, and a QR code to scan.

    \b
    tilework wallet request 1.5 --memo "two coffees"
    """
    grains = parse_tile(amount)
    account = choose_account(keystore, account_name)
    asked = PaymentRequest(account.address, account.prefix, grains, memo)
    drawing = f"\n\n{asked.qr_code().rstrip()}" if qr else ""
    emit(
        {
            "uri": asked.uri,
            "address": account.address_text,
            "amount_grains": grains,
            "amount": format_tile(grains),
            "memo": memo,
        },
        asked.uri + drawing,
    )


def _public(account: Account) -> dict[str, str]:
    return {
        "name": account.name,
        "address": account.address_text,
        "public_key": account.public_key.hex(),
        "path": account.path,
        "file": str(account.file),
    }


def _described(account: Account) -> str:
    fields = {label.replace("_", " "): value for label, value in _public(account).items() if value}
    return "\n".join(f"{label:<12}{value}" for label, value in fields.items())


def _numbered(mnemonic: str) -> str:
    """The words in rows of four, each with its position."""
    words = [f"{position:>2} {word:<10}" for position, word in enumerate(mnemonic.split(), start=1)]
    return "\n".join("".join(words[row : row + 4]).rstrip() for row in range(0, len(words), 4))


def _check_secret_destination(file: Path | None, option: str) -> None:
    """A secret goes to a terminal or to a new private file, never into a pipe, where it would end in some log."""
    if file is None and not sys.stdout.isatty():
        message = "a secret is shown on a terminal only, and standard output is none"
        raise CliError("no-terminal", message, f"give {option} PATH: a new file that only you can read", ExitCode.USAGE)
    if file is not None and file.exists():
        raise CliError("file-exists", f"{file} exists already", "choose another name, or move it away")


def _key_from(secret: str, index: int) -> tuple[SigningKey, str]:
    """The key, and its path, from words, from 64 hexadecimal digits, or from the content of a worker's key file."""
    text = secret.strip()
    is_hexadecimal = len(text) == 2 * PRIVATE_KEY_BYTES and set(text) <= set("0123456789abcdefABCDEF")
    if not is_hexadecimal and not text.startswith("{"):
        return account_key(clean_mnemonic(text), index), account_path(index)
    if index:
        message = "--index chooses among the accounts of words, not of a key"
        raise CliError("usage", message, "leave it out", ExitCode.USAGE)
    if is_hexadecimal:
        return SigningKey(bytes.fromhex(text)), ""
    from worker.key import WorkerKey, WorkerKeyMalformed  # with numpy

    try:
        return SigningKey(WorkerKey.parse(text.encode(), "this file").account_secret), ""
    except WorkerKeyMalformed as error:
        raise CliError("worker-key", error.message, error.fix, ExitCode.USAGE) from None


def _secret_text(content: bytes) -> str:
    try:
        return text_of(content)
    except UnicodeDecodeError:
        message = "the file holds no text"
        raise CliError("mnemonic-invalid", message, "check that it is the right file", ExitCode.USAGE) from None


def _message(argument: str | None, source: BinaryIO | None) -> bytes:
    if (argument is None) == (source is None):
        fix = "quote it as one word, or name a file"
        raise CliError("usage", "give either MESSAGE or --file", fix, ExitCode.USAGE)
    if source is not None:
        return _read_bounded(source, MAX_MESSAGE_BYTES, "the message")
    assert argument is not None
    # Bytes of the command line that are no UTF-8 arrive as surrogates; this gives back the very bytes.
    return argument.encode("utf-8", errors="surrogateescape")


def _read_bounded(source: BinaryIO, limit: int, what: str) -> bytes:
    content = source.read(limit + 1)
    if len(content) > limit:
        raise CliError(
            "too-large", f"{what} is larger than {limit} bytes", "check that it is the right file", ExitCode.USAGE
        )
    return content
