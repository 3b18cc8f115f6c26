"""What the store holds of the main chain's blocks and of what they did: read by RPC and peers, written by the chain."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from consensus import events
from consensus.block import Body
from consensus.state import Changes
from consensus.transaction import Transaction
from node.chain import schema
from node.chain.index import Location, Movement, Outcome
from node.chain.store import Store


class Archive:
    """Blocks, their outcomes, and the index over them. Thread-safe.

    `viewing` is held while a batch is committed: what takes several reads holds it too, to see one chain.
    """

    def __init__(self, store: Store, viewing: threading.RLock) -> None:
        self._store = store
        self._viewing = viewing

    def id_at(self, height: int) -> bytes | None:
        """Id of the main chain's block at a height."""
        return self._store.get(schema.main(height))

    def body(self, block_id: bytes) -> Body | None:
        """A stored body, also off the main chain."""
        data = self._store.get(schema.body(block_id))
        return None if data is None else schema.decode(Body, data)

    def outcome(self, block_id: bytes) -> Outcome | None:
        """What executing a main-chain block gave."""
        data = self._store.get(schema.outcome(block_id))
        return None if data is None else schema.decode(Outcome, data)

    def undo(self, block_id: bytes) -> Changes | None:
        """What undoes a main-chain block of the last `retention`."""
        data = self._store.get(schema.undo(block_id))
        return None if data is None else schema.decode_changes(data)

    def locate(self, txid: bytes) -> Location | None:
        """Where a transaction stands in the main chain."""
        data = self._store.get(schema.transaction(txid))
        return None if data is None else schema.decode(Location, data)

    def transaction(self, txid: bytes) -> tuple[Location, Transaction, events.Receipt] | None:
        """A main-chain transaction with its receipt."""
        with self._viewing:
            location = self.locate(txid)
            if location is None:
                return None
            body, outcome = self.body(location.block), self.outcome(location.block)
        assert body is not None, "an indexed transaction without its block"
        assert outcome is not None, "an indexed transaction without its receipt"
        return location, body.transactions[location.ordinal], outcome.receipts[location.ordinal]

    def job_events(self, job: bytes) -> list[tuple[int, events.JobEvent]]:
        """(height, event) of a job, oldest first."""
        return self._events(schema.job_events(job))

    def packet_events(self, packet_id: bytes) -> list[tuple[int, events.JobEvent]]:
        """(height, event) of a packet, oldest first."""
        return self._events(schema.packet_events(packet_id))

    def movements(self, address: bytes, before: int | None = None) -> Iterator[Movement]:
        """What came to and left an account, newest first; `before` is a height (exclusive) to go on from."""
        start = None if before is None else schema.movement(address, before, 0)
        for _, data in self._store.scan(schema.movements(address), reverse=True, start=start):
            movement = schema.decode(Movement, data)
            if before is None or movement.height < before:
                yield movement

    def lost(self, address: bytes) -> int:
        """Grains that a worker's bond has lost by misses."""
        return sum(schema.decode(schema.Burned, data).grains for _, data in self._store.scan(schema.losses(address)))

    def _events(self, prefix: bytes) -> list[tuple[int, events.JobEvent]]:
        told = []
        outcomes: dict[bytes, Outcome] = {}  # a job's events stand close together: each block is decoded once
        with self._viewing:
            for _, data in self._store.scan(prefix):
                location = schema.decode(Location, data)
                outcome = outcomes.get(location.block) or self.outcome(location.block)
                assert outcome is not None, "an indexed event without its block"
                outcomes[location.block] = outcome
                event = outcome.events[location.ordinal]
                assert not isinstance(event, events.Returned), "a bond's return belongs to no job"
                told.append((location.height, event))
        return told
