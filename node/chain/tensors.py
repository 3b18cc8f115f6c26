"""Where tensors are kept: one file each, named by the commitment that its bytes must hash to.

    <directory>/ab/cdef….tensor     `ab` and `cdef…` are the commitment in hexadecimal
    <directory>/new/…               files being written; what a crash left there goes at the next start

    8 bytes "TWTENSR1" ‖ u16 length of the spec, little-endian ‖ spec (canonical) ‖ leaf hashes of the strips ‖ matrix

The matrix is row-major and little-endian. A file shows under its name only when it is complete and on disk, and is
checked against its name whenever it is read: one that was damaged is removed and counts as absent, so that it is
fetched again. Whoever opens the directory holds the lock of the database beside it (`node.chain.store`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from consensus.codec import decode, encode
from consensus.errors import ConsensusError
from consensus.proofs import merkle
from consensus.shape import TILE_SIDE
from consensus.tensor import INT8, ROWS, Matrix, Tensor, TensorSpec
from node.chain.patience import patiently
from node.chain.store import StorageError

R = TypeVar("R")

logger = logging.getLogger("tilework.tensors")

Strip = tuple[bytes, tuple[bytes, ...]]
"""A strip's bytes and its Merkle path."""

_MAGIC = b"TWTENSR1"
_SUFFIX = ".tensor"
_MAX_HEAD_BYTES = 4096
"""64 leaf hashes, a spec of at most 50 bytes and ten more fit well."""
_MAX_SPEC_BYTES = 64
_HASH_BYTES = 32


class TensorStore:
    """Tensors by commitment; a `consensus.proofs.products.TensorSource`. Thread-safe.

    Reading, adding and removing touch the disk and hash every byte: not for an event loop. `has`, `commitments` and
    `total_bytes` do neither. Where there is an error of the disk, StorageError.
    """

    def __init__(self, directory: Path | None, cache_bytes: int = 128 << 20) -> None:
        """Open `directory`, or create it; None keeps every tensor in memory.

        Args:
            directory: where the files are.
            cache_bytes: bytes of matrices, last used, that stay in memory beside the files.
        """
        self._files = None if directory is None else _Files(directory)
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def tensor(self, commitment: bytes) -> Tensor | None:
        """The tensor, if it is here and undamaged."""
        tensor = self._cached(commitment)
        if tensor is None and self._files is not None:
            tensor = self._files.load(commitment)
            if tensor is not None:
                self._remember(tensor)
        return tensor

    def has(self, commitment: bytes) -> bool:
        """Whether the tensor is here. Damage shows only when it is read: after that, False."""
        return commitment in self._cache if self._files is None else self._files.has(commitment)

    def spec(self, commitment: bytes) -> TensorSpec | None:
        """The description of a tensor that is here."""
        tensor = self._cached(commitment)
        if tensor is not None:
            return tensor.spec
        return None if self._files is None else self._files.spec(commitment)

    def strip(self, commitment: bytes, index: int) -> Strip | None:
        """One strip and its path, verified, without loading the others; None if there is no such strip."""
        tensor = self._cached(commitment)
        if tensor is not None:
            return (tensor.strip(index), tensor.path(index)) if 0 <= index < tensor.spec.leaves else None
        return None if self._files is None else self._files.strip(commitment, index)

    def add(self, tensor: Tensor) -> None:
        """Keep a tensor: on disk, to stay, before this returns. Adding it again does nothing."""
        if self._files is not None:
            self._files.add(tensor)
        self._remember(tensor)

    def remove(self, commitment: bytes) -> None:
        """Forget a tensor, if it is here."""
        if self._files is not None:
            self._files.remove(commitment)
        with self._lock:
            gone = self._cache.pop(commitment, None)
            if gone is not None:
                self._cached_bytes -= gone.spec.size

    def commitments(self) -> frozenset[bytes]:
        """Of all tensors that are here."""
        with self._lock:
            return frozenset(self._cache) if self._files is None else self._files.commitments()

    @property
    def total_bytes(self) -> int:
        """What all tensors take: files with their heads, or matrices where all is in memory."""
        return self._cached_bytes if self._files is None else self._files.total_bytes

    def _cached(self, commitment: bytes) -> Tensor | None:
        with self._lock:
            tensor = self._cache.get(commitment)
            if tensor is not None:
                self._cache.move_to_end(commitment)
            return tensor

    def _remember(self, tensor: Tensor) -> None:
        with self._lock:
            if tensor.commitment in self._cache:
                return
            if self._files is not None and not self._files.has(tensor.commitment):
                return  # it was removed while it was being read
            self._cache[tensor.commitment] = tensor
            self._cached_bytes += tensor.spec.size
            while self._files is not None and self._cached_bytes > self._cache_bytes:
                self._cached_bytes -= self._cache.popitem(last=False)[1].spec.size


