"""One session against an end that does as it likes: the handshake, the limits, the score."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from consensus.crypto import H
from node.p2p.handshake import (
    Acquaintance,
    Introduction,
    Refused,
    greet_dialler,
    greet_listener,
    hello_message,
)
from node.p2p.limits import DEFAULT, MAX_MESSAGE_BYTES, PeerLimits
from node.p2p.messages import (
    BY_CODE,
    BY_STRUCT,
    P2P_VERSION,
    Announce,
    BodyBytes,
    GetBody,
    GetHeaders,
    Goodbye,
    Headers,
    Hello,
    Leave,
    Message,
    NotFound,
    Ping,
    Pong,
    Status,
    Welcome,
    decode_payload,
    encode_frame,
    read_prefix,
)
from node.p2p.peer import EXPULSION, Handlers, Missing, Offence, Peer, PeerGone, PeerStalled, TokenBucket
from node.p2p.transport import ConnectionLost, Endpoint
from tests.node.p2p.memory_transport import MemoryConnection, MemoryWorld
from tests.node.p2p.net import identity
from tests.node.virtual_time import virtual

GENESIS = H("tw/test", b"genesis")
STATUS = Status(7, bytes(32), bytes(32))
BLOCK = H("tw/test", b"block")
HOST, PORT = "10.0.0.1", 9000


def introduction(name: str, genesis: bytes = GENESIS) -> Introduction:
    return Introduction(identity(name), genesis, name, 9000, lambda: STATUS)


async def connect() -> tuple[MemoryConnection, MemoryConnection]:
    """(the dialler's end, the listener's)."""
    world = MemoryWorld()
    arrived: asyncio.Queue[MemoryConnection] = asyncio.Queue()
    forever = asyncio.Event()

    async def accept(connection: Any) -> None:
        await arrived.put(connection)
        await forever.wait()

    address = await world.transport(identity("listener"), HOST).listen(Endpoint(HOST, PORT), accept)
    end = await world.transport(identity("dialler"), "10.0.0.2").dial(address)
    return end, await arrived.get()


async def read(wire: MemoryConnection) -> tuple[Message, int]:
    """The next message and its request number."""
    frame = await wire.receive()
    code, request = read_prefix(frame)
    return decode_payload(BY_CODE[code], frame), request


class Wild:
    """The far end of a session: a bare wire, and all that the node said on it."""

    def __init__(self, wire: MemoryConnection, peer: Peer) -> None:
        self.wire = wire
        self.peer = peer
        self.noted: list[Message] = []
        self.served: list[tuple[Peer, int]] = []

    async def send(self, message: Message, request: int = 0) -> None:
        await self.wire.send(encode_frame(message, request))

    async def heard(self, kind: type[Message]) -> tuple[Any, int]:
        """The next message of this kind; pings are answered on the way."""
        while True:
            message, request = await read(self.wire)
            if isinstance(message, kind):
                return message, request
            if isinstance(message, Ping):
                await self.send(Pong(), request)

    async def expelled(self) -> None:
        """The node says that we misbehave, and hangs up."""
        goodbye, _ = await self.heard(Goodbye)
        assert goodbye.reason == Leave.MISBEHAVED
        with pytest.raises(ConnectionLost):
            await self.heard(NotFound)
        assert self.peer.is_gone
        assert self.peer.departure is Leave.MISBEHAVED


@asynccontextmanager
async def session(inbound: bool = True, **changes: Any) -> AsyncIterator[Wild]:
    """A running session, past its handshake."""
    limits: PeerLimits = replace(DEFAULT, **changes)
    theirs, ours = await connect()
    gate = asyncio.Event()
    gate.set()

    async def serve(peer: Peer, request: GetBody) -> Message:
        await gate.wait()
        return BodyBytes(bytes(request.id)) if request.id == BLOCK else NotFound()

    notices = {Announce: lambda peer, message: wild.noted.append(message)}
    handlers = Handlers({GetBody: serve}, notices, lambda *answer: wild.served.append(answer))
    peer = Peer(ours, inbound, Acquaintance(identity("dialler").key, "wild", 0, STATUS), handlers, limits)
    wild = Wild(theirs, peer)
    wild.gate = gate  # type: ignore[attr-defined]  # for the one test that closes it
    async with asyncio.TaskGroup() as group:
        task = group.create_task(peer.run())
        yield wild
        peer.leave(Leave.STOPPING)
        await task


# ---------------------------------------------------------------------- handshake


async def shake(dialler: Introduction, listener: Introduction) -> tuple[Any, Any]:
    """What each end makes of the other: an acquaintance or a refusal."""
    near, far = await connect()
    outcomes = await asyncio.gather(
        greet_listener(near, dialler), greet_dialler(far, listener, lambda key: None), return_exceptions=True
    )
    return outcomes[0], outcomes[1]


@virtual
async def test_two_nodes_get_to_know_each_other() -> None:
    near, far = await shake(introduction("dialler"), introduction("listener"))
    assert near == Acquaintance(identity("listener").key, "listener", 0, STATUS)
    assert far == Acquaintance(identity("dialler").key, "dialler", 9000, STATUS)


@virtual
async def test_another_networks_node_is_refused_with_the_reason() -> None:
    near, far = await shake(introduction("dialler", bytes(32)), introduction("listener"))
    assert isinstance(near, Refused)
    assert isinstance(far, Refused)
    assert (near.reason, near.theirs) == (Leave.WRONG_GENESIS, False)
    assert (far.reason, far.theirs) == (Leave.WRONG_GENESIS, True)


@virtual
async def test_a_node_does_not_connect_to_itself() -> None:
    near, far = await shake(introduction("listener"), introduction("listener"))
    assert near.reason is far.reason is Leave.SELF


@virtual
async def test_an_unwanted_peer_hears_why() -> None:
    near, far = await connect()
    results = await asyncio.gather(
        greet_listener(near, introduction("dialler")),
        greet_dialler(far, introduction("listener"), lambda key: Leave.FULL),
        return_exceptions=True,
    )
    assert [(r.reason, r.theirs) for r in results if isinstance(r, Refused)] == [
        (Leave.FULL, True),
        (Leave.FULL, False),
    ]


async def hello_with(**changes: Any) -> tuple[Refused | Acquaintance, Message]:
    """The listener's verdict on a hello that is good but for `changes`, and what it answers."""
    near, far = await connect()
    listener = asyncio.ensure_future(greet_dialler(far, introduction("listener"), lambda key: None))
    welcome, _ = await read(near)
    assert isinstance(welcome, Welcome)
    nonce = bytes(32)
    signed = hello_message(GENESIS, welcome.nonce, nonce, near.binding)
    fields: dict[str, Any] = {
        "version": P2P_VERSION,
        "genesis": GENESIS,
        "nonce": nonce,
        "agent": "wild",
        "key": identity("dialler").key,
        "listen_port": 0,
        "signature": identity("dialler").sign(signed),
    }
    await near.send(encode_frame(Hello(**{**fields, **changes})))
    answer, _ = await read(near)
    if isinstance(answer, Status):
        await near.send(encode_frame(STATUS))
    try:
        return await listener, answer
    except Refused as refusal:
        return refusal, answer


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": P2P_VERSION + 1}, Leave.WRONG_VERSION),
        ({"genesis": bytes(32)}, Leave.WRONG_GENESIS),
        ({"signature": bytes(64)}, Leave.BAD_SIGNATURE),
        ({"nonce": b"\x01" * 32}, Leave.BAD_SIGNATURE),
        ({"key": identity("another").key}, Leave.BAD_SIGNATURE),
        ({"key": b"\x01" + bytes(31), "signature": b"\x01" + bytes(63)}, Leave.BAD_SIGNATURE),  # a small-order key
        (
            # What a node in the middle could pass on: a signature made for its own certificate.
            {"signature": identity("dialler").sign(hello_message(GENESIS, bytes(32), bytes(32), bytes(32)))},
            Leave.BAD_SIGNATURE,
        ),
        ({"key": identity("listener").key}, Leave.BAD_SIGNATURE),
    ],
)
def test_a_false_hello_is_refused(changes: dict[str, Any], reason: Leave) -> None:
    @virtual
    async def story() -> None:
        verdict, answer = await hello_with(**changes)
        assert isinstance(verdict, Refused)
        assert verdict.reason is reason
        assert isinstance(answer, Goodbye)
        assert answer.reason == reason

    story()


