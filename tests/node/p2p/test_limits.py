"""The node's limits are those of docs/protocol.md, section 15; each is enforced elsewhere, in its subject's tests."""

from __future__ import annotations

import asyncio

from node import config
from node.p2p.limits import DEFAULT, MAX_HEADERS, MAX_MESSAGE_BYTES
from node.p2p.transport import Endpoint
from node.pool import mempool
from node.rpc import jsonrpc
from node.rpc.server import RpcConfig
from tests.node.p2p.net import PORT, Net, until
from tests.node.virtual_time import virtual


def test_limits_as_agreed() -> None:
    assert (DEFAULT.max_inbound, DEFAULT.max_outbound) == (64, 8)
    assert (MAX_MESSAGE_BYTES, MAX_HEADERS, DEFAULT.max_headers) == (1_064_960, 512, 512)
    assert (mempool.MAX_POOL_BYTES, mempool.MAX_PENDING_PER_ACCOUNT) == (67_108_864, 64)
    assert config.load({}, {}).limits.mempool_mib << 20 == mempool.MAX_POOL_BYTES
    assert (RpcConfig().body_bytes, RpcConfig().connections, RpcConfig().call_seconds) == (5_242_880, 256, 10.0)
    assert jsonrpc.MAX_BATCH == 100


class Wide(Net):
    """Hosts of different public networks: a node dials one of each."""

    def host(self, name: str) -> str:
        return f"20.{ord(name)}.0.1"


@virtual
async def test_outbound_places_are_bounded() -> None:
    """However many addresses the book holds; and all of them are used."""
    net = Wide(max_outbound=2)
    a = net.add("a")
    for name in "bcdef":
        net.add(name)
    for name in "bcdef":
        assert a.network.book.add(Endpoint(net.host(name), PORT), a.clock())
    async with net:
        await until(lambda: len(a.network.peers()) >= 2)
        await asyncio.sleep(60)
        outbound = [peer for peer in a.network.peers() if peer.direction == "outbound"]
        assert len(outbound) == 2
