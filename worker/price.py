"""What a worker asks for its work: a number of grains, or a multiple of what idle mining earns now."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from consensus.codec import MAX_AMOUNT
from consensus.errors import Refusal
from consensus.params import ChainParams
from consensus.rules.issuance import subsidy

PRICE_PATTERN = r"^([0-9]{1,6}(\.[0-9]{1,6})?x|[0-9]{1,18})$"
DEFAULT_MULTIPLE = "1.0x"
"""On mainnet: a packet is then worth what the idle units are that it displaces."""


class PriceError(Refusal):
    """A text that is no asking price."""


def idle_pay(params: ChainParams, height: int, target: int) -> int:
    """Grains that idle mining earns on average per 2⁴⁰ multiply-accumulates at `height` and `target`.

    A tile of 64·64·k of them wins with probability target · k / 2²⁶⁶.
    """
    return (subsidy(params, height) * target) >> 238


@dataclass(frozen=True, slots=True)
class AskingPrice:
    """`amount` is grains per 2⁴⁰ of weight or, if `is_multiple`, a multiple of `idle_pay`."""

    amount: Fraction
    is_multiple: bool

    @classmethod
    def parse(cls, text: str) -> AskingPrice:
        """From "1.5x" or "2000". Raises `PriceError`."""
        if not re.fullmatch(PRICE_PATTERN, text, re.ASCII):
            fix = f"give a multiple of what idle mining earns, like {DEFAULT_MULTIPLE}, or grains per 2⁴⁰ of weight"
            raise PriceError("price", f"{text!r:.40} is no price", fix)
        return cls(Fraction(text.removesuffix("x")), text.endswith("x"))

    def grains(self, params: ChainParams, height: int, target: int) -> int:
        """Grains per 2⁴⁰ of weight to ask now, rounded up."""
        base = idle_pay(params, height, target) if self.is_multiple else 1
        return min(MAX_AMOUNT, -(-self.amount * base // 1))


def has_moved(declared: int, wanted: int) -> bool:
    """Whether the right price is a quarter or more away from the declared one."""
    return wanted != declared and 4 * abs(wanted - declared) >= declared