@virtual
async def test_a_true_hello_is_taken() -> None:
    verdict, answer = await hello_with()
    assert isinstance(verdict, Acquaintance)
    assert answer == STATUS


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"\x01" + bytes(4),
        b"\x01" + bytes(4) + b"\xc1" * 600,
        bytes(1000),
        encode_frame(Ping(), 1),
        b"\xee" * 9,
    ],
)
def test_garbage_instead_of_a_hello_is_a_protocol_error(frame: bytes) -> None:
    @virtual
    async def story() -> None:
        near, far = await connect()
        listener = asyncio.ensure_future(greet_dialler(far, introduction("listener"), lambda key: None))
        await near.send(frame or b"\x00")
        with pytest.raises(Refused) as refusal:
            await listener
        assert refusal.value.reason is Leave.PROTOCOL_ERROR

    story()


# ---------------------------------------------------------------------- requests and replies


@virtual
async def test_requests_get_their_own_replies_in_any_order() -> None:
    async with session() as wild:
        first = asyncio.ensure_future(wild.peer.request(GetBody(BLOCK), BodyBytes))
        second = asyncio.ensure_future(wild.peer.request(GetBody(bytes(32)), BodyBytes))
        (_, one), (_, two) = await wild.heard(GetBody), await wild.heard(GetBody)
        await wild.send(NotFound(), two)
        await wild.send(BodyBytes(b"body"), one)
        assert (await first).body == b"body"
        with pytest.raises(Missing):
            await second
        assert wild.peer.score == 0


