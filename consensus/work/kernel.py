"""The work function for x86-64 with AVX2: numba functions around vector instructions in LLVM IR and assembly.

Two kernels multiply a 4×16 register tile over the whole inner dimension, folding the running sums at every chunk's end:

wide    operands as pairs of int16, `vpmaddwd`: any noised operands.
narrow  operands as quads of bytes, `vpmaddubsw` (unsigned × signed): operands of 7 bits, so idle units, whose operands
        are pure noise, and products without noise. 1.4 times as fast.

Recovery costs no pass of its own. With U = Σ_c A_c Q_c (the gathers of A by q) and V = Σ_c P_c B'_c,

    A·B = A'·B' − U·right − left·V,

so two more chunks, [−U | −left] × [right ; V], run through the wide kernel after the last fold and leave the true
product in the registers. |U| ≤ 63·64 and |V| ≤ 127·64 fit int16; the sums may wrap on their way, the result is exact.

Packed layouts (strips hold all of the inner dimension, so that the kernels read forwards only):

    rows      [group of 4 rows][pair or quad of inner indices][row][index in the pair or quad]
    columns   [strip of 16 columns][pair or quad][column][index in the pair or quad]

A slot is an index of 0 … 63, plus 64 where the sign is −1: tables hold both signs, so signs cost nothing.

Matrices of the caller come as addresses with a stride in bytes: arrays would compile anew for each mix of layout and
writability. Every other array is made here or in `engine`. All intrinsics and the functions that use them share this
file, since numba's cache looks for changes in a function's own file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from consensus.shape import TILE_SIDE
from consensus.work.unit import LANES

GROUP = 4
STRIP = 16
TAIL = 2 * TILE_SIDE
"""Inner indices that recovery appends."""
SLOTS = 2 * TILE_SIDE
WIDE_BYTES = 2
"""Size of a packed entry of the wide kernel; the narrow kernel's take one byte."""
IDLE_BIAS = 64
PLAIN_BIAS = 63

_CHUNK_PAIRS = TILE_SIDE // 2
_CHUNK_QUADS = TILE_SIDE // 4

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Numba's own types for these describe neither how an intrinsic is called nor what the helpers take.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic
_tools: Any = cgutils

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_Address = ir.PointerType()

llvmlite.binding.initialize_native_asmparser()  # for inline assembly


class _Vectors:
    """Loads, stores and shuffles of vectors: a thin layer over an LLVM builder. Addresses need no alignment."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def pointer(self, address: ir.Value) -> ir.Value:
        return self.builder.inttoptr(address, _Address)

    def at(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        offset = _I64(offset) if isinstance(offset, int) else offset
        return self.builder.gep(pointer, [offset], source_etype=_I8)

    def load(self, kind: ir.Type, pointer: ir.Value, offset: ir.Value | int = 0) -> ir.Value:
        return self.builder.load(self.at(pointer, offset), typ=kind, align=1)

    def store(self, value: ir.Value, pointer: ir.Value, offset: ir.Value | int = 0) -> None:
        self.builder.store(value, self.at(pointer, offset), align=1)

    def shuffle(self, first: ir.Value, second: ir.Value, lanes: list[int]) -> ir.Value:
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))

    def splat(self, scalar: ir.Value, count: int) -> ir.Value:
        empty = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
        return self.shuffle(self.builder.insert_element(empty, scalar, _I32(0)), empty, [0] * count)

    def interleave(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """first[0], second[0], first[1], second[1], …"""
        count = first.type.count
        return self.shuffle(first, second, [lane for i in range(count) for lane in (i, count + i)])

    def part(self, vector: ir.Value, start: int, count: int) -> ir.Value:
        return self.shuffle(vector, vector, list(range(start, start + count)))

    def cast(self, vector: ir.Value, element: ir.Type, count: int) -> ir.Value:
        return self.builder.bitcast(vector, ir.VectorType(element, count))

    def widen(self, vector: ir.Value, element: ir.Type) -> ir.Value:
        return self.builder.sext(vector, ir.VectorType(element, vector.type.count))

    def transposed_pairs(self, rows: ir.Value, stride: ir.Value) -> list[ir.Value]:
        """4 rows × 16 columns of int8, widened: for each two columns 8 int16, row by row."""
        words = []
        for _ in range(GROUP):
            row = self.builder.sext(self.load(ir.VectorType(_I8, 16), rows), ir.VectorType(_I16, 16))
            words.append(self.cast(row, _I32, 8))
            rows = self.at(rows, stride)
        upper, lower = (self.cast(self.interleave(*pair), _I64, 8) for pair in (words[:2], words[2:]))
        transposed = self.interleave(upper, lower)
        return [self.cast(self.part(transposed, 2 * pair, 2), _I16, 8) for pair in range(8)]

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = _tools.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, arguments)


def _vector_code(emit: Callable[..., None], count: int) -> tuple[Any, Callable[..., Any]]:
    """What an intrinsic returns: a void signature of `count` int64 arguments, and the code that `emit` writes."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        emit(_Vectors(builder), *arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * count), generate


