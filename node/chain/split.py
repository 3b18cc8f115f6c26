"""A chain with more work that leaves the main one deeper than a node undoes by itself: found out, and not followed.

Its headers are checked like any others, but they do not go into the tree, where nothing would ever take them out again:
only what the next one is checked against is kept, and the work of all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from consensus.block import Header
from consensus.difficulty import MEDIAN_SPAN, block_work
from consensus.errors import ConsensusError, Reason
from consensus.validation import Strips
from node.chain.headers import HeaderEntry
from node.chain.known import KnownHeaders


class Split(NamedTuple):
    """Two chains, of which the other has more work: `fork_height` is the last block of both."""

    fork_height: int
    height: int
    work: int


class Weighing:
    """Adds up the work of a chain from the header that is known to its end, as it comes.

    Attributes:
        last: the header that was checked last; at first the one from which the chain goes on.
    """

    def __init__(self, known: KnownHeaders, start: HeaderEntry) -> None:
        self.last = start
        self._known = known
        self._recent: deque[HeaderEntry] = deque()

    def add(self, headers: Sequence[Header], strips: Mapping[bytes, Strips]) -> None:
        """Check headers that follow; `strips` by ticket. Raises `ConsensusError`."""
        for header in headers:
            if header.core.parent != self.last.id:
                raise ConsensusError(Reason.UNKNOWN_PARENT, header.core.parent, self.last.id)
            self._known.check(header, self.last, strips.get(header.ticket))
            work = self.last.total_work + block_work(header.core.target_int)
            self.last = HeaderEntry(header.id, header.core, self.last, work, {header.copy_id: header.proof})
            self._recent.append(self.last)
            if len(self._recent) > MEDIAN_SPAN:
                self._recent.popleft().parent = None
