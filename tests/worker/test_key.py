"""The worker's key file: what it holds, who may read it, and that nothing ever replaces it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from consensus import crypto
from consensus.transaction import Transfer, TxBody
from worker.key import WorkerKey, WorkerKeyError

GENESIS = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker.json"


def test_it_is_created_once_and_loads_as_it_was(path: Path) -> None:
    first = WorkerKey.load_or_create(path)
    again = WorkerKey.load_or_create(path)
    assert again.address == first.address == crypto.address_of(first.public_key)
    assert (again.public_key, again.x25519_key) == (first.public_key, first.x25519_key)
    assert WorkerKey.generate().address != first.address


def test_the_file_is_private_from_its_first_moment(path: Path) -> None:
    before = os.umask(0)
    try:
        WorkerKey.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name], "no temporary file is left"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_file_that_others_can_use_is_refused(path: Path, mode: int) -> None:
    WorkerKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(WorkerKeyError, match=f"{mode:04o}") as caught:
        WorkerKey.load(path)
    assert caught.value.fix == f"run: chmod 600 {path}"
    path.chmod(0o600)
    WorkerKey.load(path)


def test_a_changed_file_gives_no_other_key(path: Path) -> None:
    address = WorkerKey.load_or_create(path).address
    good = path.read_bytes()
    refused = 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])
        try:
            assert WorkerKey.load(path).address == address
        except WorkerKeyError:
            refused += 1
    assert refused > 150


def test_a_file_of_an_earlier_version_without_a_check_is_read(path: Path) -> None:
    path.touch(0o600)
    path.write_bytes(b'{"version":1,"ed25519":"%b","x25519":"%b"}' % (b"01" * 32, b"02" * 32))
    assert WorkerKey.load(path).address == WorkerKey(b"\1" * 32, b"\2" * 32).address


def test_nothing_is_ever_replaced(path: Path) -> None:
    path.write_bytes(b"something dear")
    with pytest.raises(FileExistsError):
        WorkerKey.generate().create(path)
    assert path.read_bytes() == b"something dear"
    assert os.listdir(path.parent) == [path.name]


def test_a_directory_that_is_not_there_is_said(path: Path) -> None:
    missing = path / "nowhere" / "worker.json"
    with pytest.raises(WorkerKeyError, match="cannot write"):
        WorkerKey.load_or_create(missing)
    with pytest.raises(WorkerKeyError, match="cannot read"):
        WorkerKey.load(missing)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"ed25519": "11" * 31},
        {"ed25519": "zz" * 32},
        {"x25519": ""},
        {"x25519": 7},
        {"more": 1},
    ],
)
def test_what_is_no_key_is_refused_without_a_word_of_its_content(path: Path, change: dict[str, object]) -> None:
    WorkerKey.load_or_create(path)
    content = msgspec.json.decode(path.read_bytes())
    secret = content["ed25519"]
    path.write_bytes(msgspec.json.encode({**content, **change}))
    with pytest.raises(WorkerKeyError, match="not a worker key") as caught:
        WorkerKey.load(path)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_huge_file_is_refused_unparsed(path: Path) -> None:
    WorkerKey.load_or_create(path)
    path.write_bytes(path.read_bytes() + b" " * 2000)
    with pytest.raises(WorkerKeyError, match="not a worker key"):
        WorkerKey.load(path)


def test_what_it_signs_verifies_for_one_network_only() -> None:
    key = WorkerKey.generate()
    result = key.result(b"p" * 32, b"c" * 32, GENESIS)
    assert result.body.worker == key.address
    assert crypto.verify(key.public_key, result.body.signing_hash(GENESIS), result.signature)
    assert not crypto.verify(key.public_key, result.body.signing_hash(bytes(32)), result.signature)
    tx = key.transaction(TxBody(key.public_key, 0, 0, 0, 1, Transfer(())), GENESIS)
    assert tx.is_signed(GENESIS)
    assert not tx.is_signed(bytes(32))


def test_its_secrets_do_not_show() -> None:
    key = WorkerKey(b"\x11" * 32, b"\x22" * 32)
    assert "11" * 32 not in repr(key)
    assert "22" * 32 not in repr(key)
