"""Account files: what is stored comes back, and every way in which a file can be wrong has its own error."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.address import encode_address
from wallet.accounts.files import write_secret
from wallet.accounts.keys import SigningKey
from wallet.accounts.keystore import MAX_ITERATIONS, MAX_LANES, MAX_MEMORY_KIB, KdfParams, Keystore
from wallet.errors import ExitCode, WalletError

LIGHT = KdfParams(memory_kib=8, iterations=1, lanes=1)
KEY = SigningKey(bytes(range(32)))
PASSWORD = "correct horse battery staple"


@pytest.fixture
def keystore(tmp_path: Path) -> Keystore:
    store = Keystore(tmp_path / "deep" / "keystore")
    store.create("alice", KEY, PASSWORD, "devnet", "m/44'/1414089797'/0'", LIGHT)
    return store


def edit(keystore: Keystore, change: Callable[[dict[str, Any]], None]) -> None:
    file = keystore.directory / "alice.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refusal(act: Callable[[], object]) -> WalletError:
    with pytest.raises(WalletError) as caught:
        act()
    assert PASSWORD not in str(caught.value)
    assert KEY.private_key.hex() not in str(caught.value)
    return caught.value


def test_a_stored_key_comes_back(keystore: Keystore) -> None:
    assert keystore.unlock("alice", PASSWORD).private_key == KEY.private_key
    account = keystore.account("alice")
    assert account.address == KEY.address
    assert account.address_text == encode_address(KEY.address, "tdev")
    assert account.public_key == KEY.public_key
    assert account.path == "m/44'/1414089797'/0'"


def test_a_key_is_stored_with_the_real_cost_by_default(tmp_path: Path) -> None:
    store = Keystore(tmp_path)
    store.create("alice", KEY, PASSWORD, "mainnet")
    params = json.loads((tmp_path / "alice.json").read_text())["header"]["kdf_params"]
    assert params == {"memory_kib": 256 * 1024, "iterations": 3, "lanes": 4}
    begin = time.process_time()
    assert store.unlock("alice", PASSWORD).private_key == KEY.private_key
    assert time.process_time() - begin > 0.2
    assert store.account("alice").address_text.startswith("tile1")


@settings(max_examples=25, deadline=None)
@given(private_key=st.binary(min_size=32, max_size=32), password=st.text(st.characters(codec="utf-8"), max_size=40))
def test_every_key_and_password_round_trips(
    tmp_path_factory: pytest.TempPathFactory, private_key: bytes, password: str
) -> None:
    store = Keystore(tmp_path_factory.mktemp("keys"))
    store.create("k", SigningKey(private_key), password, "devnet", "", LIGHT)
    assert store.unlock("k", password).private_key == private_key
    assert refusal(lambda: store.unlock("k", password + "x")).code == "wrong-password"


def test_a_password_is_the_same_from_every_keyboard(tmp_path: Path) -> None:
    store = Keystore(tmp_path)
    store.create("alice", KEY, "caf\u00e9 society", "devnet", "", LIGHT)
    assert store.unlock("alice", "cafe\u0301 society").private_key == KEY.private_key


def test_the_secret_is_on_disk_only_encrypted_and_only_for_its_owner(keystore: Keystore) -> None:
    file = keystore.directory / "alice.json"
    assert KEY.private_key.hex() not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert keystore.directory.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in keystore.directory.iterdir()] == ["alice.json"]


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Keystore(tmp_path).create("alice", KEY, PASSWORD, "devnet", "", LIGHT)
    finally:
        os.umask(before)
    assert (tmp_path / "alice.json").stat().st_mode & 0o777 == 0o600


def test_a_wrong_password_is_called_that(keystore: Keystore) -> None:
    error = refusal(lambda: keystore.unlock("alice", "incorrect horse"))
    assert (error.code, error.exit_code) == ("wrong-password", ExitCode.REJECTED)


def test_an_unknown_account_is_not_found(keystore: Keystore) -> None:
    error = refusal(lambda: keystore.account("bob"))
    assert (error.code, error.exit_code) == ("account-not-found", ExitCode.NOT_FOUND)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_file_that_others_can_reach_is_refused(keystore: Keystore, mode: int) -> None:
    (keystore.directory / "alice.json").chmod(mode)
    error = refusal(lambda: keystore.unlock("alice", PASSWORD))
    assert error.code == "keystore-mode"
    assert error.fix.startswith("chmod 600 ")


def test_a_file_cut_anywhere_is_damaged(keystore: Keystore) -> None:
    file = keystore.directory / "alice.json"
    whole = file.read_bytes()
    # The last two bytes are the closing brace and a newline; without the newline the file is still whole.
    for size in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:size])
        assert refusal(lambda: keystore.unlock("alice", PASSWORD)).code == "keystore-damaged"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"header": NaN}', b"[" * 10_000])
def test_what_is_no_account_file_is_damaged(keystore: Keystore, content: bytes) -> None:
    (keystore.directory / "alice.json").write_bytes(content)
    assert refusal(lambda: keystore.account("alice")).code == "keystore-damaged"


def test_an_oversize_file_is_not_parsed(keystore: Keystore) -> None:
    (keystore.directory / "alice.json").write_bytes(b" " * (1 << 20))
    error = refusal(lambda: keystore.account("alice"))
    assert error.code == "keystore-damaged"
    assert "larger than" in error.message


def test_a_swapped_address_is_seen_without_the_password(keystore: Keystore) -> None:
    stranger = SigningKey(b"\x01" * 32)
    edit(keystore, lambda c: c["header"].update(address=encode_address(stranger.address, "tdev")))
    error = refusal(lambda: keystore.account("alice"))
    assert error.code == "keystore-damaged"
    assert "does not belong to its public key" in error.message


def test_a_swapped_address_and_public_key_are_seen_with_the_password(keystore: Keystore) -> None:
    stranger = SigningKey(b"\x01" * 32)
    swap = {"address": encode_address(stranger.address, "tdev"), "public_key": stranger.public_key.hex()}
    edit(keystore, lambda c: c["header"].update(swap))
    assert refusal(lambda: keystore.unlock("alice", PASSWORD)).code == "keystore-tampered"


@pytest.mark.parametrize(
    "change",
    [
        {"address": encode_address(KEY.address, "tile")},
        {"path": "m/44'/1414089797'/1'"},
        {"nonce": "00" * 12},
    ],
)
def test_a_changed_header_is_seen_with_the_password(keystore: Keystore, change: dict[str, Any]) -> None:
    edit(keystore, lambda c: c["header"].update(change))
    assert refusal(lambda: keystore.unlock("alice", PASSWORD)).code == "keystore-tampered"


def test_a_changed_ciphertext_is_seen(keystore: Keystore) -> None:
    edit(keystore, lambda c: c.update(ciphertext="00" * 48))
    assert refusal(lambda: keystore.unlock("alice", PASSWORD)).code == "keystore-tampered"


@pytest.mark.parametrize(
    "change", [{"salt": "00" * 16}, {"kdf_params": {"memory_kib": 8, "iterations": 2, "lanes": 1}}]
)
def test_changed_kdf_inputs_never_open(keystore: Keystore, change: dict[str, Any]) -> None:
    # Nothing derives the true key any more, so this cannot be told from a wrong password.
    edit(keystore, lambda c: c["header"].update(change))
    assert refusal(lambda: keystore.unlock("alice", PASSWORD)).code == "wrong-password"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kdf": "scrypt"},
        {"cipher": "none"},
        {"extra": 1},
        {"salt": "00"},
        {"salt": "GG" * 16},
        {"nonce": "00" * 12 + "\n"},
        {"address": "tdev1"},
        {"path": "m" * 65},
    ],
)
def test_a_header_that_is_not_understood_is_refused(keystore: Keystore, change: dict[str, Any]) -> None:
    edit(keystore, lambda c: c["header"].update(change))
    assert refusal(lambda: keystore.account("alice")).code == "keystore-damaged"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_kib", MAX_MEMORY_KIB + 1),
        ("memory_kib", 2**40),
        ("memory_kib", 7),
        ("memory_kib", -1),
        ("iterations", MAX_ITERATIONS + 1),
        ("iterations", 0),
        ("lanes", MAX_LANES + 1),
        ("lanes", 0),
        ("lanes", 2),
        ("memory_kib", "8"),
        ("memory_kib", 8.5),
    ],
)
def test_kdf_cost_is_bounded_before_anything_is_derived(keystore: Keystore, field: str, value: object) -> None:
    edit(keystore, lambda c: c["header"]["kdf_params"].update({field: value}))
    begin = time.monotonic()
    assert refusal(lambda: keystore.unlock("alice", PASSWORD)).code == "keystore-damaged"
    assert time.monotonic() - begin < 0.5


@pytest.mark.parametrize("name", ["", "Alice", "a/b", "../alice", ".hidden", "-x", "a" * 33, "ä", "a b", "a\n"])
def test_names_that_could_leave_the_directory_are_refused(keystore: Keystore, name: str) -> None:
    error = refusal(lambda: keystore.create(name, KEY, PASSWORD, "devnet", "", LIGHT))
    assert (error.code, error.exit_code) == ("account-name", ExitCode.USAGE)


def test_nothing_is_ever_overwritten(keystore: Keystore) -> None:
    other = SigningKey(b"\x02" * 32)
    assert refusal(lambda: keystore.create("alice", other, "pw", "devnet", "", LIGHT)).code == "account-exists"
    assert keystore.unlock("alice", PASSWORD).private_key == KEY.private_key
    assert refusal(lambda: write_secret(keystore.directory / "alice.json", b"")).code == "file-exists"
    assert keystore.unlock("alice", PASSWORD).private_key == KEY.private_key


def test_of_two_commands_at_once_only_one_gets_the_name(tmp_path: Path) -> None:
    def create(content: int) -> str:
        try:
            write_secret(tmp_path / "alice.json", bytes([content]))
        except WalletError as error:
            return error.code
        return "written"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(8)))
    assert sorted(outcomes) == ["file-exists"] * 7 + ["written"]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [bytes([outcomes.index("written")])]


def test_several_accounts_live_beside_each_other(keystore: Keystore) -> None:
    keystore.create("shop-2", SigningKey(b"\x02" * 32), "another one", "mainnet", "", LIGHT)
    (keystore.directory / "notes.txt").write_text("not an account")
    (keystore.directory / ".shop-2.json.0011.tmp").write_text("left by a crash")
    assert keystore.names() == ["alice", "shop-2"]
    assert keystore.account("shop-2").prefix == "tile"
    assert Keystore(keystore.directory / "nowhere").names() == []


def test_a_failed_write_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    error = refusal(lambda: Keystore(tmp_path).create("alice", KEY, PASSWORD, "devnet", "", LIGHT))
    assert error.code == "file-not-written"
    assert "No space left" in error.message
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refusal(lambda: Keystore(tmp_path / "file" / "ks").create("alice", KEY, PASSWORD, "devnet", "", LIGHT))
    assert error.code == "file-not-written"
