"""Amounts are exact, and anything that is not plainly an amount is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.codec import MAX_AMOUNT
from wallet.accounts.amounts import format_tile, parse_tile
from wallet.errors import ExitCode, WalletError


@pytest.mark.parametrize(
    ("text", "grains"),
    [
        ("0", 0),
        ("1", 1_000_000_000),
        ("1.5", 1_500_000_000),
        ("0.000000001", 1),
        ("0.1", 100_000_000),
        ("007.50", 7_500_000_000),
        ("9223372036.854775807", 2**63 - 1),
    ],
)
def test_decimal_amounts_are_read_exactly(text: str, grains: int) -> None:
    assert parse_tile(text) == grains


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1\n",
        "-1",
        "+1",
        "1.",
        ".5",
        "1.0000000001",
        "1e3",
        "1E3",
        "nan",
        "NaN",
        "inf",
        "0x10",
        "1_000",
        "1,5",
        "1.5.0",
        "١٢",
        "²",
        "9223372036.854775808",
        "99999999999",
        "1" * 10_000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(WalletError) as caught:
        parse_tile(text)
    assert caught.value.code == "amount-invalid"
    assert caught.value.exit_code == ExitCode.USAGE
    assert len(caught.value.message) < 200


@given(st.integers(0, MAX_AMOUNT))
def test_every_amount_round_trips(grains: int) -> None:
    assert parse_tile(format_tile(grains)) == grains


@pytest.mark.parametrize(("grains", "text"), [(0, "0"), (1, "0.000000001"), (10**10, "10"), (1_500_000_000, "1.5")])
def test_amounts_are_shown_as_short_as_possible(grains: int, text: str) -> None:
    assert format_tile(grains) == text
