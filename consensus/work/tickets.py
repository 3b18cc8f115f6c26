"""Lottery tickets: the hash of a tile's transcript, and whether it wins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from consensus import crypto
from consensus.params import MAX_TARGET
from consensus.work.unit import LANES, UInt32, UnitError, check_dimension, check_seed, check_tile_index

_TICKET_SIZE = 32
_STATE_SIZE = 4 * LANES
_K_UNIT = 1024
"""The inner dimension at which a target is taken at face value: a ticket's chance is target/2²⁵⁶ · k/1024."""


def ticket(seed: bytes, i: int, j: int, state: UInt32) -> bytes:
    """The 32-byte ticket of tile (i, j): H("tw/ticket", seed ‖ u32le(i) ‖ u32le(j) ‖ state).

    state: 16 uint32 words. Raises UnitError.
    """
    check_seed(seed)
    check_tile_index(i, j)
    if not isinstance(state, np.ndarray) or state.shape != (LANES,) or state.dtype != np.uint32:
        raise UnitError(f"state: expected {LANES} uint32 words")
    return crypto.ticket(seed, i, j, state.astype("<u4").tobytes())


def wins(ticket: bytes, target: int, k: int) -> bool:
    """Whether a ticket wins: int(ticket)·1024 < target·k. Its chance is proportional to k, and so to its cost.

    ticket: 32 bytes. target: 0 … 2²⁵⁴ − 1. k: the unit's inner dimension. Raises UnitError.
    """
    if len(ticket) != _TICKET_SIZE:
        raise UnitError(f"ticket: expected {_TICKET_SIZE} bytes, got {len(ticket)}")
    return int.from_bytes(ticket, "big") <= _highest_winner(target, k)


def winning_tiles(seed: bytes, states: UInt32, target: int, k: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (i, j, ticket) for every winning tile of a unit in row-major order; `next` finds the first.

    states: (m/64, n/64, 16) uint32, as `evaluate` returns them. Raises UnitError.
    """
    check_seed(seed)
    if not isinstance(states, np.ndarray) or states.ndim != 3 or states.dtype != np.uint32:
        raise UnitError("states: expected a 3-D uint32 array")
    if states.shape[2] != LANES:
        raise UnitError(f"states: expected {LANES} words per tile, got {states.shape[2]}")
    highest = _highest_winner(target, k)
    if highest < 0:
        return
    threshold = highest.to_bytes(_TICKET_SIZE, "big")  # equally long big-endian strings compare as their integers do
    seeded = crypto.ticket_hasher(seed)
    encoded = states.astype("<u4").tobytes()
    rows, columns, _ = states.shape
    offset = 0
    for i in range(rows):
        for j in range(columns):
            hasher = seeded.copy()
            hasher.update(crypto.tile_bytes(i, j, encoded[offset : offset + _STATE_SIZE]))
            offset += _STATE_SIZE
            drawn = hasher.digest()
            if drawn <= threshold:
                yield i, j, drawn


def _highest_winner(target: int, k: int) -> int:
    # x·1024 < target·k  ⇔  x ≤ ⌈target·k / 1024⌉ − 1 = ⌊(target·k − 1) / 1024⌋; −1 where target is 0.
    if not 0 <= target <= MAX_TARGET:
        raise UnitError("target: expected an integer from 0 to 2²⁵⁴ − 1")
    check_dimension("k", k)
    return (target * k - 1) // _K_UNIT
