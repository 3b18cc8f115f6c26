"""One connected peer: what it may send, what is asked of it, and how it behaves.

The session's tasks live in one group: reader, writer, server of its requests, keep-alive, and whatever the network
adds. The first that ends, ends them all. A request waits for its own reply; a reply without a request is an offence.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypeVar

from consensus.codec import Value
from consensus.errors import ConsensusError
from node.compute import Asker
from node.p2p.handshake import Acquaintance, leave_of
from node.p2p.limits import PeerLimits
from node.p2p.messages import (
    BY_CODE,
    BY_STRUCT,
    DECLARATIONS,
    MAX_REQUEST_ID,
    P2P_VERSION,
    Declaration,
    Goodbye,
    Leave,
    Message,
    NotFound,
    Ping,
    Pong,
    Role,
    check_size,
    decode_payload,
    encode_frame,
    read_prefix,
)
from node.p2p.transport import Connection, ConnectionLost, Endpoint, FrameTooLarge, host_group, household_of

logger = logging.getLogger("tilework.network")

R = TypeVar("R", bound=Message)

EXPULSION = 100.0
"""Score at which a peer is dropped and left to cool down."""

_SENDER_SHARE = 2.0
"""A sender keeps to half the rate and half the burst: delays on the way bunch messages up."""


class Offence(Enum):
    """What a peer did, and its points. What no honest node ever sends expels at once."""

    GARBAGE = ("garbage", EXPULSION)
    INVALID = ("invalid", EXPULSION)
    UNSOLICITED = ("unsolicited reply", 50.0)
    LIES = ("claims work that it cannot show", 60.0)
    FLOOD = ("above the rate", 5.0)
    UNKNOWN_TYPE = ("too many unknown messages", 10.0)
    STALL = ("answers too late", 25.0)
    WITHHOLDS = ("lacks what it claims to hold", 20.0)

    def __init__(self, text: str, points: float) -> None:
        self.text = text
        self.points = points


class PeerGone(Exception):
    """The session has ended; the text says why."""


class PeerStalled(Exception):
    """The peer did not answer in time."""


class Missing(Exception):
    """The peer says that it does not have what was asked for."""


@dataclass(frozen=True)
class PeerInfo:
    """One peer for the operator. Score 0 is good, `EXPULSION` is out; latency is None before the first pong.

    `height` is what the peer says of itself.
    """

    id: str
    address: str
    direction: str
    agent: str
    version: int
    height: int
    latency_ms: float | None
    score: float
    bytes_in: int
    bytes_out: int
    connected_s: float


class TokenBucket:
    """`burst` messages at once, refilled at `per_s`."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._then = now

    def take(self, now: float) -> bool:
        """Take one token, if there is one."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def reserve(self, now: float) -> float:
        """Take one token in any case: seconds until it may be used."""
        self._refill(now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_s)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._per_s)
        self._then = now


Serve: TypeAlias = "Callable[[Peer, Any], Awaitable[Message]]"
Notice: TypeAlias = "Callable[[Peer, Any], None]"


@dataclass(frozen=True)
class Handlers:
    """What becomes of a peer's messages: requests are served one after the other, notices are noted at once.

    `served` hears of the bytes of every answer.
    """

    requests: Mapping[type[Message], Serve]
    notices: Mapping[type[Message], Notice]
    served: Callable[[Peer, int], None]


@dataclass
class _Pending:
    reply: type[Value]
    answer: asyncio.Future[Message]


class Peer:
    """A session after its handshake.

    Attributes:
        key: Ed25519 key, the peer's name.
        address: where it was dialled, or came from.
        inbound: it dialled us.
        since: when the session began, in the event loop's seconds.
        brought_block_at, brought_item_at: when it last was the first to bring a block, a transaction or a Result; -inf
            where it never did.
        status: what it last said about its tip.
        known: ids that it has announced or was told, oldest first.
        told: the tip that it was told of last.
        departure: why this end has ended the session, if it has.
    """

    def __init__(
        self, connection: Connection, inbound: bool, acquaintance: Acquaintance, handlers: Handlers, limits: PeerLimits
    ) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self.key = acquaintance.key
        self.agent = acquaintance.agent
        self.listen_port = acquaintance.listen_port
        self.status = acquaintance.status
        self.address: Endpoint = connection.remote
        self.inbound = inbound
        self.since = now
        self.brought_block_at = -math.inf
        self.brought_item_at = -math.inf
        self.latency_ms: float | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.known: OrderedDict[bytes, None] = OrderedDict()
        self.told = b""
        self.departure: Leave | None = None
        self._connection = connection
        self._handlers = handlers
        self._limits = limits
        self._score = 0.0
        self._scored_at = now
        self._answered_at = now
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._has_outgoing = asyncio.Event()
        self._has_room = asyncio.Event()
        self._requests: deque[tuple[Message, int]] = deque()
        self._has_requests = asyncio.Event()
        self._pending: dict[int, _Pending] = {}
        self._late: OrderedDict[int, type[Value]] = OrderedDict()
        self._slots = asyncio.Semaphore(limits.max_pending)
        self._load = 0
        self._next_request = 1
        rated = [row for row in DECLARATIONS if row.per_s]
        self._received = {row.code: TokenBucket(row.per_s, row.burst, now) for row in rated}
        self._sent = {
            row.code: TokenBucket(row.per_s / _SENDER_SHARE, max(1.0, row.burst / _SENDER_SHARE), now) for row in rated
        }
        self._unknown = TokenBucket(limits.unknown_per_s, limits.unknown_burst, now)
        self._gone = asyncio.Event()

    def __repr__(self) -> str:
        return f"<peer {self.name} {self.address}>"

    @property
    def name(self) -> str:
        """Short name for logs."""
        return self.key.hex()[:12]

    @property
    def group(self) -> str:
        """The network that it is connected from, or to."""
        return host_group(self.address.host)

    @property
    def asker(self) -> Asker:
        """Whom work that the peer asks for is counted against."""
        return Asker(household_of(self.address.host), self.key)

    @property
    def home(self) -> Endpoint:
        """Where the peer listens. Of an inbound one it is hearsay, and port 0 where it does not say."""
        return Endpoint(self.address.host, self.listen_port) if self.inbound else self.address

    @property
    def score(self) -> float:
        """Points of misbehaviour; they halve every `score_half_life_s`."""
        now = self._loop.time()
        self._score *= 0.5 ** ((now - self._scored_at) / self._limits.score_half_life_s)
        self._scored_at = now
        return self._score

    @property
    def load(self) -> int:
        """Requests that wait for this peer, to be sent or to be answered."""
        return self._load

    @property
    def is_gone(self) -> bool:
        """The session ends or has ended."""
        return self._gone.is_set()

    def info(self) -> PeerInfo:
        """For the operator."""
        return PeerInfo(
            id=self.key.hex(),
            address=str(self.address),
            direction="inbound" if self.inbound else "outbound",
            agent=self.agent,
            version=P2P_VERSION,
            height=self.status.height,
            latency_ms=self.latency_ms,
            score=round(self.score, 1),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            connected_s=self._loop.time() - self.since,
        )

    # ------------------------------------------------------------------ what others do with a peer

    def send(self, message: Message) -> bool:
        """Queue a notice, or drop it (False) where the peer has been sent enough of its kind for now."""
        if self.is_gone or not self._sent[BY_STRUCT[type(message)].code].take(self._loop.time()):
            return False
        self._queue(encode_frame(message))
        return True

    async def request(self, message: Message, reply: type[R]) -> R:
        """Ask, and wait for the answer.

        Raises:
            Missing: it does not have it. PeerStalled: no answer in time. PeerGone: the session has ended.
        """
        row = BY_STRUCT[type(message)]
        assert row.reply is reply, f"{row.struct.__name__} is answered by {row.reply}"
        self._load += 1
        try:
            async with self._slots:
                await asyncio.sleep(self._sent[row.code].reserve(self._loop.time()))
                answer = await self._exchange(message, reply, self._limits.request_s)
        finally:
            self._load -= 1
        if isinstance(answer, NotFound):
            raise Missing
        assert isinstance(answer, reply)
        return answer

    def penalise(self, offence: Offence, detail: object = "") -> None:
        """Add to the score; at `EXPULSION` the peer is dropped."""
        if self.is_gone:
            return
        self._score = self.score + offence.points
        logger.info(
            "peer misbehaves",
            extra={"peer": self.name, "offence": offence.text, "detail": str(detail), "score": round(self._score)},
        )
        if round(self._score) >= EXPULSION:  # what has decayed since a moment ago does not save anybody
            self.leave(Leave.MISBEHAVED, offence.text)

    def leave(self, reason: Leave, text: str = "") -> None:
        """End the session, with a goodbye if it still gets through."""
        if self.is_gone:
            return
        self.departure = reason
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._queue(encode_frame(Goodbye(reason, text[:128])))
        self._end(reason.name)

    def note_known(self, item: bytes) -> bool:
        """Remember that the peer knows an id; False if it was remembered already."""
        if item in self.known:
            return False
        self.known[item] = None
        if len(self.known) > self._limits.max_known:
            self.known.popitem(last=False)
        return True

    # ------------------------------------------------------------------ the session

    async def run(self, *companions: Callable[[Peer], Coroutine[Any, Any, None]]) -> None:
        """Until the session ends. `companions` run beside it and are cancelled with it.

        Raises:
            whatever a companion or a handler raises that is not about this peer alone.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for task in (self._read, self._write, self._serve, self._keep_alive, self._await_end):
                    group.create_task(task())
                for companion in companions:
                    group.create_task(companion(self))
        except* (PeerGone, ConnectionLost):
            pass
        finally:
            self._end("ended")
            for waiting in self._pending.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(PeerGone(str(self)))
                    waiting.answer.exception()  # nobody may be waiting any more
            self._pending.clear()
            await self._connection.close()

    async def _await_end(self) -> None:
        await self._gone.wait()
        # The goodbye is on its way; give the writer a moment, and no more.
        await asyncio.sleep(min(0.25, self._limits.stop_s / 4))
        raise PeerGone(self.name)

    async def _read(self) -> None:
        while not self.is_gone:
            try:
                frame = await self._connection.receive()
            except FrameTooLarge as error:
                self.penalise(Offence.GARBAGE, error)
                return
            self.bytes_in += len(frame)
            try:
                self._take(frame)
            except ConsensusError as error:
                self.penalise(Offence.GARBAGE, error)

    def _take(self, frame: bytes) -> None:
        """One frame: type, size, rate; only then its contents."""
        code, request = read_prefix(frame)
        row = BY_CODE.get(code)
        now = self._loop.time()
        if row is None:
            if len(frame) > self._limits.unknown_bytes or not self._unknown.take(now):
                self.penalise(Offence.UNKNOWN_TYPE, f"{code:#04x}, {len(frame)} bytes")
            return
        check_size(row, frame)
        if row.role is Role.REPLY:
            self._take_reply(row, request, frame)
            return
        if row.role is Role.HANDSHAKE or (request == 0) != (row.reply is None):
            self.penalise(Offence.GARBAGE, f"a {row.struct.__name__} with request number {request}")
            return
        if not self._received[code].take(now):
            self.penalise(Offence.FLOOD, row.struct.__name__)
            return
        self._dispatch(decode_payload(row, frame), request)

    def _take_reply(self, row: Declaration, request: int, frame: bytes) -> None:
        waiting = self._pending.get(request)
        expected = waiting.reply if waiting is not None else self._late.pop(request, None)
        if expected is None or row.struct not in (expected, NotFound):
            self.penalise(Offence.UNSOLICITED, row.struct.__name__)
            return
        self._answered_at = self._loop.time()
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(decode_payload(row, frame))

    def _dispatch(self, message: Message, request: int) -> None:
        match message:
            case Goodbye():
                logger.info("peer says goodbye", extra={"peer": self.name, "reason": leave_of(message).name})
                self._end("goodbye")
            case Ping():
                self._queue(encode_frame(Pong(), request))
            case _ if request:
                if len(self._requests) >= self._limits.max_unanswered:
                    self.penalise(Offence.FLOOD, "requests")
                    return
                self._requests.append((message, request))
                self._has_requests.set()
            case _:
                self._handlers.notices[type(message)](self, message)

    async def _serve(self) -> None:
        """Answer requests in their order, each once the answer before it has mostly left."""
        while True:
            await self._has_requests.wait()
            self._has_requests.clear()
            while self._requests:
                message, request = self._requests.popleft()
                answer = await self._handlers.requests[type(message)](self, message)
                while self._outgoing_bytes > self._limits.reply_backlog_bytes:
                    self._has_room.clear()
                    await self._has_room.wait()
                frame = encode_frame(answer, request)
                self._handlers.served(self, len(frame))
                self._queue(frame)

    async def _write(self) -> None:
        while True:
            await self._has_outgoing.wait()
            self._has_outgoing.clear()
            while self._outgoing:
                frame = self._outgoing.popleft()
                try:
                    async with asyncio.timeout(self._limits.send_s):
                        await self._connection.send(frame)
                except TimeoutError:
                    raise PeerGone("reads too slowly") from None
                self.bytes_out += len(frame)
                self._outgoing_bytes = max(0, self._outgoing_bytes - len(frame))
                self._has_room.set()
            if self.is_gone:
                raise PeerGone(self.name)

    async def _keep_alive(self) -> None:
        while True:
            then = self._loop.time()
            try:
                await self._exchange(Ping(), Pong, self._limits.ping_timeout_s)
            except PeerStalled:
                self.leave(Leave.TIMED_OUT)
                return
            self.latency_ms = round((self._loop.time() - then) * 1000, 3)
            await asyncio.sleep(self._limits.ping_interval_s)

    async def _exchange(self, message: Message, reply: type[Value], patience_s: float) -> Message:
        """Send a request and wait; the time runs while the peer answers nothing at all."""
        if self.is_gone:
            raise PeerGone(self.name)
        number = self._new_number()
        waiting = self._pending[number] = _Pending(reply, self._loop.create_future())
        self._queue(encode_frame(message, number))
        sent = self._loop.time()
        try:
            while True:
                now = self._loop.time()
                deadline = min(max(sent, self._answered_at) + patience_s, sent + self._limits.request_total_s)
                if now >= deadline:
                    raise PeerStalled(self.name)
                done, _ = await asyncio.wait([waiting.answer], timeout=deadline - now)
                if done:
                    return waiting.answer.result()
        finally:
            self._pending.pop(number, None)
            if not waiting.answer.done():
                # Its answer may still come: that is no offence, but nobody waits for it any more.
                self._late[number] = reply
                if len(self._late) > 4 * self._limits.max_pending:
                    self._late.popitem(last=False)

    def _new_number(self) -> int:
        number = self._next_request
        self._next_request = number % MAX_REQUEST_ID + 1
        return number

    def _queue(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        self._outgoing_bytes += len(frame)
        self._has_outgoing.set()
        if self._outgoing_bytes > self._limits.send_backlog_bytes:
            self._end("reads too slowly")

    def _end(self, why: str) -> None:
        if not self.is_gone:
            logger.debug("session ends", extra={"peer": self.name, "why": why})
            self._gone.set()
            self._has_outgoing.set()  # the writer sends what is left
