"""What a user can meet: a stable code, what happened, and what to do about it."""

from __future__ import annotations

from enum import IntEnum


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


class WalletError(Exception):
    """A refusal with `code` (kebab-case, never changes its meaning), `message`, `fix` and an `exit_code`.

    Message and fix never contain a secret: they end up on screens and in logs.
    """

    def __init__(self, code: str, message: str, fix: str, exit_code: ExitCode = ExitCode.REJECTED) -> None:
        self.code = code
        self.message = message
        self.fix = fix
        self.exit_code = exit_code
        super().__init__(f"{message} ({code})")
