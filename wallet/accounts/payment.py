"""Payment requests: `tilework:<address>?amount=<TILE>&memo=<text>`, as text and as a QR code.

The form is that of BIP-21, read strictly: a field that is unknown, repeated or ill-formed is refused, since a payer
who ignores part of a request may pay the wrong thing.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

import segno

from consensus.address import AddressError, encode_address, split_address
from consensus.codec import MAX_AMOUNT
from consensus.params import MAX_MEMO_BYTES
from wallet.accounts.amounts import format_tile, parse_tile
from wallet.errors import ExitCode, WalletError

SCHEME = "tilework"
MAX_URI_CHARACTERS = 1024

_ENCODED = re.compile(r"(?:[A-Za-z0-9\-._~!$'()*+,;:@/?]|%[0-9A-Fa-f]{2})*", re.ASCII)
_FIX = "`tilework wallet request --help` shows what a request may hold; ask the payee for a fresh one"

# 256 bytes of memo take three characters each at worst, beside 100 for everything else.
assert 3 * MAX_MEMO_BYTES + 100 <= MAX_URI_CHARACTERS


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """Who wants to be paid, on which network (by address prefix), how many grains (None: the payer decides), and
    for what. Raises `WalletError` (payment-invalid) for a memo or amount that no transfer could carry."""

    address: bytes
    prefix: str
    amount_grains: int | None = None
    memo: str = ""

    def __post_init__(self) -> None:
        if self.amount_grains is not None and not 0 < self.amount_grains <= MAX_AMOUNT:
            raise _invalid("the amount of a request must be more than 0")
        try:
            size = len(self.memo.encode())
        except UnicodeEncodeError as error:
            raise _invalid("the memo is not valid text") from error
        if size > MAX_MEMO_BYTES:
            raise _invalid(f"the memo takes {size} bytes, at most {MAX_MEMO_BYTES} are allowed")
        # Control and direction characters could make a terminal show the payer something else.
        if not self.memo.isprintable():
            raise _invalid("the memo contains characters that cannot be shown")

    @property
    def uri(self) -> str:
        """The request as text; `parse` reads it back."""
        fields = []
        if self.amount_grains is not None:
            fields.append(f"amount={format_tile(self.amount_grains)}")
        if self.memo:
            fields.append(f"memo={quote(self.memo, safe='')}")
        query = "?" + "&".join(fields) if fields else ""
        return f"{SCHEME}:{encode_address(self.address, self.prefix)}{query}"

    @classmethod
    def parse(cls, uri: str) -> PaymentRequest:
        """The request that `uri` makes. Raises `WalletError`: payment-invalid, amount-invalid."""
        if len(uri) > MAX_URI_CHARACTERS:
            raise _invalid(f"it is longer than {MAX_URI_CHARACTERS} characters")
        scheme, colon, rest = uri.partition(":")
        if not colon or scheme.lower() != SCHEME:
            raise _invalid(f"it does not begin with {SCHEME}:")
        text, question, query = rest.partition("?")
        try:
            prefix, address = split_address(text)
        except AddressError as error:
            raise _invalid(str(error)) from error
        fields = _fields(query) if question else {}
        amount = fields.pop("amount", None)
        memo = fields.pop("memo", "")
        if fields:
            raise _invalid(f"it asks for {next(iter(fields))!r}, which this wallet does not know")
        return cls(address, prefix, None if amount is None else parse_tile(amount), memo)

    def qr_code(self) -> str:
        """The URI as a QR code (ISO/IEC 18004, level M) of block characters.

        About 45 columns wide for a short memo, 125 for the longest.
        """
        canvas = io.StringIO()
        segno.make(self.uri, error="m", boost_error=False, micro=False).terminal(out=canvas, border=2, compact=True)
        return canvas.getvalue()


def _fields(query: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for field in query.split("&"):
        name, equals, value = field.partition("=")
        if not equals or not re.fullmatch(r"[a-z]{1,16}", name, re.ASCII):
            raise _invalid("a field must have the form name=value")
        if name in fields:
            raise _invalid(f"{name!r} stands there twice")
        if not _ENCODED.fullmatch(value):
            raise _invalid(f"{name!r} is not percent-encoded")
        try:
            fields[name] = unquote_to_bytes(value).decode()
        except UnicodeDecodeError as error:
            raise _invalid(f"{name!r} is not UTF-8 text") from error
    return fields


def _invalid(detail: str) -> WalletError:
    return WalletError("payment-invalid", f"not a valid payment request: {detail}", _FIX, ExitCode.USAGE)
