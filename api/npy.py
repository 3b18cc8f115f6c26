"""The heads of `.npy` files, which carry matrices over HTTP (numpy's format, NEP 1, versions 1.0 to 3.0).

A head is read strictly: at most a kilobyte that says little-endian int8 or int32 in C order, with the sides of a
tensor. So nothing is unpickled, and nothing is allocated before the shape is checked.
"""

from __future__ import annotations

import ast
import io
from typing import Any, NamedTuple

import numpy as np

from consensus.params import MAX_TENSOR_BYTES
from consensus.shape import MAX_DIMENSION, TILE_SIDE, is_side

MAX_HEAD_BYTES = 1024
"""numpy writes 128 bytes; other programs pad differently."""
PREFIX_BYTES = 8

SAVE = "Save it with numpy.save from an int8 or int32 array in C order."

_MAGIC = b"\x93NUMPY"
_DTYPES: dict[str, np.dtype[Any]] = {"|i1": np.dtype("i1"), "<i1": np.dtype("i1"), "<i4": np.dtype("<i4")}


class HeadError(ValueError):
    """Not the head of a tensor's file. `message` says why, `fix` what to do; `too_large`: only its size is wrong."""

    def __init__(self, message: str, fix: str, too_large: bool = False) -> None:
        self.message = message
        self.fix = fix
        self.too_large = too_large
        super().__init__(f"{message}: {fix}")


class Head(NamedTuple):
    """What a head says: `size` is the number of bytes behind it."""

    dtype: np.dtype[Any]
    rows: int
    cols: int

    @property
    def size(self) -> int:
        return self.rows * self.cols * self.dtype.itemsize


def length_bytes(prefix: bytes) -> int:
    """How many bytes behind the eight of `prefix` tell the length of the head's text. Raises `HeadError`."""
    if prefix[:6] != _MAGIC or prefix[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise HeadError("The body is no .npy file", SAVE)
    return 2 if prefix[6] == 1 else 4


def text_bytes(length: bytes) -> int:
    """The length of the head's text. Raises `HeadError` where it is too long."""
    size = int.from_bytes(length, "little")
    if size > MAX_HEAD_BYTES:
        raise HeadError(f"A .npy header of {size} bytes", SAVE)
    return size


def parse_text(text: bytes) -> Head:
    """The head's dictionary, checked. Raises `HeadError`."""
    try:
        fields = ast.literal_eval(text.decode("ascii").strip())
        description, is_fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        if len(fields) != 3:
            raise ValueError("unknown fields")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise HeadError("The .npy header cannot be read", SAVE) from None
    dtype = _DTYPES.get(description) if isinstance(description, str) else None
    if dtype is None:
        fix = "Convert it first: operands with .astype('int8'), products with .astype('<i4')."
        raise HeadError(f"A tensor is int8 or little-endian int32, not {description!r:.40}", fix)
    if is_fortran is not False:
        raise HeadError("The array is not in C order", "Save numpy.ascontiguousarray(array).")
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(side) is int for side in shape)):
        raise HeadError(f"A tensor has two dimensions, not {shape!r:.40}", "Upload one matrix.")
    if not all(map(is_side, shape)):
        fix = f"Pad it with zeros, or slice it: both sides are multiples of {TILE_SIDE} up to {MAX_DIMENSION}."
        raise HeadError(f"A tensor cannot have {shape[0]} × {shape[1]} entries", fix)
    head = Head(dtype, *shape)
    if head.size > MAX_TENSOR_BYTES:
        fix = f"Slice it: at most {MAX_TENSOR_BYTES} bytes of entries."
        raise HeadError(f"A tensor of {head.size} bytes is too large", fix, too_large=True)
    return head


def parse(data: bytes) -> tuple[Head, int]:
    """The head at the beginning of a whole file, and how many bytes it takes. Raises `HeadError`."""
    width = length_bytes(data[:PREFIX_BYTES])
    begin = PREFIX_BYTES + width
    end = begin + text_bytes(data[PREFIX_BYTES:begin])
    return parse_text(data[begin:end]), end


def head(dtype: np.dtype[Any], rows: int, cols: int) -> bytes:
    """Magic, version and text of a tensor's file: what stands before its bytes in C order."""
    text = io.BytesIO()
    description = "|i1" if dtype == np.int8 else "<i4"
    np.lib.format.write_array_header_1_0(text, {"descr": description, "fortran_order": False, "shape": (rows, cols)})
    return text.getvalue()
