"""The key-value store below the chain: one contract, on LevelDB and in memory.

Reads may come from any thread. A `scan` shows the store as it was when `scan` was called, whatever is written while
the caller walks it. A `write` is atomic and durable when it returns. After a failed write LevelDB would report later
ones as successful and lose them on the next start, so the first error of any kind is final for a handle.

LevelDB takes a log that is missing or cut off for one that was never written, and forgets what stood in it. So batches
are numbered: each holds its number, and a file beside LevelDB's notes it once the batch is on disk. That file is not
synced, so it may be behind what is stored, never ahead: unless batches were lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, TypeVar
from weakref import WeakSet

import plyvel
from sortedcontainers import SortedDict

from consensus.crypto import H
from node.chain import schema
from node.chain.patience import patiently
from node.chain.schema import StorageError

__all__ = ["LevelStore", "MemoryStore", "StorageError", "Store", "StoreDamaged", "StoreInUse", "StoreState"]

T = TypeVar("T")

Pair = tuple[bytes, bytes]

_CACHE_BYTES = 64 << 20
_WRITE_BUFFER_BYTES = 16 << 20
_BLOOM_BITS_PER_KEY = 10

# What a LevelDB that was killed before it was complete may have left: nothing of value.
_UNBORN = frozenset({"LOCK", "LOG", "LOG.old", "MANIFEST-000001", "000001.dbtmp"})

_NOTE = "WRITTEN"
"""The file with the number of the last batch, 8 bytes big-endian, and a checksum: LevelDB passes over its name."""


class StoreInUse(StorageError):
    """Another process, or another handle of this one, has the directory open."""


class StoreDamaged(StorageError):
    """A file of the database is not what was written: no room and no permission brings it back."""


class Store(Protocol):
    """An ordered map of bytes. Every method raises StorageError, and then does so for good."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""

    def scan(self, prefix: bytes, *, reverse: bool = False, start: bytes | None = None) -> Iterator[Pair]:
        """All pairs whose key starts with `prefix`, as of this call, in key order or in `reverse`.

        `start` leaves out what comes before it in that direction: keys below it, or above it in `reverse`.
        """

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Put, or delete where the value is None: all of it, durably, or nothing."""

    def close(self) -> None:
        """Release the store; twice is once. Scans under way end in StorageError."""


class LevelStore:
    """A store in a directory, on LevelDB with every check that it has switched on."""

    def __init__(self, path: Path) -> None:
        """Open the directory, or create it.

        Raises:
            StoreInUse: another process has it open.
            StorageError: it is damaged, holds something else or another format, or the disk refuses.
        """
        self._path = path
        self._written = 0
        self._note: int | None = None
        self._refusal: StorageError | None = None
        # Two locks, so that nobody reads behind somebody's fsync; LevelDB itself must not be closed while it is in use.
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(path)
            self._db = plyvel.DB(
                str(path),
                create_if_missing=True,
                paranoid_checks=True,
                bloom_filter_bits=_BLOOM_BITS_PER_KEY,
                lru_cache_size=_CACHE_BYTES,
                write_buffer_size=_WRITE_BUFFER_BYTES,
            )
        except (plyvel.Error, OSError) as error:
            raise _opening_error(path, error) from error
        try:
            self._written = self._check_complete()
            self._check_format()
        except StorageError:
            self.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        with self._reading:
            # Reading opens a table, and no more. What fails in a scan or a write leaves LevelDB changed: that is final.
            value: bytes | None = self._attempt(lambda: patiently(lambda: self._db.get(key, verify_checksums=True)))
            return value

    def scan(self, prefix: bytes, *, reverse: bool = False, start: bytes | None = None) -> Iterator[Pair]:
        span = _span(prefix, reverse, start)
        with self._reading:
            iterator = self._attempt(
                lambda: self._db.iterator(
                    # In reverse, plyvel 1.5.1 loses a range's only pair if its key is `start`: `_walk` ends there.
                    start=None if reverse else span.lower,
                    stop=span.upper,
                    include_stop=span.closed,
                    reverse=reverse,
                    verify_checksums=True,
                )
            )
        return self._walk(iterator, span.lower)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        with self._writing:
            self._attempt(lambda: self._write(changes))

    def close(self) -> None:
        with self._writing, self._reading:
            self._refusal = self._refusal or StorageError(f"the database in {self._path} is closed")
            self._db.close()
            if self._note is not None:
                os.close(self._note)
                self._note = None

    def _write(self, changes: Mapping[bytes, bytes | None]) -> None:
        with self._db.write_batch(transaction=True, sync=True) as batch:
            for key, value in changes.items():
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            batch.put(schema.WRITTEN, schema.pack_height(self._written + 1))
        self._written += 1
        if self._note is None:
            self._note = patiently(lambda: os.open(self._path / _NOTE, os.O_WRONLY | os.O_CREAT, 0o600))
        os.pwrite(self._note, _note_of(schema.pack_height(self._written)), 0)

    def _walk(self, iterator: plyvel.Iterator, lower: bytes) -> Iterator[Pair]:
        while True:
            with self._reading:
                pair: Pair | None = self._attempt(lambda: next(iterator, None))
            if pair is None or pair[0] < lower:
                return
            yield pair

    def _attempt(self, operation: Callable[[], T]) -> T:
        """Run one operation of LevelDB; its first error is the handle's last answer."""
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args)
        try:
            return operation()
        except (plyvel.Error, OSError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        kind = StoreDamaged if _is_damage(error) else StorageError
        self._refusal = kind(f"the database in {self._path} failed: {_reason(error)}")
        raise self._refusal from error

    def _check_format(self) -> None:
        expected = str(schema.FORMAT_VERSION).encode()
        readable = [str(version).encode() for version in schema.READABLE_VERSIONS]
        stored = self.get(schema.FORMAT)
        if stored is None:
            if next(self.scan(b""), None) is not None:
                raise StorageError(f"{self._path} holds another program's database: choose another data directory")
            self.write({schema.FORMAT: expected})
        elif stored in readable:
            if stored != expected:
                self.write({schema.FORMAT: expected})
        else:
            raise StorageError(
                f"the database in {self._path} has format {stored.decode('ascii', 'replace')}, this node reads format "
                f"{schema.FORMAT_VERSION}: use the version that wrote it, or synchronise into another data directory"
            )

    def _check_complete(self) -> int:
        """The number of the last batch that is here."""
        stored = schema.unpack_height(self.get(schema.WRITTEN) or bytes(8))
        try:
            note = (self._path / _NOTE).read_bytes()
        except FileNotFoundError:
            return stored
        except OSError as error:
            raise StorageError(f"{self._path / _NOTE} cannot be read: {error.strerror}") from error
        number = note[:8]
        if note == _note_of(number) and schema.unpack_height(number) > stored:
            lost = schema.unpack_height(number) - stored
            raise StoreDamaged(
                f"the database in {self._path} has lost the last {lost} batches that were written to it, for one of "
                f"its .log files is missing or cut off (to go on without them, remove {self._path / _NOTE})"
            )
        return stored


class MemoryStore:
    """A store that ends with its process: for simulations and tests."""

    def __init__(self) -> None:
        self._pairs: SortedDict[bytes, bytes] = SortedDict()
        self._scans: WeakSet[_MemoryScan] = WeakSet()
        self._lock = threading.RLock()
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            self._check_open()
            value: bytes | None = self._pairs.get(key)
            return value

    def scan(self, prefix: bytes, *, reverse: bool = False, start: bytes | None = None) -> Iterator[Pair]:
        span = _span(prefix, reverse, start)
        with self._lock:
            self._check_open()
            keys = self._pairs.irange(span.lower, span.upper, (True, span.closed), reverse)
            scan = _MemoryScan(self, ((key, self._pairs[key]) for key in keys))
            self._scans.add(scan)
            return scan

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        with self._lock:
            self._check_open()
            for scan in self._scans:
                scan.detach()
            self._scans.clear()
            for key, value in changes.items():
                if value is None:
                    self._pairs.pop(key, None)
                else:
                    self._pairs[key] = value

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def step(self, scan: _MemoryScan) -> Pair:
        """One step of a scan, never in the middle of a write."""
        with self._lock:
            self._check_open()
            return next(scan.pairs)

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("the store is closed")


class _MemoryScan(Iterator[Pair]):
    """A scan that reads what is left of it just before the first write that comes: a snapshot that most never pay."""

    def __init__(self, store: MemoryStore, pairs: Iterator[Pair]) -> None:
        self._store = store
        self.pairs = pairs

    def __next__(self) -> Pair:
        return self._store.step(self)

    def detach(self) -> None:
        """Be independent of the map from now on."""
        self.pairs = iter(list(self.pairs))


class StoreState:
    """A state in the store, under the prefix `place`: a `consensus.state.StateReader`."""

    def __init__(self, store: Store, place: bytes = schema.STATE) -> None:
        self._store = store
        self._place = place

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(self._place + key)

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[Pair]:
        for stored, value in self._store.scan(self._place + prefix, start=self._place + max(prefix, after)):
            key = stored[len(self._place) :]
            if key != after:
                yield key, value


class _Span(NamedTuple):
    """Keys from `lower` (inclusive) to `upper` (None: the end; inclusive if `closed`)."""

    lower: bytes
    upper: bytes | None
    closed: bool


def _span(prefix: bytes, reverse: bool, start: bytes | None) -> _Span:
    # The end of a prefix's range is its successor: without trailing ff bytes, and the last byte one higher.
    stem = prefix.rstrip(b"\xff")
    end = stem[:-1] + bytes((stem[-1] + 1,)) if stem else None
    if start is None:
        return _Span(prefix, end, False)
    if not reverse:
        return _Span(max(prefix, start), end, False)
    if end is not None and start >= end:
        return _Span(prefix, end, False)
    return _Span(prefix, start, True)


def _refuse_foreign(path: Path) -> None:
    """LevelDB takes a directory without a CURRENT file for a new one, and begins afresh beside whatever is there."""
    names = {entry.name for entry in path.iterdir()}
    if "CURRENT" in names or not (others := sorted(names - _UNBORN)):
        return
    if _NOTE in others or any(name.startswith("MANIFEST-") for name in others):
        raise StoreDamaged(
            f"the database in {path} has lost its CURRENT file: restore it, or synchronise into a new one"
        )
    raise StorageError(f"{path} is not a database (it contains {others[0]}): choose another data directory")


def _note_of(number: bytes) -> bytes:
    return number + H("tw/written", number)[:8]


def _opening_error(path: Path, error: Exception) -> StorageError:
    reason = _reason(error)
    if reason.startswith("IO error: lock "):
        return StoreInUse(f"{path} is in use by another process: stop that node, or choose another data directory")
    if _is_damage(error):
        return StoreDamaged(f"the database in {path} is damaged ({reason}): restore it, or synchronise into a new one")
    return StorageError(f"the database in {path} cannot be opened: {reason}")


def _is_damage(error: Exception) -> bool:
    """Whether files are damaged. LevelDB maps its tables: of one that was cut short it reads behind the end."""
    return isinstance(error, plyvel.CorruptionError) or _reason(error).endswith(".ldb: Invalid argument")


def _reason(error: Exception) -> str:
    """plyvel's messages are LevelDB's, as bytes."""
    first = error.args[0] if error.args else None
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(error)
