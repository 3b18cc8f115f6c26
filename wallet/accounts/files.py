"""Writing secrets to disk: never readable by others, never half written, never over an existing file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from wallet.errors import ExitCode, WalletError


def create_private_file(path: Path, data: bytes) -> None:
    """Create `path` (mode 0600) with `data`, or leave no trace.

    The bytes reach the disk under a temporary name first, then the rename makes them visible at once. An advisory
    lock on the directory keeps two commands from both finding the name free. Raises `WalletError`: file-exists,
    file-not-written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if os.path.lexists(path):
            raise WalletError("file-exists", f"{path} exists already", "choose another name, or move it away")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
        os.fsync(directory)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.close(directory)


def _not_written(path: Path, error: OSError) -> WalletError:
    message = f"cannot write {path}: {error.strerror}"
    return WalletError(
        "file-not-written", message, "check the directory and the free space, then try again", ExitCode.INTERNAL
    )
