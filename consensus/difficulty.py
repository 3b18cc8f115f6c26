"""Targets, work and the median clock (docs/protocol.md, section 6).

The target follows aserti3-2d, "absolutely scheduled exponentially rising targets" (Bitcoin Cash, 2020-11-15 upgrade):
it depends on the anchor and on how far the chain is ahead of its schedule, not on the path it took there, so rounding
does not accumulate and no pattern of timestamps gains by oscillation.
"""

from __future__ import annotations

from collections.abc import Sequence

MEDIAN_SPAN = 11
"""How many of the latest blocks vote on the median time."""

_TARGET_BITS = 256


def next_target(
    anchor_target: int, time_delta: int, height_delta: int, spacing: int, halflife: int, max_target: int
) -> int:
    """The target of the block after the one described by the deltas.

    Args:
        anchor_target: the anchor's target, 1 … 2²⁵⁶ − 1.
        time_delta: parent's time minus the time of the *anchor's parent*; any integer.
        height_delta: parent's height minus the anchor's height; any integer.
        spacing, halflife: positive, in the unit of `time_delta` (the chain uses milliseconds).
        max_target: the easiest target allowed, 1 … 2²⁵⁶ − 1.
    Returns:
        An integer in 1 … max_target.
    """
    assert 0 < anchor_target < 1 << _TARGET_BITS
    assert 0 < max_target < 1 << _TARGET_BITS
    assert spacing > 0
    assert halflife > 0
    lead = (time_delta - spacing * (height_delta + 1)) << 16
    # Toward zero, as C divides; // alone would floor, and a chain ahead of its schedule would get other targets.
    exponent = lead // halflife if lead >= 0 else -(-lead // halflife)
    shift, fraction = exponent >> 16, exponent & 0xFFFF
    # 2**(fraction / 65536) in 16.16 fixed point by a cubic, error below 0.013 %.
    factor = 65536 + ((195766423245049 * fraction + 971821376 * fraction**2 + 5127 * fraction**3 + (1 << 47)) >> 48)
    # Beyond ± 256 halvings every 256-bit target is at a clamp already; the bound keeps a hostile clock from shifting
    # by as many bits as it has milliseconds.
    shift = max(-_TARGET_BITS, min(shift, _TARGET_BITS)) - 16
    scaled = anchor_target * factor
    target = scaled << shift if shift >= 0 else scaled >> -shift
    return max(1, min(target, max_target))


def block_work(target: int) -> int:
    """Expected attempts to meet `target` ≥ 0: 2²⁵⁶ // (target + 1). A chain's weight is the sum over its blocks."""
    assert target >= 0
    return (1 << 256) // (target + 1)


def median_time(times: Sequence[int]) -> int:
    """The median of the last min(11, len) of `times` (oldest first, not empty); of an even number, the upper one."""
    assert times
    latest = sorted(times[-MEDIAN_SPAN:])
    return latest[len(latest) // 2]
