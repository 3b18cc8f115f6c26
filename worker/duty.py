"""How much of its time a miner spends on idle units, unless it is told."""

from __future__ import annotations

_USUAL = {"mainnet": 1.0, "regtest": 1.0, "devnet": 0.001}


def usual_duty(network: str) -> float:
    """The share, 0 … 1. A devnet's target is made for a thousandth of a core: one at full duty would win so many
    blocks, until the target follows, that nodes do little but import them."""
    return _USUAL.get(network, 1.0)
