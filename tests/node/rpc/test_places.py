"""Who gets a place, and who is pushed out for it."""

from __future__ import annotations

from typing import Any

from node.rpc.places import Connection, Places
from tests.node.rig import asynchronous


class FakeTransport:
    """As much of a transport as a connection uses."""

    def __init__(self) -> None:
        self.is_aborted = False

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


def comes(places: Places, household: str, heard_at: float = 0.0) -> tuple[bool, Connection]:
    """A connection from a household; whether it got a place."""
    handler: Any = object()
    connection = Connection(handler, places)
    transport: Any = FakeTransport()
    connection._transport = transport
    connection.household, connection.is_local, connection.heard_at = household, household.startswith("127."), heard_at
    return places.enter(connection), connection


@asynchronous
async def test_one_household_has_its_share_and_no_more() -> None:
    places = Places(8, 2, b"")
    first, second = (comes(places, "192.0.2.1", at)[1] for at in (1.0, 2.0))
    with first.busy(), second.busy():
        assert not comes(places, "192.0.2.1")[0]
        assert comes(places, "192.0.2.2")[0]
    assert comes(places, "192.0.2.1", 3.0)[0]
    assert (first.is_cut, second.is_cut) == (True, False)
    assert all(comes(places, "127.0.0.1")[0] for _ in range(5))
    assert len(places) == 8


@asynchronous
async def test_the_most_crowded_household_makes_room() -> None:
    places = Places(4, 3, b"")
    crowd = [comes(places, "192.0.2.1", at)[1] for at in (5.0, 4.0, 6.0)]
    other = comes(places, "192.0.2.2", 1.0)[1]
    assert comes(places, "192.0.2.3", 7.0)[0]
    assert [connection.is_cut for connection in crowd] == [False, True, False]
    assert not other.is_cut
    assert len(places) == 4


@asynchronous
async def test_many_who_come_at_once_do_not_slip_past_the_limit() -> None:
    places = Places(4, 4, b"")
    came = [comes(places, "127.0.0.1", at)[1] for at in range(50)]
    assert len(places) == 4
    assert sum(not connection.is_cut for connection in came) == 4
