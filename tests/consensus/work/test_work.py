"""The work function: every implementation against the definition, the lottery, threads, interruption, bad input."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import work
from consensus.crypto import H
from consensus.shape import Shape
from consensus.work import engine, portable, reference
from consensus.work.features import has_kernels
from consensus.work.noise import left_noise, right_noise
from consensus.work.unit import Int8, UInt32, UnitError

SEED = bytes(range(32))
IMPLEMENTATIONS: list[engine.Implementation] = [portable]
if has_kernels():
    from consensus.work import fast

    IMPLEMENTATIONS.append(fast)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda m: m.__name__)

SHAPES = [(64, 64, 64), (128, 64, 192), (64, 512, 128), (192, 1024, 64), (64, 4096, 64), (256, 128, 320)]


def random_operands(m: int, k: int, n: int, random_seed: int = 0) -> tuple[Int8, Int8]:
    generator = np.random.default_rng(random_seed)
    return (
        generator.integers(-63, 64, (m, k), dtype=np.int8),
        generator.integers(-63, 64, (k, n), dtype=np.int8),
    )


def full(m: int, n: int, value: int) -> Int8:
    return np.full((m, n), value, np.int8)


def one_hot(m: int, n: int, row: int, column: int, value: int) -> Int8:
    matrix = np.zeros((m, n), np.int8)
    matrix[row, column] = value
    return matrix


def true_product(a: Int8, b: Int8) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return a.astype(np.int32) @ b.astype(np.int32)


# The definition


def test_noise_is_a_signed_permutation_of_full_rank_in_every_chunk() -> None:
    zeros = np.zeros((64, 256), np.int8)
    left, right = work.noised(SEED, zeros, zeros.T)
    assert np.abs(left.astype(int)).max() <= 64
    assert np.abs(right.astype(int)).max() <= 64
    for noise in (left, right.T):
        chunks = np.split(noise.astype(np.float64), 4, axis=1)
        assert all(np.linalg.matrix_rank(chunk) == 64 for chunk in chunks)
        columns = [sorted(map(tuple, np.abs(chunk).T)) for chunk in chunks]
        assert all(chunk == columns[0] for chunk in columns)
        assert any(not np.array_equal(chunks[0], chunk) for chunk in chunks[1:])


def test_every_row_of_a_and_column_of_b_has_noise_of_its_own_whatever_the_rest() -> None:
    a, b = random_operands(192, 128, 192)
    a2, b2 = work.noised(SEED, a, b)
    smaller, _ = work.noised(SEED, a[:64], b)
    assert np.array_equal(smaller, a2[:64])
    other, _ = work.noised(SEED, a, b[:, :64])
    assert np.array_equal(other, a2)
    assert not np.array_equal(work.noised(H("tw/work", b""), a, b)[1], b2)


def test_the_transcript_hears_carries() -> None:
    # A sum over the tile would be blind to this: +1 and −1 in one lane.
    sums = np.zeros((64, 64), np.int32)
    state = np.zeros((1, 1, 16), np.uint32)
    sums[0, 0], sums[1, 16] = 1, -1
    assert reference.advanced(state, sums)[0, 0].tolist() == [1 ^ 0xFFFFFFFF] + [0] * 15


# Implementations


@each_implementation
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_operands(implementation: engine.Implementation, shape: tuple[int, int, int]) -> None:
    a, b = random_operands(*shape)
    assert_equals_reference(implementation, a, b)


@each_implementation
@pytest.mark.parametrize("value", [-63, 63])
@pytest.mark.parametrize("other", [-63, 63])
def test_extreme_operands(implementation: engine.Implementation, value: int, other: int) -> None:
    assert_equals_reference(implementation, full(64, 4096, value), full(4096, 64, other))


@each_implementation
def test_one_hot_operands(implementation: engine.Implementation) -> None:
    for row, column in ((0, 0), (63, 255), (70, 17)):
        assert_equals_reference(implementation, one_hot(128, 256, row, column, 63), full(256, 64, -63))
        assert_equals_reference(implementation, full(64, 256, 63), one_hot(256, 128, column, row, -63))


@each_implementation
def test_one_operand_is_zero(implementation: engine.Implementation) -> None:
    a, b = random_operands(128, 192, 64)
    assert_equals_reference(implementation, np.zeros_like(a), b)
    assert_equals_reference(implementation, a, np.zeros_like(b))


@each_implementation
@pytest.mark.parametrize("shape", [*SHAPES, (256, 2048, 256)], ids=str)
def test_idle_units(implementation: engine.Implementation, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    product, states = reference.transcript(*reference.noised(SEED, full(m, k, 0), full(k, n, 0)))
    idle = implementation.evaluate_idle(SEED, Shape(m, k, n), 1, None)
    assert idle is not None
    assert idle.states is not None
    assert np.array_equal(idle.product, product)
    assert np.array_equal(idle.states, states)


@each_implementation
@settings(max_examples=15, deadline=None)
@given(
    seed=st.binary(min_size=32, max_size=32),
    sides=st.tuples(*[st.sampled_from([64, 128, 192])] * 3),
    random_seed=st.integers(0, 2**32),
)
def test_any_seed_and_shape(
    implementation: engine.Implementation, seed: bytes, sides: tuple[int, int, int], random_seed: int
) -> None:
    assert_equals_reference(implementation, *random_operands(*sides, random_seed), seed)


def assert_equals_reference(implementation: engine.Implementation, a: Int8, b: Int8, seed: bytes = SEED) -> None:
    expected = reference.evaluate(seed, a, b)
    assert expected.states is not None
    for mine, theirs in zip(implementation.noised(seed, a, b), reference.noised(seed, a, b), strict=True):
        assert np.array_equal(mine, theirs)
    for threads in (1, 2):
        evaluation = implementation.evaluate(seed, a, b, threads, None)
        assert evaluation.states is not None
        assert evaluation.product.dtype == np.int32
        assert np.array_equal(evaluation.product, expected.product)
        assert np.array_equal(evaluation.states, expected.states)
        assert np.array_equal(implementation.multiply(a, b, threads), expected.product)


# The narrow kernel's only tight spot: four products of 127 and 64 in one word of 16 bits


@pytest.mark.skipif(not has_kernels(), reason="for the kernels alone")
@pytest.mark.parametrize("left", [-64, 63])
@pytest.mark.parametrize("right", [-64, 63])
def test_idle_kernel_does_not_overflow_on_the_largest_noise(
    left: int, right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "left_noise", lambda _seed, m: full(m, 64, left))
    monkeypatch.setattr(fast, "right_noise", lambda _seed, n: full(64, n, right))
    a2, b2 = fast.noised(SEED, full(64, 128, 0), full(128, 64, 0))
    idle = fast.evaluate_idle(SEED, Shape(64, 128, 64), 1, None)
    assert idle is not None
    assert np.array_equal(idle.product, true_product(a2, b2))


# The entry points


def test_zero_operands_take_the_idle_path_and_have_a_zero_product() -> None:
    a, b = full(128, 192, 0), full(192, 64, 0)
    evaluation, idle = work.evaluate(SEED, a, b), work.evaluate_idle(SEED, Shape(128, 192, 64))
    assert idle is not None
    assert idle.states is not None
    assert evaluation.states is not None
    assert not evaluation.product.any()
    assert np.array_equal(evaluation.states, idle.states)


def test_the_noise_alone_multiplies_to_the_idle_product() -> None:
    a2, b2 = work.noised(SEED, np.zeros((64, 192), np.int8), np.zeros((192, 128), np.int8))
    idle = work.evaluate_idle(SEED, Shape(64, 192, 128))
    assert idle is not None
    assert np.array_equal(idle.product, true_product(a2, b2))


def test_one_tile_alone() -> None:
    a, b = random_operands(192, 256, 128)
    states = work.evaluate(SEED, a, b).states
    assert states is not None
    for i in range(3):
        for j in range(2):
            assert np.array_equal(work.tile_state(SEED, a, b, i, j), states[i, j])
            rows, columns = a[64 * i : 64 * i + 64].copy(), b[:, 64 * j : 64 * j + 64].copy()
            assert np.array_equal(work.strip_state(SEED, rows, columns, 192, 128, i, j), states[i, j])


def test_one_tile_alone_without_kernels() -> None:
    a, b = random_operands(64, 192, 64)
    state = portable.strip_state(SEED, a, b, left_noise(SEED, 64), right_noise(SEED, 64))
    assert np.array_equal(state, work.tile_state(SEED, a, b, 0, 0))


def test_any_memory_layout_gives_the_same() -> None:
    a, b = random_operands(128, 192, 64)
    expected = work.evaluate(SEED, a, b)
    read_only = a.copy()
    read_only.flags.writeable = False
    wide = np.zeros((128, 400), np.int8)
    wide[:, 3:195] = a
    for same in (read_only, np.asfortranarray(a), wide[:, 3:195], a[::-1].copy()[::-1]):
        evaluation = work.evaluate(SEED, same, np.asfortranarray(b))
        assert evaluation.states is not None
        assert expected.states is not None
        assert np.array_equal(evaluation.states, expected.states)
        assert np.array_equal(evaluation.product, expected.product)
        assert np.array_equal(work.tile_state(SEED, same, b, 1, 0), expected.states[1, 0])


def test_operands_are_left_as_they_were() -> None:
    a, b = random_operands(64, 64, 64)
    before = a.copy(), b.copy()
    work.evaluate(SEED, a, b)
    work.noised(SEED, a, b)
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])


@pytest.mark.parametrize("threads", [1, 2, 3, 100])
def test_threads_change_nothing(threads: int) -> None:
    a, b = random_operands(320, 128, 192)
    one, many = work.evaluate(SEED, a, b), work.evaluate(SEED, a, b, threads=threads)
    assert one.states is not None
    assert many.states is not None
    assert np.array_equal(one.states, many.states)
    assert np.array_equal(one.product, many.product)


# Interruption


def after(calls: int) -> Callable[[], bool]:
    """False so many times, then true for ever."""
    count = 0

    def interrupted() -> bool:
        nonlocal count
        count += 1
        return count > calls

    return interrupted


@pytest.fixture
def short_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A band is a batch, as with operands a hundred times as large."""
    if has_kernels():
        monkeypatch.setattr(fast, "_BATCH_MACS", 1)


