"""Passwords come from a file or from a terminal, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from wallet.accounts.password import MAX_BYTES, read_password
from wallet.errors import ExitCode, WalletError


@pytest.mark.parametrize("content", ["correct horse", "correct horse\n", "correct horse\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_line_of_a_file_is_the_password(tmp_path: Path, content: str, encoding: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(content.encode(encoding))
    assert read_password("Password", file, new=True) == "correct horse"


def test_spaces_belong_to_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" pass word \n")
    assert read_password("Password", file) == " pass word "


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "one line"),
        (b"\n", "one line"),
        (b"one\ntwo\n", "one line"),
        (b"\xff\xfeA", "UTF-8"),
        (b"\xc3(", "UTF-8"),
        (b"x" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_holds_no_password_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(WalletError, match=complaint) as caught:
        read_password("Password", file)
    assert caught.value.code == "password-file"
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WalletError, match="No such file") as caught:
        read_password("Password", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in caught.value.message


def test_a_new_password_must_have_some_length(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("seven77")
    assert read_password("Password", file) == "seven77"
    with pytest.raises(WalletError, match="at least 8") as caught:
        read_password("New password", file, new=True)
    assert "seven77" not in str(caught.value)
