"""Files of a node that are lost or damaged while it is stopped, and disks that fill: it comes back, or says what to do.

Each file of a real data directory is removed, emptied, cut off and changed in turn. Nothing that was committed may be
missing afterwards without a word.
"""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from consensus.block import Block
from node import genesis
from node.chain.chain import Chain
from node.chain.store import LevelStore, StorageError, StoreDamaged
from node.config import Config, Limits, Mining
from node.p2p.identity import IdentityError, load_or_create
from node.start import RESTORE, StartError, keep_genesis, load_keys, open_chain
from tests.builders import ALICE, DAVE, ChainBuilder, operand, worker_chain
from wallet.accounts.keys import SigningKey
from wallet.accounts.keystore import KdfParams, Keystore
from wallet.errors import WalletError
from worker.key import WorkerKey, WorkerKeyError

BACK = ""
"""It starts with all it had."""

OUTCOMES: dict[str, dict[str, str]] = {
    "chain/*.ldb": {
        "changed in the middle": "block checksum mismatch|^$",
        "*": "(is damaged|failed: ).* restore the data",
    },
    "chain/*.log": {"changed*": "is damaged", "*": "has lost the last .* remove .*/WRITTEN"},
    "chain/CURRENT": {"removed": "lost its CURRENT file", "*": "is damaged"},
    "chain/MANIFEST-*": {"*": "is damaged"},
    "chain/LO*": {"*": BACK},  # LOCK, LOG, LOG.old
    "chain/WRITTEN": {"*": BACK},
    "tensors/*": {"*": BACK},
    "genesis.json": {"removed": "another network's chain", "*": "genesis.json|another network's chain"},
    "node.key": {"removed": BACK, "changed*": "node.key|^$", "*": "node.key"},  # any 32 bytes are a key
    "worker.key": {"removed": BACK, "changed in the middle": "worker.key|^$", "*": "worker.key"},  # a digit's case
}
"""File → harm → what the refusal says; of patterns the first that fits counts."""


def harms(data: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Name, and what is left of a file."""
    yield "removed", None
    yield "emptied", b""
    yield "cut in half", data[: len(data) // 2]
    yield "cut short", data[:-3]
    for where, at in (("at the beginning", 0), ("in the middle", len(data) // 2), ("at the end", len(data) - 1)):
        if data:
            yield f"changed {where}", data[:at] + bytes((data[at] ^ 0x20,)) + data[at + 1 :]


def blocks_of(builder: ChainBuilder) -> list[Block]:
    found = []
    at = builder.tip
    while at.parent is not None:
        found.append(at.block)
        at = at.parent
    return found[::-1]


@contextlib.contextmanager
def started(directory: Path, rules: Path | None = None) -> Iterator[Chain]:
    """What a node does before it runs. Raises StartError."""
    config = Config(
        network="regtest",
        data_dir=directory,
        genesis=rules,
        mining=Mining(enabled=True),
        limits=Limits(tensor_cache_mib=16),
    )
    store, chain = open_chain(config, lambda: 2**50, lambda _seconds: None)
    try:
        load_keys(config)
        keep_genesis(config.directory / "genesis.json", chain.params)
        yield chain
    finally:
        store.close()


def add(chain: Chain, blocks: list[Block], builder: ChainBuilder) -> None:
    for block in blocks:
        for commitment in chain.missing_tensors(block):
            tensor = builder.tensors.tensor(commitment)
            assert tensor is not None
            chain.tensors.add(tensor)
        chain.add_block(block)


def walk(chain: Chain) -> None:
    """Read all that was committed."""
    for height in range(1, chain.tip.height + 1):
        block_id = chain.archive.id_at(height)
        assert block_id is not None
        assert chain.block(block_id) is not None
        assert chain.archive.outcome(block_id) is not None
        assert chain.archive.undo(block_id) is not None
    assert list(chain.records(b"")[1])


@pytest.fixture(scope="module")
def builder() -> ChainBuilder:
    chain = worker_chain([DAVE], worked=True)
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction])
    chain.mine(results=chain.answers(job))
    chain.mine(count=6)
    return chain


@pytest.fixture(scope="module")
def place(builder: ChainBuilder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a table, a log and tensors."""
    root = tmp_path_factory.mktemp("damage")
    rules = root / "rules.json"
    rules.write_bytes(genesis.dump(builder.params))
    blocks = blocks_of(builder)
    with started(root / "good", rules) as chain:
        add(chain, blocks[:8], builder)
    with started(root / "good") as chain:  # which makes a table of the log
        add(chain, blocks[8:], builder)
    return root


def outcome(directory: Path, height: int) -> str:
    """What starting ends with: BACK, or the refusal and what to do."""
    try:
        with started(directory) as chain:
            if chain.tip.height != height:
                return f"SILENT LOSS: {chain.tip.height} of {height} blocks"
            walk(chain)
            return BACK
    except StoreDamaged as error:  # found by a later read: the node ends with it
        return f"{error}: {RESTORE}"
    except StartError as error:
        return f"{error.message}: {error.fix}"


def test_a_file_that_is_damaged_while_the_node_is_stopped_is_mended_or_named(
    place: Path, builder: ChainBuilder
) -> None:
    good, copy = place / "good", place / "copy"
    names = sorted(str(path.relative_to(good)) for path in good.rglob("*") if path.is_file())
    patterns = {name: next(pattern for pattern in OUTCOMES if fnmatch(name, pattern)) for name in names}
    assert set(patterns.values()) == set(OUTCOMES), "every kind of file is there, and none that is not in the table"
    for name in {pattern: name for name, pattern in patterns.items()}.values():
        for harm, left in harms((good / name).read_bytes()):
            shutil.copytree(good, copy)
            if left is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(left)
            rows = OUTCOMES[patterns[name]]
            expected = next(rows[row] for row in rows if fnmatch(harm, row))
            said = outcome(copy, builder.height)
            assert re.search(expected or "^$", said), f"{name} {harm}: {said or 'it came back'}"
            assert said == BACK or str(copy) in said or "genesis file" in said, f"{name} {harm}: {said}"
            shutil.rmtree(copy)


def test_a_store_that_lost_its_last_batches_goes_on_where_the_operator_says_so(
    place: Path, builder: ChainBuilder
) -> None:
    copy = place / "cut"
    shutil.copytree(place / "good", copy)
    (log,) = (copy / "chain").glob("*.log")
    log.write_bytes(log.read_bytes()[:-3])
    for _ in range(2):
        with pytest.raises(StartError, match=r"lost the last 1 batches .*WRITTEN") as refusal, started(copy):
            pass
        assert refusal.value.fix == RESTORE
    (copy / "chain" / "WRITTEN").unlink()
    with started(copy) as chain:
        assert chain.tip.height == builder.height - 1
        add(chain, blocks_of(builder)[-1:], builder)
    assert outcome(copy, builder.height) == BACK


def test_a_young_store_that_lost_its_only_log_is_not_founded_anew(tmp_path: Path) -> None:
    store = LevelStore(tmp_path)
    store.write({b"k": b"1"})
    store.close()
    (log,) = tmp_path.glob("*.log")
    log.unlink()
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="lost the last 2 batches"):
            LevelStore(tmp_path)