@each_implementation
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.usefixtures("short_batches")
def test_an_interrupted_packet_has_its_product_and_no_states(
    implementation: engine.Implementation, threads: int, calls: int
) -> None:
    a, b = random_operands(320, 128, 192)
    evaluation = implementation.evaluate(SEED, a, b, threads, after(calls))
    assert evaluation.states is None
    assert np.array_equal(evaluation.product, true_product(a, b))


@each_implementation
@pytest.mark.usefixtures("short_batches")
def test_an_interrupted_idle_unit_is_dropped(implementation: engine.Implementation) -> None:
    assert implementation.evaluate_idle(SEED, Shape(320, 64, 64), 1, after(2)) is None
    assert implementation.evaluate_idle(SEED, Shape(320, 64, 64), 1, after(100)) is not None


def test_an_interrupted_packet_of_zeros_still_has_its_product() -> None:
    a, b = random_operands(128, 64, 64)
    for left, right in ((a * 0, b * 0), (a * 0, b), (a, b * 0)):
        evaluation = work.evaluate(SEED, left, right, interrupted=lambda: True)
        assert evaluation.states is None
        assert not evaluation.product.any()


@pytest.mark.skipif(not has_kernels(), reason="the portable implementation has no batches")
def test_batches_of_whatever_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_operands(448, 128, 320)
    once, idle = fast.evaluate(SEED, a, b, 1, None), fast.evaluate_idle(SEED, Shape(448, 128, 320), 1, None)
    for entries, macs in itertools.product((1, 3 * 64 * 128), (1, 2 * 64 * 128 * 320, 5 * 64 * 128 * 320)):
        monkeypatch.setattr(fast, "_BATCH_ENTRIES", entries)
        monkeypatch.setattr(fast, "_BATCH_MACS", macs)
        for threads in (1, 2):
            again = fast.evaluate(SEED, a, b, threads, None)
            assert np.array_equal(again.product, once.product)
            assert np.array_equal(again.states, once.states)
            idly = fast.evaluate_idle(SEED, Shape(448, 128, 320), threads, None)
            assert idle is not None
            assert idly is not None
            assert np.array_equal(idly.states, idle.states)
            assert np.array_equal(fast.multiply(a, b, threads), once.product)


