"""The journal: every transaction that this wallet has signed, on disk before anybody else sees it.

Whatever happens afterwards (an answer that is lost, a node that dies, kill -9), the id and the very bytes are here:
sending the same bytes again can only pay once. Beside it stand the locks under which processes take turns to sign for
an account, so that no two take the same nonce.

One SQLite file for all accounts of a directory. A note is durable once `note` has returned.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wallet.errors import ExitCode, WalletError

_LOOK_SECONDS = 0.05
_BUSY_SECONDS = 30.0
_MODE = 0o600

_SCHEMA = """
CREATE TABLE IF NOT EXISTS signed (
    txid TEXT PRIMARY KEY,
    genesis TEXT NOT NULL,
    account TEXT NOT NULL,
    nonce INTEGER NOT NULL,
    raw BLOB NOT NULL,
    kind TEXT NOT NULL,
    what TEXT NOT NULL,
    resume TEXT NOT NULL,
    made_ms INTEGER NOT NULL,
    fate TEXT NOT NULL,
    seen_height INTEGER
)
"""
_COLUMNS = "txid, genesis, account, nonce, raw, kind, what, resume, made_ms, fate, seen_height"
_INSERT = (
    f"INSERT INTO signed ({_COLUMNS}) VALUES ({', '.join('?' * 11)}) "
    "ON CONFLICT (txid) DO UPDATE SET fate = excluded.fate, made_ms = excluded.made_ms"  # signed once more
)


class Fate(StrEnum):
    """What is known for good of a transaction."""

    OPEN = "open"
    """Nothing yet: it may be on its way."""
    WITHHELD = "withheld"
    """A node refused it, or it never left this machine. The account's next transaction takes its nonce."""
    CONFIRMED = "confirmed"
    """In a block too deep to be undone."""
    REPLACED = "replaced"
    """Another one has its nonce, in a block too deep to be undone."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a transaction is for. `kind`: payment, job, worker or cancel. `what` says it in words; `resume` gives, for
    the ids of all transactions that belong together, the command that goes on with it (of a job: fetches the product).
    """

    kind: str
    what: str
    resume: Callable[[Sequence[str]], str] = lambda _txids: ""


@dataclass(frozen=True, slots=True)
class Signed:
    """A transaction in the journal. `genesis` (hex) is its network's, `account` the sender's address, `made_ms` Unix
    milliseconds; `seen_height`: the tip's height when its nonce was first seen to be another's."""

    txid: str
    genesis: str
    account: str
    nonce: int
    raw: bytes
    kind: str
    what: str
    resume: str
    made_ms: int
    fate: str = Fate.OPEN
    seen_height: int | None = None


class Journal:
    """The journal of one directory, which is made when something is first noted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "journal"
        self._file = self._directory / "signed.db"

    def note(self, signed: Iterable[Signed]) -> None:
        """Keep transactions that are about to be sent. Raises `WalletError` (journal): then none may be."""
        rows = [(s.txid, s.genesis, s.account, s.nonce, s.raw, s.kind, s.what, s.resume, s.made_ms, s.fate, None)
                for s in signed]  # fmt: skip
        with self._connected(create=True) as connection:
            connection.executemany(_INSERT, rows)

    def find(self, txid: str) -> Signed | None:
        """What is known of a transaction."""
        found = self._select("WHERE txid = ?", txid)
        return found[0] if found else None

    def open(self, genesis: str, account: str | None = None, kind: str | None = None) -> list[Signed]:
        """What is not settled on a network, of one account and kind or of all, in the order of signing."""
        where, values = "WHERE fate = ? AND genesis = ?", [Fate.OPEN.value, genesis]
        for column, value in (("account", account), ("kind", kind)):
            if value is not None:
                where, values = f"{where} AND {column} = ?", [*values, value]
        return self._select(f"{where} ORDER BY made_ms, nonce", *values)

    def settle(self, txids: Iterable[str], fate: Fate) -> None:
        """Note what became of transactions."""
        with self._connected(create=False) as connection:
            connection.executemany("UPDATE signed SET fate = ? WHERE txid = ?", [(fate, txid) for txid in txids])

    def see(self, txid: str, height: int | None) -> None:
        """Note when the nonce of a transaction was first seen to be another's; None: it is not."""
        with self._connected(create=False) as connection:
            connection.execute("UPDATE signed SET seen_height = ? WHERE txid = ?", (height, txid))

    @asynccontextmanager
    async def turn(self, account: str, tell: Callable[[str], None]) -> AsyncIterator[None]:
        """The only one that signs for `account` while the context lasts, of all processes that use this directory.

        The system ends a turn with its process, however that ends. Raises `WalletError` (journal).
        """
        with self._explained():
            self._make_directory()
            descriptor = os.open(self._directory / f"{account}.lock", os.O_RDWR | os.O_CREAT, _MODE)
        try:
            told = False
            while not _locked(descriptor):
                if not told:
                    tell("waiting for another command that sends from this account")
                    told = True
                await asyncio.sleep(_LOOK_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _select(self, where: str, *values: str) -> list[Signed]:
        if not self._file.exists():
            return []
        with self._connected(create=False) as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM signed {where}", values).fetchall()
        return [Signed(*row) for row in rows]

    @contextmanager
    def _connected(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        """A transaction of its own: durable when the context ends."""
        with self._explained():
            if create:
                self._make_directory()
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, _MODE))
            with closing(sqlite3.connect(self._file, timeout=_BUSY_SECONDS)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                with connection:
                    connection.execute(_SCHEMA)
                    yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            message = f"cannot use the journal {self._file}: {error}"
            fix = "check its directory, the mode and the free space: nothing is sent without it"
            raise WalletError("journal", message, fix, ExitCode.INTERNAL) from error

    def _make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
