"""One node's core for tests: a real chain in memory with its pools, door, producer and clock.

Every block that becomes its tip is checked a second time, from scratch, by a `ChainBuilder`, which also writes the
transactions and jobs. The builder's blocks can be given to the node as a peer's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

from consensus import work
from consensus.block import Block, PacketUnit, Zero
from consensus.crypto import H
from consensus.params import ChainParams
from consensus.shape import Shape
from consensus.transaction import Result, Transaction
from consensus.validation import obliged_tensors
from node.chain.chain import Chain, Import
from node.chain.store import MemoryStore, StorageError, Store
from node.chain.tensors import TensorStore
from node.compute import Compute, InlineCompute
from node.mining.producer import REFRESH_MS, Candidate, Producer
from node.pool.intake import Intake
from node.pool.mempool import Mempool
from node.pool.results import ResultPool
from tests import builders
from tests.builders import ONE_TILE, ChainBuilder, Job, Key
from worker.key import WorkerKey

P = ParamSpec("P")


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine function as a test, in an event loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Rig:
    """See the module. `announced` lists what observers were told, in order."""

    def __init__(
        self, rules: ChainParams | None = None, compute: Compute | None = None, idle: Shape = ONE_TILE, **intake: int
    ) -> None:
        self.builder = ChainBuilder(rules, idle=idle)
        self.params = self.builder.params
        self.now_ms = self.params.genesis_time_ms
        self.store: Store = MemoryStore()
        self.tensors = TensorStore(None)
        self.failures: list[StorageError] = []
        self.compute: Compute = compute or InlineCompute(self.failures.append)
        self.chain = Chain(self.params, self.store, self.tensors, lambda: self.now_ms)
        self.pool = Mempool(self.chain)
        self.results = ResultPool(self.chain)
        self.intake = Intake(self.chain, self.pool, self.results, self.compute, **intake)
        self.producer = Producer(self.chain, self.pool, self.results, lambda: self.now_ms, random.Random(1), idle)
        self.announced: list[Import | Transaction | Result] = []
        self.intake.observers.append(self)

    # --- observer

    def new_tip(self, change: Import) -> None:
        self.announced.append(change)
        for done in change.connected:
            self._check_again(done.block)
        self.now_ms = self.chain.tip.core.time_ms + self.params.spacing_ms

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        self.announced.append(tx)

    def new_result(self, result: Result, result_id: bytes) -> None:
        self.announced.append(result)

    # --- building

    async def mine(self, count: int = 1, miner: Key = builders.MINER) -> Block:
        """Idle blocks of the node's own making; returns the last."""
        for _ in range(count):
            self.now_ms += REFRESH_MS
            block = await self._win(miner)
            await self.intake.block(block)
        return block

    async def _win(self, miner: Key) -> Block:
        """An idle block that wins: the first candidate's, but for targets somewhat below the easiest."""
        while True:
            candidate = self.producer.candidate(self.producer.idle_unit, miner.address)
            block = await self.seal(candidate)
            if work.wins(block.header.ticket, candidate.core.target_int, candidate.shape.k):
                return block

    async def seal(self, candidate: Candidate) -> Block:
        """Evaluate an idle candidate of one tile, which wins at the easiest target."""
        evaluation = work.evaluate_idle(candidate.seed, candidate.shape)
        assert evaluation is not None
        assert evaluation.states is not None
        return self.producer.seal(candidate, 0, 0, evaluation.states[0, 0])

    def branch(self) -> ChainBuilder:
        """A builder that goes its own way from the present tip, with the same tensors."""
        other = self.builder.fork()
        other.tensors, other.products = self.builder.tensors, self.builder.products
        return other

    async def receive(self, node: builders.Node) -> Import:
        """Import a builder's block as a peer would bring it."""
        for commitment in obliged_tensors(node.block):
            await self.upload(commitment)
        unit, strips = node.header.core.unit, None
        if not isinstance(unit, Zero):
            assert node.header.proof is not None
            assert node.parent is not None
            tip, self.builder.tip = self.builder.tip, node.parent
            assert isinstance(unit, PacketUnit)
            operands = self.builder.operands(unit.packet_id)
            self.builder.tip = tip
            strips = builders.strips_of(*operands, node.header.proof.i, node.header.proof.j)
        return await self.intake.block(node.block, strips)

    async def upload(self, *commitments: bytes) -> None:
        """Give the builder's tensors to the node."""
        for commitment in commitments:
            tensor = self.builder.tensors.tensor(commitment)
            assert tensor is not None
            await self.intake.tensor(tensor)

    async def submit(self, job: Job) -> None:
        """Upload a job's operands and send its transaction."""
        await self.upload(*(spec.commitment for spec in job.payload.operands()))
        await self.intake.transaction(job.transaction)

    async def answer(self, packet: bytes) -> Result:
        """The holder's true Result, with its product, through the door."""
        result = self.builder.result(packet)
        await self.upload(result.body.product)
        await self.intake.result(result)
        return result

    async def with_workers(self, *workers: Key, packets: int = 1) -> None:
        """Register workers and wait until they can be dealt to."""
        for worker in workers:
            await self.intake.transaction(self.builder.register(worker, packets=packets))
        await self.mine(self.params.registration_delay)

    def _check_again(self, block: Block) -> None:
        if block.header.core.parent not in self.builder._nodes:
            return  # a branch that the test made elsewhere
        for commitment in obliged_tensors(block):
            tensor = self.tensors.tensor(commitment)
            assert tensor is not None, "a connected block without its tensors"
            self.builder.tensors.add(tensor)
        self.builder.accept(
            builders.Candidate(block, self.chain.known.strips(block.id, block.header.ticket)), self.now_ms
        )


def worker_key(key: Key) -> WorkerKey:
    """The key file's content for one of the builders' workers."""
    return WorkerKey(key.private.private_bytes_raw(), H("tw/test", b"x25519" + key.address))
