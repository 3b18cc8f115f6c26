"""The commands of `tilework wallet` that talk to a node: balance, send, history, pay, watch.

What they do is in `wallet.client.payments`, imported when one of them runs: help needs no network library.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consensus.address import split_address
from tilework.options import (
    account_option,
    choose_account,
    confirm,
    fee_option,
    keystore_option,
    max_fee_grains,
    password_option,
    rpc_option,
    unlock,
    yes_option,
)
from tilework.output import CliError, Command, emit, notice
from wallet.accounts.amounts import format_tile, parse_tile
from wallet.accounts.keystore import Account, Keystore
from wallet.accounts.payment import PaymentRequest
from wallet.errors import ExitCode

if TYPE_CHECKING:
    from api.chain import MovementView
    from wallet.client.payments import Payment

_WHY = {
    "sent": "sent",
    "received": "received",
    "packet": "pay for a packet",
    "escrow": "escrow of a job",
    "refund": "escrow returned",
    "block": "mined a block",
}

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be sent and what it may cost; stop there."
)
wait_option = click.option(
    "--wait",
    "confirmations",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Wait until N blocks confirm it, its own counted.",
)
timeout_option = click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up waiting after that (status 6).",
)


@click.command(cls=Command)
@click.argument("address", required=False)
@click.option(
    "--verify",
    is_flag=True,
    help="Check the balance's proof against the next block's header, and that header's winning ticket. "
    "Whether it is on the heaviest chain is still the node's word.",
)
@rpc_option
@account_option
@keystore_option
def balance(address: str | None, verify: bool, url: str, account_name: str | None, keystore: Keystore) -> None:
    """Show what the account, or any ADDRESS, holds.

    Mined rewards count once they have matured; money in a job's escrow counts once it returns.
    """
    from wallet.client import payments

    prefix, text = _whose(address, account_name, keystore)
    account = asyncio.run(payments.balance(url, prefix, text, verify, notice))
    lines = [f"{account.balance} TILE", f"{account.address} at height {account.height}"]
    if account.pending_transactions:
        lines.append(f"{account.pending_transactions} of its transactions wait for a block")
    if account.proved_by is not None:
        lines.append(f"proved by block {account.proved_by}")
    emit(account, "\n".join(lines))


@click.command(cls=Command)
@click.argument("to")
@click.argument("amount")
@click.option("--memo", default="", help="Up to 256 bytes that go on the chain with it, for everybody to read.")
@fee_option
@dry_run_option
@yes_option
@wait_option
@timeout_option
@rpc_option
@account_option
@password_option
@keystore_option
def send(
    to: str,
    amount: str,
    memo: str,
    max_fee: str | None,
    dry_run: bool,
    yes: bool,
    confirmations: int,
    timeout_seconds: float | None,
    url: str,
    account_name: str | None,
    password_file: Path | None,
    keystore: Keystore,
) -> None:
    """Pay AMOUNT TILE to the address TO.

    \b
    tilework wallet send tdev1… 1.5 --memo "rent" --wait 2
    """
    prefix, address = split_address(to)
    request = PaymentRequest(address, prefix, parse_tile(amount), memo)
    payer = _Payer(url, choose_account(keystore, account_name), keystore, password_file)
    payer.pay(request, max_fee_grains(max_fee), dry_run, yes, confirmations, timeout_seconds)


@click.command(cls=Command)
@click.argument("uri")
@click.option("--amount", help="How many TILE, where the request leaves it open.")
@fee_option
@dry_run_option
@yes_option
@wait_option
@timeout_option
@rpc_option
@account_option
@password_option
@keystore_option
def pay(
    uri: str,
    amount: str | None,
    max_fee: str | None,
    dry_run: bool,
    yes: bool,
    confirmations: int,
    timeout_seconds: float | None,
    url: str,
    account_name: str | None,
    password_file: Path | None,
    keystore: Keystore,
) -> None:
    """Pay what a payment request asks for: a URI from `tilework wallet request`."""
    request = PaymentRequest.parse(uri)
    if (request.amount_grains is None) == (amount is None):
        fix = "say how much with --amount TILE" if amount is None else "leave out --amount, or use `wallet send`"
        says = (
            "leaves the amount open" if amount is None else f"asks for {format_tile(request.amount_grains or 0)} TILE"
        )
        raise CliError("usage", f"the request {says}", fix, ExitCode.USAGE)
    if amount is not None:
        request = PaymentRequest(request.address, request.prefix, parse_tile(amount), request.memo)
    payer = _Payer(url, choose_account(keystore, account_name), keystore, password_file)
    payer.pay(request, max_fee_grains(max_fee), dry_run, yes, confirmations, timeout_seconds)


@click.command(cls=Command)
@click.argument("uri")
@click.option(
    "--wait", "confirmations", type=click.IntRange(1), default=1, show_default=True, help="Blocks that must confirm it."
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds after which to give up (status 6).",
)
@click.option(
    "--since", type=click.IntRange(0), metavar="HEIGHT", help="Count payments above this height [default: now]."
)
@rpc_option
def watch(uri: str, confirmations: int, timeout_seconds: float, since: int | None, url: str) -> None:
    """Wait until the payment request URI is fulfilled.

    A payment counts if it brings exactly the amount with exactly the memo to the address, after this command was
    started: give each request a memo of its own, and start watching before you show it.
    """
    from wallet.client import payments

    request = PaymentRequest.parse(uri)
    payment = asyncio.run(payments.watch(url, request, since, confirmations, timeout_seconds, notice))
    text = f"paid: {payment.amount} TILE from {payment.sender}, {payment.confirmations} confirmations ({payment.txid})"
    emit(payment, text)


@click.command(cls=Command)
@click.argument("address", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most entries.")
@click.option("--before", type=click.IntRange(0), metavar="HEIGHT", help="Only entries below this height.")
@rpc_option
@account_option
@keystore_option
def history(
    address: str | None, limit: int, before: int | None, url: str, account_name: str | None, keystore: Keystore
) -> None:
    """Show what came to and left the account, or any ADDRESS, newest first."""
    from wallet.client import payments

    prefix, text = _whose(address, account_name, keystore)
    movements = asyncio.run(payments.history(url, prefix, text, limit, before))
    lines = [_line(movement) for movement in movements]
    emit({"address": text, "movements": movements}, "\n".join(lines) or "nothing yet")


COMMANDS = (balance, send, history, pay, watch)


class _Payer:
    """Pays from one account: asks, unlocks, sends, waits, and says what came of it."""

    def __init__(self, url: str, account: Account, keystore: Keystore, password_file: Path | None) -> None:
        self._url = url
        self._account = account
        self._keystore = keystore
        self._password_file = password_file

    def pay(
        self,
        request: PaymentRequest,
        max_fee: int | None,
        dry_run: bool,
        yes: bool,
        confirmations: int,
        timeout_seconds: float | None,
    ) -> None:
        from wallet.client import payments

        payment = asyncio.run(payments.prepare_payment(self._url, self._account, request, max_fee))
        plan = self._plan(request, payment)
        text = _described(plan)
        if dry_run:
            emit(plan | {"status": "not sent"}, f"would pay {text}")
            return
        notice(f"paying {text}")
        confirm("Send it?", yes)
        key = unlock(self._keystore, self._account, self._password_file)
        try:
            settled = asyncio.run(payments.deliver(self._url, payment, key, confirmations, timeout_seconds, notice))
        except KeyboardInterrupt:
            message = f"interrupted; transaction {payment.txid.hex()} may have been sent"
            fix = "see `tilework wallet history` before you pay again"
            raise CliError("interrupted", message, fix, ExitCode.INTERRUPTED) from None
        result = plan | {name: getattr(settled, name) for name in settled.__struct_fields__}
        if settled.height is None:
            emit(result, f"sent: {settled.txid}")
        else:
            emit(result, f"confirmed in block {settled.height}, {settled.confirmations} times: {settled.txid}")

    def _plan(self, request: PaymentRequest, payment: Payment) -> dict[str, object]:
        assert request.amount_grains is not None
        return {
            "from": self._account.address_text,
            "to": payment.network.address_text(request.address),
            "amount_grains": request.amount_grains,
            "amount": format_tile(request.amount_grains),
            "memo": request.memo,
            "max_fee_grains": payment.max_fee_grains,
            "max_fee": format_tile(payment.max_fee_grains),
            "nonce": payment.body.nonce,
            "txid": payment.txid.hex(),
        }


def _described(plan: dict[str, object]) -> str:
    lines = [f"{plan['amount']} TILE", f"  from  {plan['from']}", f"  to    {plan['to']}"]
    if plan["memo"]:
        lines.append(f"  memo  {plan['memo']}")
    return "\n".join([*lines, f"  fee   at most {plan['max_fee']} TILE"])


def _whose(address: str | None, account_name: str | None, keystore: Keystore) -> tuple[str, str]:
    """Prefix and text of the address that was given, or else of the account."""
    if address is not None:
        prefix, _ = split_address(address)
        return prefix, address.lower()
    account = choose_account(keystore, account_name)
    return account.prefix, account.address_text


def _line(movement: MovementView) -> str:
    sign = "-" if movement.amount < 0 else "+"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(movement.time_ms / 1000))
    amount = f"{sign}{format_tile(abs(movement.amount))}"
    why = _WHY.get(movement.kind, movement.kind)
    return f"{movement.height:>8}  {when}  {amount:>20} TILE  {why}  {movement.reference}"
