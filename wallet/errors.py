"""What a user can meet: a stable code, what happened, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    """A refusal that says with which `exit_code` a command ends.

    `txids`: the transactions (a job's id is one) that had been signed by then. Their ids stand in the message as well:
    whatever became of them, whoever reads it can find out.
    """

    def __init__(
        self,
        code: str,
        message: str,
        fix: str,
        exit_code: ExitCode = ExitCode.REJECTED,
        txids: Sequence[str] = (),
    ) -> None:
        super().__init__(code, message, fix)
        self.exit_code = exit_code
        self.txids = tuple(txids)

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"

    def naming(self, txids: Sequence[str], what: str, fix: str | None = None) -> WalletError:
        """The same error about `what` (a transaction, a job) of these ids; `fix` replaces its advice.

        What names them already stays as it is.
        """
        if set(txids) <= set(self.txids):
            return self
        message = self.message
        if unsaid := [txid for txid in txids if txid not in message]:
            message = f"{what} {', '.join(unsaid)}: {message}"
        return WalletError(self.code, message, fix or self.fix, self.exit_code, txids)


@contextmanager
def naming(txids: Sequence[str], what: str, fix: str | None = None) -> Iterator[None]:
    """Whatever fails meanwhile fails as a `WalletError` that names `txids`; see `WalletError.naming`."""
    try:
        yield
    except WalletError as error:
        raise error.naming(txids, what, fix) from error
    except Exception as error:
        known = WalletError("internal", f"{type(error).__name__}: {error}", "see what became of it", ExitCode.INTERNAL)
        raise known.naming(txids, what, fix) from error
