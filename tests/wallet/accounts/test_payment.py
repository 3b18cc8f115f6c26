"""Payment requests: exact round trips, and strictness towards what strangers send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.address import encode_address
from consensus.codec import MAX_AMOUNT
from wallet.accounts.payment import MAX_URI_CHARACTERS, PaymentRequest
from wallet.errors import WalletError

ADDRESS = bytes(range(20))
TEXT = encode_address(ADDRESS, "tdev")

memos = st.text(max_size=64).filter(str.isprintable)


def test_a_request_reads_like_a_uri() -> None:
    request = PaymentRequest(ADDRESS, "tdev", 1_500_000_000, "two coffees & a 100% cake")
    assert request.uri == f"tilework:{TEXT}?amount=1.5&memo=two%20coffees%20%26%20a%20100%25%20cake"


@given(
    st.binary(min_size=20, max_size=20),
    st.sampled_from(["tile", "tdev"]),
    st.none() | st.integers(1, MAX_AMOUNT),
    memos,
)
def test_every_request_round_trips(address: bytes, prefix: str, amount: int | None, memo: str) -> None:
    request = PaymentRequest(address, prefix, amount, memo)
    assert PaymentRequest.parse(request.uri) == request


def test_the_longest_request_round_trips() -> None:
    request = PaymentRequest(ADDRESS, "tdev", MAX_AMOUNT, "é" * 128)
    assert len(request.uri) <= MAX_URI_CHARACTERS
    assert PaymentRequest.parse(request.uri) == request
    assert request.qr_code()


@pytest.mark.parametrize(
    ("uri", "amount", "memo"),
    [
        (f"tilework:{TEXT}", None, ""),
        (f"TILEWORK:{TEXT.upper()}?amount=2", 2_000_000_000, ""),
        (f"tilework:{TEXT}?memo=a%2Bb+c&amount=0.1", 100_000_000, "a+b+c"),
        (f"tilework:{TEXT}?memo=%e2%98%95", None, "☕"),
        (f"tilework:{TEXT}?memo=", None, ""),
    ],
)
def test_other_spellings_of_the_same_are_read(uri: str, amount: int | None, memo: str) -> None:
    assert PaymentRequest.parse(uri) == PaymentRequest(ADDRESS, "tdev", amount, memo)


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("", "begin with tilework:"),
        (TEXT, "begin with tilework:"),
        (f"bitcoin:{TEXT}", "begin with tilework:"),
        (f"tilework://{TEXT}", "checksum"),
        ("tilework:", "an address"),
        (f"tilework:{TEXT[:-1]}", "checksum"),
        (f"tilework: {TEXT}", "cannot be part"),
        (f"tilework:{TEXT}?", "name=value"),
        (f"tilework:{TEXT}?amount", "name=value"),
        (f"tilework:{TEXT}?amount=1&", "name=value"),
        (f"tilework:{TEXT}?amount=1&amount=2", "twice"),
        (f"tilework:{TEXT}?memo=a&memo=a", "twice"),
        (f"tilework:{TEXT}?amount=1&fee=1", "'fee', which this wallet does not know"),
        (f"tilework:{TEXT}?Amount=1", "name=value"),
        (f"tilework:{TEXT}?amount=0", "more than 0"),
        (f"tilework:{TEXT}?amount=-1", "not an amount"),
        (f"tilework:{TEXT}?amount=", "not an amount"),
        (f"tilework:{TEXT}?amount=1e9", "not an amount"),
        (f"tilework:{TEXT}?amount=9223372036.854775808", "more than can exist"),
        (f"tilework:{TEXT}?memo=100%", "percent-encoded"),
        (f"tilework:{TEXT}?memo=%zz", "percent-encoded"),
        (f"tilework:{TEXT}?memo=a b", "percent-encoded"),
        (f"tilework:{TEXT}?memo=a#b", "percent-encoded"),
        (f"tilework:{TEXT}?memo=%ff", "UTF-8"),
        (f"tilework:{TEXT}?memo=%1b%5b31m", "cannot be shown"),
        (f"tilework:{TEXT}?memo=a%0ab", "cannot be shown"),
        (f"tilework:{TEXT}?memo=%e2%80%ae", "cannot be shown"),
        (f"tilework:{TEXT}?memo={'a' * 257}", "257 bytes"),
        (f"tilework:{TEXT}?memo={'a' * 2000}", "longer than"),
    ],
)
def test_what_is_not_plainly_a_request_is_refused(uri: str, complaint: str) -> None:
    with pytest.raises(WalletError, match=complaint):
        PaymentRequest.parse(uri)


@given(st.text(max_size=80))
def test_any_query_gives_a_request_or_an_error(query: str) -> None:
    try:
        request = PaymentRequest.parse(f"tilework:{TEXT}?{query}")
    except WalletError:
        return
    assert PaymentRequest.parse(request.uri) == request


@pytest.mark.parametrize("memo", ["é" * 129, "\x07", "\ud800"])
def test_a_request_that_no_transfer_could_carry_is_not_made(memo: str) -> None:
    with pytest.raises(WalletError) as caught:
        PaymentRequest(ADDRESS, "tdev", 1, memo)
    assert caught.value.code == "payment-invalid"


def test_the_qr_code_is_a_square_of_block_characters() -> None:
    rows = PaymentRequest(ADDRESS, "tdev", 1, "").qr_code().splitlines()
    assert len({len(row) for row in rows}) == 1
    assert set("".join(rows)) <= set(" ▀▄█")
    # Two modules per character row, a quiet zone of two modules on each side.
    assert (len(rows[0]) + 1) // 2 == len(rows)
    assert (len(rows[0]) - 4 - 17) % 4 == 0
