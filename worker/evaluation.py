"""The evaluation of a unit, as it runs on the bench's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple

from consensus import work
from consensus.tensor import Tensor
from consensus.work.unit import Int8, UInt32
from worker.source import U, Unit, Win


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


class Idled(NamedTuple, Generic[U]):
    """What came of idle units: how many were finished, the last of them, and its win."""

    finished: int
    unit: U
    win: Win | None


def evaluate_idle(unit: U, threads: int, interrupted: Callable[[], bool], more: Callable[[], bool]) -> Idled[U]:
    """Evaluate the unit, and others like it until one wins, is interrupted, or `more` says that it was the last.

    Nobody needs the product of one that does not win.
    """
    finished = 0
    while True:
        evaluation = work.evaluate_idle(unit.seed, unit.shape, threads, interrupted)
        if evaluation is None:
            return Idled(finished, unit, None)
        finished += 1
        tile = _first_win(unit, evaluation.states)
        if tile is not None:
            return Idled(finished, unit, Win(*tile, None))
        following = unit.another() if more() else None
        if following is None:
            return Idled(finished, unit, None)
        unit = following


def _first_win(unit: Unit, states: UInt32 | None) -> tuple[int, int, UInt32] | None:
    if states is None:
        return None
    tile = next(work.winning_tiles(unit.seed, states, unit.core.target_int, unit.shape.k), None)
    return None if tile is None else (tile[0], tile[1], states[tile[0], tile[1]])
