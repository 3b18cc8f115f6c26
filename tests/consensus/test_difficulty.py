"""ASERT against the published aserti3-2d vectors, its properties, and the median clock."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.difficulty import block_work, median_time, next_target

VECTORS = Path(__file__).parent.parent / "vectors" / "asert"
SPACING_S = 600
HALFLIFE_S = 172_800
BCH_MAX_TARGET = 0xFFFF << 8 * 26
MAX_TARGET = 2**254 - 1

targets = st.integers(1, MAX_TARGET)
deltas = st.integers(-(10**9), 10**9)


def from_compact(bits: int) -> int:
    """Bitcoin's nBits: one byte of size, three of mantissa."""
    size, mantissa = bits >> 24, bits & 0x7FFFFF
    return mantissa >> 8 * (3 - size) if size <= 3 else mantissa << 8 * (size - 3)


def to_compact(target: int) -> int:
    size = (target.bit_length() + 7) // 8
    mantissa = target << 8 * (3 - size) if size <= 3 else target >> 8 * (size - 3)
    if mantissa & 0x800000:  # the top bit is a sign there
        mantissa >>= 8
        size += 1
    return size << 24 | mantissa


def read_run(path: Path) -> tuple[dict[str, int], list[tuple[int, int, int]]]:
    """A vector file's numeric header fields, and its lines (height, time in seconds, nBits)."""
    header: dict[str, int] = {}
    rows = []
    for line in path.read_text().splitlines():
        if line.startswith("##"):
            name, _, value = line.strip("# ").partition(":")
            if name != "description":
                header[name] = int(value, 0)
        elif line and not line.startswith("#"):
            _, height, time, bits = (int(word, 0) for word in line.split())
            rows.append((height, time, bits))
    return header, rows


def chain_target(anchor: int, time_delta: int, height_delta: int = 0) -> int:
    return next_target(anchor, time_delta, height_delta, SPACING_S, HALFLIFE_S, MAX_TARGET)


@pytest.mark.parametrize("run", [f"run{i:02}" for i in range(1, 7)])
def test_published_vectors(run: str) -> None:
    header, rows = read_run(VECTORS / run)
    assert len(rows) == header["iterations"]
    assert rows[0][:2] == (header["start height"], header["start time"])
    for height, time_s, bits in rows:
        target = next_target(
            from_compact(header["anchor nBits"]),
            time_s - header["anchor ancestor time"],
            height - header["anchor height"],
            SPACING_S,
            HALFLIFE_S,
            BCH_MAX_TARGET,
        )
        assert to_compact(target) == bits, f"height {height}"


def test_division_truncates_toward_zero() -> None:
    """One second ahead of schedule: −65536/172800 is 0, where flooring would give −1 and a lower target."""
    assert chain_target(2**200, SPACING_S - 1) == 2**200


def test_seconds_and_milliseconds_agree() -> None:
    for lead in (-1_000_000, -777, 0, 1, 123_456):
        in_ms = next_target(2**200, (SPACING_S + lead) * 1000, 0, SPACING_S * 1000, HALFLIFE_S * 1000, MAX_TARGET)
        assert in_ms == chain_target(2**200, SPACING_S + lead)


@settings(deadline=None)
@given(targets, deltas, st.integers(0, 10**6), st.integers(0, 10**6))
def test_later_is_never_harder(anchor: int, time_delta: int, height_delta: int, later: int) -> None:
    now = chain_target(anchor, time_delta, height_delta)
    assert chain_target(anchor, time_delta + later, height_delta) >= now
    assert chain_target(anchor, time_delta, height_delta + 1) <= now


@settings(deadline=None)
@given(st.integers(2**100, 2**150), st.integers(0, 40))
def test_doubles_and_halves_per_halflife(anchor: int, halflives: int) -> None:
    assert chain_target(anchor, SPACING_S + halflives * HALFLIFE_S) == anchor << halflives
    assert chain_target(anchor, SPACING_S - halflives * HALFLIFE_S) == anchor >> halflives


@settings(deadline=None)
@given(st.integers(-(10**7), 10**7))
def test_close_to_the_exact_exponential(lead_s: int) -> None:
    anchor = 2**140
    exact = anchor * 2.0 ** (lead_s / HALFLIFE_S)
    assert abs(Fraction(chain_target(anchor, SPACING_S + lead_s)) / Fraction(exact) - 1) < Fraction(2, 10_000)


@settings(deadline=None)
@given(targets, st.integers(), st.integers(), st.integers(1, 2**64), st.integers(1, 2**64), targets)
def test_always_between_one_and_the_maximum(
    anchor: int, time_delta: int, height_delta: int, spacing: int, halflife: int, max_target: int
) -> None:
    assert 1 <= next_target(anchor, time_delta, height_delta, spacing, halflife, max_target) <= max_target


@pytest.mark.parametrize("anchor", [1, 2**100, MAX_TARGET, 2**256 - 1])
@pytest.mark.parametrize("magnitude", [2**63, 10**30, 2**5000])
def test_extreme_clocks_and_heights_clamp(anchor: int, magnitude: int) -> None:
    assert next_target(anchor, magnitude, 0, 1, 1, MAX_TARGET) == MAX_TARGET
    assert next_target(anchor, -magnitude, 0, 1, 1, MAX_TARGET) == 1
    assert next_target(anchor, 0, magnitude, 1, 1, MAX_TARGET) == 1
    assert next_target(anchor, 0, -magnitude, 1, 1, MAX_TARGET) == MAX_TARGET


@pytest.mark.parametrize("anchor", [1, 3, 2**255, 2**256 - 1])
def test_bounding_the_shift_changes_no_target(anchor: int) -> None:
    widest = 2**256 - 1
    for halflives in range(-260, 261):
        unbounded = anchor << halflives if halflives >= 0 else anchor >> -halflives
        assert next_target(anchor, 1 + halflives, 0, 1, 1, widest) == max(1, min(unbounded, widest))


def test_work_of_known_targets() -> None:
    assert block_work(2**256 - 1) == 1
    assert block_work(2**254 - 1) == 4
    assert block_work(0) == 2**256
    assert block_work(BCH_MAX_TARGET) == 0x100010001  # Bitcoin's genesis block


@settings(deadline=None)
@given(targets, targets)
def test_a_lower_target_is_at_least_as_much_work(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert block_work(low) >= block_work(high)


def test_median_of_one_to_many() -> None:
    assert median_time([5]) == 5
    assert median_time([5, 9]) == 9
    assert median_time([9, 1, 5]) == 5
    assert median_time([4, 3, 2, 1]) == 3
    assert median_time(range(1, 12)) == 6
    # Only the last eleven count, whatever came before.
    assert median_time([10**15] * 50 + list(range(1, 12))) == 6


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=30))
def test_the_median_splits_the_latest_times(times: list[int]) -> None:
    median = median_time(times)
    latest = times[-11:]
    assert median in latest
    assert sum(t <= median for t in latest) > len(latest) // 2
    assert sum(t >= median for t in latest) >= len(latest) - len(latest) // 2
