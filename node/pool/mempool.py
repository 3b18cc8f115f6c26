"""Transactions that wait for a block.

One rank per transaction says both who is chosen first and who is dropped first. A transaction is worth what the whole
chain of its sender's earlier nonces lets it be worth: the least tip among them, or nothing while a nonce is missing. So
a high tip behind a low one gains nothing, and a sender cannot fill the pool with what no block can take. Among equal
tips, first come first served.

Thread-safe. State is read through the chain, one short read at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Protocol, TypeVar

from sortedcontainers import SortedKeyList

from api.params import REPLACEMENT_PERCENT
from consensus import state
from consensus.codec import encode
from consensus.errors import Refusal
from consensus.params import ChainParams
from consensus.rules import payloads
from consensus.state import Account, StateReader
from consensus.transaction import Transaction
from node.chain.headers import HeaderEntry

T = TypeVar("T")

MAX_POOL_BYTES = 64 << 20
MAX_PENDING_PER_ACCOUNT = 64
EXPIRY_BLOCKS = 240
"""Blocks after which a transaction that no miner took is forgotten; its sender may send it again."""

_OVERHEAD_BYTES = 1024
"""What an entry costs beside its encoding: objects, three indexes, a rank. Else small ones would cost most memory."""
_GAPPED = -1


class PoolReason(StrEnum):
    """The codes of `PoolError`."""

    NONCE_TOO_LOW = "nonce-too-low"
    NONCE_GAP = "nonce-gap"
    TOO_MANY_PENDING = "too-many-pending"
    FEE_TOO_LOW = "fee-too-low"
    INSUFFICIENT_BALANCE = "insufficient-balance"
    REPLACEMENT_UNDERPRICED = "replacement-underpriced"
    POOL_FULL = "pool-full"
    TOO_MANY_EARLY_RESULTS = "too-many-early-results"
    UPLOAD_QUOTA = "upload-quota"


class PoolError(Refusal):
    """A transaction, result or tensor that this node does not keep, for a reason of its own policy, not of consensus.

    Attributes: `code` the `PoolReason`, `message` what is wrong, `fix` what to do about it.
    """

    def __init__(self, code: PoolReason, message: str, fix: str) -> None:
        super().__init__(code, message, fix)


class NonceError(PoolError):
    """A nonce that is used already, or too far ahead.

    Attributes:
        account_nonce: the first that no block has used.
        next_nonce: the first that is neither used nor pending.
    """

    def __init__(self, code: PoolReason, message: str, fix: str, account_nonce: int, next_nonce: int) -> None:
        super().__init__(code, message, fix)
        self.account_nonce = account_nonce
        self.next_nonce = next_nonce


class TipView(Protocol):
    """What pools ask of the chain."""

    params: ChainParams

    @property
    def tip(self) -> HeaderEntry: ...

    def read(self, function: Callable[[StateReader], T]) -> T: ...


@dataclass(slots=True)
class Pending:
    """A transaction in the pool.

    Attributes:
        cost: most grains that it can take from its sender.
        size: bytes that it counts for.
        height: of the tip when it came.
        rank: (worth in grains per gas, −arrival, −nonce): the greatest is chosen first, the least dropped first.
    """

    tx: Transaction
    txid: bytes
    address: bytes
    cost: int
    size: int
    height: int
    arrival: int
    rank: tuple[int, int, int] = field(default=(_GAPPED, 0, 0))

    @property
    def nonce(self) -> int:
        return self.tx.body.nonce


class Mempool:
    """At most 64 MiB of pending transactions, at most 64 of one account."""

    def __init__(self, chain: TipView, max_bytes: int = MAX_POOL_BYTES) -> None:
        self._chain = chain
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._entries: dict[bytes, Pending] = {}  # oldest first: new ones go to the end
        self._accounts: dict[bytes, dict[int, Pending]] = {}
        self._ranked: SortedKeyList = SortedKeyList(key=lambda pending: pending.rank)
        self._arrivals = 0
        self.total_bytes = 0
        self.version = 0
        """Changes whenever the content does."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, txid: bytes) -> bool:
        return txid in self._entries

    def get(self, txid: bytes) -> Transaction | None:
        """A pending transaction."""
        pending = self._entries.get(txid)
        return None if pending is None else pending.tx

    def pending_of(self, address: bytes) -> list[tuple[bytes, Transaction]]:
        """(txid, transaction) of one account, by nonce."""
        with self._lock:
            return [(p.txid, p.tx) for _, p in sorted(self._accounts.get(address, {}).items())]

    def next_nonce(self, address: bytes) -> int:
        """The first nonce of an account that is neither used nor pending."""
        with self._lock:
            return self._next_nonce(address, self._account(address).nonce)

    def stands_behind_a_gap(self, tx: Transaction) -> bool:
        """Whether a nonce before the transaction's is neither used nor pending: no block can take it now."""
        return tx.body.nonce > self.next_nonce(tx.body.address)

    def check(self, tx: Transaction, txid: bytes) -> bool:
        """Whether a transaction is new and, but for the pool's room, can be added; PoolError where it cannot."""
        with self._lock:
            if txid in self._entries:
                return False
            address = tx.body.address
            account, base_fee = self._chain.read(lambda s: (state.account(s, address), state.ledger(s).base_fee))
            self._check(tx, address, account, base_fee, _cost(self._chain.params, tx))
            return True

    def add(self, tx: Transaction, txid: bytes) -> bool:
        """Keep a transaction whose signature and payload were checked; False if it is known.

        Raises:
            PoolError: its nonce, fee or balance is against the rules, or the pool is full of better-paying ones.
        """
        with self._lock:
            if txid in self._entries:
                return False
            address = tx.body.address
            account, base_fee = self._chain.read(lambda s: (state.account(s, address), state.ledger(s).base_fee))
            cost = _cost(self._chain.params, tx)
            self._check(tx, address, account, base_fee, cost)
            self._arrivals += 1
            size = len(encode(tx)) + _OVERHEAD_BYTES
            entry = Pending(tx, txid, address, cost, size, self._chain.tip.height, self._arrivals)
            replaced = self._accounts.get(address, {}).get(tx.body.nonce)
            self._make_room(entry, replaced, account.nonce)
            if replaced is not None:
                self._remove(replaced)
            self._entries[txid] = entry
            self._accounts.setdefault(address, {})[entry.nonce] = entry
            self._ranked.add(entry)
            self.total_bytes += size
            self._rank(address, account.nonce)
            self.version += 1
            return True

    def best(self, base_fee: int, limit: int) -> list[Pending]:
        """The `limit` transactions to try at `base_fee`: best paying first, each after its sender's earlier ones."""
        with self._lock:
            eligible = (p for p in reversed(self._ranked) if p.tx.body.max_base_fee >= base_fee and p.rank[0] >= 0)
            return list(islice(eligible, limit))

    def on_import(self, connected: Iterable[Transaction], returned: Sequence[tuple[Transaction, bytes]]) -> None:
        """Follow the chain to a new tip.

        Args:
            connected: the transactions of the blocks that came onto the main chain.
            returned: (transaction, txid) of those that left it. They were in valid blocks, so they are checked already.
        """
        for tx in connected:
            self._refresh(tx.body.address)
        for tx, txid in returned:
            self._refresh(tx.body.address)
            try:
                self.add(tx, txid)
            except PoolError:
                continue  # used again on the new branch, or no longer affordable
        self._expire()

    def on_jump(self) -> None:
        """Follow the chain over blocks that nobody has seen: any account may have changed."""
        with self._lock:
            addresses = list(self._accounts)
        for address in addresses:
            self._refresh(address)
        self._expire()

    # ------------------------------------------------------------------ rules

    def _check(self, tx: Transaction, address: bytes, account: Account, base_fee: int, cost: int) -> None:
        body = tx.body
        too_far = body.nonce - account.nonce - MAX_PENDING_PER_ACCOUNT + 1
        if body.nonce < account.nonce or too_far > 0:
            raise _nonce_error(body.nonce, too_far, account.nonce, self._next_nonce(address, account.nonce))
        if body.max_base_fee < base_fee:
            message = f"the base fee is {base_fee} grains per gas, the transaction allows {body.max_base_fee}"
            raise PoolError(
                PoolReason.FEE_TOO_LOW, message, f"set max_base_fee to at least {base_fee}; twice that is safer"
            )
        pending = self._accounts.get(address, {})
        replaced = pending.get(body.nonce)
        if replaced is not None:
            _check_replacement(tx, replaced.tx)
        total = cost + sum(p.cost for p in pending.values() if p is not replaced)
        if total > account.balance:
            message = f"the account holds {account.balance} grains, its pending transactions may take {total}"
            raise PoolError(PoolReason.INSUFFICIENT_BALANCE, message, "send less, lower the fees, or wait for funds")

    def _make_room(self, entry: Pending, replaced: Pending | None, first_nonce: int) -> None:
        """Drop worse-ranked transactions until `entry` fits; PoolError, and nothing dropped, if it is of the worst."""
        excess = self.total_bytes + entry.size - (replaced.size if replaced else 0) - self._max_bytes
        if excess <= 0:
            return
        rank = self._rank_of(entry, first_nonce)
        dropped = []
        for other in self._ranked:
            if excess <= 0 or other.rank >= rank:
                break
            if other is not replaced:
                dropped.append(other)
                excess -= other.size
        if excess > 0:
            message = f"the pool is full, and every transaction in it pays more than {max(rank[0], 0)} grains per gas"
            raise PoolError(
                PoolReason.POOL_FULL, message, "raise the tip, fill the nonces before this one, or try later"
            )
        for other in dropped:
            self._remove(other)

    def _next_nonce(self, address: bytes, nonce: int) -> int:
        """The first that is not pending, from an account's own `nonce` on."""
        pending = self._accounts.get(address, {})
        while nonce in pending:
            nonce += 1
        return nonce

    # ------------------------------------------------------------------ upkeep

    def _rank_of(self, entry: Pending, first_nonce: int) -> tuple[int, int, int]:
        """The rank that `entry` takes behind what its account has pending."""
        before = self._accounts.get(entry.address, {})
        if entry.nonce == first_nonce:
            return entry.tx.body.tip, -entry.arrival, -entry.nonce
        previous = before.get(entry.nonce - 1)
        if previous is None or previous.rank[0] < 0:
            return _GAPPED, -entry.arrival, -entry.nonce
        return min(previous.rank[0], entry.tx.body.tip), min(previous.rank[1], -entry.arrival), -entry.nonce

    def _rank(self, address: bytes, first_nonce: int) -> None:
        """Rank an account's transactions anew, in the order of their nonces."""
        for _, entry in sorted(self._accounts.get(address, {}).items()):
            rank = self._rank_of(entry, first_nonce)
            if rank != entry.rank:
                self._ranked.remove(entry)
                entry.rank = rank
                self._ranked.add(entry)

    def _refresh(self, address: bytes) -> None:
        """Drop what an account has used or can no longer afford."""
        with self._lock:
            pending = self._accounts.get(address)
            if pending is None:
                return
            account = self._account(address)
            for nonce in [nonce for nonce in pending if nonce < account.nonce]:
                self._remove(pending[nonce])
            total = sum(entry.cost for entry in pending.values())
            for _, entry in sorted(pending.items(), reverse=True):
                if total <= account.balance:
                    break
                total -= entry.cost
                self._remove(entry)
            self._rank(address, account.nonce)

    def _expire(self) -> None:
        """Forget what has waited too long, and rank again what stood behind it."""
        with self._lock:
            oldest = self._chain.tip.height - EXPIRY_BLOCKS
            expired = []
            for entry in self._entries.values():
                if entry.height > oldest:
                    break
                expired.append(entry)
            for entry in expired:
                self._remove(entry)
            for address in {entry.address for entry in expired}:
                self._rank(address, self._account(address).nonce)

    def _remove(self, entry: Pending) -> None:
        del self._entries[entry.txid]
        self._ranked.remove(entry)
        pending = self._accounts[entry.address]
        del pending[entry.nonce]
        if not pending:
            del self._accounts[entry.address]
        self.total_bytes -= entry.size
        self.version += 1

    def _account(self, address: bytes) -> Account:
        return self._chain.read(lambda s: state.account(s, address))


