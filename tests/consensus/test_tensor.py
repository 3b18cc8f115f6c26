"""Tensors: commitments, strips and their paths."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from consensus import tensor
from consensus.codec import encode
from consensus.proofs import merkle
from consensus.tensor import COLUMNS, INT8, ROWS, Tensor, TensorSpec
from tests.builders import operand


def h(tag: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32, person=tag).digest()


def test_a_commitment_by_hand() -> None:
    """Two 64-row strips of a 128×64 int8 matrix: 0x96 opens an array of six, 0xcc a u8, 0xc4 0x20 32 bytes."""
    matrix = operand(128, 64)
    leaves = [h(b"tw/leaf", matrix[:64].tobytes()), h(b"tw/leaf", matrix[64:].tobytes())]
    root = h(b"tw/root", b"\x02\0\0\0" + h(b"tw/node", leaves[0] + leaves[1]))
    fields = b"\x96" + b"\x00" + b"\x00" + b"\xcc\x80" + b"\x40" + b"\x02" + b"\xc4\x20" + root
    assert Tensor(matrix).commitment == h(b"tw/tensor", fields)
    assert Tensor(matrix).spec == tensor.left_spec(128, 64, root)


def test_a_right_operands_strips_are_columns() -> None:
    matrix = operand(128, 192)
    right = Tensor(matrix, COLUMNS)
    assert right.spec.leaves == 3
    assert right.strip(1) == matrix[:, 64:128].tobytes()
    assert right.spec == tensor.right_spec(128, 192, right.spec.root)
    assert right.commitment != Tensor(matrix).commitment


def test_products_are_little_endian_int32_rows() -> None:
    matrix = np.arange(64 * 64, dtype=np.int32).reshape(64, 64) - 5
    product = Tensor(matrix)
    assert product.strip(0) == b"".join(int(x).to_bytes(4, "little", signed=True) for x in matrix.ravel())
    assert product.spec == tensor.product_spec(64, 64, product.spec.root)


def test_dtype_side_and_shape_are_bound() -> None:
    spec = Tensor(operand(128, 128)).spec
    others = [
        replace(spec, dtype=tensor.INT32),
        replace(spec, side=COLUMNS),
        replace(spec, rows=64),
        replace(spec, cols=64),
        replace(spec, leaves=1),
    ]
    assert len({s.commitment for s in [spec, *others]}) == 6


@pytest.mark.parametrize("side", [ROWS, COLUMNS])
@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_strips_prove_themselves_and_assemble(side: Any, dtype: Any) -> None:
    whole = Tensor(operand(192, 320).astype(dtype), side)
    strips = [whole.strip(i) for i in range(whole.spec.leaves)]
    for i, strip in enumerate(strips):
        assert tensor.verify_strip(whole.spec, i, strip, whole.path(i))
        assert not tensor.verify_strip(whole.spec, i, strip[:-1], whole.path(i))
        assert not tensor.verify_strip(whole.spec, i, strip[:-1] + bytes([strip[-1] ^ 1]), whole.path(i))
        assert not tensor.verify_strip(whole.spec, (i + 1) % len(strips), strip, whole.path(i))
    again = tensor.assemble(whole.spec, strips)
    assert again.commitment == whole.commitment
    assert np.array_equal(again.matrix, whole.matrix)
    assert merkle.root(whole.leaves) == whole.spec.root


def test_assemble_refuses_missing_swapped_and_false_strips() -> None:
    whole = Tensor(operand(128, 64))
    first, second = whole.strip(0), whole.strip(1)
    for strips in ([first], [first, second, first], [second, first], [first, bytes(len(second))], [first, second[:-1]]):
        with pytest.raises(ValueError, match=r"strips?|bytes"):
            tensor.assemble(whole.spec, strips)


def test_assemble_refuses_a_shape_that_is_none() -> None:
    with pytest.raises(ValueError, match="strips"):
        tensor.assemble(TensorSpec(INT8, ROWS, 64, 8192, 1, bytes(32)), [bytes(64 * 8192)])
    with pytest.raises(ValueError, match="strips"):
        tensor.assemble(TensorSpec(INT8, ROWS, 128, 64, 1, bytes(32)), [bytes(128 * 64)])


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (63, 64), (64, 100), (4160, 64), (64, 8192), (64,), (64, 64, 1)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"64…4096|2-D"):
        Tensor(np.zeros(shape, np.int8))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64, bool, ">i4"])
def test_wrong_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="int8 or int32"):
        Tensor(np.zeros((64, 64), dtype))


def test_a_tensor_does_not_change_with_the_array_that_it_was_made_from() -> None:
    source = operand(64, 64)
    committed = Tensor(source)
    strip = committed.strip(0)
    source[0, 0] ^= 1
    assert committed.strip(0) == strip
    with pytest.raises(ValueError, match="read-only"):
        committed.matrix[0, 0] = 1


def test_any_memory_order_gives_the_same_commitment() -> None:
    matrix = operand(128, 64)
    assert Tensor(np.asfortranarray(matrix)).commitment == Tensor(matrix).commitment
    assert Tensor(operand(256, 128)[::2, ::2].copy()).commitment == Tensor(operand(256, 128)[::2, ::2]).commitment


def test_operand_range() -> None:
    matrix = np.zeros((64, 64), np.int8)
    for entry, inside in ((63, True), (-63, True), (64, False), (-64, False), (-128, False), (127, False)):
        matrix[3, 5] = entry
        assert tensor.in_operand_range(matrix) is inside
    matrix[3, 5] = -64
    assert tensor.in_operand_range(matrix, bound=64)


def test_sizes() -> None:
    spec = tensor.product_spec(128, 192, bytes(32))
    assert (spec.size, spec.strip_size) == (128 * 192 * 4, 64 * 192 * 4)
    assert encode(spec)[0] == 0x96