class _Damaged(Exception):
    """A file's bytes are not those of the tensor that it is named for."""


@dataclass(frozen=True)
class _Head:
    """What stands before the matrix: `offset` bytes."""

    spec: TensorSpec
    leaves: tuple[bytes, ...]
    offset: int


class _Files:
    """The directory of files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._new = directory / "new"
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        try:
            self._new.mkdir(mode=0o700, parents=True, exist_ok=True)
            for stale in self._new.iterdir():
                stale.unlink()
            self._sizes = dict(self._listed())
        except OSError as error:
            raise _storage_error(f"the tensors in {directory} cannot be opened", error) from error

    def has(self, commitment: bytes) -> bool:
        return commitment in self._sizes

    def commitments(self) -> frozenset[bytes]:
        with self._lock:
            return frozenset(self._sizes)

    @property
    def total_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def spec(self, commitment: bytes) -> TensorSpec | None:
        return self._examine(commitment, lambda file, head: head.spec)

    def load(self, commitment: bytes) -> Tensor | None:
        return self._examine(commitment, _read_tensor)

    def strip(self, commitment: bytes, index: int) -> Strip | None:
        return self._examine(commitment, lambda file, head: _read_strip(file, head, index))

    def add(self, tensor: Tensor) -> None:
        if self.has(tensor.commitment):
            return
        target = self._path(tensor.commitment)
        temporary = self._new / f"{target.name}-{next(self._numbers)}"
        try:
            size = _write(temporary, tensor)
            with self._lock:
                if not target.parent.is_dir():
                    target.parent.mkdir(mode=0o700)
                    _sync_directory(self._directory)
                temporary.replace(target)
                _sync_directory(target.parent)
                self._sizes[tensor.commitment] = size
        except OSError as error:
            with suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise _storage_error(f"tensor {tensor.commitment.hex()} cannot be written", error) from error

    def remove(self, commitment: bytes) -> None:
        path = self._path(commitment)
        try:
            with self._lock:
                if self._sizes.pop(commitment, None) is not None:
                    path.unlink(missing_ok=True)
                    # Else it might come back after a crash, when nobody remembers to remove it again.
                    _sync_directory(path.parent)
        except OSError as error:
            raise _storage_error(f"tensor {commitment.hex()} cannot be removed", error) from error

    def _examine(self, commitment: bytes, look: Callable[[BinaryIO, _Head], R]) -> R | None:
        """What `look` makes of a tensor's file; None if it is not here, or damaged and therefore no longer here."""
        if not self.has(commitment):
            return None
        try:
            with patiently(lambda: self._path(commitment).open("rb")) as file:
                try:
                    return look(file, _read_head(file, commitment))
                except _Damaged as damage:
                    self._discard(commitment, file, str(damage))
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    self._discard(commitment, file, "the disk cannot read it")
        except FileNotFoundError:
            with self._lock:
                # Not there, yet listed: somebody else took it away. (A `remove` would have taken it off the list.)
                if not self._path(commitment).exists() and self._sizes.pop(commitment, None) is not None:
                    logger.warning("tensor lost", extra={"tensor": commitment.hex(), "reason": "its file is gone"})
        except OSError as error:
            raise _storage_error(f"tensor {commitment.hex()} cannot be read", error) from error
        return None

    def _discard(self, commitment: bytes, file: BinaryIO, reason: str) -> None:
        path = self._path(commitment)
        with self._lock:
            # Another thread may have replaced the file already. While this one is open its inode is not used again.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                path.unlink()
                self._sizes.pop(commitment, None)
                logger.warning("tensor lost", extra={"tensor": commitment.hex(), "reason": reason})

    def _path(self, commitment: bytes) -> Path:
        name = commitment.hex()
        return self._directory / name[:2] / (name[2:] + _SUFFIX)

    def _listed(self) -> list[tuple[bytes, int]]:
        listed = []
        for path in self._directory.glob(f"??/*{_SUFFIX}"):
            with suppress(ValueError):
                commitment = bytes.fromhex(path.parent.name + path.name.removesuffix(_SUFFIX))
                if len(commitment) == _HASH_BYTES and path == self._path(commitment):
                    listed.append((commitment, path.stat().st_size))
        return listed