def _nonce_error(nonce: int, too_far: int, account_nonce: int, next_nonce: int) -> NonceError:
    """What is wrong with a nonce; `too_far` is by how many it is ahead of what the pool keeps, if it is."""
    if too_far <= 0:
        code, message = PoolReason.NONCE_TOO_LOW, f"nonce {nonce} was used already"
        fix = f"use {next_nonce}, or one from {account_nonce} on to replace what is pending"
    else:
        code = PoolReason.TOO_MANY_PENDING
        message = f"nonce {nonce} is too far ahead of the account's next, {account_nonce}"
        many = f"{too_far} of the account's transactions"
        fix = f"wait until blocks have taken {many}; the first nonce that is free is {next_nonce}"
    return NonceError(code, message, fix, account_nonce, next_nonce)


def _check_replacement(new: Transaction, old: Transaction) -> None:
    """A replacement is relayed by everyone once more, so it must pay more on both counts."""
    fees = (("tip", new.body.tip, old.body.tip),
            ("fee", new.body.tip + new.body.max_base_fee, old.body.tip + old.body.max_base_fee))  # fmt: skip
    for name, offered, before in fees:
        needed = before + max(1, -(-before * REPLACEMENT_PERCENT // 100))
        if offered < needed:
            message = (
                f"nonce {old.body.nonce} is pending with a {name} of {before} grains per gas, this offers {offered}"
            )
            raise PoolError(PoolReason.REPLACEMENT_UNDERPRICED, message, f"offer a {name} of at least {needed}")


def _cost(params: ChainParams, tx: Transaction) -> int:
    """Most grains that a transaction can take from its sender."""
    return tx.body.gas_limit * (tx.body.max_base_fee + tx.body.tip) + payloads.outlay(params, tx.body.payload)