_PAIR_STEPS = 4
"""Pairs of the inner dimension that `_PAIR_CODE` multiplies."""
_PAIR_TEMPORARIES = 8


def _pair_code() -> str:
    """Assembly that adds `_PAIR_STEPS` pairs to a register tile: sums in $0 … $7, operands at $16 (a) and $17 (b).

    A product waits until four more are on their way. The processor binds an instruction to a port before its operands
    are ready, so sums right behind their products, as compilers put them, crowd the multipliers: a tenth slower.
    """
    lines: list[str] = []
    waiting: list[str] = []
    for step in range(_PAIR_STEPS):
        lines += [f"vmovdqu {64 * step}($17), $8", f"vmovdqu {64 * step + 32}($17), $9"]
        for row in range(GROUP):
            word = 10 + 2 * (GROUP * step + row) % 6
            lines.append(f"vpbroadcastd {4 * (GROUP * step + row)}($16), ${word}")
            lines += [f"vpmaddwd $8, ${word}, ${word + 1}", f"vpmaddwd $9, ${word}, ${word}"]
            waiting += [f"vpaddd ${word + 1 - half}, ${2 * row + half}, ${2 * row + half}" for half in range(2)]
            lines, waiting = lines + waiting[:-4], waiting[-4:]
    return "\n".join(lines + waiting)


_PAIR_CODE = _pair_code()


