"""The evaluation of a unit, as it runs on the bench's thread."""

from __future__ import annotations

from collections.abc import Callable

from consensus import work
from consensus.tensor import Tensor
from consensus.work.unit import Int8, UInt32
from worker.source import Unit, Win


def evaluate_packet(
    unit: Unit, left: Int8, right: Int8, threads: int, interrupted: Callable[[], bool]
) -> tuple[Tensor, Win | None]:
    """The packet's product, and the win if there is one. Interrupted, it looks for no win and still makes the product.

    Raises:
        UnitError: the operands are out of range.
    """
    evaluation = work.evaluate(unit.seed, left, right, threads, interrupted)
    product = Tensor(evaluation.product)
    tile = _first_win(unit, evaluation.states)
    return product, None if tile is None else Win(*tile, product)


def evaluate_idle(unit: Unit, threads: int, interrupted: Callable[[], bool]) -> tuple[bool, Win | None]:
    """Whether the unit was finished, and the win if there is one: nobody needs the product of any other."""
    evaluation = work.evaluate_idle(unit.seed, unit.shape, threads, interrupted)
    if evaluation is None:
        return False, None
    tile = _first_win(unit, evaluation.states)
    return True, None if tile is None else Win(*tile, None)


def _first_win(unit: Unit, states: UInt32 | None) -> tuple[int, int, UInt32] | None:
    if states is None:
        return None
    tile = next(work.winning_tiles(unit.seed, states, unit.core.target_int, unit.shape.k), None)
    return None if tile is None else (tile[0], tile[1], states[tile[0], tile[1]])
