"""What a devnet asks of its nodes over RPC: whether they are ready, their registration as workers, how the network is.

The answers are declared here with the few fields that are looked at.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar

import aiohttp
import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from consensus.codec import encode
from consensus.params import ChainParams
from consensus.rules.payloads import intrinsic_gas
from consensus.shape import MAX_UNIT_BYTES
from consensus.transaction import RegisterWorker, TxBody
from devnet import keys
from devnet.layout import DevnetError, NodeRecord

T = TypeVar("T")

WORKER_PACKETS = 32
"""Packets that each worker may hold at once, as soon as its score allows; its bond is one slot's for each."""
WORKER_PRICE = 10_000
"""Grains per 2²⁰ MACs: at the least base fee, about what the gas for a packet's bytes costs besides."""
RECENT_BLOCKS = 50

_CALL_SECONDS = 15.0
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.1
_PATIENCE_BLOCKS = 60
"""For a registration to be in force, which takes about ten blocks; luck and a busy machine may stretch them."""


class ChainInfo(Struct, frozen=True):
    """Of `chain_info`."""

    height: int
    tip: str
    genesis_hash: str


class _Unit(Struct, frozen=True):
    kind: Literal["idle", "packet"]


class _Header(Struct, frozen=True):
    height: int
    parent: str
    unit: _Unit


class _Supply(Struct, frozen=True):
    circulating: int


class _NodeInfo(Struct, frozen=True):
    peers: int


class _Job(Struct, frozen=True):
    status: str


class _Worker(Struct, frozen=True):
    registered: bool
    active: bool
    since: int


class _Account(Struct, frozen=True):
    next_nonce: int


class _Fees(Struct, frozen=True):
    suggested_tip: int
    suggested_max_base_fee: int


class _Sent(Struct, frozen=True):
    txid: str


class _Error(Struct, frozen=True):
    message: str


class _Response(Struct, frozen=True):
    result: Raw = Raw()
    error: _Error | None = None


_response_decoder = msgspec.json.Decoder(_Response)


class Unreachable(Exception):
    """A node did not answer a call; the text says why."""


class NodeClient:
    """Calls one node. `async with` it inside a running loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = itertools.count(1)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def is_ready(self) -> bool:
        """Whether /ready says so."""
        try:
            async with self._session.get(f"{self._url}/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def call(self, method: str, kind: type[T], **params: object) -> T:
        """The result of `method`, decoded as `kind`. Raises Unreachable, also where the node refuses."""
        request = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params}
        try:
            async with self._session.post(
                self._url, data=msgspec.json.encode(request), headers={"Content-Type": "application/json"}
            ) as reply:
                response = _response_decoder.decode(await reply.read())
            if response.error is None:
                return msgspec.json.decode(response.result, type=kind)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            raise Unreachable(f"{self._url}: {error or type(error).__name__}") from None
        raise Unreachable(f"{self._url} refuses {method}: {response.error.message}")


async def wait_ready(client: NodeClient, name: str, check_alive: Callable[[], None]) -> None:
    """Return once /ready says so. Raises DevnetError (not-ready), or what `check_alive` raises meanwhile."""
    deadline = time.monotonic() + _READY_SECONDS
    while not await client.is_ready():
        check_alive()
        if time.monotonic() > deadline:
            message = f"{name} was not ready within {_READY_SECONDS:g} s"
            raise DevnetError("not-ready", message, f"read its log: tilework devnet logs {name.removeprefix('node')}")
        await asyncio.sleep(_POLL_SECONDS)


async def check_identity(client: NodeClient, name: str, genesis_hash: str) -> None:
    """Raise DevnetError (port-taken) if what answers is a node of another network: its port was taken in between."""
    info = await client.call("chain_info", ChainInfo)
    if info.genesis_hash != genesis_hash:
        message = f"another network's node answers on the port that {name} was to have"
        raise DevnetError("port-taken", message, "start again: another port is chosen then")


# ---------------------------------------------------------------------- workers


async def register_worker(client: NodeClient, rules: ChainParams, genesis_hash: bytes, node: NodeRecord) -> bool:
    """Register a node's worker from its own account; tells whether a transaction was needed.

    After a long pause the chain holds a worker for absent: then this refreshes it. Raises Unreachable.
    """
    known = await client.call("worker_get", _Worker, address=node.worker)
    if known.active:
        return False
    account = await client.call("state_getAccount", _Account, address=node.worker)
    fees = await client.call("tx_fees", _Fees)
    key = keys.account(node.index + 1)
    payload = RegisterWorker(
        x25519_key=key.x25519_key,
        min_price=WORKER_PRICE,
        max_unit_bytes=MAX_UNIT_BYTES,
        max_packets=WORKER_PACKETS,
        bond=0 if known.registered else WORKER_PACKETS * rules.slot_bond,
    )
    body = TxBody(key.public_key, account.next_nonce, fees.suggested_tip, 0, fees.suggested_max_base_fee, payload)
    transaction = key.transaction(replace(body, gas_limit=intrinsic_gas(rules, body)), genesis_hash)
    await client.call("tx_send", _Sent, transaction=encode(transaction).hex())
    return True


async def wait_in_force(
    client: NodeClient,
    rules: ChainParams,
    nodes: Sequence[NodeRecord],
    progress: Callable[[int, int], None],
    check_alive: Callable[[], None],
) -> None:
    """Return once packets are dealt to every node's worker.

    `progress` hears the height and the one at which that will be so, 0 while a registration is not in a block.

    Raises DevnetError (not-registered), or what `check_alive` raises meanwhile.
    """
    deadline = time.monotonic() + _PATIENCE_BLOCKS * rules.spacing_ms / 1000 + _READY_SECONDS
    while True:
        check_alive()
        try:
            height = (await client.call("chain_info", ChainInfo)).height
            workers = [await client.call("worker_get", _Worker, address=node.worker) for node in nodes]
        except Unreachable:
            workers = []
        else:
            known = all(worker.registered for worker in workers)
            progress(height, max(worker.since for worker in workers) + rules.registration_delay if known else 0)
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
    """

    nodes: tuple[NodeState, ...]
    height: int = 0
    spread: int = 0
    jobs: int = 0
    useful: int = 0
    recent: int = 0
    circulating_grains: int = 0


