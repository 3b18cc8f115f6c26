"""Rows times the challenge's limbs, for x86-64 with AVX2: what `freivalds` spends its time on.

The bounds that keep every 32-bit lane from overflowing are proved there. Intrinsics and the functions that use them
share this file, since numba's cache looks for changes in a function's own file alone. Matrices come as addresses:
arrays would compile anew for each mix of layout and writability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

B_LIMBS = 4
"""Two columns of R in two limbs each."""
A_LIMBS = 6
"""Two columns of BR in three limbs each."""
STEP = 16
"""Entries of A and B taken at a time: a multiple of this many columns is required (8 in C)."""

_BAND = 64

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Numba's own types for these describe neither how an intrinsic is called nor what the helpers take.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic
_tools: Any = cgutils

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_Address = ir.PointerType()
_BYTES, _WORDS, _SUMS = ir.VectorType(_I8, 16), ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
_LONGS = ir.VectorType(_I64, 4)


def _function(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Type) -> Callable[..., ir.Value]:
    declared: Any = _tools.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)
    return lambda *values: builder.call(declared, values)


def _load(builder: ir.IRBuilder, kind: ir.Type, base: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.load(builder.gep(base, [offset], source_etype=_I8), typ=kind, align=1)


def _total(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """The sum of the lanes, as int64."""
    wide = builder.sext(vector, ir.VectorType(_I64, vector.type.count))
    return _function(builder, f"llvm.vector.reduce.add.v{vector.type.count}i64", _I64, wide.type)(wide)


def _dot_bytes(rows: int, limbs: int) -> Callable[..., Any]:
    """Code for `limbs` dot products of each of `rows` rows of int8 with int16, and their largest magnitude.

    row, stride: the rows. weights: (limbs, count) int16. out: (rows, limbs) int64. peak: 16 uint8, raised by |entries|.
    """
    one = ir.Constant(ir.IntType(1), 0)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        row, stride, weights, count, out, peak = arguments
        row, weights, out, peak = (builder.inttoptr(address, _Address) for address in (row, weights, out, peak))
        multiply = _function(builder, "llvm.x86.avx2.pmadd.wd", _SUMS, _WORDS, _WORDS)
        magnitude = _function(builder, "llvm.abs.v16i8", _BYTES, _BYTES, one.type)
        larger = _function(builder, "llvm.umax.v16i8", _BYTES, _BYTES, _BYTES)
        sums = [
            [_tools.alloca_once_value(builder, ir.Constant(_SUMS, None)) for _ in range(limbs)] for _ in range(rows)
        ]
        peaks = _tools.alloca_once_value(builder, _load(builder, _BYTES, peak, _I64(0)))
        starts = [row]
        while len(starts) < rows:
            starts.append(builder.gep(starts[-1], [stride], source_etype=_I8))
        with _tools.for_range(builder, builder.udiv(count, _I64(STEP))) as loop:
            offset = builder.mul(loop.index, _I64(STEP))
            words = []
            for start in starts:
                entries = _load(builder, _BYTES, start, offset)
                builder.store(larger(builder.load(peaks, typ=_BYTES), magnitude(entries, one)), peaks)
                words.append(builder.sext(entries, _WORDS))
            for limb in range(limbs):
                at = builder.mul(builder.add(offset, builder.mul(count, _I64(limb))), _I64(2))
                weight = _load(builder, _WORDS, weights, at)
                for slots, word in zip(sums, words, strict=True):
                    term = builder.add(builder.load(slots[limb], typ=_SUMS), multiply(word, weight))
                    builder.store(term, slots[limb])
        for index, slot in enumerate(slot for slots in sums for slot in slots):
            builder.store(
                _total(builder, builder.load(slot, typ=_SUMS)), builder.gep(out, [_I64(index)], source_etype=_I64)
            )
        builder.store(builder.load(peaks, typ=_BYTES), peak, align=1)
        return context.get_dummy_value()

    return generate


def _signature(count: int) -> Any:
    return types.void(*[types.int64] * count)


@_intrinsic
def _dot_b(_: Any, row: Any, stride: Any, weights: Any, count: Any, out: Any, peak: Any) -> Any:
    """Four dot products of each of two rows of B."""
    return _signature(6), _dot_bytes(2, B_LIMBS)


@_intrinsic
def _dot_a(_: Any, row: Any, stride: Any, weights: Any, count: Any, out: Any, peak: Any) -> Any:
    """Six dot products of a row of A: those of two rows would not fit the registers."""
    return _signature(6), _dot_bytes(1, A_LIMBS)


@_intrinsic
def _dot_c(_: Any, row: Any, stride: Any, weights: Any, count: Any, out: Any, peak: Any) -> Any:
    """Two dot products, mod 2⁶⁴, of each of two rows of int32 with int32.

    row, stride: the rows. weights: (2, count + 8) int32, of which one past `count` is read and ignored.
    out: (2, 2) int64. peak: 8 uint32, raised by |entries|.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        row, stride, weights, count, out, peak = arguments
        row, weights, out, peak = (builder.inttoptr(address, _Address) for address in (row, weights, out, peak))
        wraps = ir.Constant(ir.IntType(1), 0)
        magnitude = _function(builder, "llvm.abs.v8i32", _SUMS, _SUMS, wraps.type)
        larger = _function(builder, "llvm.umax.v8i32", _SUMS, _SUMS, _SUMS)
        half = ir.Constant(_LONGS, [32] * 4)

        def low(words: ir.Value) -> ir.Value:
            # Sign-extend the lower halves: with both factors so, LLVM multiplies by `vpmuldq`.
            return builder.ashr(builder.shl(words, half), half)

        sums = [_tools.alloca_once_value(builder, ir.Constant(_LONGS, None)) for _ in range(4)]
        peaks = _tools.alloca_once_value(builder, _load(builder, _SUMS, peak, _I64(0)))
        starts = row, builder.gep(row, [stride], source_etype=_I8)
        columns = weights, builder.gep(weights, [builder.add(count, _I64(8))], source_etype=_I32)
        with _tools.for_range(builder, builder.udiv(count, _I64(8))) as loop:
            offset = builder.mul(loop.index, _I64(32))
            # A load 4 bytes on has the odd columns' weights in its lower halves.
            evens = [low(_load(builder, _LONGS, column, offset)) for column in columns]
            offset_odd = builder.add(offset, _I64(4))
            odds = [low(_load(builder, _LONGS, column, offset_odd)) for column in columns]
            for index, start in enumerate(starts):
                entries = _load(builder, _SUMS, start, offset)
                builder.store(larger(builder.load(peaks, typ=_SUMS), magnitude(entries, wraps)), peaks)
                pairs = builder.bitcast(entries, _LONGS)
                for words, factors in ((low(pairs), evens), (builder.ashr(pairs, half), odds)):
                    for slot, factor in zip(sums[2 * index : 2 * index + 2], factors, strict=True):
                        term = builder.mul(words, factor)
                        builder.store(builder.add(builder.load(slot, typ=_LONGS), term), slot)
        for index, slot in enumerate(sums):
            total = _total(builder, builder.load(slot, typ=_LONGS))
            builder.store(total, builder.gep(out, [_I64(index)], source_etype=_I64))
        builder.store(builder.load(peaks, typ=_SUMS), peak, align=1)
        return context.get_dummy_value()

    return _signature(6), generate