@virtual
async def test_requests_are_served_in_order() -> None:
    async with session() as wild:
        await wild.send(GetBody(BLOCK), 5)
        await wild.send(GetBody(bytes(32)), 6)
        assert await wild.heard(BodyBytes) == (BodyBytes(BLOCK), 5)
        assert await wild.heard(NotFound) == (NotFound(), 6)
        answers = encode_frame(BodyBytes(BLOCK), 5), encode_frame(NotFound(), 6)
        assert wild.served == [(wild.peer, len(answer)) for answer in answers]


@virtual
async def test_a_peer_that_does_not_answer_stalls_and_its_late_answer_is_no_offence() -> None:
    async with session(request_s=3.0) as wild:
        asked = asyncio.ensure_future(wild.peer.request(GetBody(BLOCK), BodyBytes))
        _, number = await wild.heard(GetBody)
        with pytest.raises(PeerStalled):
            await asked
        await wild.send(BodyBytes(b"late"), number)
        await asyncio.sleep(1)
        assert wild.peer.score == 0
        await wild.send(BodyBytes(b"later"), number)
        await asyncio.sleep(1)
        assert round(wild.peer.score) == Offence.UNSOLICITED.points


@virtual
async def test_time_runs_anew_with_every_answer_but_not_for_ever() -> None:
    async with session(request_s=3.0, request_total_s=10.0) as wild:
        loop = asyncio.get_running_loop()
        asked = [asyncio.ensure_future(wild.peer.request(GetBody(BLOCK), BodyBytes)) for _ in range(6)]
        numbers = [(await wild.heard(GetBody))[1] for _ in asked]
        began = loop.time()
        for number in numbers[:5]:
            await asyncio.sleep(2.5)
            await wild.send(BodyBytes(b""), number)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [BodyBytes] * 3 + [PeerStalled] * 3
        assert loop.time() - began <= 13


@virtual
async def test_requests_fail_when_the_peer_goes() -> None:
    async with session() as wild:
        asked = asyncio.ensure_future(wild.peer.request(GetBody(BLOCK), BodyBytes))
        await wild.heard(GetBody)
        await wild.wire.close()
        with pytest.raises(PeerGone):
            await asked
        with pytest.raises(PeerGone):
            await wild.peer.request(GetBody(BLOCK), BodyBytes)


@virtual
async def test_no_more_requests_are_pending_than_promised() -> None:
    async with session(max_pending=3) as wild:
        asked = [asyncio.ensure_future(wild.peer.request(GetBody(BLOCK), BodyBytes)) for _ in range(5)]
        numbers = [(await wild.heard(GetBody))[1] for _ in range(3)]
        assert wild.peer.load == 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await wild.heard(GetBody)
        for number in numbers:
            await wild.send(BodyBytes(b""), number)
        for _ in range(2):
            await wild.send(BodyBytes(b""), (await wild.heard(GetBody))[1])
        assert len(await asyncio.gather(*asked)) == 5


