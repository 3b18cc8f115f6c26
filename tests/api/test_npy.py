"""Heads of `.npy` files: whatever is read is refused or fits, and what is written is what numpy writes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import npy


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_text_is_read_or_refused(text: bytes) -> None:
    try:
        head = npy.parse_text(text)
    except npy.HeadError:
        return
    assert head.size <= 32 << 20


@given(st.binary(max_size=200) | st.binary(max_size=190).map(lambda rest: b"\x93NUMPY\1\0" + rest))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        head, begin = npy.parse(data)
    except npy.HeadError:
        return
    assert 0 < begin <= len(data)
    assert head.size <= 32 << 20


@pytest.mark.parametrize("dtype", [np.int8, np.int32])
@pytest.mark.parametrize("shape", [(64, 64), (4096, 64), (128, 192)])
def test_numpy_reads_what_is_written_and_the_other_way_round(dtype: type, shape: tuple[int, int]) -> None:
    matrix = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    file = io.BytesIO()
    np.save(file, matrix)
    assert npy.head(matrix.dtype, *shape) + matrix.tobytes() == file.getvalue()
    head, begin = npy.parse(file.getvalue())
    assert (head.dtype, head.rows, head.cols, begin + head.size) == (dtype, *shape, len(file.getvalue()))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version: tuple[int, int]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ones((64, 128), np.int8), version=version)
    assert npy.parse(file.getvalue())[0] == (np.dtype(np.int8), 64, 128)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"\x93NUMPY\4\0", b"\x93NUMPY\1\0\xff\xff", b"PK\3\4" + bytes(9)])
def test_what_is_no_head_says_what_to_do(data: bytes) -> None:
    with pytest.raises(npy.HeadError, match=r"numpy\.save"):
        npy.parse(data)
