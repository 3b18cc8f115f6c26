"""Who may connect, by itself: places, cooling-off, and which of two connections stays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from node.p2p.admission import Admission
from node.p2p.limits import DEFAULT
from node.p2p.messages import Leave
from node.p2p.transport import Endpoint
from tests.node.virtual_time import run

OWN, LESS, MORE = b"m" * 32, b"a" * 32, b"z" * 32
LIMITS = replace(DEFAULT, max_inbound=3, max_inbound_per_host=2, max_cooling=3, cool_down_s=60)
STRANGER = "9.1.2.3"
SOMEWHERE = Endpoint(STRANGER, 1)


@dataclass
class FakePeer:
    key: bytes
    address: Endpoint = SOMEWHERE
    inbound: bool = True
    is_gone: bool = False
    left: list[Leave] = field(default_factory=list)

    def leave(self, reason: Leave) -> None:
        self.left.append(reason)
        self.is_gone = True


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_inbound_places_are_limited_and_outbound_ones_are_not_counted() -> None:
    async def story() -> None:
        admission: Admission[FakePeer] = Admission(OWN, LIMITS)
        for number in range(3):
            assert admission.unwanted(key(number), inbound=True) is None
            admission.admit(FakePeer(key(number)))
        assert admission.unwanted(key(9), inbound=True) is Leave.FULL
        assert admission.unwanted(key(9), inbound=False) is None
        admission.discharge(admission.present()[0], misbehaved=False)
        assert admission.unwanted(key(9), inbound=True) is None

    run(story())


def test_one_host_takes_few_places_unless_it_is_local() -> None:
    async def story() -> None:
        admission: Admission[FakePeer] = Admission(OWN, LIMITS)
        for number in range(2):
            assert admission.unwanted_host(STRANGER) is None
            admission.admit(FakePeer(key(number)))
        assert admission.unwanted_host(STRANGER) is Leave.FULL
        assert admission.unwanted_host("9.1.2.4") is None
        local = Admission[FakePeer](OWN, LIMITS)
        for number in range(2):
            local.admit(FakePeer(key(number), Endpoint("127.0.0.1", number)))
        assert local.unwanted_host("127.0.0.1") is None

    run(story())


@pytest.mark.parametrize(("other", "stays_inbound"), [(LESS, True), (MORE, False)])
def test_of_two_connections_the_one_that_the_lesser_key_dialled_stays(other: bytes, stays_inbound: bool) -> None:
    async def story() -> None:
        for first in (True, False):
            admission: Admission[FakePeer] = Admission(OWN, LIMITS)
            present = FakePeer(other, inbound=first)
            admission.admit(present)
            assert admission.unwanted(other, first) is Leave.DUPLICATE, "the same again"
            verdict = admission.unwanted(other, not first)
            assert verdict is (Leave.DUPLICATE if first == stays_inbound else None)
            if verdict is None:
                second = FakePeer(other, inbound=not first)
                admission.admit(second)
                assert present.left == [Leave.DUPLICATE]
                admission.discharge(present, misbehaved=False)
                assert admission.present() == [second], "the end of the old session does not end the new one"

    run(story())


def test_misbehaviour_cools_down_key_and_host_for_a_while_and_the_list_is_bounded() -> None:
    async def story() -> None:
        admission: Admission[FakePeer] = Admission(OWN, LIMITS)
        bad = FakePeer(key(1))
        admission.admit(bad)
        admission.discharge(bad, misbehaved=True)
        assert admission.unwanted_host(STRANGER) is Leave.COOLING_DOWN
        assert admission.unwanted(key(1), inbound=False) is Leave.COOLING_DOWN
        await asyncio.sleep(61)
        assert admission.unwanted_host(STRANGER) is None
        assert admission.unwanted(key(1), inbound=True) is None
        for number in range(10):
            admission.discharge(FakePeer(key(number), Endpoint("127.0.0.1", 1)), misbehaved=True)
        assert [admission.is_cooling(key(number)) for number in (6, 7, 8, 9)] == [False, True, True, True]
        assert admission.unwanted_host("127.0.0.1") is None, "many honest nodes may share a local host"

    run(story())


def test_once_closed_nobody_is_admitted() -> None:
    async def story() -> None:
        admission: Admission[FakePeer] = Admission(OWN, LIMITS)
        admission.close()
        assert admission.unwanted_host(STRANGER) is Leave.STOPPING
        assert admission.unwanted(LESS, inbound=False) is Leave.STOPPING

    run(story())