# The lottery


def test_ticket_is_the_tagged_hash_of_seed_place_and_state() -> None:
    state = np.arange(16, dtype=np.uint32)
    words = b"".join(word.to_bytes(4, "little") for word in (3, 5, *range(16)))
    assert work.ticket(SEED, 3, 5, state) == H("tw/ticket", SEED + words)


@pytest.mark.parametrize("k", [64, 1024, 4096])
def test_a_ticket_wins_strictly_below_the_limit(k: int) -> None:
    for target in (1, 1024, 12345678901234567890, 2**254 - 1):
        limit = -(-target * k // 1024)  # the least integer x with x·1024 ≥ target·k
        assert not work.wins(limit.to_bytes(32, "big"), target, k)
        assert limit == 0 or work.wins((limit - 1).to_bytes(32, "big"), target, k)
    assert not work.wins(bytes(32), 0, k)
    assert not work.wins(b"\xff" * 32, 2**254 - 1, k)


def test_winning_tiles_are_those_whose_tickets_win() -> None:
    a, b = random_operands(256, 64, 256)
    states = work.evaluate(SEED, a, b).states
    assert states is not None
    target = 2**254 - 1
    found = list(work.winning_tiles(SEED, states, target, 4096))
    assert len(found) == 16  # at the largest target and k all but one ticket in 2²⁵⁴ win
    some = [tile for tile in found if work.wins(tile[2], target // 2, 1024)]
    assert some == list(work.winning_tiles(SEED, states, target // 2, 1024))
    for i, j, ticket in found:
        assert ticket == work.ticket(SEED, i, j, states[i, j])
    assert list(work.winning_tiles(SEED, states, 0, 64)) == []


def test_tickets_are_uniform_and_win_in_proportion_to_k() -> None:
    states: UInt32 = np.random.default_rng(0).integers(0, 2**32, (64, 64, 16), dtype=np.uint32)
    wins_at = {k: len(list(work.winning_tiles(SEED, states, 2**251, k))) / states[..., 0].size for k in (1024, 4096)}
    # A binomial share of 4096 with p = 1/32 and 1/8: five standard deviations.
    for k, share in wins_at.items():
        chance = k / 1024 / 32
        assert abs(share - chance) < 5 * (chance * (1 - chance) / 4096) ** 0.5


# Bad input


def good() -> tuple[Int8, Int8]:
    return random_operands(64, 64, 64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a[:63], "a: a dimension = 63"),
        (lambda a: a[:, :32], "dimension = 32"),
        (lambda a: np.zeros((0, 64), np.int8), "dimension = 0"),
        (lambda a: np.zeros((64, 4160), np.int8), "dimension = 4160"),
        (lambda a: np.zeros((64, 128), np.int8), "inner dimensions differ"),
        (lambda a: a.astype(np.int16), "2-D int8"),
        (lambda a: a.astype(np.float64) * np.nan, "2-D int8"),
        (lambda a: a.view(np.uint8), "2-D int8"),
        (lambda a: a[0], "2-D int8"),
        (lambda a: a.tolist(), "2-D int8 array, got list"),
        (lambda a: None, "2-D int8 array, got NoneType"),
        (lambda a: one_hot(64, 64, 63, 63, 64), r"\[−63, 63\], got \[0, 64\]"),
        (lambda a: one_hot(64, 64, 0, 0, -64), r"\[−63, 63\], got \[-64, 0\]"),
        (lambda a: one_hot(64, 64, 9, 9, -128), r"\[−63, 63\], got \[-128, 0\]"),
    ],
)
def test_bad_operands_are_refused(spoil: Callable[[Int8], Int8], message: str) -> None:
    a, b = good()
    for call in (work.noised, work.evaluate):
        with pytest.raises(UnitError, match=message):
            call(SEED, spoil(a), b)
    with pytest.raises(UnitError, match=message):
        work.multiply(spoil(a), b)
    with pytest.raises(UnitError):
        work.strip_state(SEED, spoil(a), b, 64, 64, 0, 0)
    with pytest.raises(UnitError):
        work.tile_state(SEED, spoil(a), b, 0, 0)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), "0" * 32, None, bytearray(32)])
