"""What fields of answers and parameters are made of."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from consensus.codec import MAX_AMOUNT

HEX_PATTERN = r"^([0-9a-f]{2})*(?!\n)$"
HASH_PATTERN = "^[0-9a-f]{64}$"

Hex: TypeAlias = Annotated[str, Meta(pattern=HEX_PATTERN)]
"""Bytes. (`$` alone would let a line feed pass behind them.)"""
Hash: TypeAlias = Annotated[str, Meta(pattern=HASH_PATTERN, min_length=64, max_length=64)]
"""32 bytes: an id, a root, a target."""
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
"""A height, a number of things, milliseconds, or grains."""
AddressText: TypeAlias = Annotated[str, Meta(max_length=90)]
"""An account's bech32m address."""
