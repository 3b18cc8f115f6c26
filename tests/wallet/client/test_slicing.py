"""Cutting a product and assembling it again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consensus.codec import encode
from consensus.params import MAX_OPERAND_BYTES, MAX_PACKETS, MAX_TX_BYTES, devnet
from consensus.rules import jobs
from consensus.rules.payloads import intrinsic_gas
from consensus.shape import MAX_DIMENSION, MAX_UNIT_BYTES, Shape
from consensus.transaction import Operand, Pair, SubmitJob, Transaction, TxBody
from wallet.client import slicing
from wallet.client.matrices import Int8Matrix, Int32Matrix
from wallet.client.slicing import MIN_UNIT_BYTES, Slices, assemble, check_inner, choose_grid, cut, into_jobs
from wallet.errors import ExitCode, WalletError
from wallet.models.quantised import exact_product

PARAMS = devnet(0)


def operand(rows: int, cols: int, seed: int = 0) -> Int8Matrix:
    return np.random.default_rng(seed).integers(-63, 64, (rows, cols), dtype=np.int8)


def bought(slices: Slices) -> list[Int32Matrix]:
    return [exact_product(slices.lefts[p.left].matrix, slices.rights[p.right].matrix) for p in slices.packets]


sides = st.one_of(st.sampled_from([1, 63, 64, 65, 127, 128, 129]), st.integers(1, 400))


@settings(max_examples=60, deadline=None)
@given(
    m=sides,
    k=sides,
    n=sides,
    bound=st.sampled_from([MIN_UNIT_BYTES, 2 * MIN_UNIT_BYTES, 100_000, 300_000, MAX_UNIT_BYTES]),
    packets=st.integers(1, 40),
    seed=st.integers(0, 3),
)
@example(m=1, k=1, n=1, bound=MIN_UNIT_BYTES, packets=1, seed=0)
@example(m=1, k=400, n=1, bound=MIN_UNIT_BYTES, packets=100, seed=0)
def test_what_was_cut_assembles_to_the_product(m: int, k: int, n: int, bound: int, packets: int, seed: int) -> None:
    x, w = operand(m, k, seed), operand(k, n, seed + 10)
    grid = choose_grid(Shape(m, k, n), bound, packets)
    slices = cut(x, w, grid)
    assert len(slices.packets) == grid.packets
    assert max(slices.shape(p).unit_bytes for p in slices.packets) == grid.unit_bytes <= bound
    product = assemble(slices, bought(slices))
    assert product.dtype == np.int32
    assert np.array_equal(product, x.astype(np.int64) @ w.astype(np.int64))


@settings(max_examples=100, deadline=None)
@given(
    m=st.integers(1, 9_000), k=st.integers(1, 9_000), n=st.integers(1, 9_000),
    bound=st.integers(20, 25), packets=st.integers(1, 2000),
)  # fmt: skip
def test_grids_keep_every_bound(m: int, k: int, n: int, bound: int, packets: int) -> None:
    grid = choose_grid(Shape(m, k, n), 1 << bound, packets)
    assert grid.unit_bytes <= 1 << bound
    for step in grid.step:
        assert step % 64 == 0
        assert 64 <= step <= MAX_DIMENSION


@pytest.mark.parametrize(("packets", "least", "most"), [(1, 1, 1), (16, 13, 20), (20, 16, 25), (60, 48, 75)])
def test_the_number_of_packets_is_about_the_one_aimed_at(packets: int, least: int, most: int) -> None:
    grid = choose_grid(Shape(2000, 784, 1024), packets=packets)
    assert least <= grid.packets <= most
    # The inner dimension is cut only where the memory bound asks for it: every cut moves another product.
    assert grid.step.k == 832


def test_a_small_memory_bound_cuts_the_inner_dimension_too() -> None:
    grid = choose_grid(Shape(1000, 4096, 1000), 256 << 10)
    assert grid.unit_bytes <= 256 << 10
    assert grid.step.k < 4096


@pytest.mark.parametrize("bound", [0, MIN_UNIT_BYTES - 1, MAX_UNIT_BYTES + 1])
def test_a_memory_bound_that_no_packet_keeps_is_refused(bound: int) -> None:
    with pytest.raises(WalletError, match="memory bound") as caught:
        choose_grid(Shape(64, 64, 64), bound)
    assert caught.value.exit_code == ExitCode.USAGE


def test_no_packets_and_too_many_are_refused() -> None:
    with pytest.raises(WalletError, match="0 packets"):
        choose_grid(Shape(64, 64, 64), packets=0)
    with pytest.raises(WalletError, match="more than") as caught:
        choose_grid(Shape(100_000, 64, 100_000), MIN_UNIT_BYTES)
    assert "memory" in caught.value.fix


def test_equal_slices_are_sent_and_paid_once() -> None:
    block, w = operand(64, 64), operand(64, 64, 1)
    x = np.block([[block, block], [block, block]])
    slices = cut(x, np.vstack([w, w]), choose_grid(Shape(128, 128, 64), MIN_UNIT_BYTES))
    assert (len(slices.lefts), len(slices.rights), len(slices.packets)) == (1, 1, 1)
    assert slices.packets[0].places == ((0, 0), (0, 0), (64, 0), (64, 0))
    assert np.array_equal(assemble(slices, bought(slices)), exact_product(x, np.vstack([w, w])))


def test_a_sum_beyond_int32_is_refused_before_and_after() -> None:
    inner = 2**31 // 63**2 + 1
    x, w = np.full((1, inner), 63, np.int8), np.full((inner, 1), 63, np.int8)
    check_inner(inner - 1)
    with pytest.raises(WalletError, match="beyond int32"):
        check_inner(inner)
    slices = cut(x, w, choose_grid(Shape(1, inner, 1)))
    with pytest.raises(WalletError, match="beyond int32") as caught:
        assemble(slices, bought(slices))
    assert (caught.value.code, caught.value.exit_code) == ("sum-too-large", ExitCode.USAGE)


def submitted(slices: Slices, packets: list[int]) -> SubmitJob:
    lefts = sorted({slices.packets[p].left for p in packets})
    rights = sorted({slices.packets[p].right for p in packets})
    left_specs, right_specs = ([t.spec for t in side] for side in (slices.lefts, slices.rights))
    return SubmitJob(
        tuple(Operand(left_specs[i].root, left_specs[i].rows, left_specs[i].cols) for i in lefts),
        tuple(Operand(right_specs[i].root, right_specs[i].rows, right_specs[i].cols) for i in rights),
        tuple(Pair(lefts.index(slices.packets[p].left), rights.index(slices.packets[p].right)) for p in packets),
        threshold=len(packets),
        price=1,
        expiry=500,
    )


def check_jobs(slices: Slices) -> list[list[int]]:
    """The jobs of all packets, each within every limit of consensus."""
    parts = into_jobs(slices, PARAMS, range(len(slices.packets)))
    assert [p for part in parts for p in part] == list(range(len(slices.packets)))
    for part in parts:
        payload = submitted(slices, part)
        jobs.check(PARAMS, payload)
        body = TxBody(bytes(32), 2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1, payload)
        assert intrinsic_gas(PARAMS, body) <= PARAMS.gas_limit // 2
        assert sum(spec.size for spec in payload.operands()) <= MAX_OPERAND_BYTES * 3 // 4
    return parts


def test_a_small_product_is_one_job() -> None:
    assert len(check_jobs(cut(operand(200, 784), operand(784, 256), choose_grid(Shape(200, 784, 256), packets=8)))) == 1


def test_products_beyond_a_limit_become_several_jobs() -> None:
    # Many packets: their number, and before that their gas.
    x, w = operand(33 * 64, 64), operand(64, 32 * 64, 1)
    parts = check_jobs(cut(x, w, choose_grid(Shape(33 * 64, 64, 32 * 64), MIN_UNIT_BYTES)))
    assert sum(map(len, parts)) == 33 * 32
    assert len(parts[0]) > MAX_PACKETS // 2
    # Large products: their gas.
    x, w = operand(4096, 64), operand(64, 4096, 1)
    assert len(check_jobs(cut(x, w, choose_grid(Shape(4096, 64, 4096), packets=4)))) == 4
    # Large operands: their bytes.
    x, w = operand(64, 8 * 4096), operand(8 * 4096, 1024, 1)
    assert len(check_jobs(cut(x, w, choose_grid(Shape(64, 8 * 4096, 1024))))) == 4


def test_the_largest_job_fits_a_transaction() -> None:
    one = Operand(bytes(32), 4096, 4096)
    pairs = tuple(Pair(i, i) for i in range(MAX_PACKETS))
    payload = SubmitJob((one,) * MAX_PACKETS, (one,) * MAX_PACKETS, pairs, MAX_PACKETS, 2**63 - 1, 2**63 - 1)
    body = TxBody(bytes(32), 2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1, payload)
    size = len(encode(Transaction(body, bytes(64))))
    assert size <= MAX_TX_BYTES
    entries = MAX_PACKETS * (2 * slicing._OPERAND_ENTRY_BYTES + slicing._PAIR_ENTRY_BYTES)
    assert size <= slicing._ENVELOPE_BYTES + entries
