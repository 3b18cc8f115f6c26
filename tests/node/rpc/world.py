"""A chain with everything that RPC's methods need around it, in one process: really mined, really imported."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from api.node import MempoolInfo, MiningInfo, NodeInfo, PeerView
from node.chain.chain import Chain, Import
from node.chain.store import MemoryStore, StorageError
from node.chain.tensors import TensorStore
from node.compute import InlineCompute
from node.mining.desk import WorkDesk
from node.mining.producer import Producer
from node.pool.intake import Intake
from node.pool.mempool import Mempool
from node.pool.results import ResultPool
from node.rpc.context import Context
from node.rpc.jsonrpc import RpcError
from node.rpc.methods.table import TABLE
from tests.builders import DAVE, ERIN, ONE_TILE, ChainBuilder, Job, Key, Node, operand

PEER = PeerView("aa", "127.0.0.1:1", "out", "test", 1, 7, None, 0.0, 10, 20)


class FakeHost:
    """The node around the chain."""

    def __init__(self) -> None:
        self.added: list[str] = []

    def info(self) -> NodeInfo:
        return NodeInfo("0", "regtest", "00", "127.0.0.1:1", "http://127.0.0.1:2", None, 1.5, 1, 0)

    def peers(self) -> list[PeerView]:
        return [PEER]

    def mempool(self) -> MempoolInfo:
        return MempoolInfo(1, 2, 3)

    def mining(self) -> MiningInfo:
        return MiningInfo(enabled=False)

    def add_peer(self, address: str) -> None:
        if ":" not in address:
            raise ValueError(f"{address!r} is no address")
        self.added.append(address)


class World:
    """`builder` mines, `chain` imports what it mined, `call` asks as a client does."""

    def __init__(self, builder: ChainBuilder | None = None) -> None:
        self.builder = builder or ChainBuilder()
        self.now_ms = self.builder.params.genesis_time_ms + 10**9
        self.tensors = TensorStore(None)
        self.chain = Chain(self.builder.params, MemoryStore(), self.tensors, lambda: self.now_ms)
        compute = InlineCompute(self._fatal)
        self.intake = Intake(self.chain, Mempool(self.chain), ResultPool(self.chain), compute)
        producer = Producer(
            self.chain, self.intake.pool, self.intake.results, lambda: self.now_ms, random.Random(1), ONE_TILE
        )
        self.host = FakeHost()
        desk = WorkDesk(self.intake, producer, compute, lambda: self.now_ms)
        self.context = Context.of(self.chain, self.intake, desk, self.host, compute)

    def _fatal(self, error: StorageError) -> None:
        raise AssertionError(error)

    def mine(self, *args: Any, count: int = 1, **kwargs: Any) -> Node:
        """As `ChainBuilder.mine`, and import each block."""
        node = self.builder.mine(*args, **kwargs)
        self.take(node)
        for _ in range(count - 1):
            node = self.builder.mine()
            self.take(node)
        return node

    def take(self, node: Node) -> Import:
        """Import a block of the builder's, with its tensors."""
        self.share_tensors()
        return asyncio.run(self.intake.block(node.block))

    def share_tensors(self) -> None:
        for tensor in self.builder.tensors:
            self.tensors.add(tensor)

    def text(self, key: Key) -> str:
        """A key's address."""
        return self.context.text(key.address)

    async def ask(self, method: str, **params: object) -> Any:
        """The decoded result of a call. What is at hand must be what a fresh answer says."""
        raw = Raw(msgspec.json.encode(params))
        at_hand = TABLE[method].at_hand(self.context, raw)
        answer = await TABLE[method].invoke(self.context, raw)
        assert at_hand in (None, answer)
        return msgspec.json.decode(answer)

    def call(self, method: str, **params: object) -> Any:
        """`ask`, from outside a loop."""
        return asyncio.run(self.ask(method, **params))

    def refused(self, method: str, **params: object) -> RpcError:
        """The error of a call that must fail."""
        with pytest.raises(RpcError) as caught:
            self.call(method, **params)
        assert caught.value.object.data.fix
        return caught.value


def with_workers(*workers: Key) -> World:
    """A world on which `workers` (DAVE and ERIN by default) hold a place each, their registrations in force."""
    world = World()
    world.mine([world.builder.register(worker) for worker in workers or (DAVE, ERIN)])
    world.mine(count=world.builder.params.registration_delay - 1)
    return world


def small_job(world: World, owner: Key, packets: int = 2, **changes: Any) -> Job:
    """A·B of 64·packets × 64 × 64, cut into `packets` packets; its operands are uploaded."""
    seed = changes.pop("seed", 0)
    a, b = operand(64 * packets, 64, seed), operand(64, 64, seed + 1)
    job = world.builder.job(owner, a, b, rows=64, **changes)
    world.share_tensors()
    return job