def _write(path: Path, tensor: Tensor) -> int:
    """Write a new file down to the disk; its size in bytes."""
    spec = encode(tensor.spec)
    head = b"".join((_MAGIC, len(spec).to_bytes(2, "little"), spec, *tensor.leaves))
    with patiently(lambda: path.open("xb")) as file:
        file.write(head)
        file.write(np.ascontiguousarray(tensor.matrix, _dtype(tensor.spec)).data)
        file.flush()
        os.fsync(file.fileno())
    return len(head) + tensor.spec.size


def _read_head(file: BinaryIO, commitment: bytes) -> _Head:
    """The head of a file, true to the commitment and as long as it says."""
    data = file.read(_MAX_HEAD_BYTES)
    start = len(_MAGIC) + 2
    spec_end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    try:
        spec = decode(TensorSpec, data[start:spec_end], _MAX_SPEC_BYTES)
    except ConsensusError as error:
        raise _Damaged("it has no spec") from error
    if not data.startswith(_MAGIC) or spec.commitment != commitment:
        raise _Damaged("it has another tensor's spec")
    offset = spec_end + _HASH_BYTES * spec.leaves
    leaves = tuple(data[i : i + _HASH_BYTES] for i in range(spec_end, offset, _HASH_BYTES))
    if merkle.root(leaves) != spec.root:
        raise _Damaged("its leaf hashes do not have its root")
    if os.fstat(file.fileno()).st_size != offset + spec.size:
        raise _Damaged("it has another size")
    return _Head(spec, leaves, offset)


def _read_tensor(file: BinaryIO, head: _Head) -> Tensor:
    spec = head.spec
    tensor = Tensor(_read_rows(file, head, 0, spec.rows), spec.side)
    if tensor.spec != spec:
        raise _Damaged("its matrix does not match its commitment")
    return tensor


def _read_strip(file: BinaryIO, head: _Head, index: int) -> Strip | None:
    spec = head.spec
    if not 0 <= index < spec.leaves:
        return None
    if spec.side == ROWS:
        data = _read_rows(file, head, index * TILE_SIDE, TILE_SIDE).tobytes()
    else:
        # Every row has 64 entries of the strip, so every page is read anyway: in order, and a few at a time.
        part = slice(index * TILE_SIDE, (index + 1) * TILE_SIDE)
        rows = range(0, spec.rows, TILE_SIDE)
        data = b"".join(_read_rows(file, head, row, TILE_SIDE)[:, part].tobytes() for row in rows)
    if merkle.leaf_hash(data) != head.leaves[index]:
        raise _Damaged(f"its strip {index} does not match its leaf hash")
    return data, merkle.path(head.leaves, index)


def _read_rows(file: BinaryIO, head: _Head, first: int, count: int) -> Matrix:
    """Rows of the matrix, (count, cols)."""
    row_bytes = head.spec.size // head.spec.rows
    file.seek(head.offset + first * row_bytes)
    data = file.read(count * row_bytes)
    if len(data) != count * row_bytes:
        raise _Damaged("it is cut off")
    return np.frombuffer(data, _dtype(head.spec)).reshape(count, head.spec.cols)


def _dtype(spec: TensorSpec) -> np.dtype[np.int8] | np.dtype[np.int32]:
    return np.dtype("<i1") if spec.dtype == INT8 else np.dtype("<i4")


def _sync_directory(path: Path) -> None:
    """Make a directory's entries durable: a rename is not until then (fsync(2))."""
    descriptor = patiently(lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(what: str, error: OSError) -> StorageError:
    return StorageError(f"{what}: {error.strerror or error}")
