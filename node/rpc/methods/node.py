"""`node_*`: the node itself, for its operator."""

from __future__ import annotations

from api.errors import INVALID_PARAMS
from api.node import Done, MempoolInfo, MiningInfo, NodeInfo, PeerView
from api.params import NewPeer, NoParams
from node.rpc.context import Context
from node.rpc.jsonrpc import RpcError
from node.rpc.registry import Table

TABLE: Table[Context] = Table()


@TABLE.method("node_info")
async def node_info(node: Context, _params: NoParams) -> NodeInfo:
    """Version, addresses and height of this node."""
    return node.host.info()


@TABLE.method("node_peers")
async def node_peers(node: Context, _params: NoParams) -> list[PeerView]:
    """The connected peers."""
    return node.host.peers()


@TABLE.method("node_mempool")
async def node_mempool(node: Context, _params: NoParams) -> MempoolInfo:
    """How much waits for a block."""
    return node.host.mempool()


@TABLE.method("node_mining")
async def node_mining(node: Context, _params: NoParams) -> MiningInfo:
    """What the node's own miner has done since it started."""
    return node.host.mining()


@TABLE.method("node_addPeer")
async def node_add_peer(node: Context, params: NewPeer) -> Done:
    """Connect to a peer, and stay connected."""
    try:
        node.host.add_peer(params.address)
    except ValueError as error:
        raise RpcError(INVALID_PARAMS, f"Invalid params: {error}", fix="Write it like 192.0.2.7:9545.") from None
    return Done()
