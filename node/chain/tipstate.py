"""The state after the tip, as execution reads it: values from the store, walked and drawn-from tables from memory.

Every block walks the queue and the schedules. What they hold at a time is little, but everything that has ever left
them stays in LevelDB as a tombstone until a compaction, and a walk would pass over all of it. And every block draws
from the array of places, by the thousand where packets find nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sortedcontainers import SortedDict

from consensus.state import CLOSINGS, DEADLINES, PLACES, QUEUE, REVIEWS, Changes
from node.chain.store import Store, StoreState

_WALKED = tuple(table.prefix for table in (CLOSINGS, DEADLINES, PLACES, QUEUE, REVIEWS))

_AFTER = b"\xff" * 64
"""Longer than the rest of any walked key, so that a prefix with it stands behind all of the prefix's keys."""


class TipState:
    """A consensus `StateReader`. Not thread-safe: `Chain` reads and commits under one lock.

    Attributes:
        place: the prefix of its keys in the store.
    """

    def __init__(self, store: Store, place: bytes) -> None:
        self.place = place
        self._stored = StoreState(store, place)
        self._walked: SortedDict = SortedDict()
        for prefix in _WALKED:
            self._walked.update(self._stored.scan(prefix))

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        return self._walked.get(key) if key.startswith(_WALKED) else self._stored.get(key)

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See `StateReader`. Walk the pairs before the next commit."""
        if not prefix.startswith(_WALKED):
            return self._stored.scan(prefix, after)
        keys = self._walked.irange(max(prefix, after), prefix + _AFTER, inclusive=(after < prefix, True))
        return ((key, self._walked[key]) for key in keys)

    def keyed(self, changes: Changes) -> Changes:
        """Changes of the state as changes of the store."""
        return {self.place + key: value for key, value in changes.items()}

    def committed(self, batch: Mapping[bytes, bytes | None]) -> None:
        """Follow a batch that was written to the store."""
        for stored_key, value in batch.items():
            key = stored_key[len(self.place) :]
            if not stored_key.startswith(self.place) or not key.startswith(_WALKED):
                continue
            if value is None:
                self._walked.pop(key, None)
            else:
                self._walked[key] = value