def test_a_bad_seed_is_refused(seed: bytes) -> None:
    a, b = good()
    for call in (
        lambda: work.noised(seed, a, b),
        lambda: work.evaluate(seed, a, b),
        lambda: work.evaluate_idle(seed, Shape(64, 64, 64)),
        lambda: work.tile_state(seed, a, b, 0, 0),
        lambda: work.ticket(seed, 0, 0, np.zeros(16, np.uint32)),
        lambda: list(work.winning_tiles(seed, np.zeros((1, 1, 16), np.uint32), 1, 64)),
    ):
        with pytest.raises(UnitError, match="seed: expected 32 bytes"):
            call()


@pytest.mark.parametrize("tile", [(-1, 0), (0, -1), (1, 0), (0, 2), (64, 0)])
def test_a_tile_outside_the_product_is_refused(tile: tuple[int, int]) -> None:
    a, b = random_operands(64, 64, 128)
    with pytest.raises(UnitError, match="no such tile"):
        work.tile_state(SEED, a, b, *tile)
    with pytest.raises(UnitError, match="no such tile"):
        work.strip_state(SEED, a, b[:, :64], 64, 128, *tile)


def test_a_strip_of_another_size_is_refused() -> None:
    a, b = random_operands(128, 64, 64)
    with pytest.raises(UnitError, match="strips"):
        work.strip_state(SEED, a, b, 128, 64, 0, 0)


