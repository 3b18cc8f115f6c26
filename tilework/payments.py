"""The commands of `tilework wallet` that talk to a node: balance, send, pay, watch, resend, bump, cancel.

What they do is in `wallet.client.payments`, imported when one of them runs: help needs no network library.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consensus.address import split_address
from tilework.options import (
    account_option,
    choose_account,
    confirm,
    dry_run_option,
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
    from wallet.client.payments import Payment, Settled
    from wallet.client.purse import Sent

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
tip_option = click.option(
    "--tip",
    type=click.IntRange(0),
    metavar="GRAINS",
    help="What to offer miners, in grains per gas [default: what it takes now].",
)
nonce_option = click.option(
    "--nonce",
    type=click.IntRange(0),
    metavar="N",
    help="Instead of the account's next: takes the place of what waits under it. "
    "`tilework wallet bump` and `cancel` are easier.",
)


class Payer:
    """Pays: asks, unlocks, sends, waits, and says what came of it."""

    def __init__(
        self,
        url: str,
        keystore: Keystore,
        password_file: Path | None,
        dry_run: bool,
        yes: bool,
        confirmations: int,
        timeout_seconds: float | None,
    ) -> None:
        self._url = url
        self._keystore = keystore
        self._password_file = password_file
        self._dry_run = dry_run
        self._yes = yes
        self._confirmations = confirmations
        self._timeout_seconds = timeout_seconds

    def pay(
        self,
        account_name: str | None,
        request: PaymentRequest,
        max_fee: int | None,
        tip: int | None,
        nonce: int | None,
    ) -> None:
        """Fulfil a request."""
        from wallet.client import payments
        from wallet.client.purse import Wish

        account = choose_account(self._keystore, account_name)
        payment = asyncio.run(
            payments.prepare_payment(self._url, self._keystore.journal, account, request, max_fee, Wish(tip, nonce))
        )
        assert request.amount_grains is not None
        plan: dict[str, object] = {
            "from": account.address_text,
            "to": payment.network.address_text(request.address),
            "amount_grains": request.amount_grains,
            "amount": format_tile(request.amount_grains),
            "memo": request.memo,
        }
        lines = [f"pay {plan['amount']} TILE", f"  from  {plan['from']}", f"  to    {plan['to']}"]
        if request.memo:
            lines.append(f"  memo  {request.memo}")
        for one in payment.same:
            ago = max(0, int(time.time() - one.signed.made_ms / 1000))
            lines.append(f"  NOTE  {ago} s ago as much was paid to it, which is {one.state}: {one.txid}")
        if payment.same:
            plan["same"] = [one.txid for one in payment.same]
        self._carry_out(account, payment, plan, "\n".join(lines))

    def replace(self, txid: str, max_fee: int | None, tip: int | None, *, cancel: bool) -> None:
        """Send what takes the place of a transaction that waits."""
        from wallet.client import payments

        call = payments.prepare_replacement(self._url, self._keystore.journal, txid, max_fee, tip, cancel=cancel)
        payment, before = asyncio.run(call)
        account = self._keystore.owner(before.transaction.body.address)
        plan: dict[str, object] = {"replaces": txid, "tip": payment.body.tip, "what": payment.note.what}
        doing = "never pay" if cancel else "offer higher fees for"
        self._carry_out(account, payment, plan, f"{doing} {txid}\n  which  {payment.note.what}")

    def _carry_out(self, account: Account, payment: Payment, plan: dict[str, object], text: str) -> None:
        from wallet.client import payments

        plan |= {
            "max_fee_grains": payment.max_fee_grains,
            "max_fee": format_tile(payment.max_fee_grains),
            "nonce": payment.body.nonce,
            "txid": payment.txid.hex(),
        }
        text += f"\n  fee   at most {plan['max_fee']} TILE"
        if self._dry_run:
            emit(plan | {"status": "not sent"}, f"would {text}")
            return
        notice(text)
        confirm("Send it?", self._yes)
        key = unlock(self._keystore, account, self._password_file)
        signed = ""

        def note(sent: Sent) -> None:
            nonlocal signed
            signed = sent.txid.hex()
            notice(f"transaction {signed}")
            plan.update(txid=signed, nonce=sent.transaction.body.nonce)

        call = payments.deliver(
            self._url,
            self._keystore.journal,
            payment,
            key,
            self._confirmations,
            self._timeout_seconds,
            notice,
            note,
        )
        try:
            settled = asyncio.run(call)
        except KeyboardInterrupt:
            if not signed:
                raise
            raise _interrupted(signed) from None
        emit(plan | {name: getattr(settled, name) for name in settled.__struct_fields__}, _outcome(settled))


def _interrupted(txid: str) -> CliError:
    message = f"interrupted; transaction {txid} may have been sent"
    fix = f"do not pay again. This asks, and sends the same one if need be: tilework wallet resend {txid}"
    return CliError("interrupted", message, fix, ExitCode.INTERRUPTED, [txid])


def _outcome(settled: Settled) -> str:
    if settled.height is None:
        return f"sent: {settled.txid}"
    return f"confirmed in block {settled.height}, {settled.confirmations} times: {settled.txid}"


def payer_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command has which pays; passes `payer: Payer`."""

    @functools.wraps(command)
    def with_payer(
        *,
        url: str,
        keystore: Keystore,
        password_file: Path | None,
        dry_run: bool,
        yes: bool,
        confirmations: int,
        timeout_seconds: float | None,
        **others: Any,
    ) -> None:
        command(Payer(url, keystore, password_file, dry_run, yes, confirmations, timeout_seconds), **others)

    options = (dry_run_option, yes_option, wait_option, timeout_option, rpc_option, password_option, keystore_option)
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), with_payer)