class Observer:
    """Looks at the network, and remembers the recent blocks so that each is asked for once."""

    def __init__(self, clients: Sequence[NodeClient]) -> None:
        self._clients = clients
        self._recent: dict[str, _Header] = {}

    async def look(self, nodes: Sequence[tuple[str, int | None]]) -> NetworkState:
        """The network's state; `nodes` are the names and process ids."""
        looks = zip(nodes, self._clients, strict=True)
        states = tuple(await asyncio.gather(*(_look(client, name, pid) for (name, pid), client in looks)))
        heights = [state.height for state in states if state.height is not None]
        view = NetworkState(states, max(heights, default=0), max(heights, default=0) - min(heights, default=0))
        best = next((i for i, state in enumerate(states) if heights and state.height == max(heights)), None)
        if best is None:
            return view
        client, tip = self._clients[best], states[best].tip
        assert tip is not None
        try:
            jobs = await client.call("job_list", list[_Job])
            supply = await client.call("chain_supply", _Supply)
            recent = await self._follow(client, tip)
        except Unreachable:
            return view
        return replace(
            view,
            jobs=sum(job.status in ("open", "complete") for job in jobs),
            useful=sum(header.unit.kind == "packet" for header in recent),
            recent=len(recent),
            circulating_grains=supply.circulating,
        )

    async def _follow(self, client: NodeClient, tip: str) -> list[_Header]:
        """The last blocks of the chain that ends with `tip`, without genesis."""
        found: dict[str, _Header] = {}
        identity = tip
        while len(found) < RECENT_BLOCKS:
            header = self._recent.get(identity)
            if header is None:
                header = await client.call("chain_getHeader", _Header, id=identity)
            if header.height == 0:
                break
            found[identity] = header
            identity = header.parent
        self._recent = found
        return list(found.values())


async def _look(client: NodeClient, name: str, pid: int | None) -> NodeState:
    if pid is None:
        return NodeState(name, None)
    try:
        info = await client.call("chain_info", ChainInfo)
        peers = (await client.call("node_info", _NodeInfo)).peers
    except Unreachable:
        return NodeState(name, pid)
    return NodeState(name, pid, info.height, info.tip, peers)
