"""A whole network in one process, from one seed: real chains, pools, miners and peers; virtual time; faults on purpose.

Everything that could differ between two runs is drawn from the seed: delays, mining luck, faults, the users' choices.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from consensus.crypto import H
from consensus.params import ChainParams
from consensus.state import PACKETS, StateReader
from consensus.transaction import SubmitJob, Transaction
from node.chain.chain import Chain
from node.chain.store import MemoryStore
from node.chain.tensors import TensorStore
from node.compute import InlineCompute, Shares
from node.mining.miner import Miner
from node.mining.producer import Producer
from node.p2p.identity import from_seed
from node.p2p.network import Network, NetworkConfig
from node.p2p.transport import Endpoint
from node.pool.intake import Intake
from node.pool.mempool import Mempool
from node.pool.results import ResultPool
from tests.builders import ONE_TILE, WORKERS, ChainBuilder, Key, regtest
from tests.node.p2p.memory_transport import MemoryWorld
from tests.node.rig import worker_key

P = ParamSpec("P")
T = TypeVar("T")

PORT = 9000


class LuckyBench:
    """Where a simulated miner's units run: a unit takes a drawn time before it is evaluated.

    At the easiest target the rules' one-tile unit always wins, so the times between blocks are those drawn here.
    """

    def __init__(self, rng: random.Random, mean_s: float) -> None:
        self._rng = rng
        self._mean_s = mean_s

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await asyncio.sleep(self._rng.expovariate(1 / self._mean_s))
        return function(*args, **kwargs)


class SimulatedNode:
    """One node. Its store and tensors outlive `crash`; everything else begins anew at `start`. Its clock is the
    world's, and `step_ms`."""

    def __init__(self, world: World, number: int, key: Key) -> None:
        self.world = world
        self.key = key
        self.host = f"10.0.{number}.1"
        self.store = MemoryStore()
        self.tensors = TensorStore(None)
        self.running = False
        self.step_ms = 0
        self._identity = from_seed(H("tw/test", b"simulated" + bytes([number])))
        self._seed = f"{world.seed}/{number}"

    async def start(self, *dial: SimulatedNode) -> None:
        """Open the chain, listen, dial the others, mine."""
        world, compute = self.world, InlineCompute(self.world.failures.append)
        # One source for each part: what one of them draws must not depend on how the others take turns.
        nonces, luck, pauses, choices = (random.Random(f"{self._seed}/{part}") for part in range(4))
        self.chain = Chain(world.params, self.store, self.tensors, self.now_ms)
        self.pool = Mempool(self.chain)
        self.results = ResultPool(self.chain)
        self.intake = Intake(self.chain, self.pool, self.results, compute)
        producer = Producer(self.chain, self.pool, self.results, self.now_ms, nonces, ONE_TILE)
        targets = tuple(Endpoint(node.host, PORT) for node in dial)
        config = NetworkConfig(Endpoint(self.host, PORT), targets, allow_private=True)
        transport = world.wires.transport(self._identity, self.host)
        self.network = Network(
            config,
            self._identity,
            self.chain,
            self.intake,
            transport,
            self.now_ms,
            choices,
            compute,
            Shares(compute, share=1.0, timer=lambda: 0.0),  # no clock but the world's
            world.failures.append,
        )
        bench = LuckyBench(luck, world.unit_s)
        self.miner = Miner(
            self.intake, producer, worker_key(self.key), compute=compute, bench=bench, rng=pauses, stopwatch=world.time
        )
        await self.network.start()
        self._mining = asyncio.create_task(self.miner.run())
        self.running = True

    def now_ms(self) -> int:
        return self.world.now_ms() + self.step_ms

    async def stop(self) -> None:
        """End it; the network says goodbye unless the node crashed."""
        self.running = False
        self._mining.cancel()
        await asyncio.gather(self._mining, return_exceptions=True)
        await self.network.stop()
        await self.intake.close()

    async def crash(self) -> None:
        """Lose every connection and all memory; what was committed stays."""
        self.world.wires.reset(self.host)
        await self.stop()

    def read(self, function: Callable[[StateReader], T]) -> T:
        return self.chain.read(function)


class World:
    """The nodes, the wires between them, and a user who writes transactions with the builders' keys."""

    def __init__(self, seed: int, nodes: int = 4, spacing_s: float = 2.0, params: ChainParams | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.params = params or regtest()
        self.unit_s = nodes * spacing_s
        self.wires = MemoryWorld(seed)
        self.failures: list[BaseException] = []
        self.nodes = [SimulatedNode(self, number, key) for number, key in enumerate(WORKERS[:nodes], 1)]
        self.user = ChainBuilder(self.params, worked=False)
        """Writes and signs; its own chain stays at genesis, so nonces are counted by `nonce`."""
        self._nonces: dict[Key, int] = {}
        self._sent: dict[bytes, Transaction] = {}

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def now_ms(self) -> int:
        return self.params.genesis_time_ms + self.params.spacing_ms + int(1000 * self.time())

    def nonce(self, key: Key) -> int:
        """The next nonce of a key that only this user spends from."""
        self._nonces[key] = self._nonces.get(key, -1) + 1
        return self._nonces[key]

    @property
    def running(self) -> list[SimulatedNode]:
        return [node for node in self.nodes if node.running]

    def height(self) -> int:
        """Of the highest tip."""
        return max(node.chain.tip.height for node in self.running)

    def agree(self) -> bool:
        """Whether all running nodes have one tip."""
        return len({node.chain.tip.id for node in self.running}) == 1

    async def until(self, condition: Callable[[], object], patience_s: float = 3_600.0) -> None:
        """Let virtual time pass until something is true."""
        deadline = self.time() + patience_s
        while not condition():
            assert self.time() < deadline, f"seed {self.seed}: waited in vain at {self.time():.0f} s"
            assert not self.failures, f"seed {self.seed}: {self.failures}"
            await asyncio.sleep(0.25)

    async def reach(self, height: int) -> None:
        """Until the highest tip stands at `height`."""
        await self.until(lambda: self.height() >= height)

    async def settle(self) -> None:
        """Until all running nodes agree."""
        await self.until(self.agree)

    async def send(self, node: SimulatedNode, tx: Transaction) -> bytes:
        """Give a transaction, and the operands of its job, to one node."""
        if isinstance(tx.body.payload, SubmitJob):
            for operand in tx.body.payload.operands():
                tensor = self.user.tensors.tensor(operand.commitment)
                assert tensor is not None
                await node.intake.tensor(tensor)
        txid = await node.intake.transaction(tx)
        self._sent[txid] = tx
        return txid

    async def resend(self) -> None:
        """What users do whose transaction stays away: give it to another node. (A crash empties a mempool.)"""
        node = self.rng.choice(self.running)
        for txid, tx in list(self._sent.items()):
            if node.chain.archive.transaction(txid) is not None:
                del self._sent[txid]
            else:
                await self.send(node, tx)

    async def register_all(self, packets: int = 4) -> None:
        """Every node's key becomes a worker; waits until they can be dealt to."""
        for node in self.running:
            tx = self.user.register(node.key, packets=packets, nonce=self.nonce(node.key))
            await self.send(node, tx)
        start = self.height()
        await self.reach(start + self.params.registration_delay + 3)

    def held_packets(self, node: SimulatedNode) -> int:
        """Packets in the node's state, whatever their status."""
        return node.read(lambda view: sum(1 for _ in PACKETS.scan(view)))

    async def stop(self) -> None:
        for node in self.running:
            await node.stop()
        assert not self.failures, f"seed {self.seed}: {self.failures}"
