"""Cutting a product X·W into packets, and putting it together again: pure functions, nothing is sent.

X is cut by rows, W by columns, and both along the inner dimension, so that no packet moves more bytes than its worker
is asked to bear: mk + kn + 4mn, operands and product. Slices at the edges are padded with zeros to multiples of 64,
and equal slices are one operand, so that nothing is sent or paid twice. The partial products of one place are added
in int64 and must fit int32 in the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consensus.params import MAX_OPERAND_BYTES, MAX_PACKETS, MAX_TX_BYTES, ChainParams
from consensus.shape import MAX_DIMENSION, MAX_UNIT_BYTES, OPERAND_BOUND, TILE_SIDE, Shape
from consensus.tensor import COLUMNS, Tensor
from wallet.client.matrices import INT32_MAX, Int8Matrix, Int32Matrix
from wallet.errors import ExitCode, WalletError

MIN_UNIT_BYTES = Shape(TILE_SIDE, TILE_SIDE, TILE_SIDE).unit_bytes
"""The least memory bound: one tile."""

MAX_PRODUCT_PACKETS = 1 << 16
"""Packets of one product, over all its jobs: beyond that a larger memory bound is meant."""

MAX_JOB_OPERAND_BYTES = MAX_OPERAND_BYTES * 3 // 4
"""Operands of one job. A quarter of what a block may take in is left for others' jobs."""

_MAX_STEP = MAX_DIMENSION // TILE_SIDE
_NEAR = 1.25
"""How far the number of packets may be from the one aimed at before moved bytes count for less than the number."""

# Encoded sizes, at most: an operand is an array of a 32-byte root and two sides, a pair one of two 16-bit indices.
_OPERAND_ENTRY_BYTES = 1 + 34 + 3 + 3
_PAIR_ENTRY_BYTES = 1 + 3 + 3
_ENVELOPE_BYTES = 256

# Packets of one job have at most as many distinct operands on either side: the transaction's limit is never the first.
assert _ENVELOPE_BYTES + MAX_PACKETS * (2 * _OPERAND_ENTRY_BYTES + _PAIR_ENTRY_BYTES) <= MAX_TX_BYTES


