"""Private files: their mode from the first moment, one writer of many, and file systems without hard links."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.files import OpenToOthers, create_private, read_private


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def path(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A free name, on a file system with hard links and on one without."""
    if not request.param:

        def link(*_names: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", link)
    return tmp_path / "secret"


def test_what_was_written_is_read_and_is_its_users_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        create_private(path, b"dear")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private(path, 4) == b"dear"
    assert len(read_private(path, 2)) == 3, "one byte more than may be shows that there is too much"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_replaced(path: Path, dangling: bool) -> None:
    if dangling:
        path.symlink_to("nowhere")
    else:
        path.write_bytes(b"dear")
    with pytest.raises(FileExistsError):
        create_private(path, b"other")
    assert path.is_symlink() if dangling else path.read_bytes() == b"dear"
    assert os.listdir(path.parent) == [path.name]


def test_of_many_writers_one_wins(path: Path) -> None:
    def create(content: int) -> bool:
        try:
            create_private(path, bytes([content]))
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(8)))
    assert outcomes.count(True) == 1
    assert path.read_bytes() == bytes([outcomes.index(True)])


def test_a_failure_leaves_no_trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        create_private(path, b"dear")
    assert os.listdir(path.parent) == []
    with pytest.raises(FileNotFoundError):
        create_private(path / "below" / "nothing", b"dear")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_a_file_that_others_can_reach_is_refused(path: Path, mode: int) -> None:
    create_private(path, b"dear")
    path.chmod(mode)
    with pytest.raises(OpenToOthers, match=f"{mode:04o}") as caught:
        read_private(path, 4)
    assert caught.value.mode == mode
