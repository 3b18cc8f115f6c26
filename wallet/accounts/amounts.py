"""Amounts as people write them, exactly: "1.5" TILE is 1,500,000,000 grains. No float is ever involved."""

from __future__ import annotations

import re

from consensus.codec import MAX_AMOUNT
from consensus.params import TILE
from wallet.errors import ExitCode, WalletError

DECIMALS = 9

_AMOUNT = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,9}))?", re.ASCII)
_FIX = "write digits with at most 9 decimals, for example 12 or 0.25"

assert TILE == 10**DECIMALS


def parse_tile(text: str) -> int:
    """Grains in a decimal amount of TILE: digits, and at most 9 more after a point.

    Signs, exponents, separators, NaN and amounts above 2⁶³ − 1 grains raise `WalletError` (amount-invalid).
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise WalletError("amount-invalid", f"{shown!r} is not an amount of TILE", _FIX, ExitCode.USAGE)
    whole, fraction = match.group(1), match.group(2) or ""
    grains = int(whole) * TILE + int(fraction.ljust(DECIMALS, "0"))
    if grains > MAX_AMOUNT:
        message = f"{text} TILE is more than can exist ({format_tile(MAX_AMOUNT)} TILE)"
        raise WalletError("amount-invalid", message, "write a smaller amount", ExitCode.USAGE)
    return grains


def format_tile(grains: int) -> str:
    """The shortest decimal amount of TILE that `parse_tile` reads as `grains` (≥ 0)."""
    assert grains >= 0
    whole, fraction = divmod(grains, TILE)
    return f"{whole}.{fraction:0{DECIMALS}d}".rstrip("0").rstrip(".") if fraction else str(whole)
