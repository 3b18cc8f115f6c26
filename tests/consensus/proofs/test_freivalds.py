"""Freivalds' check: what must pass, what must not, and what a peer may send instead of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import work
from consensus.proofs import freivalds
from consensus.proofs.freivalds import Challenge, fresh_challenge, verify
from consensus.shape import Shape
from consensus.work.features import has_kernels
from consensus.work.unit import Int8, Int32

HALF = 2**29
Path = Callable[[Int8, Int8, Int32, int, Challenge], bool]
PATHS: list[Path] = [freivalds._verify_plain, *([freivalds._verify_fast] if has_kernels() else [])]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)


def factors(m: int, k: int, n: int, bound: int = 63, random_seed: int = 0) -> tuple[Int8, Int8, Int32]:
    generator = np.random.default_rng(random_seed)
    a = generator.integers(-bound, bound + 1, (m, k), dtype=np.int8)
    b = generator.integers(-bound, bound + 1, (k, n), dtype=np.int8)
    return a, b, product(a, b)


def product(a: Int8, b: Int8) -> Int32:
    return a.astype(np.int32) @ b.astype(np.int32)


def challenge_of(columns: Any) -> Challenge:
    return np.array(columns, np.int64).T.copy()


# True products


@each_path
@pytest.mark.parametrize(
    "shape", [(64, 64, 64), (64, 256, 128), (192, 64, 320), (64, 4096, 64), (64, 64, 4032)], ids=str
)
def test_a_true_product_passes(path: Path, shape: tuple[int, int, int]) -> None:
    a, b, c = factors(*shape)
    assert path(a, b, c, 63, fresh_challenge(shape[2]))


@each_path
@pytest.mark.parametrize("a_value", [-63, 63])
@pytest.mark.parametrize("b_value", [-63, 63])
@pytest.mark.parametrize("r_value", [-HALF, HALF - 1, (1 << 14) - 1, 1 << 14, -(1 << 14) - 1])
def test_extreme_products_pass_under_extreme_challenges(path: Path, a_value: int, b_value: int, r_value: int) -> None:
    a, b = np.full((64, 4096), a_value, np.int8), np.full((4096, 4096), b_value, np.int8)
    c = np.full((64, 4096), a_value * b_value * 4096, np.int32)
    assert path(a, b, c, 63, np.full((4096, 2), r_value, np.int64))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("n", [4032, 4096])
def test_the_bound_of_idle_units_leaves_no_gap_at_the_largest_sides(sign: int, n: int) -> None:
    # With bound·n = 2¹⁸ the limbs of B·R would overflow: that shape takes the plain path.
    a, b = np.full((64, 4096), 64, np.int8), np.full((4096, n), -64 * sign, np.int8)
    c = np.full((64, n), -(64**2) * 4096 * sign, np.int32)
    challenge = np.full((n, 2), -HALF, np.int64)
    assert verify(a, b, c, bound=64, challenge=challenge)
    c[3, 7] += sign
    assert not verify(a, b, c, bound=64, challenge=challenge)


def test_an_idle_product_passes_with_its_own_bound_alone() -> None:
    seed = bytes(32)
    a, b = work.noised(seed, np.zeros((256, 2048), np.int8), np.zeros((2048, 256), np.int8))
    idle = work.evaluate_idle(seed, Shape(256, 2048, 256))
    assert idle is not None
    assert verify(a, b, idle.product, bound=64)
    assert not verify(a, b, idle.product)  # some entry of the noise is −64


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(*[st.integers(1, 40)] * 3),
    bound=st.sampled_from([1, 63, 64, 127]),
    random_seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_shape(sides: tuple[int, int, int], bound: int, random_seed: int, data: st.DataObject) -> None:
    a, b, c = factors(*sides, bound, random_seed)
    assert verify(a, b, c, bound)
    row, column = (data.draw(st.integers(0, side - 1)) for side in c.shape)
    c[row, column] += data.draw(st.integers(-(2**20), 2**20).filter(bool))
    assert not verify(a, b, c, bound)


@pytest.mark.parametrize("layout", ["read-only", "fortran", "reversed", "slices"])
def test_any_memory_layout(layout: str) -> None:
    a, b, c = factors(64, 128, 192)
    wrong = c.copy()
    wrong[63, 191] += 1
    for matrix, verdict in ((c, True), (wrong, False)):
        assert verify(laid_out(a, layout), laid_out(b, layout), laid_out(matrix, layout)) is verdict


def laid_out(matrix: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    if layout == "read-only":
        matrix = matrix.copy()
        matrix.flags.writeable = False
        return matrix
    if layout == "fortran":
        return np.asfortranarray(matrix)
    if layout == "reversed":
        return matrix[::-1, ::-1].copy()[::-1, ::-1]
    frame = np.full((3 * matrix.shape[0], matrix.shape[1] + 7), 1, matrix.dtype)
    frame[::3, 5:-2] = matrix
    return frame[::3, 5:-2]


# False products


@each_path
def test_a_single_wrong_entry_anywhere_fails(path: Path) -> None:
    a, b, c = factors(64, 64, 64)
    challenge = fresh_challenge(64)
    for row in range(64):
        for column in range(64):
            c[row, column] ^= 1
            assert not path(a, b, c, 63, challenge)
            c[row, column] ^= 1
    assert path(a, b, c, 63, challenge)


@each_path
@pytest.mark.parametrize("difference", [1, -1, 2**16, 2**24, 2**31 - 1, -(2**31 - 1), 2**31, 2**32 - 1])
def test_large_differences_fail(path: Path, difference: int) -> None:
    # 2³¹ − 1 is zero modulo that prime, 2³¹ the sign bit; entries wrap as a peer's bytes would.
    a, b, c = factors(64, 64, 64)
    false = c.astype(np.int64)
    false[11, 13] += difference
    assert not path(a, b, false.astype(np.int32), 63, fresh_challenge(64))


@pytest.mark.parametrize("difference", [2**31 - 1, 2**31, 2**31 + 1, 2**24])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_arithmetic_itself_tells_large_differences(difference: int, sign: int) -> None:
    # Above, the range check may be what finds them. Here k is so large that C may be almost any int32.
    k = 2**31 // 63**2
    a, b = np.full((1, k), 63, np.int8), np.full((k, 1), 63 * sign, np.int8)
    c = np.array([[sign * (63**2 * k)]], np.int32)
    assert verify(a, b, c)
    assert not verify(a, b, c - np.int64(sign * difference).astype(np.int32))


@pytest.mark.parametrize(
    "error",
    [
        [1, -1],  # orthogonal to all ones
        [1, 1],  # to an alternating one
        [2, -1],  # to 1, 2, 3, …
        [1, -2, 1],
        [3, -3, 1, -1],
        [2**20, -(2**20)],
        [1] * 32 + [-1] * 32,
        [1, -1] * 32,
    ],
    ids=str,
)
def test_errors_orthogonal_to_guessable_challenges_fail(error: list[int]) -> None:
    a, b, c = factors(64, 64, 64)
    for transposed in (False, True):
        false = c.copy()
        line = false[:, 5] if transposed else false[5]
        line[: len(error)] += np.array(error, np.int32)
        assert not verify(a, b, false)


def test_an_error_orthogonal_to_the_challenge_passes_so_the_challenge_is_secret() -> None:
    a, b, c = factors(64, 64, 64)
    c[5, :2] += np.array([1, -1], np.int32)
    assert verify(a, b, c, challenge=np.ones((64, 2), np.int64))
    assert not verify(a, b, c, challenge=challenge_of([[1] * 64, [1, 2] * 32]))


@each_path
def test_both_columns_of_the_challenge_are_used(path: Path) -> None:
    a, b, c = factors(64, 64, 64)
    c[9, 9] += 1
    blind = np.zeros(64, np.int64)
    sighted = blind.copy()
    sighted[9] = 1
    assert path(a, b, c, 63, challenge_of([blind, blind]))
    assert not path(a, b, c, 63, challenge_of([blind, sighted]))
    assert not path(a, b, c, 63, challenge_of([sighted, blind]))


@each_path
def test_false_products_of_every_kind_fail(path: Path) -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        a, b, c = factors(64, 64, 64, random_seed=int(generator.integers(2**32)))
        false = c.copy()
        count = generator.integers(1, 65)
        rows, columns = generator.integers(0, 64, (2, count))
        false[rows, columns] += generator.integers(-(2**10), 2**10, count).astype(np.int32)
        assert path(a, b, false, 63, fresh_challenge(64)) == np.array_equal(false, c)
    assert not path(a, b, np.zeros_like(c), 63, fresh_challenge(64))
    assert not path(a, b, np.ascontiguousarray(c.T), 63, fresh_challenge(64))


@each_path
def test_small_challenges_err_as_often_as_the_proof_says(path: Path) -> None:
    # The proof with 2 values instead of 2³⁰ for each entry: an error of one entry passes one time in 4.
    a, b, c = factors(64, 64, 64)
    c[1, 1] += 1
    generator = np.random.default_rng(2)
    passed = sum(path(a, b, c, 63, generator.integers(0, 2, (64, 2), dtype=np.int64)) for _ in range(2000))
    assert abs(passed - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_challenges_are_fresh_and_uniform() -> None:
    one, other = fresh_challenge(4096), fresh_challenge(4096)
    assert not np.array_equal(one, other)
    for challenge in (one, other):
        assert challenge.shape == (4096, 2)
        assert challenge.dtype == np.int64
        assert challenge.min() >= -HALF
        assert challenge.max() < HALF
        assert np.array_equal(np.unique((challenge + HALF) >> 25), np.arange(32))
        # The mean of 8192 uniform entries: five standard deviations.
        assert abs(challenge.mean()) < 5 * 2**30 / (12 * 8192) ** 0.5


# Bad input


@each_path
@pytest.mark.parametrize("value", [-128, -64, 64, 127])
@pytest.mark.parametrize("place", [(0, 0), (63, 63), (17, 42)])
def test_an_operand_out_of_range_fails_even_if_the_product_is_right(
    path: Path, value: int, place: tuple[int, int]
) -> None:
    a, b, _ = factors(64, 64, 64)
    spoilt = a.copy()
    spoilt[place] = value
    assert not path(spoilt, b, product(spoilt, b), 63, fresh_challenge(64))
    spoilt = b.copy()
    spoilt[place] = value
    assert not path(a, spoilt, product(a, spoilt), 63, fresh_challenge(64))


@each_path
@pytest.mark.parametrize("value", [63**2 * 64 + 1, -(63**2) * 64 - 1, 2**31 - 1, -(2**31)])
def test_a_product_out_of_range_fails(path: Path, value: int) -> None:
    a, b, c = factors(64, 64, 64)
    c[31, 31] = value
    blind = np.zeros((64, 2), np.int64)  # so that the range alone can tell
    assert not path(a, b, c, 63, blind)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a, b, c: (a[:-1], b, c),
        lambda a, b, c: (a, b[:-1], c),
        lambda a, b, c: (a, b, c[:-1]),
        lambda a, b, c: (a, b, c[:, :-1]),
        lambda a, b, c: (a, b, c.T),
        lambda a, b, c: (a[0], b, c),
        lambda a, b, c: (a, b, c[None]),
        lambda a, b, c: (a[:0], b, c[:0]),
        lambda a, b, c: (a[:, :0], b[:0], c * 0),
        lambda a, b, c: (a.astype(np.int16), b, c),
        lambda a, b, c: (a, b.astype(np.float32), c),
        lambda a, b, c: (a, b, c.astype(np.int64)),
        lambda a, b, c: (a, b, c.astype(np.float64) * np.nan),
        lambda a, b, c: (a, b, c.view(np.uint32)),
        lambda a, b, c: (a, b, c.astype(">i4")),
        lambda a, b, c: (a.tolist(), b, c),
        lambda a, b, c: (a, None, c),
        lambda a, b, c: (a, b, b"product"),
        lambda a, b, c: (np.array("a"), b, c),
    ],
)
def test_anything_else_a_peer_may_send_fails_without_raising(spoil: Callable[..., Any]) -> None:
    a, b, c = factors(64, 128, 192)
    assert verify(a, b, c)
    assert verify(*spoil(a, b, c)) is False


def test_an_inner_dimension_beyond_int32_sums_fails() -> None:
    k = 2**31 // 63**2 + 1
    a, b = np.zeros((1, k), np.int8), np.zeros((k, 1), np.int8)
    assert not verify(a, b, np.zeros((1, 1), np.int32))
    assert verify(a[:, 1:], b[1:], np.zeros((1, 1), np.int32))


def test_the_callers_own_mistakes_raise() -> None:
    a, b, c = factors(64, 64, 64)
    for bound in (0, -1, 128):
        with pytest.raises(ValueError, match="bound"):
            verify(a, b, c, bound)
    bad: list[Any] = [np.zeros((64, 1), np.int64), np.zeros((2, 64), np.int64), np.zeros((64, 2), np.int32)]
    for challenge in bad:
        with pytest.raises(ValueError, match="challenge"):
            verify(a, b, c, challenge=challenge)
    for entry in (HALF, -HALF - 1):
        with pytest.raises(ValueError, match="challenge"):
            verify(a, b, c, challenge=np.full((64, 2), entry, np.int64))
