"""The store: one contract for LevelDB and memory, and what a directory on a disk can suffer."""

from __future__ import annotations

import gc
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import plyvel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.state import Overlay
from node.chain import schema
from node.chain.store import LevelStore, MemoryStore, StorageError, Store, StoreDamaged, StoreInUse, StoreState

PAIRS = {b"a": b"0", b"b": b"1", b"b\x00": b"2", b"b\xff": b"3", b"b\xff\xff": b"4", b"c": b"", b"\xff\xff": b"6"}


@pytest.fixture(params=["level", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Store = LevelStore(tmp_path / "db") if request.param == "level" else MemoryStore()
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def filled(store: Store) -> Store:
    store.write(PAIRS)
    return store


# ---------------------------------------------------------------------- the contract


def test_what_was_written_is_read(store: Store) -> None:
    filled(store)
    assert {key: store.get(key) for key in PAIRS} == PAIRS
    assert store.get(b"absent") is None
    assert store.get(b"c") == b"", "an empty value is a value"


def test_a_batch_puts_replaces_and_deletes(store: Store) -> None:
    filled(store).write({b"a": None, b"b": b"new", b"d": b"4", b"absent": None})
    assert [store.get(key) for key in (b"a", b"b", b"d", b"absent")] == [None, b"new", b"4", None]
    store.write({})


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [
        (b"b", [b"b", b"b\x00", b"b\xff", b"b\xff\xff"]),
        (b"b\xff", [b"b\xff", b"b\xff\xff"]),
        (b"\xff", [b"\xff\xff"]),
        (b"\xff\xff", [b"\xff\xff"]),
        (b"aa", []),
        (b"d", []),
    ],
)
def test_a_scan_is_the_range_of_a_prefix(store: Store, prefix: bytes, keys: list[bytes]) -> None:
    filled(store)
    assert list(store.scan(prefix)) == [(key, PAIRS[key]) for key in keys]
    assert list(store.scan(prefix, reverse=True)) == [(key, PAIRS[key]) for key in reversed(keys)]


@pytest.mark.parametrize(
    ("start", "forward", "backward"),
    [
        (b"", 4, 0),  # below the prefix
        (b"b", 4, 1),
        (b"b\x00", 3, 2),
        (b"b\x01", 2, 2),  # between two keys
        (b"b\xff\xff", 1, 4),
        (b"b\xff\xff\xff", 0, 4),
        (b"c", 0, 4),  # above the prefix
        (b"\xff", 0, 4),
    ],
)
def test_start_leaves_out_what_comes_before_it(store: Store, start: bytes, forward: int, backward: int) -> None:
    filled(store)
    keys = [b"b", b"b\x00", b"b\xff", b"b\xff\xff"]
    assert [key for key, _ in store.scan(b"b", start=start)] == keys[4 - forward :]
    assert [key for key, _ in store.scan(b"b", start=start, reverse=True)] == keys[:backward][::-1]


PREFIXES = [b"k", b"ka", b"k\xff", b"kab", b"kb\xff", b"k\xff\xff"]
STARTS = [None, b"", b"k", b"ka", b"kab", b"kb", b"kb\xff\xff", b"k\xff", b"k\xff\xff", b"k\xff\xffa", b"l"]
KEYS = st.lists(st.sampled_from([b"", b"a", b"b", b"\xff"]), max_size=3).map(lambda parts: b"k" + b"".join(parts))


@given(st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=2)), max_size=4))
@settings(max_examples=40)
def test_both_stores_are_an_ordered_map(batches: list[dict[bytes, bytes | None]]) -> None:
    model: dict[bytes, bytes | None] = {}
    with TemporaryDirectory() as directory:
        stores: list[Store] = [LevelStore(Path(directory)), MemoryStore()]
        for batch in batches:
            model.update(batch)
            for store in stores:
                store.write(batch)
        for prefix, start, reverse in itertools.product(PREFIXES, STARTS, [False, True]):
            expected = [
                (key, value)
                for key, value in sorted(model.items(), reverse=reverse)
                if value is not None
                and key.startswith(prefix)
                and (start is None or (key <= start if reverse else key >= start))
            ]
            for store in stores:
                assert list(store.scan(prefix, reverse=reverse, start=start)) == expected
        for store in stores:
            store.close()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_scan_shows_the_store_as_it_was_when_it_began(store: Store, reverse: bool, steps: int) -> None:
    filled(store)
    expected = list(store.scan(b"b", reverse=reverse))
    scan = store.scan(b"b", reverse=reverse)
    seen = [next(scan) for _ in range(steps)]
    store.write(dict.fromkeys(PAIRS) | {b"b\x01": b"new"})
    store.write({b"b\x02": b"newer"})
    assert seen + list(scan) == expected
    assert list(store.scan(b"b")) == [(b"b\x01", b"new"), (b"b\x02", b"newer")]