def _txid(_context: click.Context, _argument: click.Parameter, text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        fix = "copy all 64 digits; `tilework wallet history` shows them"
        raise CliError("txid-invalid", f"{text[:80]!r} is not the id of a transaction", fix, ExitCode.USAGE)
    return text


txid_argument = click.argument("txid", callback=_txid)


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

    prefix, text = whose(address, account_name, keystore)
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
@tip_option
@nonce_option
@account_option
@payer_options
def send(
    payer: Payer,
    to: str,
    amount: str,
    memo: str,
    max_fee: str | None,
    tip: int | None,
    nonce: int | None,
    account_name: str | None,
) -> None:
    """Pay AMOUNT TILE to the address TO.

    Several of these may run at once: they take turns. Whatever happens, the transaction's id is in the account's
    history, and `resend` with it can only pay once.

    \b
    tilework wallet send tdev1… 1.5 --memo "rent" --wait 2
    """
    prefix, address = split_address(to)
    request = PaymentRequest(address, prefix, parse_tile(amount), memo)
    payer.pay(account_name, request, max_fee_grains(max_fee), tip, nonce)


@click.command(cls=Command)
@click.argument("uri")
@click.option("--amount", help="How many TILE, where the request leaves it open.")
@fee_option
@tip_option
@nonce_option
@account_option
@payer_options
def pay(
    payer: Payer,
    uri: str,
    amount: str | None,
    max_fee: str | None,
    tip: int | None,
    nonce: int | None,
    account_name: str | None,
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
    payer.pay(account_name, request, max_fee_grains(max_fee), tip, nonce)


@click.command(cls=Command)
@txid_argument
@wait_option
@timeout_option
@rpc_option
@keystore_option
def resend(txid: str, confirmations: int, timeout_seconds: float | None, url: str, keystore: Keystore) -> None:
    """Find out whether transaction TXID has arrived, and if not send the very same once more.

    It can only be paid once, however often it is sent. No password is needed: it was signed before.
    """
    from wallet.client import payments

    call = payments.resend(url, keystore.journal, txid, confirmations, timeout_seconds, notice)
    try:
        settled = asyncio.run(call)
    except KeyboardInterrupt:
        raise _interrupted(txid) from None
    emit(settled, _outcome(settled))


@click.command(cls=Command)
@txid_argument
@fee_option
@tip_option
@payer_options
def bump(
    payer: Payer,
    txid: str,
    max_fee: str | None,
    tip: int | None,
) -> None:
    """Offer higher fees for transaction TXID, which waits for a block.

    The same payment is signed once more under the same nonce, so that only one of the two can be paid. It has an id of
    its own; a job's id changes with it.
    """
    payer.replace(txid, max_fee_grains(max_fee), tip, cancel=False)


@click.command(cls=Command)
@txid_argument
@fee_option
@tip_option
@payer_options
def cancel(
    payer: Payer,
    txid: str,
    max_fee: str | None,
    tip: int | None,
) -> None:
    """Make sure that transaction TXID, which waits for a block, is never paid.

    Its nonce is used up by a transaction that pays nobody, at higher fees: whichever of the two comes into a block
    first, the other can never be paid. Give --wait 1 to hear which it was. (`tilework job cancel` withdraws an open
    job.)
    """
    payer.replace(txid, max_fee_grains(max_fee), tip, cancel=True)


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


COMMANDS = (balance, send, pay, watch, resend, bump, cancel)


# ---------------------------------------------------------------------- inside


def whose(address: str | None, account_name: str | None, keystore: Keystore) -> tuple[str, str]:
    """Prefix and text of the address that was given, or else of the account."""
    if address is not None:
        prefix, _ = split_address(address)
        return prefix, address.lower()
    account = choose_account(keystore, account_name)
    return account.prefix, account.address_text
