"""How often one network group may ask for the work of TLS. Places are tested with sockets, in `test_transport`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from node.p2p.door.lobby import Turns
from node.p2p.limits import DEFAULT
from tests.node.virtual_time import virtual


@virtual
async def test_handshakes_of_one_group_wait_for_each_other_and_for_nobody_elses() -> None:
    turns = Turns(replace(DEFAULT, handshakes_per_s=2.0, handshakes_burst=3))
    loop = asyncio.get_running_loop()
    for _ in range(3):
        await turns.take("crowd", "house")
    assert loop.time() == 0
    queue = [asyncio.ensure_future(turns.take("crowd", "house")) for _ in range(5)]
    await asyncio.sleep(0.1)
    for task in queue:
        task.cancel()
    await turns.take("other", "another")
    assert loop.time() == pytest.approx(0.1)
    await turns.take("crowd", "house")
    assert loop.time() == pytest.approx(0.5), "whoever left the queue has cost nothing"


@virtual
async def test_a_flood_from_one_address_keeps_no_other_one_of_its_network_waiting() -> None:
    turns = Turns(replace(DEFAULT, handshakes_per_s=2.0, handshakes_burst=1))
    loop = asyncio.get_running_loop()
    flood = [asyncio.ensure_future(turns.take("crowd", "house")) for _ in range(30)]
    await asyncio.sleep(0.1)
    for _ in range(3):
        began = loop.time()
        await turns.take("crowd", "another")
        assert loop.time() - began <= 1.0, "no more than one of the flood goes before"
    for task in flood:
        task.cancel()
