"""Verified Results that wait for a block, and claims that came before the block that they answer.

Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from consensus.events import Answered, Dropped, Event, Missed
from consensus.state import PACKETS, PacketStatus
from consensus.transaction import Result
from node.pool.mempool import TipView

MAX_RESULTS = 8192
"""Far above what all workers of a large network hold in one window; about 2 MB."""

MAX_WAITING = 1024
MAX_WAITING_PER_WORKER = 64
"""As many packets as one worker can hold."""
WAITING_BLOCKS = 4
"""New tips for which an early claim is tried again."""


class ResultPool:
    """The first valid Result of each packet, in the order of arrival."""

    def __init__(self, chain: TipView, limit: int = MAX_RESULTS) -> None:
        self._chain = chain
        self._limit = limit
        self._lock = threading.Lock()
        self._results: dict[bytes, Result] = {}
        self.version = 0
        """Changes whenever the content does."""

    def __len__(self) -> int:
        return len(self._results)

    def get(self, packet_id: bytes) -> Result | None:
        """The Result that answers a packet."""
        return self._results.get(packet_id)

    def pending(self) -> list[Result]:
        """All of them, oldest first."""
        with self._lock:
            return list(self._results.values())

    def add(self, result: Result) -> bool:
        """Keep a verified Result; False if its packet has one. When full, the oldest (no miner took it) makes room."""
        with self._lock:
            if result.body.packet_id in self._results:
                return False
            if len(self._results) >= self._limit:
                del self._results[next(iter(self._results))]
            self._results[result.body.packet_id] = result
            self.version += 1
            return True

    def on_import(self, events: Iterable[Event]) -> None:
        """Follow the chain to a new tip: forget the packets that its blocks answered, missed or dropped."""
        with self._lock:
            for event in events:
                if isinstance(event, Answered | Dropped | Missed):
                    self._results.pop(event.packet_id, None)
            self.version += 1

    def on_reorganisation(self, returned: Iterable[Result]) -> None:
        """Take back the Results of blocks that left the main chain, then look all up again.

        On the new branch a packet may be answered, held by another worker, or not have been dealt at all.
        """
        for result in returned:
            self.add(result)
        for result in self.pending():
            if not self._is_held(result.body.packet_id, result.body.worker):
                with self._lock:
                    self._results.pop(result.body.packet_id, None)
                    self.version += 1

    def _is_held(self, packet_id: bytes, worker: bytes) -> bool:
        packet = self._chain.read(lambda state: PACKETS.get(state, packet_id))
        return packet is not None and packet.status == PacketStatus.HELD and packet.worker == worker


@dataclass(frozen=True)
class _Waiting:
    result: Result
    until: int


class WaitingRoom:
    """Signed claims for packets that, as far as this node has seen, nobody holds yet: a block may be on its way."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._claims: dict[tuple[bytes, bytes], _Waiting] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, result: Result, height: int) -> bool:
        """Keep a claim for some blocks; False if the room, or this worker's part of it, is full."""
        key = (result.body.worker, result.body.packet_id)
        if key in self._claims:
            return True
        of_worker = sum(worker == result.body.worker for worker, _ in self._claims)
        if len(self._claims) >= self._limit or of_worker >= MAX_WAITING_PER_WORKER:
            return False
        self._claims[key] = _Waiting(result, height + WAITING_BLOCKS)
        return True

    def remove(self, result: Result) -> None:
        """Forget a claim."""
        self._claims.pop((result.body.worker, result.body.packet_id), None)

    def due(self, height: int) -> list[Result]:
        """The claims to try again at `height`; those that have waited long enough leave."""
        for key in [key for key, waiting in self._claims.items() if waiting.until < height]:
            del self._claims[key]
        return [waiting.result for waiting in self._claims.values()]
