"""The work function: a paid matrix product that is also a lottery (docs/protocol.md, section 3)."""

from consensus.work.engine import (
    evaluate,
    evaluate_idle,
    multiply,
    noised,
    strip_state,
    tile_state,
    warm,
)
from consensus.work.tickets import ticket, winning_tiles, wins
from consensus.work.unit import Evaluation, UnitError

__all__ = [
    "Evaluation",
    "UnitError",
    "evaluate",
    "evaluate_idle",
    "multiply",
    "noised",
    "strip_state",
    "ticket",
    "tile_state",
    "warm",
    "winning_tiles",
    "wins",
]
