"""Headers first: learning which chains there are, from every peer that claims more work.

A header costs its sender real work before it costs this node more than a hash, so headers are taken in as they come;
bodies and tensors follow by `node.p2p.download`. What a packet header needs besides (strips, its parent's other copy)
is asked for from whoever sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import pairwise
from typing import Protocol

from consensus.block import Header, Zero
from consensus.errors import ConsensusError, Reason
from consensus.validation import Strips
from node.chain.headers import HeaderEntry
from node.chain.known import KnownHeaders
from node.chain.split import Weighing
from node.compute import Compute
from node.p2p.fetch import Tensors, together
from node.p2p.limits import MAX_LOCATOR, PeerLimits
from node.p2p.messages import GetHeaderCopy, GetHeaders, GetStrips, HeaderCopy, Headers, HeaderStrips, NewBlock, Status
from node.p2p.peer import Missing, Offence, Peer, PeerStalled

logger = logging.getLogger("tilework.network")


class HeaderChain(Protocol):
    """What header synchronisation needs of the chain."""

    @property
    def tip(self) -> HeaderEntry: ...
    @property
    def best_header(self) -> HeaderEntry: ...
    @property
    def tensors(self) -> Tensors: ...
    def entry(self, block_id: bytes) -> HeaderEntry | None: ...
    @property
    def known(self) -> KnownHeaders: ...
    def add_header(self, header: Header, strips: Strips | None = None) -> HeaderEntry: ...
    def note_weighed(self, start: HeaderEntry, end: HeaderEntry) -> bool: ...


class _Verdict(Enum):
    """What a refused header means for the rest of its kind."""

    RETRY = auto()
    STOP = auto()
    ORPHAN = auto()
    TOO_DEEP = auto()


class _News:
    """What one peer has announced since it was looked at last."""

    def __init__(self) -> None:
        self.headers: deque[Header] = deque(maxlen=16)
        self.arrived = asyncio.Event()
        self.weigh_at = 0.0  # of the event loop's time, as the next: not before
        self.listen_at = 0.0


class Line:
    """A few places for those who make progress; everybody else waits in line.

    Whoever makes none for `header_turn_s` goes on without a place, and has to wait for one again. All of its network
    group then wait behind those who kept nobody waiting, whoever they say they are when they come the next time.
    """

    def __init__(self, limits: PeerLimits, left: Callable[[Peer], None]) -> None:
        """`left` hears of everybody who has no place any more."""
        self._limits = limits
        self._left = left
        self._waiting: list[tuple[Peer, asyncio.Future[None]]] = []
        self._places: dict[Peer, tuple[float, asyncio.TimerHandle]] = {}
        self._late: OrderedDict[str, int] = OrderedDict()

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._places

    async def enter(self, peer: Peer) -> None:
        """Wait for a place; at once for whoever has one."""
        if peer in self._places:
            return
        turn = peer, asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn[1]
        except asyncio.CancelledError:
            self.leave(peer)
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def leave(self, peer: Peer) -> None:
        """Give the place up, if it is still held."""
        if peer in self._places:
            self._places.pop(peer)[1].cancel()
            self._left(peer)
            self._admit()

    def note_progress(self, peer: Peer) -> None:
        """The peer has brought something new: it keeps its place, but not for ever."""
        self._late.pop(peer.group, None)
        if peer in self._places:
            until, timer = self._places[peer]
            timer.cancel()
            self._places[peer] = until, self._deadline(peer, until)

    def _admit(self) -> None:
        while self._waiting and len(self._places) < self._limits.header_syncs:
            turn = min(self._waiting, key=lambda turn: self._late.get(turn[0].group, 0))
            self._waiting.remove(turn)
            peer, admitted = turn
            if not admitted.done():
                until = asyncio.get_running_loop().time() + self._limits.header_patience_s
                self._places[peer] = until, self._deadline(peer, until)
                admitted.set_result(None)

    def _deadline(self, peer: Peer, until: float) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_at(min(until, loop.time() + self._limits.header_turn_s), self._overdue, peer)

    def _overdue(self, peer: Peer) -> None:
        group = peer.group
        self._late[group] = self._late.pop(group, 0) + 1
        if len(self._late) > self._limits.max_cooling:
            self._late.popitem(last=False)
        self.leave(peer)


class HeaderSync:
    """Follows every peer's chain of headers.

    Attributes:
        tips: per peer, the entry with the most work that it is known to have.
        givers: (block id, copy id) → key of the peer that gave this copy, the latest only.
    """

    def __init__(self, chain: HeaderChain, compute: Compute, limits: PeerLimits, progress: Callable[[], None]) -> None:
        """`progress` is called whenever headers were taken in."""
        self._chain = chain
        self._compute = compute
        self._limits = limits
        self._progress = progress
        self._news: dict[Peer, _News] = {}
        # Inbound peers, whom anybody can be many of, wait among themselves.
        self._lines = {inbound: Line(limits, chain.known.release) for inbound in (False, True)}
        self._scales = asyncio.Lock()
        self._early: OrderedDict[bytes, tuple[Header, Peer]] = OrderedDict()
        self.tips: dict[Peer, HeaderEntry] = {}
        self.givers: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()

    @property
    def followed(self) -> list[Peer]:
        """All peers."""
        return list(self._news)

    def note_status(self, peer: Peer, status: Status) -> None:
        """A peer tells where it stands."""
        peer.status = status
        self._news_of(peer).arrived.set()

    def note_block(self, peer: Peer, message: NewBlock) -> None:
        """A peer has a new tip."""
        peer.note_known(message.header.id)
        news = self._news_of(peer)
        news.headers.append(message.header)
        news.arrived.set()

    async def follow(self, peer: Peer) -> None:
        """Companion of a peer's session: take in its headers whenever it knows of more work."""
        news = self._news_of(peer)
        try:
            while True:
                await self._look(peer, news)
                pause = self._limits.header_retry_s if self._is_behind(peer) else None
                try:
                    async with asyncio.timeout(pause):
                        await news.arrived.wait()
                except TimeoutError:
                    continue  # it still claims more than it has shown
                news.arrived.clear()
        finally:
            self._news.pop(peer, None)
            self.tips.pop(peer, None)
            self._chain.known.release(peer.key)

    async def retry_early(self) -> None:
        """Look again, now and then, at headers that were ahead of the clock."""
        while True:
            await asyncio.sleep(self._limits.early_retry_s)
            waiting, self._early = self._early, OrderedDict()
            for header, peer in waiting.values():
                if not peer.is_gone:
                    self.note_block(peer, NewBlock(header))

    # ------------------------------------------------------------------ one peer

    async def _look(self, peer: Peer, news: _News) -> None:
        try:
            while news.headers:
                await self._announced(peer, news.headers.popleft(), news)
            entry = self._chain.entry(peer.status.tip)
            if entry is not None:
                if (entry.height, entry.total_work) != (peer.status.height, peer.status.work):
                    peer.penalise(Offence.LIES, "another height or work than its tip has")
                    return
                self._note_tip(peer, entry)
            if self._is_behind(peer):
                refused = await self._synchronise(peer, lambda: self._is_behind(peer))
                await self._weigh(peer, news, refused)
        except PeerStalled:
            peer.penalise(Offence.STALL, "headers")
        except Missing:
            peer.penalise(Offence.WITHHOLDS, "headers")

    def _is_behind(self, peer: Peer) -> bool:
        """Whether a peer claims a chain that may be the one to follow, and of which not all headers are here.

        It need not have more work than the best header, whose blocks perhaps nobody has.
        """
        status = peer.status
        is_more = status.work > self._chain.tip.total_work
        return is_more and not peer.is_gone and self._chain.entry(status.tip) is None

    async def _announced(self, peer: Peer, header: Header, news: _News) -> None:
        """A new tip, whose parent is mostly known; else the peer is asked for what lies between."""
        loop = asyncio.get_running_loop()
        if loop.time() < news.listen_at:
            return
        known = self._chain.entry(header.id)
        if known is not None and header.copy_id in known.copies:
            self._note_tip(peer, known)
            return
        entry, verdict = await self._take(peer, [header])
        if verdict is _Verdict.ORPHAN and not peer.is_gone:
            await self._synchronise(peer, lambda: self._chain.entry(header.core.parent) is None)
        elif verdict is _Verdict.TOO_DEEP:
            news.listen_at = loop.time() + self._limits.header_retry_s  # its work was looked at, and can be shown again
        elif entry is not None:
            peer.status = Status(entry.height, entry.id, entry.total_work.to_bytes(32), peer.status.base)
            peer.brought_block_at = loop.time()

    async def _synchronise(self, peer: Peer, is_needed: Callable[[], bool]) -> Sequence[Header]:
        """All headers that the peer has and we have not, in its turn, unless others have brought them until then.

        Gives as `_catch_up` does.
        """
        line = self._lines[peer.inbound]
        try:
            await line.enter(peer)
            return await self._catch_up(peer, line) if is_needed() else ()
        finally:
            line.leave(peer)

    async def _catch_up(self, peer: Peer, line: Line) -> Sequence[Header]:
        """Ask for headers until there are no more; afterwards the peer's claim must have come true.

        Gives the headers of a chain that leaves ours too deep to be followed, if that is why it stopped.
        """
        claimed, limit = peer.status.work, self._limits.max_headers
        last: HeaderEntry | None = None
        while True:
            locator = self._chain.known.locator() if last is None else [last.id, *self._chain.known.locator()]
            await line.enter(peer)
            headers = (await peer.request(GetHeaders(tuple(locator[:MAX_LOCATOR]), limit), Headers)).headers
            await line.enter(peer)  # an answer that came late waits again
            if len(headers) > limit or any(child.core.parent != parent.id for parent, child in pairwise(headers)):
                peer.penalise(Offence.INVALID, "headers that are no chain")
                return ()
            if last is not None and self._chain.entry(last.id) is not last:  # it was dropped: once more
                last = None
                continue
            if headers:
                entry, verdict = await self._take(peer, headers)
                if verdict is _Verdict.ORPHAN:
                    peer.penalise(Offence.INVALID, "headers that start nowhere")
                if verdict is _Verdict.TOO_DEEP:
                    return headers
                if entry is None or verdict is not None:
                    return ()
                if last is not None and entry.height <= last.height:
                    peer.penalise(Offence.LIES, "the same headers again")
                    return ()
                last = entry
                if peer in line:
                    self._chain.known.hold(peer, entry)
            if len(headers) < limit:
                break
        shown = self.tips.get(peer)
        if claimed > max(self._chain.tip.total_work, 0 if shown is None else shown.total_work):
            peer.penalise(Offence.LIES, f"work {claimed}, shown {shown and shown.total_work}")
        return ()

    async def _weigh(self, peer: Peer, news: _News, headers: Sequence[Header]) -> None:
        """Find out whether a chain that this node may not follow has more work: only its operator can mend that.

        One chain at a time, and for nobody to blame: its headers are judged as if they had come too late.
        """
        loop = asyncio.get_running_loop()
        start = self._chain.entry(headers[0].core.parent) if headers else None
        if start is None or self._scales.locked() or loop.time() < news.weigh_at:
            return
        news.weigh_at = loop.time() + self._limits.weigh_s
        weighing, limit = Weighing(self._chain.known, start), self._limits.max_headers
        with contextlib.suppress(TimeoutError, ConsensusError):
            async with self._scales, asyncio.timeout(self._limits.weigh_s):
                while headers:
                    batch = self._batch(headers)
                    await self._compute.run(weighing.add, batch, await self._strips(peer, batch))
                    if await self._compute.run(self._chain.note_weighed, start, weighing.last):
                        return
                    headers = headers[len(batch) :]
                    if not headers:
                        headers = (await peer.request(GetHeaders((weighing.last.id,), limit), Headers)).headers

    # ------------------------------------------------------------------ taking in

    async def _take(self, peer: Peer, headers: Sequence[Header]) -> tuple[HeaderEntry | None, _Verdict | None]:
        """Add headers in their order: (the last one's entry, why the rest was left)."""
        last: HeaderEntry | None = None
        helped: bytes | None = None
        position = 0
        while position < len(headers):
            batch = self._batch(headers[position:])
            strips = await self._strips(peer, batch)
            known = sum(self._chain.entry(header.id) is not None for header in batch)
            added, error = await self._compute.run(self._add, batch, strips)
            for entry, header in zip(added, batch, strict=False):
                last = entry
                self._note_giver(peer, header)
                self._note_tip(peer, entry)
            position += len(added)
            if added:
                self.tips = {other: tip for other, tip in self.tips.items() if self._chain.entry(tip.id) is tip}
                self._progress()
            if len(added) > known:
                self._lines[peer.inbound].note_progress(peer)
            if error is not None:
                refused = headers[position]
                # A second refusal of the same header after help is final.
                verdict = await self._judge(peer, refused, error, final=helped == refused.id)
                if verdict is not _Verdict.RETRY:
                    return last, verdict
                helped = refused.id
        return last, None

    def _batch(self, headers: Sequence[Header]) -> Sequence[Header]:
        """As many as go in one step: few where strips of up to half a megabyte come with each."""
        packets = 0
        for position, header in enumerate(headers[: self._limits.header_batch]):
            packets += self._needs_strips(header)
            if packets > self._limits.strips_ahead:
                return headers[:position]
        return headers[: self._limits.header_batch]

    def _needs_strips(self, header: Header) -> bool:
        """Whether a header's tile can only be checked with strips that are not here."""
        unit = header.core.unit
        if isinstance(unit, Zero):
            return False
        entry = self._chain.entry(header.id)
        if entry is not None and header.copy_id in entry.copies:
            return False
        return not (self._chain.tensors.has(unit.left.commitment) and self._chain.tensors.has(unit.right.commitment))

    async def _strips(self, peer: Peer, headers: Sequence[Header]) -> dict[bytes, Strips]:
        """Ticket → strips, for the headers that need them; what the peer lacks, the check will miss."""
        needy = [header for header in headers if self._needs_strips(header)]

        async def get(header: Header) -> tuple[bytes, Strips] | None:
            try:
                answer = await peer.request(GetStrips(header.id, header.ticket), HeaderStrips)
            except Missing:
                return None
            return header.ticket, answer.strips

        return dict(found for found in await together(map(get, needy)) if found is not None)

    def _add(
        self, headers: Sequence[Header], strips: dict[bytes, Strips]
    ) -> tuple[list[HeaderEntry], ConsensusError | None]:
        """Off the event loop: the entries of those that were taken, and why the next was not."""
        entries: list[HeaderEntry] = []
        for header in headers:
            try:
                entry = self._chain.add_header(header, strips.get(header.ticket))
            except ConsensusError as error:
                return entries, error
            if entry.invalid:
                return entries, ConsensusError(Reason.INVALID_PARENT, entry.invalid)
            entries.append(entry)
        return entries, None

    async def _judge(self, peer: Peer, header: Header, error: ConsensusError, final: bool) -> _Verdict:
        """What a refusal means. Some are about what is not here yet; for the others the sender is to blame."""
        match error.reason:
            case Reason.TIME_TOO_NEW:
                self._early[header.id] = (header, peer)
                if len(self._early) > self._limits.max_early:
                    self._early.popitem(last=False)
                return _Verdict.STOP
            case Reason.REORG_TOO_DEEP:
                return _Verdict.TOO_DEEP
            case Reason.UNKNOWN_PARENT:
                return _Verdict.ORPHAN
            case Reason.MISSING_STRIPS:
                peer.penalise(Offence.WITHHOLDS, "strips")
                return _Verdict.STOP
            case Reason.WRONG_PARENT_TICKET | Reason.INVALID_PARENT if not final:
                return await self._get_parent_copy(peer, header)
        peer.penalise(Offence.INVALID, error)
        return _Verdict.STOP

    async def _get_parent_copy(self, peer: Peer, header: Header) -> _Verdict:
        """The parent has several winning tiles, and the header names one that is not here."""
        core = header.core
        try:
            answer = await peer.request(GetHeaderCopy(core.parent, core.parent_ticket), HeaderCopy)
        except Missing:
            peer.penalise(Offence.WITHHOLDS, "a parent's copy")
            return _Verdict.STOP
        copy = answer.header
        if copy.id != core.parent or copy.ticket != core.parent_ticket:
            peer.penalise(Offence.INVALID, "another header's copy")
            return _Verdict.STOP
        added, error = await self._compute.run(self._add, [copy], await self._strips(peer, [copy]))
        if added:
            self._note_giver(peer, copy)
        elif error is not None and error.reason is not Reason.INVALID_PARENT:
            peer.penalise(Offence.INVALID, error)
            return _Verdict.STOP
        return _Verdict.RETRY

    def _note_tip(self, peer: Peer, entry: HeaderEntry) -> None:
        known = self.tips.get(peer)
        if not peer.is_gone and (known is None or entry.total_work > known.total_work):
            self.tips[peer] = entry
            if not peer.inbound:  # such are few, and chosen by this node
                self._chain.known.hold(peer.key, entry)

    def _note_giver(self, peer: Peer, header: Header) -> None:
        self.givers.setdefault((header.id, header.copy_id), peer.key)
        if len(self.givers) > self._limits.max_known:
            self.givers.popitem(last=False)

    def _news_of(self, peer: Peer) -> _News:
        return self._news.setdefault(peer, _News())