class _RegisterTile:
    """4 rows × 16 columns of int32 sums, in eight registers over all of the inner dimension.

    (Blocking the inner dimension for the level-1 cache did not pay, nor did larger tiles.)
    """

    _HALF = ir.VectorType(_I32, 8)

    def __init__(self, v: _Vectors, a: ir.Value, b: ir.Value) -> None:
        self._v = v
        self._a = _tools.alloca_once_value(v.builder, v.pointer(a))
        self._b = _tools.alloca_once_value(v.builder, v.pointer(b))
        zero = ir.Constant(self._HALF, None)
        self._sums = [[_tools.alloca_once_value(v.builder, zero) for _ in range(2)] for _ in range(GROUP)]

    def _add(self, row: int, half: int, term: ir.Value) -> None:
        builder, slot = self._v.builder, self._sums[row][half]
        builder.store(builder.add(builder.load(slot, typ=self._HALF), term), slot)

    def _operands(self, step: int) -> tuple[list[ir.Value], list[ir.Value]]:
        """Four broadcast words of a, one for each row, and the 16 columns' words of b, `step` words ahead."""
        v = self._v
        a, b = v.builder.load(self._a, typ=_Address), v.builder.load(self._b, typ=_Address)
        rows = [v.splat(v.load(_I32, a, 4 * (GROUP * step + row)), 8) for row in range(GROUP)]
        return rows, [v.load(self._HALF, b, 4 * (STRIP * step + 8 * half)) for half in range(2)]

    def _advance(self, words: int) -> None:
        v = self._v
        for slot, size in ((self._a, 4 * GROUP * words), (self._b, 4 * STRIP * words)):
            v.builder.store(v.at(v.builder.load(slot, typ=_Address), size), slot)

    def add_pairs(self, count: ir.Value) -> None:
        """Multiply `count` pairs of int16, a multiple of `_PAIR_STEPS`."""
        builder, slots = self._v.builder, [slot for row in self._sums for slot in row]
        ties = [str(index) for index in range(len(slots))]
        constraints = ["=x"] * len(slots) + ["=&x"] * _PAIR_TEMPORARIES + ["r", "r", *ties, "~{memory}"]
        results = ir.LiteralStructType([self._HALF] * (len(slots) + _PAIR_TEMPORARIES))
        signature = ir.FunctionType(results, [_Address] * 2 + [self._HALF] * len(slots))
        code = ir.InlineAsm(signature, _PAIR_CODE, ",".join(constraints), side_effect=True)
        with _tools.for_range(builder, builder.udiv(count, _I64(_PAIR_STEPS))):
            addresses = [builder.load(slot, typ=_Address) for slot in (self._a, self._b)]
            sums = builder.call(code, addresses + [builder.load(slot, typ=self._HALF) for slot in slots])
            for index, slot in enumerate(slots):
                builder.store(builder.extract_value(sums, index), slot)
            self._advance(_PAIR_STEPS)

    def add_quads(self, count: int) -> None:
        """Multiply `count` quads, unsigned bytes of a (≤ 127) by signed bytes of b (≥ −64, ≤ 64): an even number.

        A word of int16 takes four products, each in [−127·64, 127·64], so at most 32512 in magnitude: exact.
        """
        v = self._v
        ones = ir.Constant(ir.VectorType(_I16, 16), [1] * 16)
        with _tools.for_range(v.builder, _I64(count // 2)):
            first, second = self._operands(0), self._operands(1)
            for r in range(GROUP):
                for h in range(2):
                    terms = [
                        v.call(
                            "llvm.x86.avx2.pmadd.ub.sw",
                            ones.type,
                            v.cast(rows[r], _I8, 32),
                            v.cast(columns[h], _I8, 32),
                        )
                        for rows, columns in (first, second)
                    ]
                    self._add(r, h, v.call("llvm.x86.avx2.pmadd.wd", self._HALF, v.builder.add(*terms), ones))
            self._advance(2)

    def add_to_columns(self, words: ir.Value) -> None:
        """Add 16 int32 at `words` to every row."""
        for half in range(2):
            word = self._v.load(self._HALF, words, 32 * half)
            for row in range(GROUP):
                self._add(row, half, word)

    def fold_into(self, words: ir.Value) -> None:
        """XOR every row into the 16 words at `words`."""
        v = self._v
        for half in range(2):
            folded = v.load(self._HALF, words, 32 * half)
            for row in self._sums:
                folded = v.builder.xor(folded, v.builder.load(row[half], typ=self._HALF))
            v.store(folded, words, 32 * half)

    def store(self, out: ir.Value, stride: ir.Value) -> None:
        v = self._v
        start = v.pointer(out)
        for row in self._sums:
            for half in range(2):
                v.store(v.builder.load(row[half], typ=self._HALF), start, 32 * half)
            start = v.at(start, stride)


@_intrinsic
def _wide_tile(_: Any, a: Any, b: Any, chunks: Any, tail: Any, folds: Any, out: Any, stride: Any) -> Any:
    """4 rows × 16 columns: `chunks` chunks, folded into folds[chunk], then `tail` pairs that are not.

    The sums go to `out`, rows `stride` bytes apart.
    """

    def emit(v: _Vectors, a: Any, b: Any, chunks: Any, tail: Any, folds: Any, out: Any, stride: Any) -> None:
        tile = _RegisterTile(v, a, b)
        start = v.pointer(folds)
        with _tools.for_range(v.builder, chunks) as loop:
            tile.add_pairs(_I64(_CHUNK_PAIRS))
            tile.fold_into(v.at(start, v.builder.mul(loop.index, _I64(4 * LANES))))
        tile.add_pairs(tail)
        tile.store(out, stride)

    return _vector_code(emit, 7)


@_intrinsic
def _narrow_tile(_: Any, a: Any, b: Any, chunks: Any, offsets: Any, folds: Any, out: Any, stride: Any) -> Any:
    """4 rows × 16 columns as in `_wide_tile`, offsets[chunk] (16 int32) being added to every row before a fold."""

    def emit(v: _Vectors, a: Any, b: Any, chunks: Any, offsets: Any, folds: Any, out: Any, stride: Any) -> None:
        tile = _RegisterTile(v, a, b)
        words, corrections = v.pointer(folds), v.pointer(offsets)
        with _tools.for_range(v.builder, chunks) as loop:
            tile.add_quads(_CHUNK_QUADS)
            offset = v.builder.mul(loop.index, _I64(4 * LANES))
            tile.add_to_columns(v.at(corrections, offset))
            tile.fold_into(v.at(words, offset))
        tile.store(out, stride)

    return _vector_code(emit, 7)


@_intrinsic
def _noise_rows(
    _: Any, a: Any, stride: Any, p: Any, q: Any, low: Any, high: Any, sums_low: Any, sums_high: Any, out: Any
) -> Any:
    """Pack 4 rows × 16 columns of A' as eight 16-byte vectors, one for each pair of columns.

    p, q: the columns' 16 slots (int64). low, high: the noise of 4 rows for each slot, in the lower or upper half of a
    32-bit word. The columns of A are summed by q: even ones in the lower halves of sums_low, odd ones in the upper
    halves of sums_high; the other halves gather nonsense.
    """

    def emit(
        v: _Vectors, a: Any, stride: Any, p: Any, q: Any, low: Any, high: Any, sums_low: Any, sums_high: Any, out: Any
    ) -> None:
        builder = v.builder
        columns = v.transposed_pairs(v.pointer(a), stride)
        p, q, low, high, sums_low, sums_high, out = map(v.pointer, (p, q, low, high, sums_low, sums_high, out))
        kind = ir.VectorType(_I16, 8)

        def entry(table: ir.Value, slots: ir.Value, column: int) -> ir.Value:
            return v.at(table, builder.shl(v.load(_I64, slots, 8 * column), _I64(4)))

        for pair, plain in enumerate(columns):
            even, odd = 2 * pair, 2 * pair + 1
            noise = builder.or_(v.load(kind, entry(low, p, even)), v.load(kind, entry(high, p, odd)))
            v.store(builder.add(plain, noise), out, 16 * pair)
            for total in (entry(sums_low, q, even), entry(sums_high, q, odd)):
                v.store(builder.add(v.load(kind, total), plain), total)

    return _vector_code(emit, 9)


@_intrinsic
def _noise_tables(_: Any, left: Any, low: Any, high: Any, tail: Any) -> Any:
    """Fill 4 rows' tables for `_noise_rows` from their noise, 64 int8 a row, and pack its negative as a chunk."""

    def emit(v: _Vectors, left: Any, low: Any, high: Any, tail: Any) -> None:
        builder = v.builder
        left, low, high, tail = map(v.pointer, (left, low, high, tail))
        half, upper = ir.Constant(ir.VectorType(_I32, 4), [16] * 4), ir.Constant(ir.VectorType(_I32, 4), [-65536] * 4)
        for column in range(0, TILE_SIDE, 16):
            for index, pair in enumerate(v.transposed_pairs(v.at(left, column), _I64(TILE_SIDE)), column // 2):
                negative = builder.neg(pair)
                v.store(negative, tail, 16 * index)
                for part, first in ((pair, 2 * index), (negative, 2 * index + TILE_SIDE)):
                    words = v.cast(part, _I32, 4)
                    v.store(builder.lshr(builder.shl(words, half), half), low, 16 * first)
                    v.store(builder.lshr(words, half), low, 16 * first + 16)
                    v.store(builder.shl(words, half), high, 16 * first)
                    v.store(builder.and_(words, upper), high, 16 * first + 16)

    return _vector_code(emit, 4)


@_intrinsic
def _recovery_rows(_: Any, sums_low: Any, sums_high: Any, out: Any) -> Any:
    """Pack −U for 4 rows as a chunk, from the sums that `_noise_rows` left."""

    def emit(v: _Vectors, sums_low: Any, sums_high: Any, out: Any) -> None:
        builder = v.builder
        sums_low, sums_high, out = map(v.pointer, (sums_low, sums_high, out))
        half, upper = ir.Constant(ir.VectorType(_I32, 4), [16] * 4), ir.Constant(ir.VectorType(_I32, 4), [-65536] * 4)

        def negative(sums: ir.Value, slot: ir.Value) -> ir.Value:
            eight, at = ir.VectorType(_I16, 8), (slot, v.builder.add(slot, _I64(16 * TILE_SIDE)))
            plus, minus = (v.load(eight, sums, address) for address in at)
            return v.cast(builder.sub(minus, plus), _I32, 4)

        with _tools.for_range(builder, _I64(_CHUNK_PAIRS)) as loop:
            even = builder.shl(loop.index, _I64(5))
            odd = builder.add(even, _I64(16))
            first = builder.add(negative(sums_low, even), builder.lshr(negative(sums_high, even), half))
            second = builder.add(
                builder.shl(negative(sums_low, odd), half), builder.and_(negative(sums_high, odd), upper)
            )
            pair = builder.or_(builder.lshr(builder.shl(first, half), half), second)
            v.store(pair, out, builder.shl(loop.index, _I64(4)))

    return _vector_code(emit, 3)


@_intrinsic
def _noise_columns(_: Any, b: Any, stride: Any, p: Any, q: Any, noise: Any, sums: Any, out: Any) -> Any:
    """Pack 2 rows × 16 columns of B' as 64 bytes, and sum its rows by p.

    p, q: the rows' 2 slots (int64). noise, sums: 16 int16 for each slot.
    """

    def emit(v: _Vectors, b: Any, stride: Any, p: Any, q: Any, noise: Any, sums: Any, out: Any) -> None:
        builder = v.builder
        p, q, noise, sums = map(v.pointer, (p, q, noise, sums))
        kind = ir.VectorType(_I16, 16)
        row, rows = v.pointer(b), []
        for index in range(2):
            plain = v.widen(v.load(ir.VectorType(_I8, 16), row), _I16)
            q_offset, p_offset = (builder.shl(v.load(_I64, slots, 8 * index), _I64(5)) for slots in (q, p))
            noisy = builder.add(plain, v.load(kind, noise, q_offset))
            v.store(builder.add(v.load(kind, sums, p_offset), noisy), sums, p_offset)
            rows.append(noisy)
            row = v.at(row, stride)
        v.store(v.interleave(*rows), v.pointer(out))

    return _vector_code(emit, 7)


@_intrinsic
def _interleave_pair(_: Any, first: Any, second: Any, out: Any) -> Any:
    """Pack two rows of 16 int16 as 64 bytes."""

    def emit(v: _Vectors, first: Any, second: Any, out: Any) -> None:
        rows = [v.load(ir.VectorType(_I16, 16), v.pointer(row)) for row in (first, second)]
        v.store(v.interleave(*rows), v.pointer(out))

    return _vector_code(emit, 3)


@_intrinsic
def _interleave_quad(_: Any, first: Any, second: Any, third: Any, fourth: Any, out: Any, stride: Any) -> Any:
    """Pack four rows of 16 bytes as quads: 16-byte pieces of four quads each, `stride` bytes apart."""

    def emit(v: _Vectors, first: Any, second: Any, third: Any, fourth: Any, out: Any, stride: Any) -> None:
        rows = [v.load(ir.VectorType(_I8, 16), v.pointer(row)) for row in (first, second, third, fourth)]
        upper, lower = (v.cast(v.interleave(*pair), _I16, 16) for pair in (rows[:2], rows[2:]))
        quads = v.cast(v.interleave(upper, lower), _I32, 16)
        piece = v.pointer(out)
        for start in range(0, 16, 4):
            v.store(v.part(quads, start, 4), piece)
            piece = v.at(piece, stride)

    return _vector_code(emit, 6)


@_intrinsic
def _biased_quads(_: Any, a: Any, stride: Any, out: Any) -> Any:
    """Pack 4 rows × 16 columns of A + 63 as four quads of each row."""

    def emit(v: _Vectors, a: Any, stride: Any, out: Any) -> None:
        row, rows = v.pointer(a), []
        bias = ir.Constant(ir.VectorType(_I8, 16), [PLAIN_BIAS] * 16)
        for _row in range(GROUP):
            rows.append(v.cast(v.builder.add(v.load(ir.VectorType(_I8, 16), row), bias), _I32, 4))
            row = v.at(row, stride)
        upper, lower = (v.cast(v.interleave(*pair), _I64, 4) for pair in (rows[:2], rows[2:]))
        v.store(v.interleave(upper, lower), v.pointer(out))

    return _vector_code(emit, 3)


@_intrinsic
def _chunk_offsets(_: Any, columns: Any, bias: Any, out: Any) -> Any:
    """−bias · (the sums of a packed chunk's 16 columns), 16 int32: what takes the rows' bias out of a product."""

    def emit(v: _Vectors, columns: Any, bias: Any, out: Any) -> None:
        pairs, half = ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
        ones = ir.Constant(ir.VectorType(_I8, 32), [1] * 32)
        factor = v.splat(v.builder.trunc(v.builder.neg(bias), _I16), 16)
        columns, out = v.pointer(columns), v.pointer(out)
        totals = [ir.Constant(half, None)] * 2
        for quad in range(_CHUNK_QUADS):
            for h in range(2):
                quads = v.load(ones.type, columns, 4 * (STRIP * quad + 8 * h))
                sums = v.call("llvm.x86.avx2.pmadd.ub.sw", pairs, ones, quads)
                totals[h] = v.builder.add(totals[h], v.call("llvm.x86.avx2.pmadd.wd", half, sums, factor))
        for h, total in enumerate(totals):
            v.store(total, out, 32 * h)

    return _vector_code(emit, 3)


@_intrinsic
def _address(_: Any, array: Any) -> Any:
    """Where the array's first entry is. Numba's own `.ctypes.data` is unsigned: adding an int64 to it makes a float."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, _I64)

    return types.int64(array), generate


def _compiled(signature: str) -> Callable[[_Function], _Function]:
    """Compile for one signature, at import: arrays of any other kind are a TypeError, not a second version."""
    decorator: Callable[[_Function], Any] = njit(signature, cache=True, nogil=True, error_model="numpy")
    return decorator


def _inlined(function: _Function) -> _Function:
    """For functions that only compiled ones call: compiled with them, so not loaded by themselves."""
    compiled: Any = njit(error_model="numpy")(function)
    return cast(_Function, compiled)


@_inlined
def _advance_state(state: Any, folds: Any) -> None:
    """Run one tile's folds, 16 words for each chunk, through state ← rotl(state, 13) ⊕ fold; clear them."""
    for start in range(0, folds.size, LANES):
        for lane in range(LANES):
            rotated = (state[lane] << np.uint32(13)) | (state[lane] >> np.uint32(19))
            state[lane] = rotated ^ folds[start + lane]
            folds[start + lane] = 0


@_compiled("void(uint32[::1], int64[::1])")
def draw_slots(words: Any, slots: Any) -> None:
    """Signed permutations from their words, as `noise.signed_permutations` draws them.

    A word's place in its chunk's stable order is the number of words that come before it: 64² comparisons, but eight at
    a time, are less work than a sort.
    """
    values, positions = np.empty(TILE_SIDE, np.int32), np.arange(TILE_SIDE).astype(np.int32)
    for start in range(0, words.size, TILE_SIDE):
        for index in range(TILE_SIDE):
            values[index] = words[start + index] >> 1
        for index in range(TILE_SIDE):
            value, position = values[index], np.int32(index)
            place = np.int32(0)
            for other in range(TILE_SIDE):
                # Of equal words the earlier comes first: v ≤ value is v − 1 < value.
                earlier = np.int32(positions[other] < position)
                place += np.int32(np.int32(values[other] - earlier) < value)
            slots[start + place] = index
        for index in range(TILE_SIDE):
            slots[start + index] += TILE_SIDE * (words[start + index] & 1)


@_compiled("void(int64, int64, int64, int8[:,::1], int64[::1], int64[::1], uint8[:,::1])")
def pack_wide_columns(first: int, last: int, b: int, right: Any, p: Any, q: Any, columns: Any) -> None:
    """Pack the 64 columns of B' that belong to each of the tiles `first` … `last` − 1 and, below them, [right ; V].

    b: address of B, (k, n) int8. right: (64, n). p, q: (k,) slots. columns: (n/64, 64·(k + 128)·2).
    """
    k, n = p.size, right.shape[1]
    strips = TILE_SIDE // STRIP
    strip_size = STRIP * (k + TAIL) * WIDE_BYTES
    pair_size = 2 * STRIP * WIDE_BYTES
    for tile in range(first, last):
        noise, sums = np.empty((strips, SLOTS, STRIP), np.int16), np.zeros((strips, SLOTS, STRIP), np.int16)
        for index in range(TILE_SIDE):
            for strip in range(strips):
                start = TILE_SIDE * tile + STRIP * strip
                for column in range(STRIP):
                    word = np.int16(right[index, start + column])
                    noise[strip, index, column] = word
                    noise[strip, TILE_SIDE + index, column] = -word
        # Chunk by chunk, since 64 rows' cache lines stay in the cache for all four strips; all k rows' would not.
        for start in range(0, k, TILE_SIDE):
            for strip in range(strips):
                noise_at, sums_at = _address(noise[strip]), _address(sums[strip])
                corner = b + TILE_SIDE * tile + STRIP * strip
                out = _address(columns[tile]) + strip * strip_size + start * STRIP * WIDE_BYTES
                for row in range(start, start + TILE_SIDE, 2):
                    p_at, q_at = _address(p) + 8 * row, _address(q) + 8 * row
                    _noise_columns(corner + row * n, n, p_at, q_at, noise_at, sums_at, out)
                    out += pair_size
        for strip in range(strips):
            for index in range(TILE_SIDE):
                for column in range(STRIP):
                    sums[strip, index, column] -= sums[strip, TILE_SIDE + index, column]
            out = _address(columns[tile]) + strip * strip_size + k * STRIP * WIDE_BYTES
            for table in (noise[strip], sums[strip]):
                for index in range(0, TILE_SIDE, 2):
                    _interleave_pair(_address(table[index]), _address(table[index + 1]), out)
                    out += pair_size


@_inlined
def _pack_wide_rows(band: int, a: int, left: Any, p: Any, q: Any, rows: Any) -> None:
    """Pack 64 rows of A' and, behind them, [−U | −left]."""
    k = p.size
    tables = np.empty((4, SLOTS, 2 * GROUP), np.int16)
    low, high = _address(tables[0]), _address(tables[1])
    sums_low, sums_high = _address(tables[2]), _address(tables[3])
    out = _address(rows)
    for row in range(TILE_SIDE * band, TILE_SIDE * (band + 1), GROUP):
        recovery = out + GROUP * k * WIDE_BYTES
        noise = recovery + GROUP * TILE_SIDE * WIDE_BYTES
        _noise_tables(_address(left[row]), low, high, noise)
        tables[2:] = 0
        for column in range(0, k, 16):
            p_at, q_at = _address(p) + 8 * column, _address(q) + 8 * column
            _noise_rows(a + row * k + column, k, p_at, q_at, low, high, sums_low, sums_high, out)
            out += 16 * GROUP * WIDE_BYTES
        _recovery_rows(sums_low, sums_high, recovery)
        out += GROUP * TAIL * WIDE_BYTES


@_compiled(
    "void(int64, int64, int64, int8[:,::1], int64[::1], int64[::1], boolean,"
    " uint8[::1], uint8[:,::1], int32[:,::1], uint32[:,:,::1])"
)
def evaluate_wide_rows(
    first: int,
    last: int,
    a: int,
    left: Any,
    p: Any,
    q: Any,
    recover: bool,
    rows: Any,
    columns: Any,
    product: Any,
    states: Any,
) -> None:
    """Multiply the bands `first` … `last` − 1, of 64 rows each, with all columns.

    a: address of A, (m, k) int8. left: (m, 64). p, q: (k,) slots. recover: store the true product, else the noised one.
    rows: 64·(k + 128)·2 bytes of scratch. columns: packed. product: (m, n). states: (m/64, n/64, 16) of zeros.
    """
    k, n = p.size, product.shape[1]
    folds = np.zeros(k // TILE_SIDE * LANES, np.uint32)
    row_size = WIDE_BYTES * (k + TAIL)
    tail = TAIL // 2 if recover else 0
    for band in range(first, last):
        _pack_wide_rows(band, a, left, p, q, rows)
        for tile in range(n // TILE_SIDE):
            for column in range(0, TILE_SIDE, STRIP):
                b = _address(columns[tile]) + column * row_size
                out = _address(product[TILE_SIDE * band]) + 4 * (TILE_SIDE * tile + column)
                for row in range(0, TILE_SIDE, GROUP):
                    a_at, out_at = _address(rows) + row * row_size, out + 4 * n * row
                    _wide_tile(a_at, b, k // TILE_SIDE, tail, _address(folds), out_at, 4 * n)
            _advance_state(states[band, tile], folds)


@_compiled("void(int64, int64, int8[:,::1], int64[::1], uint8[::1])")
def pack_noise_rows(band: int, bias: int, left: Any, p: Any, rows: Any) -> None:
    """Pack the noise of 64 rows, plus a bias, as quads. left: (m, 64). p: (k,) slots. rows: 64·k bytes."""
    k = p.size
    table = np.empty((SLOTS, 16), np.int8)
    for first in range(0, TILE_SIDE, 16):
        for index in range(TILE_SIDE):
            for row in range(16):
                noise = left[TILE_SIDE * band + first + row, index]
                table[index, row] = bias + noise
                table[TILE_SIDE + index, row] = bias - noise
        at = _address(table)
        out = _address(rows) + first * k
        for c in range(0, k, 4):
            a0, a1, a2, a3 = at + 16 * p[c], at + 16 * p[c + 1], at + 16 * p[c + 2], at + 16 * p[c + 3]
            _interleave_quad(a0, a1, a2, a3, out, GROUP * k)
            out += 4 * GROUP


@_compiled("void(int64, int64, int8[:,::1], int64[::1], uint8[:,::1], int32[:,:,:,::1])")
def pack_noise_columns(first: int, last: int, right: Any, q: Any, columns: Any, offsets: Any) -> None:
    """Pack the noise of the columns of the tiles `first` … `last` − 1, ±right[q]: bytes in [−64, 64].

    right: (64, n). q: (k,) slots. columns: (n/64, 64·k). offsets: (n/64, 4, k/64, 16), see `_chunk_offsets`.
    """
    k = q.size
    table = np.empty((SLOTS, STRIP), np.int8)
    for tile in range(first, last):
        for strip in range(TILE_SIDE // STRIP):
            start = TILE_SIDE * tile + STRIP * strip
            for index in range(TILE_SIDE):
                for column in range(STRIP):
                    table[index, column] = right[index, start + column]
                    table[TILE_SIDE + index, column] = -right[index, start + column]
            at = _address(table)
            out = _address(columns[tile]) + strip * STRIP * k
            for chunk in range(k // TILE_SIDE):
                packed = out
                for r in range(TILE_SIDE * chunk, TILE_SIDE * (chunk + 1), 4):
                    b0, b1, b2, b3 = at + 16 * q[r], at + 16 * q[r + 1], at + 16 * q[r + 2], at + 16 * q[r + 3]
                    _interleave_quad(b0, b1, b2, b3, out, 16)
                    out += 4 * STRIP
                _chunk_offsets(packed, IDLE_BIAS, _address(offsets[tile, strip, chunk]))


@_compiled("void(int64, int64, int64, int64, uint8[:,::1], int32[:,:,:,::1])")
def pack_plain_columns(first: int, last: int, b: int, n: int, columns: Any, offsets: Any) -> None:
    """Pack columns of B. b: address of B, (k, n) int8. Else as `pack_noise_columns`."""
    chunks = offsets.shape[2]
    for tile in range(first, last):
        for chunk in range(chunks):
            for strip in range(TILE_SIDE // STRIP):
                packed = out = _address(columns[tile]) + STRIP * TILE_SIDE * (strip * chunks + chunk)
                corner = b + TILE_SIDE * (chunk * n + tile) + STRIP * strip
                for r in range(0, TILE_SIDE, 4):
                    row = corner + r * n
                    _interleave_quad(row, row + n, row + 2 * n, row + 3 * n, out, 16)
                    out += 4 * STRIP
                _chunk_offsets(packed, PLAIN_BIAS, _address(offsets[tile, strip, chunk]))


@_inlined
def _multiply_narrow(band: int, rows: Any, columns: Any, offsets: Any, product: Any, states: Any) -> None:
    """Multiply 64 packed rows with all packed columns. states: (n/64, 16) of zeros, the band's own."""
    chunks, n = offsets.shape[2], product.shape[1]
    folds = np.zeros(chunks * LANES, np.uint32)
    row_size = TILE_SIDE * chunks
    for tile in range(n // TILE_SIDE):
        for strip in range(TILE_SIDE // STRIP):
            b, offset = _address(columns[tile]) + STRIP * strip * row_size, _address(offsets[tile, strip])
            out = _address(product[TILE_SIDE * band]) + 4 * (TILE_SIDE * tile + STRIP * strip)
            for row in range(0, TILE_SIDE, GROUP):
                a, out_at = _address(rows) + row * row_size, out + 4 * n * row
                _narrow_tile(a, b, chunks, offset, _address(folds), out_at, 4 * n)
        _advance_state(states[tile], folds)


@_compiled(
    "void(int64, int64, int8[:,::1], int64[::1], uint8[::1],"
    " uint8[:,::1], int32[:,:,:,::1], int32[:,::1], uint32[:,:,::1])"
)
def evaluate_noise_rows(
    first: int, last: int, left: Any, p: Any, rows: Any, columns: Any, offsets: Any, product: Any, states: Any
) -> None:
    """Multiply bands of noise with all columns. rows: 64·k bytes of scratch. Else as `evaluate_wide_rows`."""
    for band in range(first, last):
        pack_noise_rows(band, IDLE_BIAS, left, p, rows)
        _multiply_narrow(band, rows, columns, offsets, product, states[band])


@_compiled("void(int64, int64, int64, uint8[::1], uint8[:,::1], int32[:,:,:,::1], int32[:,::1])")
def multiply_plain_rows(first: int, last: int, a: int, rows: Any, columns: Any, offsets: Any, product: Any) -> None:
    """Multiply bands of A, as they are, with all columns. a: address of A, (m, k) int8. rows: 64·k bytes."""
    k = TILE_SIDE * offsets.shape[2]
    unused = np.empty((product.shape[1] // TILE_SIDE, LANES), np.uint32)
    for band in range(first, last):
        out = _address(rows)
        for row in range(TILE_SIDE * band, TILE_SIDE * (band + 1), GROUP):
            for column in range(0, k, 16):
                _biased_quads(a + row * k + column, k, out)
                out += 16 * GROUP
        _multiply_narrow(band, rows, columns, offsets, product, unused)
