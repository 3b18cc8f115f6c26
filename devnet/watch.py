"""What a devnet asks of its nodes over RPC: whether they are ready, their workers' registration, how the network is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from api.chain import HeaderView, PacketUnitView
from api.params import MAX_JOBS
from consensus.params import ChainParams
from consensus.shape import MAX_UNIT_BYTES
from consensus.transaction import RegisterWorker
from devnet import keys
from devnet.layout import DevnetError, NodeRecord
from wallet.client.gateway import Gateway
from wallet.client.purse import Purse
from wallet.client.transactions import Rules
from wallet.errors import WalletError

WORKER_PACKETS = 32
"""Packets that each worker may hold at once; its bond is the least for each."""
WORKER_PRICE = 10_000_000_000
"""Grains per 2⁴⁰ of weight: at the least base fee, about what the gas for a packet's bytes costs besides."""
RECENT_BLOCKS = 50

_READY_SECONDS = 60.0
_POLL_SECONDS = 0.1
_PATIENCE_BLOCKS = 60
"""For a registration to be in force, which takes about ten blocks; luck and a busy machine may stretch them."""


async def wait_ready(client: Gateway, name: str, check_alive: Callable[[], None]) -> None:
    """Return once /ready says so. Raises DevnetError (not-ready), or what `check_alive` raises meanwhile."""
    deadline = time.monotonic() + _READY_SECONDS
    while not await client.rpc.is_ready():
        check_alive()
        if time.monotonic() > deadline:
            message = f"{name} was not ready within {_READY_SECONDS:g} s"
            raise DevnetError("not-ready", message, f"read its log: tilework devnet logs {name.removeprefix('node')}")
        await asyncio.sleep(_POLL_SECONDS)


async def check_identity(client: Gateway, name: str, genesis_hash: str) -> None:
    """Raise DevnetError (port-taken) if what answers is a node of another network: its port was taken in between."""
    info = await client.info()
    if info.genesis_hash != genesis_hash:
        message = f"another network's node answers on the port that {name} was to have"
        raise DevnetError("port-taken", message, "start again: another port is chosen then")


# ---------------------------------------------------------------------- workers


async def register_worker(client: Gateway, network: Rules, node: NodeRecord) -> bool:
    """Register a node's worker from its own account; tells whether a transaction was needed.

    After a long pause the chain holds a worker for absent: then this refreshes it. Raises `WalletError`.
    """
    known = await client.worker(node.worker)
    if known.active:
        return False
    key = keys.account(node.index + 1)
    payload = RegisterWorker(
        x25519_key=key.x25519_key,
        min_price=WORKER_PRICE,
        max_unit_bytes=MAX_UNIT_BYTES,
        max_packets=WORKER_PACKETS,
        bond=0 if known.registered else WORKER_PACKETS * network.params.min_reserve,
    )
    (body,) = await Purse(client, network, key.public_key).prepare([payload], "a worker's bond")
    txid = body.txid(network.genesis_hash).hex()
    await client.send(key.transaction(body, network.genesis_hash), txid)
    return True


async def wait_in_force(
    client: Gateway,
    rules: ChainParams,
    nodes: Sequence[NodeRecord],
    progress: Callable[[int, int], None],
    check_alive: Callable[[], None],
) -> None:
    """Return once packets are dealt to every node's worker.

    `progress` hears the tick and the one at which that will be so, 0 while a registration is not in a block.

    Raises DevnetError (not-registered), or what `check_alive` raises meanwhile.
    """
    deadline = time.monotonic() + _PATIENCE_BLOCKS * rules.spacing_ms / 1000 + _READY_SECONDS
    while True:
        check_alive()
        try:
            tick = (await client.info()).tick
            workers = [await client.worker(node.worker) for node in nodes]
        except WalletError:
            workers = []
        else:
            known = all(worker.active or worker.announced for worker in workers)
            progress(tick, max(worker.announced.tick if worker.announced else 0 for worker in workers) if known else 0)
        if workers and all(worker.active for worker in workers):
            return
        if time.monotonic() > deadline:
            fix = "see whether blocks are won: tilework devnet logs; a clean start: tilework devnet reset"
            raise DevnetError("not-registered", "the workers' registrations did not come into force", fix)
        await asyncio.sleep(_POLL_SECONDS * 2)


# ---------------------------------------------------------------------- the network at a glance


class NodeState(Struct, frozen=True):
    """One node now; the rest is None while it does not answer."""

    name: str
    pid: int | None
    height: int | None = None
    tip: str | None = None
    peers: int | None = None


class NetworkState(Struct, frozen=True):
    """The network now.

    `spread` is between the highest and the lowest tip of the nodes that answer. `jobs` are those not closed.
    `useful` of the last `recent` blocks were won by paid packets: since chances go by work, that is the share of work.
    `quiet_seconds`: since a new block was last seen.
    """

    nodes: tuple[NodeState, ...]
    height: int = 0
    spread: int = 0
    jobs: int = 0
    useful: int = 0
    recent: int = 0
    circulating_grains: int = 0
    quiet_seconds: float = 0.0


class Observer:
    """Looks at the network, and remembers the recent blocks so that each is asked for once."""

    def __init__(self, clients: Sequence[Gateway]) -> None:
        self._clients = clients
        self._recent: dict[str, HeaderView] = {}
        self._height = -1
        self._heard_at = time.monotonic()

    async def look(self, nodes: Sequence[tuple[str, int | None]]) -> NetworkState:
        """The network's state; `nodes` are the names and process ids."""
        looks = zip(nodes, self._clients, strict=True)
        states = tuple(await asyncio.gather(*(_look(client, name, pid) for (name, pid), client in looks)))
        heights = [state.height for state in states if state.height is not None]
        height = max(heights, default=0)
        if height != self._height:
            self._height, self._heard_at = height, time.monotonic()
        quiet = time.monotonic() - self._heard_at
        view = NetworkState(states, height, height - min(heights, default=0), quiet_seconds=quiet)
        best = next((i for i, state in enumerate(states) if heights and state.height == max(heights)), None)
        if best is None:
            return view
        client, tip = self._clients[best], states[best].tip
        assert tip is not None
        try:
            jobs = await client.jobs(None, MAX_JOBS)
            supply = await client.supply()
            recent = await self._follow(client, tip)
        except WalletError:
            return view
        return replace(
            view,
            jobs=sum(job.status in ("open", "complete") for job in jobs),
            useful=sum(isinstance(header.unit, PacketUnitView) for header in recent),
            recent=len(recent),
            circulating_grains=supply.circulating,
        )

    async def _follow(self, client: Gateway, tip: str) -> list[HeaderView]:
        """The last blocks of the chain that ends with `tip`, without genesis."""
        recent: dict[str, HeaderView] = {}
        block_id = tip
        while len(recent) < RECENT_BLOCKS:
            header = self._recent.get(block_id) or await client.block_header(block_id)
            if header.height == 0:
                break
            recent[block_id] = header
            block_id = header.parent
        self._recent = recent
        return list(recent.values())


async def _look(client: Gateway, name: str, pid: int | None) -> NodeState:
    if pid is None:
        return NodeState(name, None)
    try:
        info, node = await client.info(), await client.node()
    except WalletError:
        return NodeState(name, pid)
    return NodeState(name, pid, info.height, info.tip, node.peers)
