"""Quantised networks: against arithmetic on plain integers, and what they refuse."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wallet.client.matrices import INT32_MAX, Int8Matrix, Int32Matrix
from wallet.errors import WalletError
from wallet.models.quantised import (
    MAX_MULTIPLIER,
    MAX_SHIFT,
    Layer,
    QuantisedNetwork,
    Requantise,
    exact_product,
    run,
    run_local,
)

Rows = list[list[int]]


def integers_run(network: QuantisedNetwork, x: Rows) -> Rows:
    """The definition, in Python's integers and fractions: no dtype, no shift, no bound."""
    for layer in network.layers:
        weights = layer.weights.tolist()
        bias = [0] * layer.outputs if layer.bias is None else layer.bias.tolist()
        columns = list(zip(*weights, strict=True))
        x = [
            [sum(v * w for v, w in zip(row, c, strict=True)) + b for c, b in zip(columns, bias, strict=True)]
            for row in x
        ]
        step = layer.requantise
        if step is not None:
            scale, low = Fraction(step.multiplier, 2**step.shift), 0 if step.relu else -63
            x = [[min(max(floor(v * scale + Fraction(1, 2)), low), 63) for v in row] for row in x]
    return x


async def product(a: Int8Matrix, b: Int8Matrix) -> Int32Matrix:
    return a.astype(np.int32) @ b.astype(np.int32)


def operands(rows: int, columns: int) -> st.SearchStrategy[Int8Matrix]:
    entry = st.integers(-63, 63) | st.sampled_from((-63, 63))
    flat = st.lists(entry, min_size=rows * columns, max_size=rows * columns)
    return flat.map(lambda entries: np.array(entries, np.int8).reshape(rows, columns))


@st.composite
def networks(draw: st.DrawFn) -> tuple[QuantisedNetwork, Int8Matrix]:
    widths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        largest_bias = INT32_MAX - 63**2 * inputs
        entry = st.integers(-5000, 5000) | st.sampled_from((-largest_bias, largest_bias))
        biases = st.lists(entry, min_size=outputs, max_size=outputs).map(lambda b: np.array(b, np.int32))
        multiplier = st.integers(1, MAX_MULTIPLIER) | st.integers(1, 64)
        requantise = st.builds(Requantise, multiplier, st.integers(0, MAX_SHIFT), st.booleans())
        last = index == len(widths) - 2
        weights, bias = draw(operands(inputs, outputs)), draw(st.none() | biases)
        layers.append(Layer(weights, bias, None if last else draw(requantise)))
    return QuantisedNetwork(tuple(layers)), draw(operands(draw(st.integers(1, 4)), widths[0]))


@given(networks())
def test_both_runs_equal_plain_integers(case: tuple[QuantisedNetwork, Int8Matrix]) -> None:
    network, x = case
    expected = integers_run(network, x.tolist())
    local, remote = run_local(network, x), asyncio.run(run(network, x, product))
    assert local.tolist() == remote.tolist() == expected
    assert local.dtype == remote.dtype == np.int32


@given(
    st.integers(-INT32_MAX, INT32_MAX) | st.sampled_from((-INT32_MAX, INT32_MAX)),
    st.integers(1, MAX_MULTIPLIER) | st.just(MAX_MULTIPLIER),
    st.integers(0, MAX_SHIFT),
    st.booleans(),
)
def test_requantisation_is_exact_to_its_bounds(value: int, multiplier: int, shift: int, relu: bool) -> None:
    rounded = floor(Fraction(value * multiplier, 2**shift) + Fraction(1, 2))
    got = Requantise(multiplier, shift, relu)(np.array([[value]], np.int32))
    assert got.dtype == np.int8
    assert got.item() == min(max(rounded, 0 if relu else -63), 63)


def test_halves_round_up() -> None:
    accumulators = np.array([[-3, -1, 1, 3]], np.int32)
    assert Requantise(1, 1, relu=False)(accumulators).tolist() == [[-1, 0, 1, 2]]


@pytest.mark.parametrize("inner", [1, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("sign", [-1, 1])
def test_exact_product_at_the_extremes(inner: int, sign: int) -> None:
    a, b = np.full((2, inner), 63 * sign, np.int8), np.full((inner, 3), 63, np.int8)
    b[0] = 62
    assert (exact_product(a, b) == sign * (63**2 * inner - 63)).all()


def test_exact_product_of_random_operands() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-63, 64, shape).astype(np.int8) for shape in ((70, 5000), (5000, 90)))
    assert (exact_product(a, b) == a.astype(np.int64) @ b.astype(np.int64)).all()


def two_layers() -> QuantisedNetwork:
    rng = np.random.default_rng(2)
    first, second = (rng.integers(-63, 64, shape).astype(np.int8) for shape in ((6, 5), (5, 3)))
    return QuantisedNetwork((Layer(first, np.arange(5, dtype=np.int32), Requantise(1, 8, True)), Layer(second)))


