"""The node put together: every part is made here, started in order, and stopped within five seconds.

    node = Node(config)             opens the data directory, checks the chain, compiles the kernels: blocking
    async with node.running():      listens, mines, serves
        await node.stopped()        until `stop`, or until the disk fails

Data directory:

    chain/          LevelDB: blocks, state, index; its lock keeps a second node out. WRITTEN: its last batch
    tensors/        matrices by commitment
    genesis.json    the network's rules, kept from the first start on
    node.key        the node's identity among its peers
    worker.key      the account that it mines for, unless configured elsewhere
    peers           the address book
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from consensus import work
from consensus.params import TILE
from consensus.proofs import freivalds
from node.chain.store import StorageError
from node.compute import Shares, ThreadCompute
from node.config import Config
from node.failure import Failure
from node.metrics import Metrics
from node.mining.desk import WorkDesk
from node.mining.miner import Miner
from node.mining.payout import Payout
from node.mining.pricing import Pricing
from node.mining.producer import Producer
from node.notes import Notes
from node.p2p.limits import DEFAULT
from node.p2p.network import Network
from node.p2p.transport import TlsTransport
from node.pool.intake import Intake, Observer
from node.pool.mempool import Mempool
from node.pool.results import ResultPool
from node.report import Report
from node.rpc.context import Context
from node.rpc.methods.table import TABLE, TITLE
from node.rpc.registry import Info
from node.rpc.server import Probes, RpcConfig, RpcServer
from node.rpc.subscriptions import Hub
from node.rpc.tensors import TensorRoutes
from node.rpc.topics import Publisher
from node.start import (
    StartError,
    keep_genesis,
    load_keys,
    network_config,
    no_port,
    open_chain,
    payee_of,
    reserve_descriptors,
    software_version,
)
from worker.compute import LowPriorityCompute
from worker.key import WorkerKey

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("tilework.node")

READ_THREADS = 2
"""For RPC's reads and hashing, so that they never queue behind the import of a block."""
PEERS_SHARE = 0.1
"""Of the machine, for work that peers ask for, and for sending them the answers."""
CALLS_SHARE = 0.15
"""Of the machine, for calls over RPC while the node mines."""
CATCH_UP_SECONDS = 15.0
"""A miner waits for the chain of its peers, but not longer than this without any progress: they may be down."""
CATCH_UP_LOOK_SECONDS = 0.2