# ---------------------------------------------------------------------- bad manners


def _frame(kind: type[Message], payload: bytes, request: int = 0) -> bytes:
    return bytes([BY_STRUCT[kind].code]) + request.to_bytes(4) + payload


ANNOUNCE = encode_frame(Announce(0, (BLOCK,)))
GARBAGE = {
    "no prefix": b"\x21\x00",
    "no MessagePack": _frame(Announce, b"\xc1"),
    "truncated": ANNOUNCE[:-1],
    "trailing bytes": ANNOUNCE + b"\x00",
    "non-canonical": _frame(Announce, b"\x92\xcc\x00" + ANNOUNCE[7:]),
    "oversize": _frame(Announce, bytes(BY_STRUCT[Announce].max_bytes + 1)),
    "oversize of all": bytes(MAX_MESSAGE_BYTES),
    "another hello": encode_frame(Hello(1, GENESIS, GENESIS, "", GENESIS, 0, bytes(64))),
    "a request without a number": encode_frame(GetBody(BLOCK), 0),
    "a notice with a number": encode_frame(Announce(0, (BLOCK,)), 9),
}


@pytest.mark.parametrize("frame", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_expels_at_once(frame: bytes) -> None:
    @virtual
    async def story() -> None:
        async with session() as wild:
            await wild.wire.send(frame)
            await wild.expelled()
            assert not wild.noted

    story()


@virtual
async def test_unsolicited_replies_expel() -> None:
    async with session() as wild:
        await wild.send(BodyBytes(b"unasked"), 4711)
        await wild.send(Headers(()), 4712)
        await wild.expelled()


@virtual
async def test_a_reply_of_another_type_is_unsolicited() -> None:
    async with session() as wild:
        asked = asyncio.ensure_future(wild.peer.request(GetBody(BLOCK), BodyBytes))
        _, number = await wild.heard(GetBody)
        await wild.send(Headers(()), number)
        await wild.send(BodyBytes(b"body"), number)
        assert (await asked).body == b"body"
        assert round(wild.peer.score) == Offence.UNSOLICITED.points


@virtual
async def test_some_unknown_types_are_let_pass_and_many_expel() -> None:
    async with session(unknown_burst=4.0) as wild:
        for _ in range(4):
            await wild.wire.send(b"\xee" + bytes(100))
        await asyncio.sleep(1)
        assert wild.peer.score == 0
        for _ in range(20):
            await wild.wire.send(b"\xee" + bytes(100))
        await wild.expelled()


@virtual
async def test_a_large_message_of_unknown_type_is_an_offence() -> None:
    async with session() as wild:
        await wild.wire.send(b"\xee" + bytes(DEFAULT.unknown_bytes))
        await asyncio.sleep(1)
        assert round(wild.peer.score) == Offence.UNKNOWN_TYPE.points


@virtual
async def test_a_flood_expels_and_what_is_above_the_rate_is_not_handled() -> None:
    async with session() as wild:
        burst = int(BY_STRUCT[Announce].burst)
        for _ in range(2 * burst):
            await wild.send(Announce(0, (BLOCK,)))
        await wild.expelled()
        assert burst <= len(wild.noted) < burst + 50


@virtual
async def test_more_unanswered_requests_than_allowed_are_a_flood() -> None:
    async with session(max_unanswered=8) as wild:
        wild.gate.clear()  # type: ignore[attr-defined]
        for number in range(1, 40):
            await wild.send(GetBody(BLOCK), number)
        await wild.expelled()


@virtual
async def test_a_silent_peer_is_pinged_and_dropped() -> None:
    async with session() as wild:
        await asyncio.sleep(DEFAULT.ping_timeout_s + 1)
        (ping, _), (goodbye, _) = await read(wild.wire), await read(wild.wire)
        assert ping == Ping()
        assert isinstance(goodbye, Goodbye)
        assert goodbye.reason == Leave.TIMED_OUT
        assert wild.peer.is_gone


@virtual
async def test_a_peer_that_answers_pings_stays_and_has_a_latency() -> None:
    async with session() as wild:
        with suppress(TimeoutError):
            async with asyncio.timeout(100):
                await wild.heard(Goodbye)
        assert not wild.peer.is_gone
        assert wild.peer.latency_ms is not None
        assert 2 <= wild.peer.latency_ms <= 100
        info = wild.peer.info()
        assert (info.direction, info.height, info.version) == ("inbound", STATUS.height, P2P_VERSION)
        assert info.bytes_in > 0
        assert info.bytes_out > 0


@virtual
async def test_a_peer_that_does_not_read_is_dropped_and_costs_little() -> None:
    async with session(send_s=5.0) as wild:
        for number in range(1, 30):
            await wild.send(GetBody(BLOCK), number)
        for _ in range(100):  # it reads nothing; the transport's buffer fills, then the backlog
            if not wild.peer.send(Announce(0, (BLOCK,) * 256)):
                break
        big = BodyBytes(bytes(1 << 20))
        for _ in range(4):
            wild.peer._queue(encode_frame(big, 1))
        await asyncio.sleep(6)
        assert wild.peer.is_gone


@virtual
async def test_no_more_answers_are_made_for_a_peer_that_has_not_taken_those_before() -> None:
    async with session(send_s=10_000.0, reply_backlog_bytes=64 << 10) as wild:
        ahead = encode_frame(BodyBytes(bytes(1 << 20)), 1)
        for _ in range(3):  # two fit into the transport
            wild.peer._queue(ahead)
            await asyncio.sleep(0.1)
        for number in range(2, 12):
            await wild.send(GetBody(BLOCK), number)
        await asyncio.sleep(5)
        assert wild.served == []
        answers = [await wild.heard(BodyBytes) for _ in range(3 + 10)]
        assert [number for _, number in answers[3:]] == list(range(2, 12))
        assert len(wild.served) == 10
        assert not wild.peer.is_gone


@virtual
async def test_the_score_decays() -> None:
    async with session(ping_interval_s=10_000.0, score_half_life_s=100.0) as wild:
        _, number = await wild.heard(Ping)
        await wild.send(Pong(), number)
        wild.peer.penalise(Offence.STALL)
        await asyncio.sleep(200)
        assert wild.peer.score == pytest.approx(Offence.STALL.points / 4, rel=0.01)
        for _ in range(3):
            wild.peer.penalise(Offence.STALL)
        assert not wild.peer.is_gone
        wild.peer.penalise(Offence.STALL)
        assert wild.peer.is_gone


@virtual
async def test_a_goodbye_ends_the_session_without_blame() -> None:
    async with session() as wild:
        await wild.send(Goodbye(Leave.STOPPING))
        await asyncio.sleep(1)
        assert wild.peer.is_gone
        assert wild.peer.departure is None
        assert wild.peer.score == 0


@virtual
async def test_a_sender_keeps_below_the_receivers_rate() -> None:
    async with session() as wild:
        row = BY_STRUCT[Announce]
        assert sum(wild.peer.send(Announce(0, (BLOCK,))) for _ in range(1000)) == row.burst / 2


@virtual
async def test_requests_wait_for_their_rate() -> None:
    async with session(max_pending=10_000, max_unanswered=10_000) as wild:
        row = BY_STRUCT[GetHeaders]
        count = int(row.burst / 2 + row.per_s)
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def answer() -> None:
            for _ in range(count):
                _, number = await wild.heard(GetHeaders)
                await wild.send(Headers(()), number)

        await asyncio.gather(answer(), *(wild.peer.request(GetHeaders((BLOCK,), 1), Headers) for _ in range(count)))
        assert loop.time() - began == pytest.approx(2.0, abs=0.2)


def test_token_buckets() -> None:
    bucket = TokenBucket(2.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(0.5)
    assert not bucket.take(0.9)
    assert [bucket.reserve(100.0) for _ in range(5)] == [0, 0, 0, 0.5, 1.0]
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_what_no_honest_node_sends_expels_at_once() -> None:
    assert {offence for offence in Offence if offence.points >= EXPULSION} == {Offence.GARBAGE, Offence.INVALID}
    assert all(0 < offence.points <= EXPULSION for offence in Offence)


def test_no_two_offences_are_one() -> None:
    """Members of an enum with equal values would be aliases."""
    assert len({offence.text for offence in Offence}) == len(Offence.__members__)
