"""Answers that are at hand: encoded once, and good for as long as what they tell of stays as it is.

Reading the chain takes its lock, which is held while a block is written, and maybe the disk: so that is done on a
thread. What many ask for between two blocks (the tip, an account, a header) is then given without leaving the event
loop. An answer is kept under a *stamp* of everything that it depends on, taken before it was made, and given only while
the stamp is the same: nobody is told what is no longer so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import msgspec

from node.chain.headers import HeaderEntry
from node.compute import Compute

T = TypeVar("T")

MAX_ANSWERS = 1_024
"""Of one kind. Some kilobytes each at most; all go with the next block."""

Stamp = tuple[Any, ...]
"""Things that are compared by identity, or numbers."""


class Answers:
    """One kind of answer. Used on the event loop."""

    def __init__(self, stamp: Callable[[], Stamp]) -> None:
        """`stamp` takes no lock: it is called for every answer."""
        self._stamp = stamp
        self._held: Stamp = ()
        self._answers: dict[Hashable, bytes] = {}

    def get(self, key: Hashable) -> bytes | None:
        """The answer as JSON, if it is at hand and still so."""
        return self._answers.get(key) if self._stamp() == self._held else None

    async def make(
        self,
        key: Hashable,
        compute: Compute,
        function: Callable[[], T],
        lasts: Callable[[T], bool] = lambda _answer: True,
    ) -> T:
        """What `function` gives on a thread, kept if nothing has changed meanwhile and the answer `lasts`."""
        before = self._stamp()
        answer = await compute.run(function)
        if self._stamp() == before and lasts(answer):
            if self._held != before or len(self._answers) >= MAX_ANSWERS:
                self._held, self._answers = before, {}
            self._answers[key] = msgspec.json.encode(answer)
        return answer


class AtHand:
    """The answers of a node: to `chain_info`, `chain_getHeader` and `state_getAccount`."""

    def __init__(
        self,
        tip: Callable[[], HeaderEntry],
        best_header: Callable[[], HeaderEntry],
        base: Callable[[], HeaderEntry],
        pool_version: Callable[[], int],
    ) -> None:
        self.info = Answers(lambda: (tip(), best_header(), base()))
        # A copy of the tip that comes or goes may change the one to show; of those below, their children name it.
        self.headers = Answers(lambda: (entry := tip(), *entry.copies))
        self.accounts = Answers(lambda: (tip(), pool_version()))
