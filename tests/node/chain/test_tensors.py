"""Tensors on a disk: what comes back is what the commitment says, or nothing."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consensus.codec import encode
from consensus.tensor import COLUMNS, ROWS, Tensor, verify_strip
from node.chain import tensors as tensors_module
from node.chain.store import StorageError
from node.chain.tensors import TensorStore


def make(seed: int = 0, rows: int = 192, cols: int = 128, *, columns: bool = False, product: bool = False) -> Tensor:
    rng = np.random.default_rng(seed)
    if product:
        return Tensor(rng.integers(-(2**31), 2**31, (rows, cols), np.int32))
    return Tensor(rng.integers(-63, 64, (rows, cols), np.int8), COLUMNS if columns else ROWS)


LEFT, RIGHT, PRODUCT = make(1), make(2, columns=True), make(3, product=True)
KINDS = pytest.mark.parametrize("tensor", [LEFT, RIGHT, PRODUCT], ids=["left", "right", "product"])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tensors"


@pytest.fixture(params=["cached", "uncached", "memory"])
def store(request: pytest.FixtureRequest, directory: Path) -> TensorStore:
    if request.param == "memory":
        return TensorStore(None)
    return TensorStore(directory, 128 << 20 if request.param == "cached" else 0)


def file_of(directory: Path, tensor: Tensor) -> Path:
    name = tensor.commitment.hex()
    return directory / name[:2] / f"{name[2:]}.tensor"


def same(found: Tensor | None, tensor: Tensor) -> bool:
    return (
        found is not None
        and found.commitment == tensor.commitment
        and found.matrix.dtype == tensor.matrix.dtype
        and bool((found.matrix == tensor.matrix).all())
    )


# ---------------------------------------------------------------------- keeping tensors


@KINDS
def test_what_was_added_is_there(store: TensorStore, tensor: Tensor) -> None:
    assert not store.has(tensor.commitment)
    store.add(tensor)
    assert store.has(tensor.commitment)
    assert same(store.tensor(tensor.commitment), tensor)
    assert store.spec(tensor.commitment) == tensor.spec
    assert store.commitments() == {tensor.commitment}


@KINDS
def test_strips_prove_themselves(store: TensorStore, tensor: Tensor) -> None:
    store.add(tensor)
    for index in range(tensor.spec.leaves):
        strip = store.strip(tensor.commitment, index)
        assert strip == (tensor.strip(index), tensor.path(index))
        assert verify_strip(tensor.spec, index, *strip)
    for index in (-1, tensor.spec.leaves):
        assert store.strip(tensor.commitment, index) is None


def test_what_is_not_there_is_none(store: TensorStore) -> None:
    absent = bytes(32)
    assert store.tensor(absent) is None
    assert store.spec(absent) is None
    assert store.strip(absent, 0) is None
    assert not store.has(absent)
    store.remove(absent)


def test_adding_twice_is_adding_once(store: TensorStore) -> None:
    store.add(LEFT)
    size = store.total_bytes
    store.add(make(1))
    assert store.total_bytes == size
    assert same(store.tensor(LEFT.commitment), LEFT)


def test_what_was_removed_is_gone_and_may_return(store: TensorStore) -> None:
    store.add(LEFT)
    store.add(RIGHT)
    store.remove(LEFT.commitment)
    assert store.tensor(LEFT.commitment) is None
    assert store.strip(LEFT.commitment, 0) is None
    assert store.commitments() == {RIGHT.commitment}
    store.add(LEFT)
    assert same(store.tensor(LEFT.commitment), LEFT)


def test_total_bytes_counts_what_is_kept(directory: Path) -> None:
    on_disk, in_memory = TensorStore(directory), TensorStore(None)
    for store in (on_disk, in_memory):
        for tensor in (LEFT, RIGHT, PRODUCT):
            store.add(tensor)
        store.remove(RIGHT.commitment)
    assert in_memory.total_bytes == LEFT.spec.size + PRODUCT.spec.size
    files = [file_of(directory, tensor) for tensor in (LEFT, PRODUCT)]
    assert on_disk.total_bytes == sum(file.stat().st_size for file in files)
    assert TensorStore(directory).total_bytes == on_disk.total_bytes


def test_memory_alone_forgets_nothing() -> None:
    store = TensorStore(None, cache_bytes=0)
    store.add(LEFT)
    store.add(RIGHT)
    assert store.tensor(LEFT.commitment) is LEFT


def test_the_cache_keeps_what_was_used_last_within_its_bytes(directory: Path) -> None:
    first, second, third = (make(seed, 64, 64) for seed in range(3))
    store = TensorStore(directory, cache_bytes=2 * first.spec.size)
    for tensor in (first, second, third):
        store.add(tensor)
    assert store.tensor(second.commitment) is second, "still in memory"
    assert (again := store.tensor(first.commitment)) is not first, "read anew, and the third made room for it"
    assert store.tensor(first.commitment) is again
    assert store.tensor(second.commitment) is second
    assert store.tensor(third.commitment) is not third


def test_tensors_survive_reopening(directory: Path) -> None:
    store = TensorStore(directory)
    for tensor in (LEFT, RIGHT, PRODUCT):
        store.add(tensor)
    reopened = TensorStore(directory)
    assert reopened.commitments() == store.commitments()
    for tensor in (LEFT, RIGHT, PRODUCT):
        assert same(reopened.tensor(tensor.commitment), tensor)
    assert not reopened.tensor(LEFT.commitment).matrix.flags.writeable  # type: ignore[union-attr]  # asserted above


def test_threads_may_use_one_store(directory: Path) -> None:
    kept = [make(seed, 64, 64) for seed in range(6)]
    store = TensorStore(directory, cache_bytes=2 * kept[0].spec.size)
    wrong: list[str] = []

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            tensor = kept[rng.integers(len(kept))]
            if rng.integers(3) == 0:
                store.remove(tensor.commitment)
            else:
                store.add(tensor)
            found = store.tensor(tensor.commitment)
            strip = store.strip(tensor.commitment, 0)
            if found is not None and not same(found, tensor):
                wrong.append("another tensor")
            if strip is not None and strip != (tensor.strip(0), tensor.path(0)):
                wrong.append("another strip")

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert TensorStore(directory).commitments() == store.commitments()
    for tensor in kept:
        store.remove(tensor.commitment)
        assert store.tensor(tensor.commitment) is None
    assert store.total_bytes == 0


# ---------------------------------------------------------------------- damage


HEAD_BYTES = len(b"TWTENSR1") + 2 + len(encode(LEFT.spec))
LEFT_FILE_BYTES = HEAD_BYTES + 32 * LEFT.spec.leaves + LEFT.spec.size


@pytest.mark.parametrize(
    ("offset", "reason"),
    [
        (0, "another tensor's spec"),  # the magic
        (8, "no spec"),  # the spec's length
        (HEAD_BYTES - 1, "another tensor's spec"),
        (HEAD_BYTES, "leaf hashes do not have its root"),
        (HEAD_BYTES + 32 * LEFT.spec.leaves, "matrix does not match"),
        (LEFT_FILE_BYTES - 1, "matrix does not match"),
    ],
)
def test_a_damaged_file_counts_as_absent_and_may_be_fetched_again(
    directory: Path, caplog: pytest.LogCaptureFixture, offset: int, reason: str
) -> None:
    store = TensorStore(directory, cache_bytes=0)
    store.add(LEFT)
    file = file_of(directory, LEFT)
    flip_byte(file, offset)
    with caplog.at_level(logging.WARNING, "tilework.tensors"):
        assert store.tensor(LEFT.commitment) is None
    (record,) = caplog.records
    assert record.tensor == LEFT.commitment.hex()  # type: ignore[attr-defined]  # put there by `extra`
    assert reason in record.reason  # type: ignore[attr-defined]
    assert not store.has(LEFT.commitment)
    assert not file.exists()
    store.add(LEFT)
    assert same(store.tensor(LEFT.commitment), LEFT)


@pytest.mark.parametrize("size", [0, 7, 9, HEAD_BYTES + 40, LEFT_FILE_BYTES - 1, LEFT_FILE_BYTES + 1])
@pytest.mark.parametrize("look", ["tensor", "spec", "strip"])
def test_a_file_of_another_size_counts_as_absent(directory: Path, size: int, look: str) -> None:
    store = TensorStore(directory, cache_bytes=0)
    store.add(LEFT)
    os.truncate(file_of(directory, LEFT), size)
    looks: dict[str, Callable[[], object]] = {
        "tensor": lambda: store.tensor(LEFT.commitment),
        "spec": lambda: store.spec(LEFT.commitment),
        "strip": lambda: store.strip(LEFT.commitment, 0),
    }
    assert looks[look]() is None
    assert not store.has(LEFT.commitment)


@pytest.mark.parametrize("tensor", [LEFT, RIGHT], ids=["rows", "columns"])
def test_a_damaged_strip_is_never_served(directory: Path, tensor: Tensor) -> None:
    store = TensorStore(directory, cache_bytes=0)
    store.add(tensor)
    flip_byte(file_of(directory, tensor), -1)
    assert store.strip(tensor.commitment, 0) == (tensor.strip(0), tensor.path(0)), "the damage is elsewhere"
    assert store.strip(tensor.commitment, tensor.spec.leaves - 1) is None
    assert not store.has(tensor.commitment)


def test_another_tensors_file_under_the_name_counts_as_absent(directory: Path) -> None:
    store = TensorStore(directory, cache_bytes=0)
    store.add(LEFT)
    store.add(RIGHT)
    file_of(directory, RIGHT).replace(file_of(directory, LEFT))
    assert store.tensor(LEFT.commitment) is None


def test_a_file_that_somebody_took_away_counts_as_absent(directory: Path) -> None:
    store = TensorStore(directory, cache_bytes=0)
    store.add(LEFT)
    file_of(directory, LEFT).unlink()
    assert store.has(LEFT.commitment)
    assert store.tensor(LEFT.commitment) is None
    assert not store.has(LEFT.commitment)


def test_a_sector_that_cannot_be_read_counts_as_damage(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore(directory, cache_bytes=0)
    store.add(LEFT)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(tensors_module, "_read_tensor", broken)
    assert store.tensor(LEFT.commitment) is None
    assert not store.has(LEFT.commitment)


def test_damage_does_not_take_the_file_that_replaced_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread finds damage; before it acts, another has put a good file there."""
    store = TensorStore(directory, cache_bytes=0)
    store.add(LEFT)
    good = file_of(directory, LEFT).read_bytes()
    flip_byte(file_of(directory, LEFT), -1)
    read_tensor = tensors_module._read_tensor

    def overtaken(*args: object) -> Tensor:
        replacement = directory / "replacement"
        replacement.write_bytes(good)
        replacement.replace(file_of(directory, LEFT))
        return read_tensor(*args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(tensors_module, "_read_tensor", overtaken)
    assert store.tensor(LEFT.commitment) is None
    assert store.has(LEFT.commitment)
    monkeypatch.undo()
    assert same(store.tensor(LEFT.commitment), LEFT)


def test_what_a_crash_left_is_cleared_away_and_strangers_are_not(directory: Path) -> None:
    store = TensorStore(directory)
    store.add(LEFT)
    stale = directory / "new" / "cdef.tensor-0"
    stale.write_bytes(b"half a ten")
    strangers = [directory / "ab" / "notes.txt", directory / "ab" / "zz.tensor", directory / "README"]
    (directory / "ab").mkdir(exist_ok=True)
    for stranger in strangers:
        stranger.write_text("mine")
    assert TensorStore(directory).commitments() == {LEFT.commitment}
    assert not stale.exists()
    assert all(stranger.exists() for stranger in strangers)


# ---------------------------------------------------------------------- the disk refuses


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from consensus.tensor import Tensor
from node.chain.store import StorageError
from node.chain.tensors import TensorStore
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
store = TensorStore(Path(sys.argv[1]))
small, large = (Tensor(np.zeros((64, cols), np.int8)) for cols in (128, 192))
store.add(small)
try:
    store.add(large)
except StorageError as error:
    print(error)
assert store.commitments() == {small.commitment}
assert store.tensor(large.commitment) is None
"""


def test_a_tensor_that_does_not_fit_leaves_nothing_behind(directory: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert child.returncode == 0, child.stderr
    assert "cannot be written: File too large" in child.stdout
    assert list((directory / "new").iterdir()) == []
    assert len(TensorStore(directory).commitments()) == 1


@pytest.mark.parametrize("call", [1, 2, 3], ids=["the file", "the directory of directories", "the directory"])
def test_nothing_counts_as_kept_before_it_is_on_disk(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    store = TensorStore(directory)
    calls = 0

    def failing_fsync(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        store.add(LEFT)
    assert not store.has(LEFT.commitment)
    assert store.tensor(LEFT.commitment) is None
    assert list((directory / "new").iterdir()) == []
    store.add(LEFT)
    assert calls > call
    assert same(TensorStore(directory).tensor(LEFT.commitment), LEFT)


def test_a_removal_is_durable_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore(directory)
    store.add(LEFT)
    synced: list[Path] = []
    monkeypatch.setattr(tensors_module, "_sync_directory", synced.append)
    store.remove(LEFT.commitment)
    assert synced == [file_of(directory, LEFT).parent]


def test_a_path_that_is_no_directory(directory: Path) -> None:
    directory.write_text("a file")
    with pytest.raises(StorageError, match="cannot be opened: Not a directory"):
        TensorStore(directory)


def flip_byte(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0xFF
    file.write_bytes(data)
