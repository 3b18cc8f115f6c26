"""A real node among identities that mean no good, over real connections."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.p2p.identity import Identity
from node.p2p.limits import DEFAULT
from node.p2p.messages import GetBody, GetHeaders, GetTensor, Status
from node.p2p.transport import Endpoint, TlsTransport, Transport
from tests.node.p2p.hostile import Swarm, never
from tests.processes.harness import HOST, RealNode, rig, until

pytestmark = pytest.mark.long

CLAIM = Status(10**6, b"\x77" * 32, b"\x01" + bytes(31))


def test_a_fresh_node_among_thirty_that_claim_more_and_hang_catches_up(tmp_path: Path) -> None:
    """The honest peer dials it from the same network, as all the others do, and comes last."""
    with rig(tmp_path) as made:
        honest = made.node()
        honest.start()
        honest.wait_ready()
        until(lambda: honest.height() >= 30, "a chain to synchronise")
        fresh = made.node(units_per_block=0)
        fresh.start()
        until(lambda: fresh.height() == 0, "an empty node")
        asyncio.run(among_thirty(honest, fresh))


async def among_thirty(honest: RealNode, fresh: RealNode) -> None:
    def transport(who: Identity, number: int) -> Transport:
        return TlsTransport(who, DEFAULT)

    genesis = bytes.fromhex(fresh.id_at(0))
    hanging = {GetHeaders: never, GetBody: never, GetTensor: never}
    target = Endpoint(HOST, fresh.p2p_port)
    async with Swarm(transport, target, genesis, 30, lambda: CLAIM, lambda _: hanging):
        await asyncio.to_thread(until, lambda: len(fresh.call("node_peers")) >= 30, "thirty peers")
        honest.call("node_addPeer", address=f"{HOST}:{fresh.p2p_port}")
        await asyncio.to_thread(until, lambda: fresh.height() >= 30, "the fresh node to catch up", 90)