def test_the_note_of_the_last_batch_is_never_ahead_of_what_is_stored(tmp_path: Path) -> None:
    """Nor does one that is behind, as after a power cut, keep anybody from starting."""
    store = LevelStore(tmp_path)
    notes = []
    for number in range(3):
        store.write({b"k": b"%d" % number})
        notes.append((tmp_path / "WRITTEN").read_bytes())
    store.close()
    for note in (notes[0], notes[2], b"", notes[2][:8] + bytes(8), b"\xff" * 16):
        (tmp_path / "WRITTEN").write_bytes(note)
        again = LevelStore(tmp_path)
        assert again.get(b"k") == b"2"
        again.close()


# ---------------------------------------------------------------------- disks that fill


@contextlib.contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_stops_the_chain_and_loses_nothing(place: Path, builder: ChainBuilder) -> None:
    copy, blocks = place / "full", blocks_of(builder)
    taken: list[Block] = []

    def take_all(chain: Chain) -> None:
        for block in blocks:
            add(chain, [block], builder)
            taken.append(block)

    with started(copy, place / "rules.json") as chain, full_disk(20_000):
        with pytest.raises(StorageError, match="File too large"):
            take_all(chain)
        with pytest.raises(StorageError, match="File too large"):  # and for good
            chain.add_block(blocks[len(taken)])
    assert 0 < len(taken) < builder.height
    with started(copy) as chain:
        assert chain.tip.height == len(taken)
        walk(chain)
        add(chain, blocks[len(taken) :], builder)
    assert outcome(copy, builder.height) == BACK


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_keys_are_made_whole_or_not_at_all_on_a_full_disk(tmp_path: Path) -> None:
    accounts = Keystore(tmp_path / "accounts")
    cheap = KdfParams(memory_kib=8, iterations=1, lanes=1)
    accounts.create("old", SigningKey(bytes(32)), "password", "devnet", kdf_params=cheap)
    (tmp_path / "keys").mkdir()
    with full_disk(50):
        with pytest.raises(WalletError, match=r"cannot write .*new\.json") as lost:
            accounts.create("new", SigningKey(bytes(range(32))), "password", "devnet", kdf_params=cheap)
        with pytest.raises(IdentityError, match="cannot write the node key") as no_identity:
            load_or_create(tmp_path / "keys" / "node.key")
        with pytest.raises(WorkerKeyError, match="cannot write the worker key") as no_worker:
            WorkerKey.load_or_create(tmp_path / "keys" / "worker.key")
    assert all("free space" in refusal.value.fix for refusal in (lost, no_identity, no_worker))
    assert left_in(tmp_path / "accounts") == ["old.json"]
    assert left_in(tmp_path / "keys") == []
    assert accounts.unlock("old", "password").private_key == bytes(32)
    load_or_create(tmp_path / "keys" / "node.key")  # there is room again
    WorkerKey.load_or_create(tmp_path / "keys" / "worker.key")


def test_every_harm_to_an_account_is_told_and_none_gives_another_key(tmp_path: Path) -> None:
    accounts = Keystore(tmp_path)
    accounts.create(
        "a", SigningKey(bytes(32)), "p", "devnet", kdf_params=KdfParams(memory_kib=8, iterations=1, lanes=1)
    )
    file = tmp_path / "a.json"
    good = file.read_bytes()
    for harm, left in harms(good):
        if left is None:
            file.unlink()
        else:
            file.touch(0o600)
            file.write_bytes(left)
        with pytest.raises(WalletError) as refusal:
            accounts.unlock("a", "p")
        assert str(tmp_path) in refusal.value.message, harm
        assert refusal.value.fix, harm
    file.touch(0o600)
    for at in range(0, len(good), 7):
        file.write_bytes(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])
        with contextlib.suppress(WalletError):  # blanks between the fields mean nothing
            assert accounts.unlock("a", "p").private_key == bytes(32)