@dataclass(frozen=True, slots=True)
class Grid:
    """X (m, k) times W (k, n) of `shape`, cut every `step.m` rows, `step.k` inner entries and `step.n` columns.

    Steps are multiples of 64, at most 4096.
    """

    shape: Shape
    step: Shape

    @property
    def packets(self) -> int:
        """How many products that makes, equal slices not yet counted as one."""
        return math.prod(-(-size // step) for size, step in zip(self.shape, self.step, strict=True))

    @property
    def unit_bytes(self) -> int:
        """Bytes that the largest packet moves."""
        return Shape(*(min(padded(size), step) for size, step in zip(self.shape, self.step, strict=True))).unit_bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """One product to be bought: `lefts[left]` · `rights[right]`.

    `places`: the (first row, first column) of X·W that it adds to, one entry for each time that it does.
    """

    left: int
    right: int
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """A product x·w that has been cut: distinct operands (tensors, padded) and distinct packets."""

    x: Int8Matrix
    w: Int8Matrix
    grid: Grid
    lefts: tuple[Tensor, ...]
    rights: tuple[Tensor, ...]
    packets: tuple[Packet, ...]

    def shape(self, packet: Packet) -> Shape:
        """The shape of a packet, padded."""
        left, right = self.lefts[packet.left].spec, self.rights[packet.right].spec
        return Shape(left.rows, left.cols, right.cols)


def padded(size: int) -> int:
    """`size` rounded up to whole tiles."""
    return -(-size // TILE_SIDE) * TILE_SIDE


def choose_grid(shape: Shape, memory_bound: int = MAX_UNIT_BYTES, packets: int = 1) -> Grid:
    """The grid for a product of `shape` under `memory_bound` bytes a packet, with about `packets` packets.

    Among the grids whose number of packets is within a quarter of the nearest possible, the one that moves the fewest
    bytes. Raises `WalletError`: memory-bound, packets-invalid, too-many-packets.
    """
    assert min(shape) > 0
    if not MIN_UNIT_BYTES <= memory_bound <= MAX_UNIT_BYTES:
        message = f"a memory bound of {memory_bound} bytes cannot be kept"
        fix = f"choose {MIN_UNIT_BYTES} to {MAX_UNIT_BYTES} bytes for each packet"
        raise WalletError("memory-bound", message, fix, ExitCode.USAGE)
    if packets < 1:
        fix = "ask for 1 or more, or leave it out"
        raise WalletError("packets-invalid", f"a product cannot be cut into {packets} packets", fix, ExitCode.USAGE)
    # Sides in tiles; one step for each number of parts, the smallest, since it makes the parts most equal.
    tiles = [-(-size // TILE_SIDE) for size in shape]
    steps = [_steps(count) for count in tiles]
    row, inner, col = (s.reshape(axes) for s, axes in zip(steps, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True))
    size = (row * inner + inner * col + 4 * row * col) * TILE_SIDE**2
    rows, inners, cols = (-(-count // s) for count, s in zip(tiles, (row, inner, col), strict=True))
    number = rows * inners * cols
    moved = tiles[0] * tiles[1] * cols + tiles[1] * tiles[2] * rows + 4 * tiles[0] * tiles[2] * inners
    distance = np.abs(np.log(number / packets))
    distance[size > memory_bound] = np.inf
    near = distance <= distance.min() + np.log(_NEAR)
    best = np.lexsort((distance.ravel(), np.where(near, moved, np.inf).ravel()))[0]
    chosen = np.unravel_index(best, number.shape)
    grid = Grid(shape, Shape(*(int(s[i]) * TILE_SIDE for s, i in zip(steps, chosen, strict=True))))
    if grid.packets > MAX_PRODUCT_PACKETS:
        message = f"that would be {grid.packets} packets, more than {MAX_PRODUCT_PACKETS}"
        raise WalletError("too-many-packets", message, "allow more memory for each, or cut the product yourself")
    return grid


def cut(x: Int8Matrix, w: Int8Matrix, grid: Grid) -> Slices:
    """The operands and packets of x (m, k) times w (k, n), entries in [−63, 63]. Hashes every byte: use a thread."""
    (m, k, n), step = grid.shape, grid.step
    assert (x.shape, w.shape) == ((m, k), (k, n))
    row_starts, inner_starts, col_starts = range(0, m, step.m), range(0, k, step.k), range(0, n, step.n)
    lefts, rights = _Distinct(), _Distinct()
    left_at = {(i, c): lefts.add(Tensor(_piece(x, i, step.m, c, step.k))) for i in row_starts for c in inner_starts}
    right_at = {
        (c, j): rights.add(Tensor(_piece(w, c, step.k, j, step.n), COLUMNS)) for c in inner_starts for j in col_starts
    }
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i in row_starts:
        for j in col_starts:
            for c in inner_starts:
                places.setdefault((left_at[i, c], right_at[c, j]), []).append((i, j))
    packets = tuple(Packet(left, right, tuple(where)) for (left, right), where in places.items())
    return Slices(x, w, grid, tuple(lefts.tensors), tuple(rights.tensors), packets)


def into_jobs(slices: Slices, params: ChainParams, wanted: Sequence[int]) -> list[list[int]]:
    """The packets `wanted` (indices), in their order, as jobs that each fit a transaction and a block.

    A job has at most 1024 packets, three quarters of the operands that a block may oblige, and half a block's gas:
    more than that would raise the base fee, for the jobs that follow first of all.
    """
    jobs: list[list[int]] = []
    lefts: set[int] = set()
    rights: set[int] = set()
    operand_bytes = gas = 0
    for index in wanted:
        packet = slices.packets[index]
        shape = slices.shape(packet)
        left_bytes, right_bytes = shape.m * shape.k, shape.k * shape.n
        product_gas = params.gas.tensor_byte * shape.product_bytes
        product_gas += params.gas.packet + params.gas.byte * _PAIR_ENTRY_BYTES
        new = [left_bytes] * (packet.left not in lefts) + [right_bytes] * (packet.right not in rights)
        added_gas = product_gas + _operand_gas(params, new)
        full = (
            not jobs
            or len(jobs[-1]) == MAX_PACKETS
            or operand_bytes + sum(new) > MAX_JOB_OPERAND_BYTES
            or gas + added_gas > params.gas_limit // 2
        )
        if full:
            jobs.append([])
            lefts, rights = set(), set()
            new = [left_bytes, right_bytes]
            operand_bytes, gas = 0, params.gas.transaction + params.gas.byte * _ENVELOPE_BYTES
            added_gas = product_gas + _operand_gas(params, new)
        jobs[-1].append(index)
        lefts.add(packet.left)
        rights.add(packet.right)
        operand_bytes += sum(new)
        gas += added_gas
    return jobs


def assemble(slices: Slices, products: Sequence[Int32Matrix]) -> Int32Matrix:
    """X·W, int32 (m, n), from the packets' products in order, each int32 of its packet's padded (m, n).

    Raises `WalletError` (sum-too-large) if an entry does not fit int32.
    """
    grid = slices.grid
    total: npt.NDArray[np.int64] = np.zeros((grid.shape.m, grid.shape.n), np.int64)
    for packet, product in zip(slices.packets, products, strict=True):
        for i, j in packet.places:
            part = total[i : i + grid.step.m, j : j + grid.step.n]
            part += product[: part.shape[0], : part.shape[1]]
    if total.max() > INT32_MAX or total.min() < -INT32_MAX - 1:
        raise _too_large(int(np.abs(total).max()))
    return total.astype(np.int32)


def check_inner(inner: int) -> None:
    """`WalletError` (sum-too-large) if sums over `inner` entries might not fit int32: before anything is paid for."""
    if OPERAND_BOUND**2 * inner > INT32_MAX:
        raise _too_large(OPERAND_BOUND**2 * inner)


class _Distinct:
    """Tensors without repetition, in order of appearance."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._index: dict[bytes, int] = {}

    def add(self, tensor: Tensor) -> int:
        index = self._index.setdefault(tensor.commitment, len(self.tensors))
        if index == len(self.tensors):
            self.tensors.append(tensor)
        return index


def _steps(tiles: int) -> npt.NDArray[np.int64]:
    """For each possible number of parts, the smallest step (in tiles, at most 64) that gives it."""
    steps = np.arange(1, min(tiles, _MAX_STEP) + 1)
    parts = -(-tiles // steps)
    _, first = np.unique(parts, return_index=True)
    return steps[first].astype(np.int64)


def _piece(matrix: Int8Matrix, row: int, row_step: int, col: int, col_step: int) -> Int8Matrix:
    """A slice padded with zeros to whole tiles; read-only, so that a tensor takes it without another copy."""
    piece = matrix[row : row + row_step, col : col + col_step]
    tiled = np.zeros((padded(piece.shape[0]), padded(piece.shape[1])), np.int8)
    tiled[: piece.shape[0], : piece.shape[1]] = piece
    tiled.flags.writeable = False
    return tiled


def _operand_gas(params: ChainParams, sizes: list[int]) -> int:
    return params.gas.tensor_byte * sum(sizes) + params.gas.byte * _OPERAND_ENTRY_BYTES * len(sizes)


def _too_large(value: int) -> WalletError:
    message = f"an entry of the product may reach {value}, beyond int32"
    fix = "cut the inner dimension in two, buy both products, and add them in int64"
    return WalletError("sum-too-large", message, fix, ExitCode.USAGE)
