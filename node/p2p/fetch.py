"""Getting what others hold: one question, several peers, and tensors strip by strip.

Whoever stalls, lacks the thing or sends other bytes is noted and passed over; the question goes to the next. What is on
its way into this node is bounded in bytes.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from consensus import tensor as tensors_module
from consensus.params import MAX_TENSOR_BYTES
from consensus.tensor import Tensor, TensorSpec, verify_strip
from node.compute import Compute
from node.p2p.limits import MAX_STRIP_BYTES
from node.p2p.messages import GetTensor, Message, Strip, TensorStrips, strips_expected
from node.p2p.peer import Missing, Offence, Peer, PeerGone, PeerStalled

T = TypeVar("T")
R = TypeVar("R", bound=Message)

_PATIENCE_S = 3.0
"""After so long a question that has no answer is put to the next one, too; later where all are slow, for then it may be
this node's own link."""


class Unavailable(Exception):
    """Nobody who is connected gave it."""


class WrongAnswer(Exception):
    """An answer that no honest peer gives; the text says what is wrong."""


class Tensors(Protocol):
    """What is here already."""

    def has(self, commitment: bytes) -> bool: ...


class TensorIntake(Protocol):
    """Where a fetched tensor goes."""

    async def tensor(self, tensor: Tensor, obliged: bool = False) -> object: ...


Owed = Callable[[Peer], bool]
"""Whether a peer that lacks the thing breaks its word."""


def always(peer: Peer) -> bool:
    """Who says that it has this must have it."""
    return True


def never(peer: Peer) -> bool:
    """Nobody has promised this."""
    return False


Candidates = Callable[[], Collection[Peer]]
"""Peers that should have the thing, at the moment of asking."""


