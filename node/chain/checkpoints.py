"""Giving away the state at a checkpoint: the tip's, with what the blocks since have changed put back.

What was put back is kept between pages and grows with the chain, so that all pages are of one state while the tip
moves on, and many askers share the work.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Annotated, Protocol

from msgspec import Meta
from sortedcontainers import SortedDict

from consensus.codec import Value, encode
from consensus.params import ChainParams
from node.chain.archive import Archive
from node.chain.headers import HeaderEntry, fork_point, path
from node.chain.snapshot import FIRST_KEY, checkpoint_height, checkpoint_spacing

_SERVED = 2
"""The newest checkpoints: the one that whoever asks now will choose, and the one of those who have begun already."""

_ENVELOPE = 16
"""Bytes that a record takes in a page besides its key and value, at most; and a page besides its records."""


StateKey = Annotated[bytes, Meta(max_length=128)]
StateValue = Annotated[bytes, Meta(max_length=64 << 10)]


class Page(Value, frozen=True):
    """Some records of a state, in key order."""

    records: Annotated[tuple[tuple[StateKey, StateValue], ...], Meta(min_length=1)]


class CheckpointChain(Protocol):
    """What is needed of the chain. Thread-safe."""

    @property
    def params(self) -> ChainParams: ...
    @property
    def base(self) -> HeaderEntry: ...
    def entry(self, block_id: bytes) -> HeaderEntry | None: ...
    @property
    def archive(self) -> Archive: ...
    def records(self, start: bytes) -> tuple[HeaderEntry, Iterator[tuple[bytes, bytes]]]: ...


class Checkpoints:
    """Pages of states. Thread-safe; one page at a time."""

    def __init__(self, chain: CheckpointChain, page_bytes: int) -> None:
        self._chain = chain
        self._page_bytes = page_bytes
        self._kept: dict[bytes, _Checkpoint] = {}
        self._lock = threading.Lock()

    def page(self, block_id: bytes, start: bytes) -> tuple[bytes, bool] | None:
        """The state after a block, in key order from `start` on: encoded records, and whether there are more.

        None where the block is no checkpoint that is served, or nothing is left.
        """
        with self._lock:
            start = max(start, FIRST_KEY)
            tip, below = self._chain.records(start)
            checkpoint = self._at(block_id, tip)
            return None if checkpoint is None else self._cut(checkpoint.records(below, start))

    def _at(self, block_id: bytes, tip: HeaderEntry) -> _Checkpoint | None:
        self._kept = {id: kept for id, kept in self._kept.items() if self._is_served(kept.entry, tip)}
        entry = self._chain.entry(block_id)
        if entry is None or not self._is_served(entry, tip):
            return None
        kept = self._kept.get(block_id)
        if kept is None or not kept.follow(self._chain, tip):
            kept = _Checkpoint(entry)  # new, or what it followed was reorganised away
            if not kept.follow(self._chain, tip):
                return None
            self._kept[block_id] = kept
        return kept

    def _is_served(self, entry: HeaderEntry, tip: HeaderEntry) -> bool:
        params = self._chain.params
        newest = checkpoint_height(params, tip.height)
        served = range(newest, newest - _SERVED * checkpoint_spacing(params), -checkpoint_spacing(params))
        lowest = max(1, self._chain.base.height)
        return entry.height in served and entry.height >= lowest and self._chain.archive.id_at(entry.height) == entry.id

    def _cut(self, records: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bool] | None:
        page: list[tuple[bytes, bytes]] = []
        size = _ENVELOPE
        for key, value in records:
            size += len(key) + len(value) + _ENVELOPE
            if page and size > self._page_bytes:
                return encode(Page(tuple(page))), True
            page.append((key, value))
        return (encode(Page(tuple(page))), False) if page else None


class _Checkpoint:
    """One checkpoint: what the records that have changed between it and `_tip` were."""

    def __init__(self, entry: HeaderEntry) -> None:
        self.entry = entry
        self._tip = entry
        self._before: SortedDict = SortedDict()

    def follow(self, chain: CheckpointChain, tip: HeaderEntry) -> bool:
        """Be good for the state after `tip`; False where that is impossible."""
        if fork_point(self._tip, tip) is not self._tip:
            return False
        for entry in path(self._tip, tip):
            changes = chain.archive.undo(entry.id)
            if changes is None:
                return False
            for key, value in changes.items():
                if key >= FIRST_KEY:
                    self._before.setdefault(key, value)  # the first change tells what stood there at the checkpoint
            self._tip = entry
        return True

    def records(self, below: Iterable[tuple[bytes, bytes]], start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The checkpoint's records from `start` on; `below` are those of the tip that it follows."""
        before = ((key, self._before[key]) for key in self._before.irange(start))
        last = None
        for key, value in heapq.merge(before, below, key=itemgetter(0)):  # of equals, `before` comes first
            if key != last and value is not None:
                yield key, value
            last = key
