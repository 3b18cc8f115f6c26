"""Files of people: private ones never readable by others, never half written, never over an existing file; text as
any editor writes it.

Nodes, workers and wallets keep their secrets with these functions and say in their own words what went wrong.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import secrets
import stat
from pathlib import Path

_MODE = 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class OpenToOthers(Exception):
    """A file that should be private is not: `mode` has bits for its group or for everybody."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        super().__init__(f"mode {mode:04o}: other users can reach it")


def create_private(path: Path, data: bytes) -> None:
    """Create `path` with `data`, mode 0600; it is complete and private from the moment it can be seen, or not there.

    Raises:
        FileExistsError: there is something at `path`; it stays as it is.
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        give_name(temporary, path)
        os.fsync(directory)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.close(directory)


def read_private(path: Path, limit: int) -> bytes:
    """The first `limit` + 1 bytes of `path` (more than `limit`: it is larger than it may be).

    Raises:
        OpenToOthers: somebody else may read or write it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & _OTHERS:
            raise OpenToOthers(mode)
        return file.read(limit + 1)


def text_of(data: bytes) -> str:
    """Text that a person may have saved with any editor: UTF-8, or UTF-16 that says so by a byte order mark, which is
    left out. Lines end as in Unix. Raises `UnicodeDecodeError`."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return data.decode(encoding).replace("\r\n", "\n")


def give_name(temporary: Path, path: Path) -> None:
    """Give the file `temporary` the name `path` in the same directory, where nothing is: a plain rename would replace
    a file. The other name may be left. Raises `FileExistsError`."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (a USB stick, say): look first, and keep others of us from doing so meanwhile
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if os.path.lexists(path):
                raise FileExistsError from None
            os.rename(temporary, path)
        finally:
            os.close(directory)