def test_other_bad_arguments_are_refused() -> None:
    a, b = good()
    state = np.zeros(16, np.uint32)
    for call in (
        lambda: work.evaluate(SEED, a, b, threads=0),
        lambda: work.multiply(a, b, threads=-1),
        lambda: work.evaluate_idle(SEED, Shape(64, 65, 64)),
        lambda: work.evaluate_idle(SEED, Shape(64, 64, 8192)),
        lambda: work.ticket(SEED, 64, 0, state),
        lambda: work.ticket(SEED, 0, -1, state),
        lambda: work.ticket(SEED, 0, 0, state[:15]),
        lambda: work.ticket(SEED, 0, 0, state.astype(np.int64)),
        lambda: work.wins(bytes(31), 1, 64),
        lambda: work.wins(bytes(32), -1, 64),
        lambda: work.wins(bytes(32), 2**254, 64),
        lambda: work.wins(bytes(32), 1, 63),
        lambda: list(work.winning_tiles(SEED, state, 1, 64)),
        lambda: list(work.winning_tiles(SEED, np.zeros((1, 1, 8), np.uint32), 1, 64)),
    ):
        with pytest.raises(UnitError):
            call()


# Choosing an implementation


def run_python(code: str, kernel: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TILEWORK_KERNEL": kernel}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_can_forbid_the_kernels_but_not_name_others() -> None:
    code = """
import sys, numpy
from consensus import work
from consensus.proofs import freivalds
work.warm()
ones = numpy.ones((64, 64), numpy.int8)
product = work.evaluate(bytes(32), ones, ones).product
assert freivalds.verify(ones, ones, product)
print(int(product.sum()), "numba" in sys.modules)
"""
    assert run_python(code, "portable").stdout.split() == [str(64**3), "False"]
    refused = run_python(code, "sse2")
    assert refused.returncode != 0
    assert 'TILEWORK_KERNEL=sse2: expected "portable"' in refused.stderr
