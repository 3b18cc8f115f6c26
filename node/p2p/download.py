"""Bodies and tensors: from the headers' best chain to an executed tip.

Blocks are fetched many at once, each from whoever has it, and executed one by one in their order. A chain whose data
nobody gives does not hold up another: the next best one is tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from consensus.block import Block, Body, Header
from consensus.codec import decode
from consensus.errors import BadProof, ConsensusError, MissingTensor, Reason
from consensus.params import MAX_BODY_BYTES
from consensus.validation import Strips
from node.chain.archive import Archive
from node.chain.headers import MAX_COPIES, HeaderEntry, fork_point
from node.chain.known import KnownHeaders
from node.chain.snapshot import replay_span
from node.compute import Compute
from node.p2p.fetch import Fetcher, Owed, Unavailable, WrongAnswer, never, together
from node.p2p.join import JoinChain, Joiner, JoinIntake
from node.p2p.limits import PeerLimits
from node.p2p.messages import BodyBytes, GetBody, GetHeaders, Headers
from node.p2p.peer import Missing, Offence, Peer
from node.p2p.sync import HeaderSync

logger = logging.getLogger("tilework.network")

_EMPTY_BODY = Body()
_MOST_DOUBLINGS = 6
_EMPTY_ROOT = _EMPTY_BODY.root()


class BlockChain(JoinChain, Protocol):
    """What downloading needs of the chain."""

    @property
    def archive(self) -> Archive: ...
    @property
    def known(self) -> KnownHeaders: ...
    def entry(self, block_id: bytes) -> HeaderEntry | None: ...
    def missing_tensors(self, block: Block) -> list[bytes]: ...
    def add_header(self, header: Header, strips: Strips | None = None) -> HeaderEntry: ...


class BlockIntake(JoinIntake, Protocol):
    """Where complete blocks go."""

    async def block(self, block: Block, strips: Strips | None = None) -> object: ...


class _Refused(Exception):
    """The chain does not want this block; whoever stands for it has been told."""


class _Slow(Unavailable):
    """A block takes so long that another chain is tried first."""


class Downloader:
    """Brings the tip up to the best header whose data can be had.

    Attributes:
        is_on_its_way: a block is being handed over after which others are about to follow.
    """

    def __init__(
        self,
        chain: BlockChain,
        intake: BlockIntake,
        headers: HeaderSync,
        fetcher: Fetcher,
        compute: Compute,
        limits: PeerLimits,
    ) -> None:
        self._chain = chain
        self._intake = intake
        self._headers = headers
        self._fetcher = fetcher
        self._compute = compute
        self._limits = limits
        self._joiner = Joiner(chain, intake, headers, self._holders, compute, limits)
        self.is_on_its_way = False
        self._wake = asyncio.Event()
        self._withheld: dict[bytes, float] = {}
        self._slow: dict[bytes, int] = {}
        self._forks: dict[tuple[bytes, bytes], int] = {}

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    async def run(self) -> None:
        """For ever: fetch and execute what the headers promise."""
        while True:
            self._wake.clear()
            pause: float | None = self._limits.unavailable_retry_s
            if not self._joiner.awaits_headers():
                if (target := self._target()) is not None:
                    await self._pursue(target)
                    continue
                if not self._withheld:
                    pause = None
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def fetch_operands(self) -> None:
        """For ever: what a snapshot's open groups need and no block brings."""
        while True:
            await self._joiner.fetch_operands(self._fetcher)
            await asyncio.sleep(self._limits.operands_retry_s)

    # ------------------------------------------------------------------ what to fetch

    def _target(self) -> HeaderEntry | None:
        """The entry with the most work above the tip's that is not known to be withheld."""
        now = asyncio.get_running_loop().time()
        self._withheld = {block: until for block, until in self._withheld.items() if until > now}
        best = self._chain.best_header
        offered = sorted(set(self._headers.tips.values()), key=lambda entry: entry.total_work, reverse=True)
        for entry in [best, *offered]:
            self._chain.known.hold(self, entry)
            is_kept = self._chain.entry(entry.id) is entry
            if is_kept and entry.total_work > self._chain.tip.total_work and entry.may_be_followed:
                if not self._withheld:
                    return entry
                if not any(ancestor.id in self._withheld for ancestor in self._steps(entry)):
                    return entry
        self._chain.known.release(self)
        return None

    def _steps(self, target: HeaderEntry) -> list[HeaderEntry]:
        """The entries above the main chain up to `target`, oldest first."""
        steps = []
        for entry in target.ancestors():
            if entry.height <= self._chain.tip.height and self._chain.archive.id_at(entry.height) == entry.id:
                break
            steps.append(entry)
        return steps[::-1]

    def _holders(self, entry: HeaderEntry, target: HeaderEntry) -> list[Peer]:
        """Peers whose own chain runs through `entry`, which is on the way to `target`, and who have its body."""
        return [
            peer
            for peer, tip in list(self._headers.tips.items())
            if peer.status.base < entry.height <= tip.height
            and not peer.is_gone
            and self._fork_height(tip, target) >= entry.height
        ]

    def _fork_height(self, tip: HeaderEntry, target: HeaderEntry) -> int:
        key = (tip.id, target.id)
        if key not in self._forks:
            if len(self._forks) >= self._limits.max_known:
                self._forks.clear()
            self._forks[key] = fork_point(tip, target).height
        return self._forks[key]

    async def _pursue(self, target: HeaderEntry) -> None:
        """Join below a target, or fetch and execute the blocks up to it. What does not come is set aside."""
        above = self._joiner.entrance(target)
        if above is None:
            await self._approach(target)
        elif not await self._joiner.join(above, target):
            self._withheld[above.id] = asyncio.get_running_loop().time() + self._limits.unavailable_retry_s

    # ------------------------------------------------------------------ fetching ahead, executing in order

    async def _approach(self, target: HeaderEntry) -> None:
        """Fetch and execute the blocks up to `target`, as far as it goes."""
        steps = deque(await self._compute.run(self._steps, target))
        ahead: deque[tuple[HeaderEntry, asyncio.Task[Body | Unavailable]]] = deque()
        current = target
        try:
            async with asyncio.TaskGroup() as group:
                while steps or ahead:
                    while steps and len(ahead) < self._limits.download_window:
                        entry = steps.popleft()
                        ahead.append((entry, group.create_task(self._fetch(entry, target))))
                    current, task = ahead.popleft()
                    body = await self._awaited(current, task)
                    if isinstance(body, Unavailable):
                        raise body
                    await self._execute(current, body, target)
        except* (Unavailable, _Refused) as failure:
            slow = failure.subgroup(_Slow) is not None
            pause = self._slow_pause(current) if slow else self._limits.unavailable_retry_s
            self._withheld[current.id] = asyncio.get_running_loop().time() + pause
            logger.debug("blocks are held up", extra={"height": current.height, "why": str(failure.exceptions[0])})

    def _slow_pause(self, entry: HeaderEntry) -> float:
        """Seconds for which a block that does not come is set aside: twice as long each time."""
        times = self._slow[entry.id] = self._slow.pop(entry.id, 0) + 1
        if len(self._slow) > self._limits.max_known:
            del self._slow[next(iter(self._slow))]
        return self._limits.slow_retry_s * 2.0 ** min(times - 1, _MOST_DOUBLINGS)

    async def _awaited(self, entry: HeaderEntry, task: asyncio.Task[Body | Unavailable]) -> Body | Unavailable:
        """What the task fetches, however long that takes; `_Slow` if meanwhile there is another chain to follow.

        A block that those who announced it hand over slowly, or one after another not at all, must not hold up others.
        """
        while True:
            done, _ = await asyncio.wait([task], timeout=self._limits.block_patience_s)
            if done:
                return task.result()
            if await self._compute.run(self._is_dispensable, entry):
                raise _Slow("its data does not come")

    def _is_dispensable(self, entry: HeaderEntry) -> bool:
        """Whether a chain with more work than the tip's does without this block."""
        others = {self._chain.best_header, *self._headers.tips.values()}
        return any(
            other.total_work > self._chain.tip.total_work and other.may_be_followed and entry not in self._steps(other)
            for other in others
        )

    async def _fetch(self, entry: HeaderEntry, target: HeaderEntry) -> Body | Unavailable:
        """The body of a block, once all tensors that the block obliges are here.

        A failure is returned, not raised: the blocks before this one can be executed all the same.
        """
        try:
            body = await self._body(entry, target)
            await self._complete(entry, body, target)
        except Unavailable as error:
            return error
        return body

    async def _complete(self, entry: HeaderEntry, body: Body, target: HeaderEntry) -> None:
        """Fetch what a block obliges, in one of its copies. Unavailable if none can be completed."""
        for _ in range(MAX_COPIES):
            header = self._header(entry)
            missing = await self._compute.run(self._chain.missing_tensors, Block(header, body))
            own = None if header.result is None else header.result.body.product
            try:
                await self._tensors((c for c in missing if c != own), entry, target, self._owed(entry))
                if own in missing:
                    await self._tensors([own], entry, target, self._owed(entry, header))
                return
            except Unavailable:
                # Its miner may have signed another product besides: one that can be had.
                if own not in missing:
                    raise
            if len(entry.copies) == 1:
                await self._another_copy(entry, target)
            entry.set_back(header.copy_id)
            self._blame_giver(header, Offence.WITHHOLDS, "a product")
        raise Unavailable("no copy of it can be completed")

    async def _body(self, entry: HeaderEntry, target: HeaderEntry) -> Body:
        if entry.core.body_root == _EMPTY_ROOT:
            return _EMPTY_BODY
        if entry.has_body and (stored := await self._compute.run(self._chain.archive.body, entry.id)) is not None:
            return stored

        async def accept(_: Peer, answer: BodyBytes) -> Body:
            return await self._compute.run(_decode_body, answer.body, entry.core.body_root)

        return await self._fetcher.ask(GetBody(entry.id), BodyBytes, lambda: self._holders(entry, target), accept)

    def _owed(self, entry: HeaderEntry, copy: Header | None = None) -> Owed:
        """Of a block's own tensors: who drops what is out of its retention breaks no word.

        `copy`: whose own product it is; nobody but the giver of that copy has said that it can be had.
        """
        span = replay_span(self._chain.params)
        giver = None if copy is None else self._headers.givers.get((copy.id, copy.copy_id))
        return lambda peer: (copy is None or peer.key == giver) and peer.status.height - entry.height < span

    async def _tensors(self, commitments: Iterable[bytes], entry: HeaderEntry, target: HeaderEntry, owed: Owed) -> None:
        await together(
            self._fetcher.tensor(commitment, lambda: self._holders(entry, target), owed) for commitment in commitments
        )

    async def _execute(self, entry: HeaderEntry, body: Body, target: HeaderEntry) -> None:
        """Hand a complete block over, and find out whose fault it is if it is refused."""
        while True:
            header = self._header(entry)
            self.is_on_its_way = entry is not target
            try:
                await self._intake.block(Block(header, body))
                return
            except MissingTensor as missing:
                # An operand of an older job, which a peer that joined from a snapshot need not have had yet.
                await self._tensors([missing.commitment], entry, target, never)
            except BadProof as error:
                self._blame_giver(header, Offence.INVALID, error)
                if not entry.copies:
                    await self._another_copy(entry, target)
            except ConsensusError as error:
                logger.warning(
                    "block refused", extra={"height": entry.height, "block": entry.id.hex(), "why": str(error)}
                )
                if error.reason is not Reason.REORG_TOO_DEEP:  # which is about where this node stands
                    for peer in self._holders(entry, target):
                        peer.penalise(Offence.INVALID, error)
                raise _Refused(str(error)) from None
            finally:
                self.is_on_its_way = False

    def _blame_giver(self, header: Header, offence: Offence, detail: object) -> None:
        """A copy that is false or cannot be completed counts against the peer that gave it, and nobody else."""
        giver = self._headers.givers.pop((header.id, header.copy_id), None)
        for peer in list(self._headers.tips):
            if peer.key == giver:
                peer.penalise(offence, detail)

    async def _another_copy(self, entry: HeaderEntry, target: HeaderEntry) -> None:
        """The same core in the copy that another peer has on its main chain, if there is one that is not known yet."""
        parent = entry.core.parent

        async def accept(peer: Peer, answer: Headers) -> None:
            if len(answer.headers) != 1 or answer.headers[0].id != entry.id:
                raise Missing  # it has moved to another chain meanwhile
            if answer.headers[0].copy_id in entry.copies:
                raise Missing
            try:
                await self._compute.run(self._chain.add_header, answer.headers[0])
            except ConsensusError as error:
                raise WrongAnswer(str(error)) from None
            self._headers.givers[(entry.id, answer.headers[0].copy_id)] = peer.key

        candidates = lambda: self._holders(entry, target)  # noqa: E731  (one expression, used once)
        await self._fetcher.ask(GetHeaders((parent,), 1), Headers, candidates, accept, owed=never)

    def _header(self, entry: HeaderEntry) -> Header:
        if not entry.copies:
            raise Unavailable("its proof was false")
        return entry.header


def _decode_body(data: bytes, root: bytes) -> Body:
    """A body with this root, or WrongAnswer. Hashes up to a megabyte: not for an event loop."""
    try:
        body = decode(Body, data, MAX_BODY_BYTES)
    except ConsensusError as error:
        raise WrongAnswer(str(error)) from None
    if body.root() != root:
        raise WrongAnswer("another block's body")
    return body
