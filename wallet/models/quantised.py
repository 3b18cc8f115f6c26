"""Quantised networks, run layer by layer with their matrix products computed elsewhere.

A layer is a product of 7-bit operands followed by little arithmetic: bias, integer requantisation, relu. The product
is O(rows·k·n) and goes out as a paid job; the rest is O(rows·n), stays with the client, and is done in integers alone,
so that a run over jobs and a local run agree bit for bit. The scheme is that of Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR 2018), symmetric and per tensor.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from consensus.shape import OPERAND_BOUND
from wallet.client.matrices import INT32_MAX, Int8Matrix, Int32Matrix, Matmul
from wallet.errors import ExitCode, WalletError

Int32Vector = npt.NDArray[np.int32]
MAX_MULTIPLIER = INT32_MAX
MAX_SHIFT = 62
# |accumulator| < 2³¹ and multiplier < 2³¹, so their product is below 2⁶², and half a unit of the shift is at most 2⁶¹.
assert INT32_MAX * MAX_MULTIPLIER + 2 ** (MAX_SHIFT - 1) < 2**63

EXACT_INNER = 4096
# Every partial sum of so many products of operands is an integer of at most 24 bits: float32 holds it exactly.
assert OPERAND_BOUND**2 * EXACT_INNER <= 2**24


@dataclass(frozen=True, slots=True)
class Requantise:
    """Back to 7 bits: clamp(⌊accumulator · multiplier / 2^shift + 1/2⌋), to [0, 63] with relu, else to [−63, 63].

    `multiplier` is in 1 … 2³¹ − 1 and `shift` in 0 … 62, else `WalletError` (network-invalid). Halves round up.
    """

    multiplier: int
    shift: int
    relu: bool

    def __post_init__(self) -> None:
        if not isinstance(self.multiplier, int) or not 1 <= self.multiplier <= MAX_MULTIPLIER:
            raise _invalid_network(f"the multiplier is {self.multiplier!r}, not an integer in 1 … 2³¹ − 1")
        if not isinstance(self.shift, int) or not 0 <= self.shift <= MAX_SHIFT:
            raise _invalid_network(f"the shift is {self.shift!r}, not an integer in 0 … {MAX_SHIFT}")

    def __call__(self, accumulators: Int32Matrix) -> Int8Matrix:
        """(rows, n) int32 accumulators to (rows, n) int8 operands; no intermediate value leaves int64."""
        half = (1 << self.shift) >> 1
        scaled = (accumulators.astype(np.int64) * self.multiplier + half) >> self.shift
        operands: Int8Matrix = scaled.clip(0 if self.relu else -OPERAND_BOUND, OPERAND_BOUND).astype(np.int8)
        return operands


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """activations · weights + bias, then `requantise`; a last layer has none, its accumulators are the logits.

    `weights`: int8 (k, n) in [−63, 63]; `bias`: int32 (n,) or None. Anything else, or sums that int32 could not hold
    (63²·k + |bias| ≥ 2³¹), raises `WalletError` (network-invalid).
    """

    weights: Int8Matrix
    bias: Int32Vector | None = None
    requantise: Requantise | None = None

    def __post_init__(self) -> None:
        fault = _operand_fault(self.weights)
        if fault is not None:
            raise _invalid_network(f"weights: {fault}")
        largest_bias = 0
        if self.bias is not None:
            if self.bias.dtype != np.int32 or self.bias.shape != (self.outputs,):
                got = f"{self.bias.dtype} {self.bias.shape}"
                raise _invalid_network(f"bias: got {got}, expected int32 ({self.outputs},)")
            largest_bias = int(np.abs(self.bias.astype(np.int64)).max())
        if self.product_bound + largest_bias > INT32_MAX:
            raise _invalid_network(f"sums over {self.inputs} inputs and the bias do not fit int32")

    @property
    def inputs(self) -> int:
        return int(self.weights.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.weights.shape[1])

    @property
    def product_bound(self) -> int:
        """What no entry of a true product exceeds in magnitude."""
        return OPERAND_BOUND**2 * self.inputs

    def accumulate(self, product: Int32Matrix, rows: int) -> Int32Matrix:
        """`product` plus the bias: int32 (rows, n), which cannot overflow.

        A product of another shape or dtype than int32 (rows, n), or with an entry that no product of operands
        reaches, raises `WalletError` (product-invalid). Whether it is the *true* product is checked by whoever got it.
        """
        expected = (rows, self.outputs)
        if product.dtype != np.int32 or product.shape != expected:
            raise _invalid_product(f"got {product.dtype} {product.shape}, expected int32 {expected}")
        if product.max() > self.product_bound or product.min() < -self.product_bound:
            raise _invalid_product(f"an entry is beyond ±{self.product_bound}")
        return product if self.bias is None else product + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedNetwork:
    """One or more layers: each takes as many inputs as the one before it has outputs, and only the last is not
    requantised. `WalletError` (network-invalid) names the layer at fault, counted from 0."""

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise _invalid_network("it has no layers")
        for index, (layer, following) in enumerate(pairwise(self.layers)):
            if layer.requantise is None:
                raise _invalid_network(f"layer {index} is not the last and must be requantised")
            if layer.outputs != following.inputs:
                fault = f"layer {index} has {layer.outputs} outputs, layer {index + 1} {following.inputs} inputs"
                raise _invalid_network(fault)
        if self.layers[-1].requantise is not None:
            raise _invalid_network("the last layer gives logits and must not be requantised")

    def macs(self, rows: int) -> int:
        """Multiplications of a run over `rows` inputs, without padding."""
        return sum(rows * layer.inputs * layer.outputs for layer in self.layers)

    def check_input(self, x: Int8Matrix) -> None:
        """`x` must be int8 (rows, inputs of the first layer) in [−63, 63]: else `WalletError` (input-invalid)."""
        fault = _operand_fault(x)
        if fault is None and x.shape[1] != self.layers[0].inputs:
            fault = f"got {x.shape[1]} columns, expected {self.layers[0].inputs}"
        if fault is not None:
            fix = "quantise the input to int8 in [-63, 63], one row for each sample"
            raise WalletError("input-invalid", f"input of the network: {fault}", fix, ExitCode.USAGE)


async def run(network: QuantisedNetwork, x: Int8Matrix, matmul: Matmul) -> Int32Matrix:
    """Logits, int32 (rows, outputs), with the product of every layer computed by `matmul`.

    `matmul` is awaited once for each layer, in order; what it raises passes through. Layers depend on one another:
    parallelism is inside a product. Everything else runs in threads, off the event loop.
    Raises `WalletError`: input-invalid before anything is asked for, product-invalid if an answer cannot be a product.
    """
    await asyncio.to_thread(network.check_input, x)
    activations = x
    for layer in network.layers:
        product = await matmul(activations, layer.weights)
        accumulators = await asyncio.to_thread(layer.accumulate, product, len(x))
        if layer.requantise is None:
            return accumulators
        activations = await asyncio.to_thread(layer.requantise, accumulators)
    raise AssertionError("the last layer of a network is not requantised")


def run_local(network: QuantisedNetwork, x: Int8Matrix) -> Int32Matrix:
    """The same logits as `run`, bit for bit, computed here. Raises `WalletError` (input-invalid)."""
    network.check_input(x)
    activations = x
    for layer in network.layers:
        accumulators = layer.accumulate(exact_product(activations, layer.weights), len(x))
        if layer.requantise is None:
            return accumulators
        activations = layer.requantise(accumulators)
    raise AssertionError("the last layer of a network is not requantised")


def exact_product(a: Int8Matrix, b: Int8Matrix) -> Int32Matrix:
    """a·b as int32 (m, n), exactly, for int8 (m, k) and (k, n) in [−63, 63] with 63²·k < 2³¹.

    float32 BLAS over at most 4096 inner entries at a time: no partial sum exceeds 2²⁴, whatever their order.
    """
    total = np.zeros((a.shape[0], b.shape[1]), np.int32)
    for start in range(0, a.shape[1], EXACT_INNER):
        inner = slice(start, start + EXACT_INNER)
        total += (a[:, inner].astype(np.float32) @ b[inner].astype(np.float32)).astype(np.int32)
    return total


def _operand_fault(matrix: Int8Matrix) -> str | None:
    """What keeps `matrix` from being an operand of a product, or None."""
    if matrix.dtype != np.int8 or matrix.ndim != 2 or 0 in matrix.shape:
        return f"got {matrix.dtype} {matrix.shape}, expected a non-empty int8 matrix"
    low, high = int(matrix.min()), int(matrix.max())
    if low < -OPERAND_BOUND or high > OPERAND_BOUND:
        return f"entries in [{low}, {high}], expected [{-OPERAND_BOUND}, {OPERAND_BOUND}]"
    return None


def _invalid_network(fault: str) -> WalletError:
    return WalletError("network-invalid", f"not a quantised network: {fault}", "quantise it again", ExitCode.USAGE)


def _invalid_product(fault: str) -> WalletError:
    return WalletError("product-invalid", f"not the product of the layer: {fault}", "ask another node")
