"""Users' matrices: what may be multiplied, and reading and writing it as .npy files (numpy's format, never pickled).

A header is checked before anything is allocated: a file or an answer cannot ask for more memory than it has bytes.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from api import npy
from consensus.shape import OPERAND_BOUND
from wallet.errors import ExitCode, WalletError
from worker.files import give_name

Int8Matrix = npt.NDArray[np.int8]
Int32Matrix = npt.NDArray[np.int32]
Matmul = Callable[[Int8Matrix, Int8Matrix], Awaitable[Int32Matrix]]
"""The exact product of (rows, k) and (k, n) operands in [−63, 63]; the shapes are natural, padding is its affair."""

INT32_MAX = 2**31 - 1

_MAX_FILE_HEADER_BYTES = 4096

_READ_HEADER = {(1, 0): (np.lib.format.read_array_header_1_0, 2), (2, 0): (np.lib.format.read_array_header_2_0, 4)}
"""Version → numpy's reader, and how many bytes tell the length of what it reads."""


def as_operand(matrix: npt.ArrayLike, name: str) -> Int8Matrix:
    """`matrix` as an int8 operand: 2-D, not empty, of an integer type, entries in [−63, 63].

    Raises `WalletError` (matrix-invalid) that says what to do.
    """
    array = np.asarray(matrix)
    if array.ndim != 2:
        fix = "give a 2-D array: x[None, :] makes one row of a vector"
        raise _invalid(name, f"it has {array.ndim} dimensions", fix)
    if 0 in array.shape:
        raise _invalid(name, f"it is empty, {array.shape[0]}×{array.shape[1]}", "give at least one row and one column")
    if array.dtype.kind not in "iu":
        raise _invalid(name, *_wrong_type(array))
    low, high = int(array.min()), int(array.max())
    if low < -OPERAND_BOUND or high > OPERAND_BOUND:
        fix = "quantise to 7 bits, or split larger integers into limbs of base 127 and add the products"
        raise _invalid(name, f"its entries lie in [{low}, {high}], beyond [−{OPERAND_BOUND}, {OPERAND_BOUND}]", fix)
    return np.ascontiguousarray(array, np.int8)


def as_operands(x: npt.ArrayLike, w: npt.ArrayLike) -> tuple[Int8Matrix, Int8Matrix]:
    """Both operands of x·w. Raises `WalletError` (matrix-invalid, shape-mismatch)."""
    left, right = as_operand(x, "x"), as_operand(w, "w")
    if left.shape[1] != right.shape[0]:
        (m, k), (k2, n) = left.shape, right.shape
        message = f"x is {m}×{k} and w is {k2}×{n}: the inner dimensions differ"
        raise WalletError("shape-mismatch", message, "transpose one, or swap them", ExitCode.USAGE)
    return left, right


def load_matrix(path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file. Raises `WalletError`: file-not-found, not-a-matrix-file."""
    try:
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise WalletError("file-not-found", f"there is no {path}", "check the path", ExitCode.NOT_FOUND) from error
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise WalletError("not-a-matrix-file", message, "check the path and its mode", ExitCode.USAGE) from error
    except ValueError as error:
        fix = "save it with numpy.save(path, array): an array of integers, not of objects"
        raise WalletError("not-a-matrix-file", f"{path}: {error}", fix, ExitCode.USAGE) from error


def save_matrix(path: Path, matrix: npt.NDArray[Any], *, replace: bool = True) -> None:
    """Write a .npy file, whole or not at all. Raises `WalletError`: file-not-written, file-exists unless it is to
    `replace` what is there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                np.lib.format.write_array(file, matrix, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                give_name(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise WalletError("file-exists", f"{path} exists already", "choose another name, or give --force") from None
    except OSError as error:
        fix = "check the directory and the free space, then try again"
        raise WalletError(
            "file-not-written", f"cannot write {path}: {error.strerror}", fix, ExitCode.INTERNAL
        ) from error


def to_npy(matrix: npt.NDArray[Any]) -> io.BytesIO:
    """An int8 or int32 matrix as the bytes of a .npy file."""
    return io.BytesIO(npy.head(matrix.dtype, *matrix.shape) + np.ascontiguousarray(matrix).tobytes())


def from_npy(data: bytes, dtype: npt.DTypeLike, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """The tensor in the bytes of a .npy file, not writeable. Raises `ValueError` unless it has this type and shape."""
    head, begin = npy.parse(data)
    if head.dtype != dtype or (head.rows, head.cols) != shape:
        raise ValueError(f"got {head.dtype} {head.rows}×{head.cols}, expected {np.dtype(dtype)} {shape}")
    if len(data) != begin + head.size:
        raise ValueError(f"{len(data)} bytes, expected {begin + head.size}")
    return np.frombuffer(data, head.dtype, offset=begin).reshape(shape)


def _read(file: BinaryIO, size: int) -> npt.NDArray[Any]:
    """The array in `file`, which holds `size` bytes; ValueError if it is something else."""
    version = np.lib.format.read_magic(file)
    if version not in _READ_HEADER:
        raise ValueError("it is a .npy file of a version that holds no plain numbers")
    read_header, length_bytes = _READ_HEADER[version]
    begin = file.tell()
    length = int.from_bytes(file.read(length_bytes), "little")
    if length > _MAX_FILE_HEADER_BYTES:  # numpy would make room for all of it first
        raise ValueError(f"its header has {length} bytes")
    file.seek(begin)
    try:
        shape, is_fortran, dtype = read_header(file, max_header_size=_MAX_FILE_HEADER_BYTES)
    except Exception as error:  # numpy's parser also raises what Python's tokenizer and literals raise
        raise ValueError("its header is not one of a .npy file") from error
    if not all(type(side) is int for side in shape):  # numpy takes True for one, until it makes an array of it
        raise ValueError("its shape is not one of integers")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    count = 1
    for side in shape:
        count *= side
    rest = size - file.tell()
    if count < 0 or count * dtype.itemsize != rest:
        raise ValueError(f"its header promises {count * dtype.itemsize} bytes, it has {rest}")
    data = file.read(rest)
    if len(data) != rest:
        raise ValueError("it ends early")
    array: npt.NDArray[Any] = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")


def _wrong_type(array: npt.NDArray[Any]) -> tuple[str, str]:
    if array.dtype.kind != "f":
        return f"its type is {array.dtype}, not an integer type", "convert it: x.astype(numpy.int8)"
    odd = int(np.count_nonzero(~np.isfinite(array)))
    what = f"its type is {array.dtype}" + (f", and {odd} entries are NaN or infinite" if odd else "")
    return what, "quantise it to integers in [−63, 63] first: the product is exact, so rounding is your choice"


def _invalid(name: str, fault: str, fix: str) -> WalletError:
    return WalletError("matrix-invalid", f"{name}: {fault}", fix, ExitCode.USAGE)