def test_an_abandoned_scan_is_in_nobodys_way(store: Store) -> None:
    filled(store)
    for _ in range(3):
        next(store.scan(b"b"))
    gc.collect()
    store.write({b"b": None})
    assert store.get(b"b") is None


def test_a_walk_may_delete_what_it_walks_over(store: Store) -> None:
    filled(store)
    for key, _ in store.scan(b"b"):
        store.write({key: None})
    assert list(store.scan(b"b")) == []


def test_threads_see_whole_batches(store: Store) -> None:
    """A reader among writers: all keys of one scan come from the same batch."""
    keys = [b"t%d" % i for i in range(20)]
    store.write(dict.fromkeys(keys, b"0"))
    done = threading.Event()
    torn: list[set[bytes]] = []

    def read() -> None:
        while not done.is_set():
            values = {value for _, value in store.scan(b"t")}
            if len(values) != 1:
                torn.append(values)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(100):
        store.write(dict.fromkeys(keys, b"%d" % number))
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_a_closed_store_refuses_everything(store: Store) -> None:
    scan = filled(store).scan(b"b")
    next(scan)
    store.close()
    store.close()
    uses: list[Callable[[], object]] = [
        lambda: store.get(b"a"),
        lambda: store.scan(b"a"),
        lambda: store.write({b"a": b"1"}),
        lambda: next(scan),
    ]
    for use in uses:
        with pytest.raises(StorageError, match="closed"):
            use()


def test_the_state_is_the_stores_part_under_its_prefix(store: Store) -> None:
    store.write({schema.STATE + b"q1": b"1", schema.STATE + b"q2": b"2", b"q0": b"no", schema.TIP: b"no"})
    state = StoreState(store)
    assert state.get(b"q1") == b"1"
    assert state.get(b"q0") is None
    assert list(state.scan(b"q")) == [(b"q1", b"1"), (b"q2", b"2")]
    assert list(Overlay(state, {b"q1": None, b"q3": b"3"}).scan(b"q")) == [(b"q2", b"2"), (b"q3", b"3")]


# ---------------------------------------------------------------------- a directory on a disk


def test_a_database_survives_reopening(path: Path) -> None:
    for _ in range(2):
        store = LevelStore(path)
        filled(store).close()
    store = LevelStore(path)
    assert list(store.scan(b"b")) == [(key, value) for key, value in PAIRS.items() if key.startswith(b"b")]
    assert store.get(schema.FORMAT) == b"2"
    store.close()
    assert path.stat().st_mode & 0o777 == 0o700


def test_two_handles_on_one_directory(path: Path) -> None:
    store = LevelStore(path)
    with pytest.raises(StoreInUse, match=r"in use by another process: stop that node, or choose another"):
        LevelStore(path)
    filled(store).close()
    LevelStore(path).close()


def test_a_second_process_on_one_directory(path: Path) -> None:
    store = LevelStore(path)
    child = run_child("try:\n    LevelStore(path)\nexcept StoreInUse as error:\n    print(error)", path)
    assert child == f"{path} is in use by another process: stop that node, or choose another data directory\n"
    filled(store).close()


def test_a_database_of_another_format(path: Path) -> None:
    store = LevelStore(path)
    store.write({schema.FORMAT: b"99"})
    store.close()
    with pytest.raises(StorageError, match=r"has format 99, this node reads format 2: use the version that wrote it"):
        LevelStore(path)
    with pytest.raises(StorageError, match="format 99"):  # and the refusal leaves it unlocked
        LevelStore(path)


def test_a_database_of_the_format_before_is_taken_over(path: Path) -> None:
    store = LevelStore(path)
    filled(store)
    store.write({schema.FORMAT: b"1"})
    store.close()
    store = LevelStore(path)
    assert store.get(schema.FORMAT) == b"2"
    assert list(store.scan(b"b")) == [(key, value) for key, value in PAIRS.items() if key.startswith(b"b")]
    store.close()


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with plyvel.DB(str(path), create_if_missing=True) as foreign:
        foreign.put(b"key", b"value")
    with pytest.raises(StorageError, match="holds another program's database"):
        LevelStore(path)
    with plyvel.DB(str(path)) as foreign:
        assert list(foreign) == [(b"key", b"value")]


def test_a_directory_that_is_no_database_is_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"is not a database.*thesis\.tex"):
        LevelStore(path)
    assert [entry.name for entry in path.iterdir()] == ["thesis.tex"]


def test_a_path_that_is_no_directory(path: Path) -> None:
    path.write_text("a file")
    with pytest.raises(StorageError, match=r"cannot be opened: .*File exists"):
        LevelStore(path)


def test_a_creation_that_was_cut_short_is_begun_again(path: Path) -> None:
    path.mkdir()
    for name in ("LOCK", "LOG", "MANIFEST-000001"):
        (path / name).touch()
    filled(LevelStore(path)).close()


def test_a_database_without_its_current_file_is_not_begun_afresh(path: Path) -> None:
    filled(LevelStore(path)).close()
    (path / "CURRENT").unlink()
    with pytest.raises(StorageError, match="lost its CURRENT file"):
        LevelStore(path)


