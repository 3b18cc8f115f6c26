"""Joining an old chain: its state is fetched at a checkpoint, because nobody keeps the tensors to replay it all.

Headers come first, as ever: their work decides which chain it is, and they name the root by which the state is known to
be true. The state comes page by page from one peer at a time, so that a false one has one author.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from consensus.codec import decode
from consensus.errors import ConsensusError, Reason
from consensus.params import ChainParams
from node.chain.checkpoints import Page
from node.chain.headers import HeaderEntry
from node.chain.snapshot import FIRST_KEY, Staging, checkpoint_height, replay_span
from node.compute import Compute
from node.p2p.fetch import Fetcher, Unavailable, WrongAnswer, never
from node.p2p.limits import MAX_STATE_BYTES, PeerLimits
from node.p2p.messages import GetState, State
from node.p2p.peer import Missing, Offence, Peer, PeerGone, PeerStalled
from node.p2p.sync import HeaderSync

logger = logging.getLogger("tilework.network")

_MOST_DOUBLINGS = 8

Holders = Callable[[HeaderEntry, HeaderEntry], list[Peer]]
"""Peers that have the block of an entry on the way to another entry."""


class JoinChain(Protocol):
    """What joining needs of the chain."""

    @property
    def params(self) -> ChainParams: ...
    @property
    def tip(self) -> HeaderEntry: ...
    @property
    def base(self) -> HeaderEntry: ...
    @property
    def best_header(self) -> HeaderEntry: ...
    def stage(self, above: HeaderEntry) -> Staging: ...
    def missing_operands(self) -> list[bytes]: ...


class JoinIntake(Protocol):
    """Where a complete state goes."""

    async def adopt(self, above: HeaderEntry, staged: Staging) -> None: ...


class Joiner:
    """Decides between replay and snapshot, and takes the snapshot."""

    def __init__(
        self,
        chain: JoinChain,
        intake: JoinIntake,
        headers: HeaderSync,
        holders: Holders,
        compute: Compute,
        limits: PeerLimits,
    ) -> None:
        self._chain = chain
        self._intake = intake
        self._headers = headers
        self._holders = holders
        self._compute = compute
        self._limits = limits
        self._complete: HeaderEntry | None = None
        self._failures: Counter[str | bytes] = Counter()
        self._reached = 0
        self._reached_at: float | None = None

    def awaits_headers(self) -> bool:
        """Whether replay would begin at blocks whose tensors are gone, if a peer with more headers to show is right.

        Only while this node catches up and the best chain grows by many headers: nobody is held up by claims alone,
        whoever makes them, nor by blocks as they are mined.
        """
        params, tip, best = self._chain.params, self._chain.tip, self._chain.best_header
        if tip.parent is not None and best.height - tip.height <= params.max_reorg:
            return False
        now = asyncio.get_running_loop().time()
        self._reached = min(self._reached, best.height)
        if self._reached_at is None or best.height - self._reached > self._limits.max_headers // 8:
            self._reached, self._reached_at = best.height, now
        return now - self._reached_at < self._limits.header_patience_s and any(
            peer.status.work > best.total_work and peer.status.height - tip.height >= replay_span(params)
            for peer in self._headers.followed
        )

    def entrance(self, target: HeaderEntry) -> HeaderEntry | None:
        """The entry above the checkpoint to join at, on the way to `target`; None where the blocks can be replayed."""
        params, tip = self._chain.params, self._chain.tip
        height = checkpoint_height(params, target.height)
        if height <= tip.height:
            return None
        entry = target
        while entry.height > height + 1:
            assert entry.parent is not None, "above a checkpoint"
            entry = entry.parent
        if target.height - tip.height >= replay_span(params):
            return entry
        # Nearer than that, replay needs a peer that did not itself join above the tip.
        peers = self._holders(entry, target)
        return entry if peers and all(peer.status.base > tip.height for peer in peers) else None

    async def join(self, above: HeaderEntry, target: HeaderEntry) -> bool:
        """Take the state below `above`, on the way to `target`, from one who has it; False if it does not give it.

        Who has failed before is asked after the others, and its network group with it, and gets twice the time: a state
        that comes slowly, or turns out false at its end, costs little before there was time to try the others.
        """
        peers = self._holders(above, target)
        if not peers:
            return False
        peer = min(peers, key=lambda peer: (self._failures[peer.group], self._failures[peer.key], peer.load))
        try:
            staged = await self._fetch(peer, above)
            await self._intake.adopt(above, staged)
        except (Missing, PeerGone, TimeoutError):
            pass  # its newest checkpoint is another one, or it is slow
        except PeerStalled:
            peer.penalise(Offence.STALL, "a state")
        except WrongAnswer as error:
            peer.penalise(Offence.INVALID, error)
        except ConsensusError as error:
            if error.reason is Reason.WRONG_STATE_ROOT:
                peer.penalise(Offence.INVALID, error)
        else:
            logger.info("joined from a snapshot", extra={"height": above.height - 1, "bytes": staged.size_bytes})
            self._failures.clear()
            return True
        self._failures.update((peer.group, peer.key))
        return False

    async def _fetch(self, peer: Peer, above: HeaderEntry) -> Staging:
        """A peer's state. TimeoutError if it takes too long for this time."""
        times = min(self._failures[peer.group], _MOST_DOUBLINGS)
        deadline = asyncio.get_running_loop().time() + self._limits.state_patience_s * 2.0**times
        staged = await self._compute.run(self._chain.stage, above)
        start = FIRST_KEY
        while True:
            async with asyncio.timeout_at(deadline):  # and nothing else: what runs on a thread writes to the store
                answer = await peer.request(GetState(above.core.parent, start), State)
            last = await self._compute.run(_take, staged, answer.records, start)
            if not answer.more:
                return staged
            if len(answer.records) < self._limits.state_page_bytes // 4:
                raise WrongAnswer("a state drop by drop")
            if staged.size_bytes > self._limits.max_state_bytes:
                raise WrongAnswer("a state without end")
            start = last + b"\x00"

    async def fetch_operands(self, fetcher: Fetcher) -> None:
        """Bring what the groups that are open at the base still need: blocks oblige it no more, but workers use it.

        Whatever block or Result needs one earlier fetches it by itself.
        """
        base, behind = self._chain.base, self._chain.best_header.height - self._chain.tip.height
        if base.parent is None or base is self._complete or behind > 1:  # blocks first
            return
        missing = await self._compute.run(self._chain.missing_operands)
        for commitment in missing:
            try:
                await fetcher.tensor(commitment, lambda: list(self._headers.tips), never)
            except Unavailable:
                continue
        if not missing:
            self._complete = base


def _take(staged: Staging, data: bytes, start: bytes) -> bytes:
    """Add a page, of records from `start` on: its last key. Hashes up to a megabyte: not for an event loop."""
    try:
        records = decode(Page, data, MAX_STATE_BYTES).records
    except ConsensusError as error:
        raise WrongAnswer(str(error)) from None
    keys = [key for key, _ in records]
    if keys[0] < start or any(key >= following for key, following in pairwise(keys)):
        raise WrongAnswer("records out of order")
    staged.add(dict(records))
    return keys[-1]
