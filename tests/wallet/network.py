"""A real node in this process, mining on a network of its own, for tests that want the whole way there and back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from consensus import params
from consensus.params import TILE, Allocation, ChainParams
from consensus.shape import MAX_UNIT_BYTES
from consensus.transaction import RegisterWorker
from node import genesis
from node.config import Config, Mining, P2p, Rpc
from node.service import Node
from wallet.accounts.keys import SigningKey, account_key
from wallet.client.gateway import Gateway
from wallet.client.purse import Purse
from worker.key import WorkerKey

T = TypeVar("T")

WORDS = "test " * 11 + "junk"
ALICE, BOB = account_key(WORDS, 0), account_key(WORDS, 1)
WORKER = WorkerKey(bytes(range(1, 33)), bytes(range(2, 34)))
FUNDS = 100_000 * TILE
SLOTS = 8


def rules(**changes: Any) -> ChainParams:
    """Regtest with funded accounts, short lives and quick ticks, so that a job's end is near."""
    allocations = tuple(Allocation(address, FUNDS) for address in (ALICE.address, BOB.address, WORKER.address))
    return replace(
        params.regtest(1_700_000_000_000, allocations), **{"window": 6, "max_life": 400, "spacing_ms": 20, **changes}
    )


@dataclass
class Running:
    """A node that serves. `do` runs a coroutine on its event loop."""

    node: Node
    loop: asyncio.AbstractEventLoop
    url: str

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(60)


@contextmanager
def running_node(
    directory: Path, chain: ChainParams | None = None, *, idle_duty: float = 0.05, port: int = 0, mines: bool = True
) -> Iterator[Running]:
    """A node with its own thread and event loop, whose worker key is `WORKER`'s."""
    directory.mkdir(exist_ok=True)
    file = directory / "rules.json"
    file.write_bytes(genesis.dump(chain or rules()))
    if not (directory / "worker.key").exists():
        WORKER.create(directory / "worker.key")
    config = Config(
        network="regtest",
        data_dir=directory,
        genesis=file,
        p2p=P2p(port=0),
        rpc=Rpc(port=port),
        mining=Mining(enabled=mines, idle_duty=idle_duty),
    )
    started = threading.Event()
    found: list[Running] = []

    async def serve() -> None:
        node = Node(config)
        async with node.running():
            found.append(Running(node, asyncio.get_running_loop(), node.report.rpc_address))
            started.set()
            await node.stopped()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="node")
    thread.start()
    try:
        while not started.wait(0.1):
            assert thread.is_alive(), "the node did not start"
        yield found[0]
    finally:
        if found:
            found[0].loop.call_soon_threadsafe(found[0].node.stop)
        thread.join(30)
        assert not thread.is_alive(), "the node did not stop"


async def register_worker(url: str, key: WorkerKey = WORKER, slots: int = SLOTS, min_price: int = 1) -> None:
    """Register the node's worker and wait until packets are dealt to it."""
    async with Gateway(url) as gateway:
        network = await gateway.network()
        purse = Purse(gateway, network, key.public_key)
        bond = network.params.min_reserve * slots
        payload = RegisterWorker(key.x25519_key, min_price, MAX_UNIT_BYTES, slots, bond)
        (body,) = await purse.prepare([payload], "the registration")
        tx = key.transaction(body, network.genesis_hash)
        await gateway.send(tx, body.txid(network.genesis_hash).hex())
        deadline = time.monotonic() + 60
        while not await gateway.workers():
            assert time.monotonic() < deadline, "the worker is not dealt to"
            await asyncio.sleep(0.05)


def key_of(name: str) -> SigningKey:
    """An unfunded account that follows from a name."""
    return SigningKey(name.encode().ljust(32, b"."))
