"""What a user can meet: a stable code, what happened, and what to do about it."""

from __future__ import annotations

from enum import IntEnum

from consensus.errors import Refusal


class ExitCode(IntEnum):
    """What the exit status of `tilework` means; scripts rely on it."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    REJECTED = 3
    """Refused by a rule, or not enough of something: balance, bond, permission."""
    NOT_FOUND = 4
    NETWORK = 5
    TIMEOUT = 6
    INTERRUPTED = 130


class WalletError(Refusal):
    """A refusal that says with which `exit_code` a command ends."""

    def __init__(self, code: str, message: str, fix: str, exit_code: ExitCode = ExitCode.REJECTED) -> None:
        super().__init__(code, message, fix)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"