def test_products_are_asked_for_in_order_with_natural_shapes() -> None:
    asked = []

    async def recording(a: Int8Matrix, b: Int8Matrix) -> Int32Matrix:
        asked.append((a.shape, b.shape, a.dtype, b.dtype))
        return await product(a, b)

    network = two_layers()
    asyncio.run(run(network, np.ones((4, 6), np.int8), recording))
    int8 = np.dtype(np.int8)
    assert asked == [((4, 6), (6, 5), int8, int8), ((4, 5), (5, 3), int8, int8)]
    assert network.macs(4) == 4 * 6 * 5 + 4 * 5 * 3


def test_what_a_product_raises_passes_through() -> None:
    async def failing(a: Int8Matrix, b: Int8Matrix) -> Int32Matrix:
        raise TimeoutError("no worker")

    with pytest.raises(TimeoutError, match="no worker"):
        asyncio.run(run(two_layers(), np.ones((4, 6), np.int8), failing))


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (np.zeros((4, 4), np.int32), r"got int32 \(4, 4\), expected int32 \(4, 5\)"),
        (np.zeros((4, 5), np.int64), "got int64"),
        (np.full((4, 5), 63**2 * 6 + 1, np.int32), "beyond"),
        (np.full((4, 5), -(2**31), np.int32), "beyond"),
    ],
)
def test_an_answer_that_cannot_be_a_product_is_refused(answer: Int32Matrix, fault: str) -> None:
    async def lying(a: Int8Matrix, b: Int8Matrix) -> Int32Matrix:
        return answer

    with pytest.raises(WalletError, match=fault) as caught:
        asyncio.run(run(two_layers(), np.ones((4, 6), np.int8), lying))
    assert caught.value.code == "product-invalid"


@pytest.mark.parametrize(
    ("x", "fault"),
    [
        (np.zeros((4, 7), np.int8), "got 7 columns, expected 6"),
        (np.zeros((0, 6), np.int8), "non-empty"),
        (np.zeros(6, np.int8), "int8 matrix"),
        (np.full((4, 6), np.nan), "got float64"),
        (np.full((4, 6), -128, np.int8), r"entries in \[-128, -128\]"),
        (np.full((4, 6), 64, np.int8), r"entries in \[64, 64\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked_for(x: Int8Matrix, fault: str) -> None:
    async def unreachable(a: Int8Matrix, b: Int8Matrix) -> Int32Matrix:
        raise AssertionError("a product was asked for")

    network = two_layers()
    with pytest.raises(WalletError, match=fault) as local:
        run_local(network, x)
    with pytest.raises(WalletError, match=fault) as remote:
        asyncio.run(run(network, x, unreachable))
    assert local.value.code == remote.value.code == "input-invalid"


@pytest.mark.parametrize(("multiplier", "shift"), [(0, 1), (-1, 1), (2**31, 1), (1.5, 1), (1, -1), (1, 63), (1, 2.0)])
def test_requantisation_outside_its_bounds_is_refused(multiplier: int, shift: int) -> None:
    with pytest.raises(WalletError, match="not an integer in"):
        Requantise(multiplier, shift, relu=True)


@pytest.mark.parametrize(
    ("weights", "bias", "fault"),
    [
        (np.zeros((3, 2), np.int16), None, "got int16"),
        (np.zeros((3, 0), np.int8), None, "non-empty"),
        (np.full((3, 2), -64, np.int8), None, "entries in"),
        (np.zeros((3, 2), np.int8), np.zeros(3, np.int32), r"expected int32 \(2,\)"),
        (np.zeros((3, 2), np.int8), np.zeros(2, np.float32), "got float32"),
        (np.zeros((3, 2), np.int8), np.array([0, -(2**31)], np.int32), "do not fit int32"),
        (np.zeros((3, 2), np.int8), np.array([0, INT32_MAX - 63**2 * 3 + 1], np.int32), "do not fit int32"),
        (np.zeros((INT32_MAX // 63**2 + 1, 1), np.int8), None, "do not fit int32"),
    ],
)
def test_bad_layers_are_refused(weights: Int8Matrix, bias: Int32Matrix | None, fault: str) -> None:
    with pytest.raises(WalletError, match=fault) as caught:
        Layer(weights, bias)
    assert caught.value.code == "network-invalid"


def test_layers_that_do_not_fit_together_are_refused() -> None:
    step = Requantise(1, 4, relu=True)
    weights = np.zeros((3, 2), np.int8)
    last = Layer(np.zeros((2, 4), np.int8))
    for layers, fault in (
        ((), "no layers"),
        ((Layer(weights, requantise=step),), "last layer gives logits"),
        ((Layer(weights), last), "layer 0 is not the last"),
        ((Layer(weights, requantise=step), Layer(weights)), "layer 0 has 2 outputs, layer 1 3 inputs"),
    ):
        with pytest.raises(WalletError, match=fault):
            QuantisedNetwork(layers)
