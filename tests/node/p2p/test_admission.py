"""Who may connect, by itself: places, cooling-off, and which of two connections stays."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from node.p2p.admission import Admission
from node.p2p.limits import DEFAULT, PeerLimits
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
    since: float = 0.0
    brought_block_at: float = -math.inf
    brought_item_at: float = -math.inf
    latency_ms: float | None = None
    left: list[Leave] = field(default_factory=list)

    def leave(self, reason: Leave) -> None:
        self.left.append(reason)
        self.is_gone = True


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def places(limits: PeerLimits = LIMITS) -> Admission[FakePeer]:
    return Admission(OWN, limits, random.Random(1))


def admit(admission: Admission[FakePeer], number: int, host: str, **merits: Any) -> FakePeer:
    """The number is the peer's key, and its age's."""
    assert admission.unwanted(key(number), inbound=True) is None
    peer = FakePeer(key(number), Endpoint(host, 1), since=number, **merits)
    admission.admit(peer)
    return peer


def test_inbound_places_are_limited_and_outbound_ones_are_not_counted() -> None:
    async def story() -> None:
        admission = places()
        for number in range(3):
            admit(admission, number, STRANGER)
        admission.admit(FakePeer(key(9), inbound=False))
        assert len(admission.present()) == 4
        admit(admission, 4, STRANGER)
        assert len(admission.present()) == 4, "one has made room"
        assert places(replace(LIMITS, max_inbound=0)).unwanted(key(1), inbound=True) is Leave.FULL

    run(story())


SIXTY_FOUR = replace(DEFAULT, max_inbound=64)


def test_a_newcomer_pushes_out_one_of_the_most_crowded_network() -> None:
    async def story() -> None:
        for crowd, elsewhere in (
            ("9.1.0.{}", "9.{}.0.1"),
            ("2a00:1450:{:x}::1", "2a01:{:x}::1"),
            ("127.0.0.1", "10.{}.0.1"),
        ):
            admission = places(SIXTY_FOUR)
            idle = [admit(admission, n, crowd.format(n)) for n in range(56)]
            others = [admit(admission, 100 + n, elsewhere.format(n + 10)) for n in range(8)]
            for n in range(30):
                admit(admission, 200 + n, elsewhere.format(n + 100))
            assert not any(peer.is_gone for peer in others)
            assert sum(peer.is_gone for peer in idle) == 30
            assert {peer.left[0] for peer in idle if peer.is_gone} == {Leave.FULL}

    run(story())


def test_a_crowd_that_comes_again_and_again_pushes_out_its_own() -> None:
    async def story() -> None:
        admission = places(SIXTY_FOUR)
        honest = [admit(admission, n, f"8.{n}.0.1") for n in range(20)]
        for n in range(500):
            admit(admission, 100 + n, f"9.9.{n % 250}.1")
        assert not any(peer.is_gone for peer in honest)
        assert len(admission.present()) == 64

    run(story())


@pytest.mark.parametrize(
    "merit",
    [{"latency_ms": 0.5}, {"brought_block_at": 5.0}, {"brought_item_at": 5.0}, {"since": 0.0}],
    ids=["quick", "brought a block", "brought a transaction", "long there"],
)
def test_useful_peers_of_a_crowded_network_stay(merit: dict[str, float]) -> None:
    async def story() -> None:
        admission = places(SIXTY_FOUR)
        admit(admission, 0, "9.9.0.1")
        for n in range(1, 64):
            admit(admission, n, "9.9.0.2", latency_ms=50.0)
        good = admission.present()[30]
        for name, value in merit.items():
            setattr(good, name, value)
        for n in range(500):
            admit(admission, 100 + n, "9.9.0.3", latency_ms=50.0)
        assert not good.is_gone

    run(story())


def test_peers_of_one_network_alone_are_noticed() -> None:
    async def story() -> None:
        admission = places(SIXTY_FOUR)
        for n in range(4):
            assert admission.only_group() == ""
            admit(admission, n, f"9.9.{n}.1")
        assert admission.only_group() == "9.9.0.0/16"
        admit(admission, 9, "8.8.0.1")
        assert admission.only_group() == ""
        local = places(SIXTY_FOUR)
        for n in range(9):
            admit(local, n, "127.0.0.1")
        assert local.only_group() == ""

    run(story())


def test_one_host_takes_few_places_unless_it_is_local() -> None:
    async def story() -> None:
        admission = places()
        for number in range(2):
            assert admission.unwanted_host(STRANGER) is None
            admission.admit(FakePeer(key(number)))
        assert admission.unwanted_host(STRANGER) is Leave.FULL
        assert admission.unwanted_host("9.1.2.4") is None
        for number in range(2):
            admission.admit(FakePeer(key(10 + number), Endpoint(f"2a00:1450::{number}", 1)))
        assert admission.unwanted_host("2a00:1450::77") is Leave.FULL, "a /64 is one household"
        assert admission.unwanted_host("2a00:1450:0:1::") is None
        local = places()
        for number in range(2):
            local.admit(FakePeer(key(number), Endpoint("127.0.0.1", number)))
        assert local.unwanted_host("127.0.0.1") is None

    run(story())


@pytest.mark.parametrize(("other", "stays_inbound"), [(LESS, True), (MORE, False)])
def test_of_two_connections_the_one_that_the_lesser_key_dialled_stays(other: bytes, stays_inbound: bool) -> None:
    async def story() -> None:
        for first in (True, False):
            admission = places()
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
        admission = places()
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
        admission = places()
        admission.close()
        assert admission.unwanted_host(STRANGER) is Leave.STOPPING
        assert admission.unwanted(LESS, inbound=False) is Leave.STOPPING

    run(story())
