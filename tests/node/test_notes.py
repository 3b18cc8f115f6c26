"""What a node says of itself when it is of no use: nobody mines, nobody is there, its worker is dealt nothing."""

from __future__ import annotations

import logging

import pytest
from msgspec.structs import replace

from consensus import params
from node.notes import QUIET_SECONDS, Notes, quiet_limit
from tests.builders import DAVE
from tests.node.rig import Rig, asynchronous


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynchronous
async def test_a_chain_without_blocks_is_told_once_and_until_one_comes() -> None:
    rig, clock = Rig(), Clock()
    notes = Notes(rig.chain, lambda: 1, None, rig.compute, clock)
    clock.now = QUIET_SECONDS - 1
    await notes.look()
    assert notes.texts == ()
    clock.now = QUIET_SECONDS + 1
    with pytest.MonkeyPatch.context() as patch:
        told: list[str] = []
        patch.setattr(logging.getLogger("tilework.node"), "log", lambda _level, text: told.append(text))
        await notes.look()
        clock.now += 5
        await notes.look()
    assert told == ["all miners are gone: no block for 61 s, so that nothing is confirmed, dealt or paid"]
    assert "no block for 66 s" in notes.texts[0]
    await rig.mine()
    await notes.look()
    assert notes.texts == ()


def test_slow_networks_are_quiet_for_longer() -> None:
    assert quiet_limit(2_000) == 60.0
    assert quiet_limit(60_000) == 1_800.0


@asynchronous
async def test_mainnet_without_peers_says_that_there_is_no_public_network() -> None:
    rig = Rig()
    peers = [0]
    notes = Notes(rig.chain, lambda: peers[0], None, rig.compute, Clock())
    await notes.look()
    assert notes.texts == ()
    rig.chain.params = replace(rig.chain.params, network=params.mainnet().network)
    await notes.look()
    assert "no public network yet" in notes.texts[0]
    assert "--peer" in notes.texts[0]
    peers[0] = 1
    await notes.look()
    assert notes.texts == ()


@asynchronous
async def test_a_worker_that_is_dealt_nothing_says_why() -> None:
    rig = Rig()
    notes = Notes(rig.chain, lambda: 1, DAVE.address, rig.compute, Clock())
    await notes.look()
    assert "not registered" in notes.texts[0]
    await rig.with_workers(DAVE)
    await notes.look()
    assert notes.texts == ()
    await rig.mine(rig.params.liveness + 1)
    await notes.look()
    assert "was not seen for long" in notes.texts[0]
    await rig.intake.transaction(rig.builder.retire(DAVE))
    await rig.mine()
    await notes.look()
    assert "is retired" in notes.texts[0]
