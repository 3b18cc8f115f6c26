"""Whom to dial and when, by itself: with connections that fail, end or refuse as the test says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import pytest

from node.p2p.admission import Admission
from node.p2p.book import Book
from node.p2p.dialler import Dialler
from node.p2p.handshake import Refused
from node.p2p.limits import DEFAULT
from node.p2p.messages import Leave
from node.p2p.peer import Peer
from node.p2p.transport import ConnectionLost, Endpoint
from tests.node.virtual_time import run

LIMITS = replace(DEFAULT, max_outbound=2)
CONFIGURED = Endpoint("10.0.0.1", 9545)


class World:
    """A dialler whose connections do what `outcome` does; `dialled` are the addresses with their times."""

    def __init__(self, group: asyncio.TaskGroup, outcome: Callable[[Endpoint], Coroutine[Any, Any, None]]) -> None:
        self.dialled: list[tuple[float, Endpoint]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._outcome = outcome
        self._group = group
        self.book = Book(True, random.Random(1), LIMITS)
        self.admission: Admission[Peer] = Admission(bytes(32), LIMITS, random.Random(3))
        self.dialler = Dialler(
            self._connect, self.spawn, self.admission, self.book, LIMITS, lambda: 1_700_000_000_000, random.Random(2)
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(self._group.create_task(work))

    async def _connect(self, address: Endpoint) -> None:
        self.dialled.append((asyncio.get_running_loop().time(), address))
        await self._outcome(address)

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()


async def unreachable(address: Endpoint) -> None:
    raise ConnectionLost("nobody there")


async def lasts(address: Endpoint) -> None:
    await asyncio.Event().wait()


def refuses(reason: Leave) -> Callable[[Endpoint], Coroutine[Any, Any, None]]:
    async def refuse(address: Endpoint) -> None:
        raise Refused(reason)

    return refuse


def test_a_configured_peer_is_dialled_for_ever_with_growing_pauses() -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, unreachable)
            world.dialler.keep(CONFIGURED)
            world.dialler.keep(CONFIGURED)  # once is enough
            await asyncio.sleep(20 * LIMITS.backoff_most_s)
            world.stop()
        times = [when for when, _ in world.dialled]
        pauses = [later - before for before, later in pairwise(times)]
        assert len(world.tasks) == 1
        assert len(pauses) >= 20
        assert pauses[0] <= 2 * LIMITS.backoff_first_s
        assert max(pauses) <= LIMITS.backoff_most_s
        assert all(pause >= LIMITS.backoff_most_s / 2 for pause in pauses[-5:])

    run(story())


def test_who_turns_out_to_be_this_node_is_not_dialled_again() -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, refuses(Leave.SELF))
            world.dialler.keep(CONFIGURED)
            await asyncio.sleep(100)
        assert len(world.dialled) == 1

    run(story())


def test_places_are_filled_from_the_book_one_group_each_and_never_with_oneself() -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, lasts)
            world.dialler.own = Endpoint("9.9.0.1", 1)
            for address in (Endpoint("9.9.0.1", 1), Endpoint("8.8.0.1", 1), Endpoint("7.7.0.1", 1)):
                world.book.add(address, 1_700_000_000_000)
            world.spawn(world.dialler.fill())
            await asyncio.sleep(50 * LIMITS.book_dial_s)
            world.stop()
        assert {address for _, address in world.dialled} == {Endpoint("8.8.0.1", 1), Endpoint("7.7.0.1", 1)}
        assert len(world.dialled) == LIMITS.max_outbound

    run(story())


def test_no_network_group_is_dialled_twice_not_even_before_the_first_has_answered() -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, lasts)
            for n in range(20):
                world.book.add(Endpoint(f"8.8.0.{n}", 1), 1_700_000_000_000)
            world.spawn(world.dialler.fill())
            await asyncio.sleep(50 * LIMITS.book_dial_s)
            world.stop()
        assert len(world.dialled) == 1

    run(story())


@pytest.mark.parametrize("reason", [Leave.SELF, Leave.WRONG_GENESIS])
def test_whoever_can_never_be_a_peer_leaves_the_book(reason: Leave) -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, refuses(reason))
            world.book.add(Endpoint("8.8.0.1", 1), 1_700_000_000_000)
            world.spawn(world.dialler.fill())
            await asyncio.sleep(100 * LIMITS.book_dial_s)
            world.stop()
        assert len(world.dialled) == 1

    run(story())


@dataclass
class Stranger:
    """An inbound peer that says where it listens."""

    key: bytes
    home: Endpoint
    address: Endpoint
    inbound: bool = True
    is_gone: bool = False


def test_a_stranger_that_claims_a_configured_peers_address_does_not_keep_it_from_being_dialled() -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, lasts)
            stranger = Stranger(b"s" * 32, CONFIGURED, Endpoint(CONFIGURED.host, 50_000))
            world.admission.admit(cast(Peer, stranger))
            world.dialler.keep(CONFIGURED)
            await asyncio.sleep(10)
            world.stop()
        assert [address for _, address in world.dialled] == [CONFIGURED]

    run(story())


def test_whoever_is_connected_is_not_dialled_out_of_the_book() -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, lasts)
            home = Endpoint("8.8.0.1", 1)
            world.book.add(home, 1_700_000_000_000)
            world.admission.admit(cast(Peer, Stranger(b"s" * 32, home, Endpoint(home.host, 50_000))))
            world.spawn(world.dialler.fill())
            await asyncio.sleep(50 * LIMITS.book_dial_s)
            world.stop()
        assert world.dialled == []

    run(story())
