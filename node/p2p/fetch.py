"""Getting what others hold: one question, several peers, and tensors strip by strip.

Whoever stalls, lacks the thing or sends other bytes is noted and passed over; the question goes to the next. What is on
its way into this node is bounded in bytes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar
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


class ByteBudget:
    """At most `limit` bytes at once, first come first served; a larger piece goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Bytes taken."""
        return self._used

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes while the block runs."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(size)
            raise
        try:
            yield
        finally:
            self._release(size)

    def _release(self, size: int) -> None:
        self._used -= size
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            size, turn = self._queue[0]
            if not turn.done():
                if self._used and self._used + size > self._limit:
                    return
                self._used += size
                turn.set_result(None)
            self._queue.popleft()


class Fetcher:
    """Asks peers. `sink` takes finished tensors."""

    def __init__(
        self, tensors: Tensors, sink: TensorIntake, compute: Compute, limit_bytes: int, rng: random.Random
    ) -> None:
        """`limit_bytes` bounds the tensors on their way."""
        self._tensors = tensors
        self._sink = sink
        self._compute = compute
        self._rng = rng
        self.budget = ByteBudget(limit_bytes)
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
        self, commitment: bytes, candidates: Candidates, owed: Owed = always, obliged: bool = True
    ) -> None:
        """Fetch a tensor, check it and hand it to the sink; nothing happens if it is here.

        `owed` as in `ask`; `obliged` tells the sink that a block needs it.

        Raises:
            Unavailable: nobody gave all of it.
        """
        lock = self._busy.setdefault(commitment, asyncio.Lock())
        async with lock:
            if self._tensors.has(commitment):
                return
            async with self.budget.take(MAX_STRIP_BYTES):
                download = await self._open(commitment, candidates, owed)
                if not download.missing():
                    await self._sink.tensor(await self._finish(download, candidates, owed), obliged)
                    return
            async with self.budget.take(download.spec.size):
                await self._sink.tensor(await self._finish(download, candidates, owed), obliged)

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

    async def _finish(self, download: _Download, candidates: Candidates, owed: Owed) -> Tensor:
        """The rest of the strips from whoever has them, then the check of the whole."""
        while True:
            await together(self._fill(download, first, candidates, owed) for first in download.missing())
            strips = [strip for strip in download.strips if strip is not None]
            assert len(strips) == len(download.strips), "every gap was filled, or an error was raised"
            tensor, wrong = await self._compute.run(_assemble, download.spec, strips)
            if tensor is not None:
                return tensor
            download.reject(wrong)

    async def _fill(self, download: _Download, first: int, candidates: Candidates, owed: Owed) -> None:
        async def accept(peer: Peer, answer: TensorStrips) -> None:
            download.put(peer, first, answer)

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
