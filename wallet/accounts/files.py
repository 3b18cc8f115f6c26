"""Writing the wallet's secrets to disk: `worker.files`, with refusals that say what to do."""

from __future__ import annotations

from pathlib import Path

from wallet.errors import ExitCode, WalletError
from worker.files import create_private


def write_secret(path: Path, data: bytes) -> None:
    """Create the private file `path` with `data`, or leave no trace.

    Raises `WalletError`: file-exists, file-not-written.
    """
    try:
        create_private(path, data)
    except FileExistsError:
        raise WalletError("file-exists", f"{path} exists already", "choose another name, or move it away") from None
    except OSError as error:
        fix = "check the directory and the free space, then try again"
        message = f"cannot write {path}: {error.strerror}"
        raise WalletError("file-not-written", message, fix, ExitCode.INTERNAL) from error
