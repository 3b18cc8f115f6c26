"""The context in which one block executes: its overlay, its counters, and the moves that grains can make."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from consensus import state
from consensus.codec import MAX_AMOUNT
from consensus.errors import ConsensusError, Reason
from consensus.events import Event, Receipt
from consensus.params import MAX_TENSOR_BYTES, ChainParams
from consensus.rules.issuance import subsidy
from consensus.state import ACCOUNTS, Account, Ledger, Mark, Overlay, StateReader, Table


class Execution:
    """One block being executed over the state after its parent.

    Every rule checks before it writes, so whatever raises has changed nothing.

    Attributes:
        params, height, miner: of the block.
        ticks: whether the block counts as a tick, as it does from `tick_ms` on.
        tick, ticked_ms: the clock that windows are counted by, after the block.
        state: the overlay that collects the block's writes.
        ledger: the parent's ledger; `burned`, `sequence`, `dealt_through`, `places`, `held` and `held_bytes` go on
            from it.
        reward: grains that the miner is credited after `maturity` (subsidy, tips, inclusion shares).
        events, receipts: what happened, for indexes and users.
    """

    def __init__(self, params: ChainParams, parent: StateReader, height: int, time_ms: int, miner: bytes) -> None:
        self.params = params
        self.height = height
        self.miner = miner
        self.state = Overlay(parent)
        self.ledger: Ledger = state.ledger(parent)
        # Block 1 ticks whatever its time: no block has tick 0, which stands for "never" in records.
        self.tick_ms = self.ledger.ticked_ms + params.spacing_ms // 4 if height > 1 else 0
        self.ticks = time_ms >= self.tick_ms
        self.tick = self.ledger.tick + self.ticks
        self.ticked_ms = time_ms if self.ticks else self.ledger.ticked_ms
        self.minted = subsidy(params, height)
        self.reward = self.minted
        self.burned = self.ledger.burned
        self.sequence = self.ledger.sequence
        self.dealt_through = self.ledger.dealt_through
        self.places = self.ledger.places
        self.held = self.ledger.held
        self.held_bytes = self.ledger.held_bytes
        self.gas_used = 0
        self.events: list[Event] = []
        self.receipts: list[Receipt] = []
        self._obliged: dict[bytes, int] = {}

    def credit(self, address: bytes, amount: int) -> None:
        """Add grains to an account."""
        if amount:
            before = state.account(self.state, address)
            if before.balance + amount > MAX_AMOUNT:
                raise ConsensusError(Reason.AMOUNT_OVERFLOW, before.balance + amount, MAX_AMOUNT)
            self._put(address, before, before.balance + amount)

    def debit(self, address: bytes, amount: int) -> None:
        """Take grains from an account, or INSUFFICIENT_BALANCE."""
        before = state.account(self.state, address)
        if before.balance < amount:
            raise ConsensusError(Reason.INSUFFICIENT_BALANCE, before.balance, amount)
        if amount:
            self._put(address, before, before.balance - amount)

    def burn(self, amount: int) -> None:
        """Count grains, taken elsewhere, as destroyed."""
        self.burned += amount

    def use_nonce(self, address: bytes) -> None:
        """Count one transaction of `address`."""
        before = state.account(self.state, address)
        ACCOUNTS.put(self.state, Account(before.balance, before.nonce + 1), address)

    def oblige(self, sizes: Mapping[bytes, int]) -> None:
        """Count tensors (commitment → bytes) against the block's limit, each once, or TOO_MANY_TENSOR_BYTES."""
        total = sum(sizes.values()) + sum(size for c, size in self._obliged.items() if c not in sizes)
        if total > MAX_TENSOR_BYTES:
            raise ConsensusError(Reason.TOO_MANY_TENSOR_BYTES, total, MAX_TENSOR_BYTES)
        self._obliged.update(sizes)

    def work_off(self, schedule: Table[Mark], limit: int, step: Callable[[bytes, int], int]) -> None:
        """Do what is due in a schedule (keys: tick ‖ name), oldest first, in `limit` steps; the rest in later blocks.

        `step` gets a name and how many steps are left, and returns how many it took.
        """
        for key, _ in schedule.scan(self.state):
            if limit <= 0 or int.from_bytes(key[:8], "big") > self.tick:
                return
            limit -= step(key[8:], limit)

    def _put(self, address: bytes, before: Account, balance: int) -> None:
        ACCOUNTS.put(self.state, msgspec.structs.replace(before, balance=balance), address)
