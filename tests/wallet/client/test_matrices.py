"""What may be multiplied, and .npy files of every kind."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wallet.client.matrices import as_operand, as_operands, from_npy, load_matrix, save_matrix, to_npy
from wallet.errors import ExitCode, WalletError

GOOD = np.array([[1, -63], [63, 0]])


def test_operands_become_int8_whatever_integers_they_were() -> None:
    for dtype in (np.int8, np.int16, np.int64, np.uint8):
        operand = as_operand(np.abs(GOOD).astype(dtype), "x")
        assert operand.dtype == np.int8
        assert np.array_equal(operand, np.abs(GOOD))
    assert as_operand([[1, 2]], "x").flags.c_contiguous
    assert as_operand(np.asfortranarray(GOOD), "x").flags.c_contiguous


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros(3, np.int8), "1 dimensions"),
        (np.zeros((1, 2, 3), np.int8), "3 dimensions"),
        (np.zeros((0, 3), np.int8), "empty, 0×3"),
        (np.zeros((2, 2)), "type is float64"),
        (np.array([[np.nan, 1.0]]), "1 entries are NaN"),
        (np.array([[np.inf, np.nan]], np.float32), "2 entries are NaN"),
        (np.zeros((2, 2), bool), "type is bool"),
        (np.array([["a"]]), "type is <U1"),
        (np.array([[None]]), "type is object"),
        (np.zeros((2, 2), complex), "type is complex128"),
        (np.array([[64]]), r"in \[64, 64\], beyond"),
        (np.array([[-64, 0]], np.int8), r"in \[-64, 0\], beyond"),
        (np.array([[2**63]], np.uint64), "beyond"),
    ],
)
def test_other_matrices_are_refused_with_a_fix(matrix: Any, message: str) -> None:
    with pytest.raises(WalletError, match=message) as caught:
        as_operand(matrix, "x")
    assert (caught.value.code, caught.value.exit_code) == ("matrix-invalid", ExitCode.USAGE)
    assert caught.value.message.startswith("x: ")
    assert caught.value.fix


def test_shapes_must_fit() -> None:
    as_operands(np.ones((2, 3), int), np.ones((3, 4), int))
    with pytest.raises(WalletError, match="2×3 and w is 2×3") as caught:
        as_operands(np.ones((2, 3), int), np.ones((2, 3), int))
    assert caught.value.code == "shape-mismatch"


def test_files_are_read_as_numpy_wrote_them(tmp_path: Path) -> None:
    for array in (GOOD, GOOD.astype(">i2"), np.asfortranarray(np.arange(6).reshape(2, 3)), np.ones(3), np.ones((0, 2))):
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(load_matrix(tmp_path / "a.npy"), array)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def promising(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|i1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOF"),
        (b"not an array", "magic"),
        (b"PK\x03\x04 a zip archive", "magic"),
        (npy(np.array([[1, None]], dtype=object), allow_pickle=True), "pickled objects"),
        (npy(GOOD)[:-1], "promises"),
        (npy(GOOD) + b"x", "promises"),
        (promising((2**40, 2**40)), "promises"),
        (promising((-1, -1)), "promises"),
        (promising((1 << 31, 1 << 31)), "promises"),
        (npy(GOOD)[:40], "header"),
        (b"\x93NUMPY\x02\x00P", "header"),
        (promising((True, True)) + b"1", "shape"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535, "header"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "version"),
    ],
)
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(WalletError, match=message) as caught:
        load_matrix(path)
    assert (caught.value.code, caught.value.exit_code) == ("not-a-matrix-file", ExitCode.USAGE)
    assert "numpy.save" in caught.value.fix


def test_a_file_that_promises_a_large_header_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x1f{")
    tracemalloc.start()
    with pytest.raises(WalletError, match="header has 536870911 bytes"):
        load_matrix(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_files_that_are_missing_or_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WalletError, match="there is no") as caught:
        load_matrix(tmp_path / "none.npy")
    assert caught.value.exit_code == ExitCode.NOT_FOUND
    with pytest.raises(WalletError, match="cannot read"):
        load_matrix(tmp_path)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "c.npy"
    save_matrix(path, GOOD)
    save_matrix(path, GOOD * 2)
    assert np.array_equal(np.load(path), GOOD * 2)
    with pytest.raises(WalletError, match="cannot write"):
        save_matrix(tmp_path / "none" / "c.npy", GOOD)
    assert [file.name for file in tmp_path.iterdir()] == ["c.npy"]


def test_bytes_from_a_node_must_be_what_was_asked_for() -> None:
    product = np.arange(64 * 128, dtype=np.int32).reshape(64, 128)
    data = to_npy(product).read()
    assert np.array_equal(from_npy(data, np.int32, (64, 128)), product)
    for dtype, shape in ((np.int32, (128, 64)), (np.int64, (64, 128))):
        with pytest.raises(ValueError, match="expected"):
            from_npy(data, dtype, shape)
    for other in (data[:-1], data + b"x", data[:9]):
        with pytest.raises(ValueError, match=r"expected|header"):
            from_npy(other, np.int32, (64, 128))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
@given(st.binary(max_size=200), st.integers(0, 60))
def test_mangled_bytes_never_do_more_than_raise(noise: bytes, at: int) -> None:
    whole = to_npy(np.ones((64, 64), np.int8)).read()
    mangled = whole[:at] + noise + whole[at + len(noise) :]
    try:
        load = from_npy(mangled, np.int8, (64, 64))
    except ValueError:
        return
    assert load.shape == (64, 64)