class Node:
    """One node.

    Attributes:
        chain, intake, producer, network, miner: its parts; no miner where it does not mine.
        report: what it says of itself.
    """

    def __init__(self, config: Config, clock: Callable[[], int] = lambda: time.time_ns() // 10**6) -> None:
        """Open everything that is on disk and compile the kernels. Takes from one to some seconds.

        Raises:
            StartError: the configuration or the data directory cannot be used.
        """
        self.config = config
        self.directory = config.directory
        self._failure = failure = Failure()
        self.metrics = Metrics(lambda: self.report.reading())
        reserve_descriptors()
        network = network_config(config)
        self._store, self.chain = open_chain(config, clock, self.metrics.imported)
        try:
            identity, worker = load_keys(config)
            self._payee = payee_of(config, self.chain.params)
            keep_genesis(self.directory / "genesis.json", self.chain.params)
        except StartError:
            self._store.close()
            raise
        self._compute = ThreadCompute(config.threads, failure.report)
        self._reads = ThreadCompute(READ_THREADS, failure.report)
        self._asked = ThreadCompute(1, failure.report)
        self._bench = LowPriorityCompute()
        pool = Mempool(self.chain, config.limits.mempool_mib << 20)
        self.intake = Intake(self.chain, pool, ResultPool(self.chain), self._compute)
        rng = random.Random(secrets.token_bytes(16))  # for choices that need no secrecy
        self.producer = Producer(self.chain, pool, self.intake.results, clock, rng)
        self.miner = None if worker is None else self._make_miner(worker, rng)
        asking = config.asking_price
        self._pricing = None if worker is None or asking is None else Pricing(self.intake, worker, asking, self._reads)
        self._payout = self._make_payout(worker)
        transport = TlsTransport(identity, DEFAULT)
        self.network = Network(
            network,
            identity,
            self.chain,
            self.intake,
            transport,
            clock,
            rng,
            self._compute,
            Shares(self._asked, PEERS_SHARE * (os.cpu_count() or 1)),
            failure.report,
        )
        address = None if worker is None else worker.address
        named = len(config.p2p.peers)
        self._notes = Notes(self.chain, lambda: named or len(self.network.peers()), address, self._reads)
        self.report = Report(
            self.chain,
            self.intake,
            self.network,
            self.miner,
            failure,
            self._notes,
            node_id=identity.key,
            worker=address,
            needs_peers=bool(config.p2p.peers),
        )
        self._hub = Hub(TABLE.topics)
        desk = WorkDesk(self.intake, self.producer, self._compute, clock)
        self._context = Context.of(self.chain, self.intake, desk, self.report, self._reads)
        self._rpc = self._make_rpc()
        _warm_kernels()

    # ------------------------------------------------------------------ life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the context lasts; at its end everything is stopped and closed.

        Raises:
            StartError: a port cannot be had.
            StorageError: at the end, if that is why the node stopped.
        """
        observers: list[Observer] = [Publisher(self._hub, self.chain), self.metrics]
        self.intake.observers.extend(observers)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start_network()
                stack.push_async_callback(self.network.stop)
                try:
                    self.report.rpc_address = str(await stack.enter_async_context(self._rpc.serving())).rstrip("/")
                except OSError as error:
                    raise no_port("rpc", self.config.rpc.host, self.config.rpc.port, error) from None
                logger.info("serving RPC", extra={"address": self.report.rpc_address})
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._take_notes())]
                    if self.miner is not None:
                        tasks.append(group.create_task(self._mine()))
                    try:
                        yield
                    finally:
                        logger.info("stopping")
                        for task in tasks:
                            task.cancel()
        finally:
            await self._close()
        if self._failure.error is not None:
            raise self._failure.error

    async def stopped(self) -> None:
        """Wait until somebody calls `stop`, or the disk fails."""
        await self._failure.wait()

    def stop(self) -> None:
        """Ask the node to stop. On the event loop's thread."""
        self._failure.stop()

    async def _start_network(self) -> None:
        try:
            await self.network.start()
        except OSError as error:
            await self.network.stop()
            raise no_port("p2p", self.config.p2p.host, self.config.p2p.port, error) from None

    async def _mine(self) -> None:
        """Run the miner once the chain of the peers is here."""
        assert self.miner is not None
        await self._catch_up()
        self.report.mining_now = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.miner.run())
                for beside in (self._pricing, self._payout):
                    if beside is not None:
                        group.create_task(beside.run())
        except* StorageError as errors:
            self._failure.report(errors)
        finally:
            self.report.mining_now = False

    async def _take_notes(self) -> None:
        with contextlib.suppress(StorageError):  # the disk that failed has been heard of
            await self._notes.run()

    async def _catch_up(self) -> None:
        """Wait for the peers' chain: what is mined below it is wasted. Give up on peers that bring nothing."""
        loop = asyncio.get_running_loop()
        height, progress = self.chain.tip.height, loop.time()
        while self.report.why_behind() and loop.time() - progress < CATCH_UP_SECONDS:
            await asyncio.sleep(CATCH_UP_LOOK_SECONDS)
            if self.chain.tip.height != height:
                height, progress = self.chain.tip.height, loop.time()

    async def _close(self) -> None:
        """Let what has begun end, then close the files."""
        await self.intake.close()
        for pool in (self._bench, self._reads, self._asked, self._compute):
            await asyncio.to_thread(pool.close)
        self._store.close()
        logger.info("stopped", extra={"height": self.chain.tip.height})

    # ------------------------------------------------------------------ parts

    def _make_miner(self, worker: WorkerKey, rng: random.Random) -> Miner:
        mining = self.config.mining
        return Miner(
            self.intake,
            self.producer,
            worker,
            compute=self._compute,
            bench=self._bench,
            rng=rng,
            threads=mining.threads,
            idle_duty=self.config.idle_duty,
        )

    def _make_payout(self, worker: WorkerKey | None) -> Payout | None:
        if worker is None or self._payee is None:
            return None
        above = self.config.mining.payout_above * TILE
        return Payout(self.intake, worker, self._payee, above, self._reads)

    def _make_rpc(self) -> RpcServer[Context]:
        rpc = self.config.rpc
        settings = RpcConfig(
            host=rpc.host,
            port=rpc.port,
            allowed_hosts=frozenset(name.lower() for name in rpc.allowed_hosts),
            allowed_origins=frozenset(rpc.cors_origins),
            shutdown_seconds=1.0,
        )
        probes = Probes(health=self.report.health, ready=self.report.ready, metrics=self.metrics.text)
        routes = TensorRoutes(self._context).routes
        info = Info(TITLE, software_version())
        share = CALLS_SHARE if self.config.mining.enabled else 1.0
        shares = Shares(self._reads, share * (os.cpu_count() or 1))
        return RpcServer(settings, info, TABLE, self._context, self._hub, probes, self.metrics.called, shares, routes)


def _warm_kernels() -> None:
    """Nobody waits for a compiler later: this takes under a second from numba's cache, eleven without it."""
    started = time.perf_counter()
    for fault in filter(None, (work.warm(), freivalds.warm())):
        logger.error("KERNELS NOT USED: this machine computes slowly from now on, and rightly", extra={"fault": fault})
    logger.info("kernels are warm", extra={"seconds": round(time.perf_counter() - started, 2)})