async def together(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, run at once. The first error cancels the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


QUICK_BYTES_PER_S = 4 << 20
"""Who brings so much keeps its bytes, whoever waits."""


class Holding:
    """Some bytes of a budget, and how quickly they come from a household."""

    def __init__(self, household: str, since: float, way: asyncio.Timeout) -> None:
        self.household = household
        self.brought = 0
        self._since = since
        self._way = way

    def age_s(self, now: float) -> float:
        return now - self._since

    def pace(self, now: float) -> float:
        """Bytes per second."""
        return self.brought / max(self.age_s(now), 1e-3)

    def make_way(self, now: float) -> None:
        """Be over now."""
        self._way.reschedule(now)


class _Waiting(NamedTuple):
    size: int
    household: str
    turn: asyncio.Future[None]


class ByteBudget:
    """At most `limit` bytes at once, first come first served but for the slow; a larger piece goes alone.

    Once somebody has waited for `turn_s`, those who have had their bytes for as long make way unless they are quick,
    and what comes from the same household goes behind all others: a slow peer pays with its own.
    """

    def __init__(self, limit: int, turn_s: float = math.inf) -> None:
        self._limit = limit
        self._turn_s = turn_s
        self._used = 0
        self._queue: list[_Waiting] = []
        self._holdings: set[Holding] = set()
        self._slow: Counter[str] = Counter()
        self._look_out: asyncio.TimerHandle | None = None

    @property
    def used(self) -> int:
        """Bytes taken."""
        return self._used

    @asynccontextmanager
    async def take(self, size: int, household: str = "") -> AsyncIterator[Holding]:
        """Hold `size` bytes, which come from a household, while the block runs.

        Raises:
            Unavailable: it was slow, and others waited.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(_Waiting(size, household, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(size)
            raise
        try:
            async with asyncio.timeout(None) as way:
                holding = Holding(household, loop.time(), way)
                self._holdings.add(holding)
                try:
                    yield holding
                finally:
                    self._holdings.discard(holding)
        except TimeoutError:
            if not way.expired():
                raise
            raise Unavailable("too slow while others wait") from None
        finally:
            self._release(size)

    def _release(self, size: int) -> None:
        self._used -= size
        self._admit()

    def _admit(self) -> None:
        self._queue = [waiting for waiting in self._queue if not waiting.turn.done()]
        while self._queue:
            first = min(self._queue, key=lambda waiting: self._slow[waiting.household])
            if self._used and self._used + first.size > self._limit:
                if self._look_out is None and self._turn_s < math.inf:
                    self._look_out = asyncio.get_running_loop().call_later(self._turn_s, self._look)
                return
            self._used += first.size
            first.turn.set_result(None)
            self._queue.remove(first)
        self._slow.clear()

    def _look(self) -> None:
        """Somebody has waited for long: the slow make way."""
        self._look_out = None
        now = asyncio.get_running_loop().time()
        for holding in self._holdings:
            if holding.age_s(now) >= self._turn_s and holding.pace(now) < QUICK_BYTES_PER_S:
                self._slow[holding.household] += 1
                holding.make_way(now)
        self._admit()


class Fetcher:
    """Asks peers. `sink` takes finished tensors."""

    def __init__(
        self,
        tensors: Tensors,
        sink: TensorIntake,
        compute: Compute,
        limit_bytes: int,
        rng: random.Random,
        turn_s: float = math.inf,
    ) -> None:
        """`limit_bytes` bounds the tensors on their way; who is slow makes way for those who have waited `turn_s`."""
        self._tensors = tensors
        self._sink = sink
        self._compute = compute
        self._rng = rng
        self.budget = ByteBudget(limit_bytes, turn_s)
        self._turn_s = turn_s
        self._busy: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._due: Counter[bytes] = Counter()
        self._questions: set[asyncio.Task[Any]] = set()
        self._pace: WeakKeyDictionary[Peer, float] = WeakKeyDictionary()

    async def ask(
        self,
        message: Message,
        reply: type[R],
        candidates: Candidates,
        accept: Callable[[Peer, R], Awaitable[T]],
        passed_over: Collection[bytes] = (),
        owed: Owed = always,
    ) -> T:
        """What `accept` makes of the first good answer, the peer from which it is expected soonest being asked first.

        `accept` raises `WrongAnswer` at an answer that is its sender's fault; `passed_over` are keys not to be asked;
        `owed` says whether a candidate without the thing breaks its word.

        Raises:
            Unavailable: all candidates were asked in vain.
        """
        asked = set(passed_over)
        pending: set[asyncio.Task[tuple[Peer, R | None]]] = set()
        try:
            while True:
                left = [peer for peer in candidates() if peer.key not in asked and not peer.is_gone]
                if left:
                    peer = self._soonest(left)
                    patience_s = max(_PATIENCE_S, 4 * (self._due[peer.key] + 1) * self._quickest_s(left))
                    asked.add(peer.key)
                    pending.add(self._put(peer, message, reply, owed))
                elif not pending:
                    raise Unavailable(type(message).__name__)
                done, pending = await asyncio.wait(pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for peer, answer in [question.result() for question in done]:
                    if answer is not None:
                        try:
                            return await accept(peer, answer)
                        except Missing:
                            continue
                        except WrongAnswer as error:
                            peer.penalise(Offence.INVALID, error)
        except BaseException:
            for question in pending:
                question.cancel()
            raise

    def _put(self, peer: Peer, message: Message, reply: type[R], owed: Owed) -> asyncio.Task[tuple[Peer, R | None]]:
        """Begin to ask. Whoever is slower than another goes on owing its answer: stalling is told by nothing else."""
        self._due[peer.key] += 1
        question = asyncio.get_running_loop().create_task(self._answer(peer, message, reply, owed))
        self._questions.add(question)
        question.add_done_callback(lambda _: self._close(peer, question))
        return question

    def _close(self, peer: Peer, question: asyncio.Task[Any]) -> None:
        self._questions.discard(question)
        self._due -= Counter((peer.key,))

    async def _answer(self, peer: Peer, message: Message, reply: type[R], owed: Owed) -> tuple[Peer, R | None]:
        """One peer's answer, None if it gives none: if that is its fault, it is told."""
        try:
            return peer, await self._timed(peer, message, reply)
        except Missing:
            if owed(peer):
                peer.penalise(Offence.WITHHOLDS, type(message).__name__)
        except PeerStalled:
            peer.penalise(Offence.STALL, type(message).__name__)
        except PeerGone:
            pass
        return peer, None

    def _soonest(self, peers: Collection[Peer]) -> Peer:
        """From whom an answer is expected first: whoever drips is not asked as much as others. Who is new may well be
        as quick as the quickest."""
        new_s = self._quickest_s(peers)
        return min(
            peers, key=lambda peer: ((self._due[peer.key] + 1) * self._pace.get(peer, new_s), self._rng.random())
        )

    def _quickest_s(self, peers: Collection[Peer]) -> float:
        return min((self._pace[peer] for peer in peers if peer in self._pace), default=_PATIENCE_S / 4)

    async def _timed(self, peer: Peer, message: Message, reply: type[R]) -> R:
        """Ask one peer, and note its pace, in which a slow answer counts for more than a quick one."""
        loop = asyncio.get_running_loop()
        began, due = loop.time(), self._due[peer.key]
        try:
            answer = await peer.request(message, reply)
        except (PeerStalled, asyncio.CancelledError):
            self._pace[peer] = max(self._pace.get(peer, 0.0), loop.time() - began)
            raise
        took, before = (loop.time() - began) / due, self._pace.get(peer, 0.0)
        self._pace[peer] = max(took, (3 * before + took) / 4)
        return answer

    async def tensor(
        self,
        commitment: bytes,
        candidates: Candidates,
        owed: Owed = always,
        obliged: bool = True,
        household: str = "",
    ) -> None:
        """Fetch a tensor, check it and hand it to the sink; nothing happens if it is here.

        `owed` as in `ask`; `obliged` tells the sink that a block needs it; `household` is whose bytes they are, where
        only one peer is asked.

        Raises:
            Unavailable: nobody gave all of it.
        """
        async with self._alone(commitment):
            if self._tensors.has(commitment):
                return
            async with self.budget.take(MAX_STRIP_BYTES, household) as holding:
                download = await self._open(commitment, candidates, owed)
                if not download.missing():
                    await self._sink.tensor(await self._finish(download, candidates, owed, holding), obliged)
                    return
            async with self.budget.take(download.spec.size, household) as holding:
                await self._sink.tensor(await self._finish(download, candidates, owed, holding), obliged)

    @asynccontextmanager
    async def _alone(self, commitment: bytes) -> AsyncIterator[None]:
        """While nobody else fetches the same tensor; but who has waited for long goes beside a slow one."""
        lock = self._busy.setdefault(commitment, asyncio.Lock())
        try:
            async with asyncio.timeout(None if self._turn_s == math.inf else self._turn_s):
                await lock.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            lock.release()

    async def _open(self, commitment: bytes, candidates: Candidates, owed: Owed) -> _Download:
        """The first strips, and with them the spec that the commitment commits to."""

        async def accept(peer: Peer, answer: TensorStrips) -> _Download:
            spec = answer.spec
            if spec.commitment != commitment or not spec.is_well_formed() or spec.size > MAX_TENSOR_BYTES:
                raise WrongAnswer("another tensor's spec")
            download = _Download(spec)
            download.put(peer, 0, answer)
            return download

        return await self.ask(GetTensor(commitment, 0), TensorStrips, candidates, accept, owed=owed)

    async def _finish(self, download: _Download, candidates: Candidates, owed: Owed, holding: Holding) -> Tensor:
        """The rest of the strips from whoever has them, then the check of the whole."""
        while True:
            await together(self._fill(download, first, candidates, owed, holding) for first in download.missing())
            strips = [strip for strip in download.strips if strip is not None]
            assert len(strips) == len(download.strips), "every gap was filled, or an error was raised"
            tensor, wrong = await self._compute.run(_assemble, download.spec, strips)
            if tensor is not None:
                return tensor
            download.reject(wrong)

    async def _fill(
        self, download: _Download, first: int, candidates: Candidates, owed: Owed, holding: Holding
    ) -> None:
        async def accept(peer: Peer, answer: TensorStrips) -> None:
            download.put(peer, first, answer)
            holding.brought += len(answer.strips) * download.spec.strip_size

        message = GetTensor(download.spec.commitment, first)
        await self.ask(message, TensorStrips, candidates, accept, download.liars, owed)


class _Download:
    """A tensor on its way: which strips are here, and whose they are."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.strips: list[Strip | None] = [None] * spec.leaves
        self.liars: set[bytes] = set()
        self._givers: dict[int, Peer] = {}

    def missing(self) -> list[int]:
        """First indices of the requests that fill the gaps."""
        step = strips_expected(self.spec, 0)
        return [first for first in range(0, self.spec.leaves, step) if self.strips[first] is None]

    def put(self, peer: Peer, first: int, answer: TensorStrips) -> None:
        """Keep the strips of an answer. Their hashes are checked with the whole."""
        expected = strips_expected(self.spec, first)
        if answer.spec != self.spec or answer.first != first or len(answer.strips) != expected:
            raise WrongAnswer("other strips than were asked for")
        if any(len(strip.data) != self.spec.strip_size for strip in answer.strips):
            raise WrongAnswer("strips of another size")
        self.strips[first : first + expected] = answer.strips
        self._givers.update(dict.fromkeys(range(first, first + expected), peer))

    def reject(self, wrong: list[int]) -> None:
        """Forget all strips of the peer that gave a wrong one, and penalise it."""
        liars = {self._givers[index].key: self._givers[index] for index in wrong}
        for peer in liars.values():
            peer.penalise(Offence.INVALID, "a strip with another hash")
        self.liars |= set(liars)
        step = strips_expected(self.spec, 0)
        for index, giver in self._givers.items():
            if giver.key in liars:
                first = index - index % step
                self.strips[first : first + step] = [None] * min(step, self.spec.leaves - first)


def _assemble(spec: TensorSpec, strips: list[Strip]) -> tuple[Tensor | None, list[int]]:
    """The tensor, or the indices of the strips that are not its own. Hashes every byte: not for an event loop."""
    try:
        return tensors_module.assemble(spec, [strip.data for strip in strips]), []
    except ValueError:
        wrong = [i for i, strip in enumerate(strips) if not verify_strip(spec, i, strip.data, strip.path)]
        # All paths hold while the root does not: then the number of leaves is a lie, which the spec's shape excludes.
        assert wrong, "verified strips make up their tensor"
        return None, wrong