def test_a_damaged_log_is_refused_when_the_database_is_opened(path: Path) -> None:
    filled(LevelStore(path)).close()
    (log,) = path.glob("*.log")
    flip_byte(log, 20)
    with pytest.raises(StorageError, match=r"is damaged .*restore it, or synchronise into a new one"):
        LevelStore(path)


def test_a_lost_table_is_refused_when_the_database_is_opened(path: Path) -> None:
    table_of(path).unlink()
    with pytest.raises(StorageError, match=r"is damaged .*missing files"):
        LevelStore(path)


def test_a_damaged_table_is_refused_when_its_format_is_read(path: Path) -> None:
    flip_byte(table_of(path), 5)
    with pytest.raises(StorageError, match="checksum mismatch"):
        LevelStore(path)


@pytest.mark.parametrize("left_percent", [0, 10, 99])
def test_a_table_cut_short_is_told_as_damage_and_not_as_a_full_disk(path: Path, left_percent: int) -> None:
    table = table_of(path)
    data = table.read_bytes()
    table.write_bytes(data[: len(data) * left_percent // 100])
    with pytest.raises(StoreDamaged):
        list(LevelStore(path).scan(b""))


READS: list[Callable[[Store], object]] = [lambda store: store.get(b"aa"), lambda store: list(store.scan(b"a"))]


@pytest.mark.parametrize("read", READS, ids=["get", "scan"])
def test_the_first_failure_is_final(path: Path, read: Callable[[Store], object]) -> None:
    flip_byte(table_of(path, padding=bytes(5000)), 5)
    store = LevelStore(path)
    with pytest.raises(StorageError, match="checksum mismatch") as failure:
        read(store)
    uses: list[Callable[[], object]] = [
        lambda: store.get(b"zz"),
        lambda: store.scan(b"z"),
        lambda: store.write({b"a": b"1"}),
    ]
    for use in uses:
        with pytest.raises(StorageError) as refusal:
            use()
        assert str(refusal.value) == str(failure.value)
    store.close()


FILL_THE_DISK = """
import os, resource
store = LevelStore(path)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
number = 0
try:
    while True:
        batch = {b"k%d" % i: b"%d" % number for i in range(20)}
        store.write(batch | {b"padding": os.urandom(3000)})
        number += 1
except StorageError as error:
    assert "File too large" in str(error), error
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # there is room again, but this handle has lost its word
for attempt in range(2):
    try:
        store.write({b"later": b"lost"})
        print("a failed write was followed by a successful one")
    except StorageError:
        pass
if CLOSES:
    store.close()
print(number)
"""


@pytest.mark.parametrize("closes", [True, False])
def test_nothing_acknowledged_is_lost_on_a_full_disk(path: Path, closes: bool) -> None:
    written = int(run_child(f"CLOSES = {closes}\n" + FILL_THE_DISK, path))
    assert written > 10
    store = LevelStore(path)
    assert {value for _, value in store.scan(b"k")} == {b"%d" % (written - 1)}
    assert store.get(b"later") is None
    store.write({b"more": b"1"})
    store.close()


WRITE_UNTIL_KILLED = """
store = LevelStore(path)
number = 0
while True:
    number += 1
    store.write({b"k%d" % i: b"%d" % number * 500 for i in range(20)})
    print(number, flush=True)
"""


def test_batches_are_atomic_and_durable_when_the_process_is_killed(path: Path) -> None:
    """Killed in the middle of whatever it does, three times over."""
    acknowledged = 0
    for round_number in range(3):
        child = start_child(WRITE_UNTIL_KILLED, path)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(30 + 17 * round_number)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        acknowledged = int([line for line in lines if line.endswith("\n")][-1])
        store = LevelStore(path)
        values = {value for _, value in store.scan(b"k")}
        assert len(list(store.scan(b"k"))) == 20
        # The last batch may have come to the disk without its acknowledgement coming to us.
        assert values in ({b"%d" % acknowledged * 500}, {b"%d" % (acknowledged + 1) * 500})
        store.close()


def run_child(script: str, path: Path) -> str:
    """What a script prints that runs in another process; it must end well."""
    child = start_child(script, path)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return output


def start_child(script: str, path: Path) -> subprocess.Popen[str]:
    head = "import sys\nfrom pathlib import Path\nfrom node.chain.store import *\npath = Path(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + script, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def flip_byte(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0xFF
    file.write_bytes(data)


def table_of(path: Path, padding: bytes = b"") -> Path:
    """The table of a closed database with PAIRS; `padding` moves its keys into other blocks than the format's."""
    store = LevelStore(path)
    filled(store).write({b"aa": padding, b"mm": padding, b"zz": padding})
    store.close()
    LevelStore(path).close()  # opening writes the log out as a table
    (table,) = path.glob("*.ldb")
    return table
