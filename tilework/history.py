"""`tilework wallet history`: what came to and left an account, and what has left this wallet and is in no block yet."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from tilework.options import account_option, keystore_option, rpc_option
from tilework.output import CliError, Command, emit, wants_json
from tilework.payments import whose
from wallet.accounts.amounts import format_tile
from wallet.accounts.keystore import Keystore
from wallet.errors import ExitCode

if TYPE_CHECKING:
    from api.chain import MovementView
    from wallet.client.payments import Since
    from wallet.client.purse import Awaited

HISTORY_ENTRIES = 20

_WHY = {
    "genesis": "given by genesis",
    "sent": "sent to",
    "received": "received from",
    "fee": "fee",
    "packet": "pay for a packet of",
    "escrow": "escrow of a job",
    "refund": "escrow returned",
    "block": "mined a block",
    "bond": "bond as a worker",
    "bond-back": "bond returned",
    "miss": "bond burned: did not answer a packet of",
}
_CSV_COLUMNS = (
    "height",
    "time",
    "kind",
    "amount",
    "fee",
    "bond",
    "counterparty",
    "memo",
    "reference",
    "job",
    "matures_at",
    "ok",
)


@click.command(cls=Command)
@click.argument("address", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help=f"Most entries  [default: {HISTORY_ENTRIES}; all of them with --since]",
)
@click.option("--before", type=click.IntRange(0), metavar="HEIGHT", help="Only entries below this height.")
@click.option(
    "--since",
    metavar="HEIGHT|DATE",
    help="Only entries from this height on, or from this day or time on: 2026-01-31, 2026-01-31T18:00.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print a table for spreadsheets; amounts in TILE, times in UTC.")
@rpc_option
@account_option
@keystore_option
def history(
    address: str | None,
    limit: int | None,
    before: int | None,
    since: str | None,
    as_csv: bool,
    url: str,
    account_name: str | None,
    keystore: Keystore,
) -> None:
    """Show what came to and left the account, or any ADDRESS, newest first.

    First comes what this wallet has signed and no block has taken yet: pending at the node, or unknown to it.
    """
    from wallet.client import payments

    if as_csv and wants_json():
        raise CliError("usage", "give either --csv or --json", "leave one of them out", ExitCode.USAGE)
    begin = _since(since)
    if limit is None and since is None:
        limit = HISTORY_ENTRIES
    prefix, text = whose(address, account_name, keystore)
    found = asyncio.run(payments.history(url, keystore.journal, prefix, text, limit, before, begin))
    if as_csv:
        click.echo(csv_of(found.movements), nl=False)
        return
    waiting = [one for one in found.awaited if one.state not in ("confirmed", "failed")]
    lines = [*map(_waiting_line, waiting), *(_line(movement, found.height) for movement in found.movements)]
    answer = {
        "address": text,
        "height": found.height,
        "waiting": [one.fields() for one in waiting],
        "movements": found.movements,
    }
    emit(answer, "\n".join(lines) or "nothing yet")


# ---------------------------------------------------------------------- inside


def _since(text: str | None) -> Since:
    """Where a history begins, from a height or an ISO 8601 date in local time."""
    from wallet.client.payments import Since

    if text is None:
        return Since()
    if text.isascii() and text.isdigit():
        return Since(height=int(text) - 1)
    try:
        return Since(time_ms=int(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        fix = "write a height, or a date like 2026-01-31 or 2026-01-31T18:00"
        raise CliError("since-invalid", f"{text[:40]!r} is no height and no date", fix, ExitCode.USAGE) from None


def _line(movement: MovementView, height: int) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(movement.time_ms / 1000))
    grains = movement.bond if movement.kind == "miss" else movement.amount
    amount = f"{'-' if grains < 0 else '+'}{format_tile(abs(grains))}"
    words = [_WHY[movement.kind] + (" of a failed transaction" if not movement.ok else "")]
    if movement.counterparty is not None:
        words.append(movement.counterparty)
    elif movement.kind == "sent":
        words.append("several")
    if movement.memo:
        words.append(f"“{_memo(movement)}”")
    if movement.matures_at is not None and movement.matures_at > height:
        words.append(f"(to be spent from height {movement.matures_at} on)")
    return f"{movement.height:>8}  {when}  {amount:>20} TILE  {' '.join(words)}  {movement.reference}"


def _memo(movement: MovementView) -> str:
    """A memo as text, where it is some that can be shown; else in hexadecimal."""
    try:
        text = bytes.fromhex(movement.memo).decode()
    except UnicodeDecodeError:
        return movement.memo
    return text if text.isprintable() else movement.memo


def csv_of(movements: list[MovementView]) -> str:
    """Movements as a table for spreadsheets: amounts in TILE, times in UTC."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(_CSV_COLUMNS)
    for one in movements:
        memo = _memo(one)
        row = {
            "height": one.height,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.time_ms / 1000)),
            "kind": one.kind,
            "amount": _signed_tile(one.amount),
            "fee": format_tile(one.fee),
            "bond": _signed_tile(one.bond),
            "counterparty": one.counterparty or "",
            # A stranger's memo must not be a formula of the spreadsheet that opens this.
            "memo": f"'{memo}" if memo[:1] in ("=", "+", "-", "@") else memo,
            "reference": one.reference,
            "job": one.job or "",
            "matures_at": "" if one.matures_at is None else one.matures_at,
            "ok": str(one.ok).lower(),
        }
        writer.writerow([row[column] for column in _CSV_COLUMNS])
    return table.getvalue()


def _signed_tile(grains: int) -> str:
    return ("-" if grains < 0 else "") + format_tile(abs(grains))


def _waiting_line(one: Awaited) -> str:
    line = f"{one.state:>8}  {one.signed.what}  {one.txid}"
    if one.state == "unknown":
        line += f"\n          the node does not have it; {one.advice}"
    if one.state == "replaced":
        line += "\n          another transaction has its nonce: this one is not paid"
    return line
