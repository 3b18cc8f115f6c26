"""The tree of checked headers: which chains there are, and how much work is behind each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from consensus.block import Header, HeaderCore, Proof
from consensus.difficulty import MEDIAN_SPAN, block_work
from consensus.validation import ParentContext

_LOCATOR_DENSE = 10

MAX_COPIES = 4
"""Proofs of one core that are kept. Only its miner can make them; what is beyond is not needed for anything."""


@dataclass(eq=False, slots=True)
class HeaderEntry:
    """One block id in the tree.

    Attributes:
        copies: copy id → proof, for every proof of this core that was checked, `MAX_COPIES` at most. The first is the
            one that is believed in: announced, and asked for by its product.
        total_work: of the chain from genesis to here.
        has_body: the body is stored (executed or not).
        refusal: reason for which the block itself was refused in execution; empty while good.
        invalid: its own refusal, or that of the ancestor that was refused first.
        is_deep: it leaves the main chain deeper than this node undoes.
    """

    id: bytes
    core: HeaderCore
    parent: HeaderEntry | None
    total_work: int
    copies: dict[bytes, Proof | None] = field(default_factory=dict)
    has_body: bool = False
    refusal: str = ""
    invalid: str = ""
    is_deep: bool = False

    @property
    def may_be_followed(self) -> bool:
        """Whether nothing is known against its chain."""
        return not self.invalid and not self.is_deep

    @property
    def height(self) -> int:
        """Blocks between this one and genesis."""
        return self.core.height

    @property
    def header(self) -> Header:
        """The copy that came first."""
        return Header(self.core, next(iter(self.copies.values())))

    def copy(self, ticket: bytes) -> Header | None:
        """The first copy with this winning ticket, if one is known."""
        headers = (Header(self.core, proof) for proof in self.copies.values())
        return next((header for header in headers if header.ticket == ticket), None)

    def set_back(self, copy: bytes) -> None:
        """Believe in the other copies first: this one cannot be completed."""
        if copy in self.copies:
            self.copies[copy] = self.copies.pop(copy)

    def ancestors(self) -> Iterator[HeaderEntry]:
        """This entry, its parent, … genesis."""
        entry: HeaderEntry | None = self
        while entry is not None:
            yield entry
            entry = entry.parent

    def context(self, ticket: bytes) -> ParentContext:
        """What a child that names `ticket` is checked against."""
        times = []
        for ancestor in self.ancestors():
            times.append(ancestor.core.time_ms)
            if len(times) == MEDIAN_SPAN:
                break
        return ParentContext(self.copy(ticket) or self.header, times[::-1])


MAX_LOOSE = 16_384
"""About two kilobytes each, and a little on disk; up to a megabyte there for one of a packet."""


class HeaderTree:
    """Checked headers by id. Those whose blocks never come are *loose*; where they are many, those of the chains with
    the least work are dropped: each has cost its work, but where a chain is young that can be little.

    Attributes:
        max_loose: how many are kept beside those that are needed, and an eighth of these.
    """

    def __init__(self, genesis: Header, max_loose: int = MAX_LOOSE) -> None:
        self.max_loose = max_loose
        self.genesis = HeaderEntry(genesis.id, genesis.core, None, block_work(genesis.core.target_int), has_body=True)
        self.genesis.copies[genesis.copy_id] = genesis.proof
        self._entries = {self.genesis.id: self.genesis}
        self._children: dict[bytes, list[HeaderEntry]] = {}
        self._loose: dict[bytes, HeaderEntry] = {}
        self._next_drop = 0
        self._best = self.genesis

    @property
    def best(self) -> HeaderEntry:
        """The header with the most work whose chain may be followed; first seen on a tie."""
        return self._best

    def get(self, block_id: bytes) -> HeaderEntry | None:
        """The entry of an id."""
        return self._entries.get(block_id)

    def add(self, header: Header, parent: HeaderEntry) -> HeaderEntry:
        """Put a checked header under its parent."""
        work = parent.total_work + block_work(header.core.target_int)
        entry = HeaderEntry(header.id, header.core, parent, work, invalid=parent.invalid)
        entry.copies[header.copy_id] = header.proof
        self._entries[entry.id] = entry
        self._children.setdefault(parent.id, []).append(entry)
        if entry.may_be_followed and work > self._best.total_work:
            self._best = entry
        return entry

    def add_loose(
        self, header: Header, parent: HeaderEntry, held: Callable[[], Iterable[HeaderEntry]]
    ) -> tuple[HeaderEntry, list[HeaderEntry]]:
        """The same for a header whose block may never come: also the entries that were dropped for it, if any.

        What leads to the best header, to one of `held`, or to a block that is here, stays.
        """
        entry = self.add(header, parent)
        self._loose[entry.id] = entry
        if len(self._loose) <= self._next_drop:
            return entry, []
        self._loose = {loose.id: loose for loose in self._loose.values() if not loose.has_body}
        needed = self._needed([entry, self._best, *held()])
        spare = [loose for loose in self._loose.values() if loose.id not in needed]
        dropped = self._least(spare, len(spare) - self.max_loose * 3 // 4)
        for loose in dropped:
            self._drop(loose)
        # Where a long chain is taken in, looking again at all of it for every few headers would cost more than they do.
        self._next_drop = len(self._loose) + max(self.max_loose // 4, len(self._loose) // 8)
        return entry, dropped

    def settle(self, entries: Iterable[HeaderEntry]) -> None:
        """These are needed, though their blocks will not come: a state above them was adopted."""
        for entry in entries:
            self._loose.pop(entry.id, None)

    def _needed(self, tops: Iterable[HeaderEntry]) -> set[bytes]:
        """Ids of the loose entries on the way to any of these, or to a block that is stored."""
        bearers = [loose for loose in self._loose.values() if any(map(self._is_firm, self._children.get(loose.id, ())))]
        needed: set[bytes] = set()
        for top in (*tops, *bearers):
            for entry in top.ancestors():
                if entry.id in needed or entry.id not in self._loose:
                    break
                needed.add(entry.id)
        return needed

    def _is_firm(self, entry: HeaderEntry) -> bool:
        return entry.id not in self._loose

    def _least(self, spare: list[HeaderEntry], count: int) -> list[HeaderEntry]:
        """So many of these, with the least work in what stands on them; whatever stands on one of them comes first."""
        reach: dict[bytes, int] = {}
        for entry in sorted(spare, key=lambda entry: -entry.height):
            above = (reach[child.id] for child in self._children.get(entry.id, ()))
            reach[entry.id] = max(above, default=entry.total_work)
        return sorted(spare, key=lambda entry: (reach[entry.id], -entry.height))[: max(0, count)]

    def _drop(self, entry: HeaderEntry) -> None:
        """Forget a header that nothing stands on."""
        assert entry.parent is not None, "genesis is not loose"
        del self._entries[entry.id], self._loose[entry.id]
        self._children.pop(entry.id, None)
        self._children[entry.parent.id].remove(entry)

    def descendants(self, entry: HeaderEntry) -> Iterator[HeaderEntry]:
        """The entry and everything above it, parents first."""
        pending = [entry]
        while pending:
            current = pending.pop()
            yield current
            pending.extend(self._children.get(current.id, ()))

    def readmit(self, entry: HeaderEntry) -> None:
        """Take back a refusal that was for a false proof: a good copy has come. Descendants that were refused for their
        own sake stay refused, and so do those above them."""
        entry.refusal = ""
        for descendant in self.descendants(entry):
            inherited = "" if descendant.parent is None else descendant.parent.invalid
            descendant.invalid = descendant.refusal or inherited
            if descendant.may_be_followed and descendant.total_work > self._best.total_work:
                self._best = descendant

    def refuse(self, entry: HeaderEntry, reason: str) -> None:
        """Mark a block and all its descendants invalid, and find the best header anew."""
        entry.refusal = reason
        for descendant in self.descendants(entry):
            descendant.invalid = descendant.invalid or reason
        self._find_best()

    def leave(self, entry: HeaderEntry) -> None:
        """The chain goes on without this header and all its descendants, for good: find the best header anew."""
        for descendant in self.descendants(entry):
            descendant.is_deep = True
        self._find_best()

    def _find_best(self) -> None:
        if not self._best.may_be_followed:
            # Entries stand in the order in which they came, so max() keeps the first seen on a tie.
            good = (entry for entry in self._entries.values() if entry.may_be_followed)
            self._best = max(good, key=lambda entry: entry.total_work)


def fork_point(a: HeaderEntry, b: HeaderEntry) -> HeaderEntry:
    """The last common ancestor."""
    while a is not b:
        if a.height >= b.height:
            assert a.parent is not None, "two trees"
            a = a.parent
        else:
            assert b.parent is not None, "two trees"
            b = b.parent
    return a


def locator(entry: HeaderEntry) -> list[bytes]:
    """Ids of the entry and its ancestors, dense near the top and then ever sparser, down to genesis."""
    ids: list[bytes] = []
    step, wanted = 1, entry.height
    for ancestor in entry.ancestors():
        if ancestor.height == wanted or ancestor.height == 0:
            ids.append(ancestor.id)
            step = step * 2 if len(ids) > _LOCATOR_DENSE else 1
            wanted -= step
    return ids


def path(above: HeaderEntry, entry: HeaderEntry) -> list[HeaderEntry]:
    """The entries above `above` up to `entry`, oldest first; `above` is an ancestor of `entry`."""
    steps = []
    while entry is not above:
        steps.append(entry)
        assert entry.parent is not None, "not an ancestor"
        entry = entry.parent
    return steps[::-1]