@_intrinsic
def _address(_: Any, array: Any) -> Any:
    """Where the array's first entry is, as int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, _I64)

    return types.int64(array), generate


def _compiled(signature: str) -> Callable[[_Function], _Function]:
    """Compile for one signature, at import: arrays of any other kind are a TypeError, not a second version."""
    decorator: Callable[[_Function], Any] = njit(signature, cache=True, nogil=True, error_model="numpy")
    return decorator


@_compiled("int64(int64, int64, int64, int64[:,::1], int16[:,::1])")
def project_b(b: int, stride: int, k: int, challenge: Any, limbs: Any) -> int:
    """Y = B·R for a challenge R, (n, 2) in [−2²⁹, 2²⁹), as limbs (6, k); returns the largest |entry| of B.

    b, stride: k rows of n int8, k even, n a multiple of 16.
    """
    n = challenge.shape[0]
    weights = np.empty((B_LIMBS, n), np.int16)
    for index in range(n):
        for column in range(2):
            entry = challenge[index, column]
            low = ((entry + (1 << 14)) & 0x7FFF) - (1 << 14)
            weights[2 * column, index] = low
            weights[2 * column + 1, index] = (entry - low) >> 15
    sums = np.empty(2 * B_LIMBS, np.int64)
    peak = np.zeros(16, np.uint8)
    for row in range(0, k, 2):
        _dot_b(b + row * stride, stride, _address(weights), n, _address(sums), _address(peak))
        for index in range(4):
            total = sums[2 * index] + (sums[2 * index + 1] << 15)
            at, limb = row + index // 2, 3 * (index % 2)
            limbs[limb, at] = total
            total = (total + (1 << 15)) >> 16
            limbs[limb + 1, at] = total
            limbs[limb + 2, at] = (total + (1 << 15)) >> 16
    return int(peak.max())


@_compiled("boolean(int64, int64, int64, int64, int64, int16[:,::1], int64[:,::1], int64, int64)")
def rows_agree(
    a: int, a_stride: int, c: int, c_stride: int, m: int, limbs: Any, challenge: Any, a_bound: int, c_bound: int
) -> bool:
    """Whether A·Y = C·R modulo 2⁶⁴ and no entry of A or C is out of bounds.

    a: m rows of k int8, k a multiple of 16. c: m rows of n int32, n a multiple of 8. limbs: (6, k), from `project_b`.
    """
    k, n = limbs.shape[1], challenge.shape[0]
    weights = np.zeros((2, n + 8), np.int32)
    for index in range(n):
        for column in range(2):
            weights[column, index] = challenge[index, column]
    a_sums, c_sums = np.empty((_BAND, A_LIMBS), np.int64), np.empty((2, 2), np.int64)
    a_peak, c_peak = np.zeros(16, np.uint8), np.zeros(8, np.uint32)
    for start in range(0, m, _BAND):
        # Rows by turns in bands, since the weights of A and of C do not fit the level-1 cache together.
        stop = min(start + _BAND, m)
        for row in range(start, stop):
            sums = _address(a_sums[row - start])
            _dot_a(a + row * a_stride, a_stride, _address(limbs), k, sums, _address(a_peak))
        for row in range(start, stop, 2):
            step = c_stride if row + 1 < m else 0  # an odd last row is taken twice
            _dot_c(c + row * c_stride, step, _address(weights), n, _address(c_sums), _address(c_peak))
            for index in range(4 if row + 1 < m else 2):
                limb = a_sums[row - start + index // 2, 3 * (index % 2) :]
                if limb[0] + (limb[1] << 16) + (limb[2] << 32) != c_sums[index // 2, index % 2]:
                    return False
    return int(a_peak.max()) <= a_bound and int(c_peak.max()) <= c_bound
