"""The node put together: every part is made here, started in order, and stopped within five seconds.

    node = Node(config)             opens the data directory, checks the chain, compiles the kernels: blocking
    async with node.running():      listens, mines, serves
        await node.stopped()        until `stop`, or until the disk fails

Data directory:

    chain/          LevelDB: blocks, state, index; its lock keeps a second node out
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
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msgspec import Struct

from api.node import MempoolInfo, MiningInfo, NodeInfo, PeerView
from consensus import work
from consensus.address import encode_address
from consensus.errors import Refusal
from consensus.params import ChainParams
from consensus.proofs import freivalds
from node import genesis
from node.chain.chain import Chain
from node.chain.store import LevelStore, StorageError, StoreInUse
from node.chain.tensors import TensorStore
from node.compute import ThreadCompute
from node.config import Config
from node.metrics import Metrics, Reading
from node.mining.desk import WorkDesk
from node.mining.miner import Miner
from node.mining.producer import Producer
from node.p2p.identity import Identity, IdentityError, load_or_create
from node.p2p.limits import DEFAULT
from node.p2p.network import Network, NetworkConfig
from node.p2p.transport import Address, TlsTransport
from node.pool.intake import Intake, Observer
from node.pool.mempool import Mempool
from node.pool.results import ResultPool
from node.rpc.context import Context
from node.rpc.methods.chain import is_syncing
from node.rpc.methods.table import TABLE, TITLE
from node.rpc.registry import Info
from node.rpc.server import Probes, Readiness, RpcConfig, RpcServer
from node.rpc.subscriptions import Hub
from node.rpc.tensors import TensorRoutes
from node.rpc.topics import Publisher
from worker.compute import LowPriorityCompute
from worker.key import WorkerKey, WorkerKeyError
from worker.stats import MinerStats

logger = logging.getLogger("tilework.node")

READ_THREADS = 4
"""For RPC's reads and hashing, so that they never queue behind the import of a block."""
CATCH_UP_SECONDS = 15.0
"""A miner waits for the chain of its peers, but not longer than this without any progress: they may be down."""
CATCH_UP_LOOK_SECONDS = 0.2


class StartError(Refusal):
    """The node cannot start: a stable `code`, what is wrong, and what to do about it."""


def software_version() -> str:
    """The installed version."""
    try:
        return version("tilework")
    except PackageNotFoundError:
        return "unknown"


class Node:
    """One node. A `node.rpc.context.Host`."""

    def __init__(self, config: Config, clock: Callable[[], int] = lambda: time.time_ns() // 10**6) -> None:
        """Open everything that is on disk and compile the kernels. Takes from one to some seconds.

        Raises:
            StartError: the configuration or the data directory cannot be used.
        """
        self.config = config
        self.directory = config.directory
        self._started_at = time.monotonic()
        self._stop = asyncio.Event()
        self._failure: StorageError | None = None
        self._address = ""
        self._mining = False
        self.metrics = Metrics(self._reading)
        network = _network_config(config)
        rules, self._store, self.chain = _open_chain(config, clock, self.metrics)
        try:
            self._identity, self._worker = _load_keys(config)
            _keep_genesis(self.directory / "genesis.json", rules)
        except StartError:
            self._store.close()
            raise
        self._compute = ThreadCompute(config.threads, self._raised)
        self._reads = ThreadCompute(READ_THREADS, self._raised)
        self._bench = LowPriorityCompute()
        pool = Mempool(self.chain, config.limits.mempool_mib << 20)
        self.intake = Intake(self.chain, pool, ResultPool(self.chain), self._compute, self._fail)
        rng = random.Random(secrets.token_bytes(16))  # for choices that need no secrecy
        self.producer = Producer(self.chain, pool, self.intake.results, clock, rng)
        self.miner = None if self._worker is None else self._make_miner(self._worker, rng)
        self.network = Network(
            network,
            self._identity,
            self.chain,
            self.intake,
            TlsTransport(self._identity, DEFAULT),
            clock,
            rng,
            self._compute,
            self._fail,
        )
        self._hub = Hub(TABLE.topics)
        desk = WorkDesk(self.intake, self.producer, self._compute, clock)
        self._context = Context(self.chain, self.intake, desk, self, self._reads)
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
                    self._address = str(await stack.enter_async_context(self._rpc.serving())).rstrip("/")
                except OSError as error:
                    raise _no_port("rpc", self.config.rpc.host, self.config.rpc.port, error) from None
                logger.info("serving RPC", extra={"address": self._address})
                async with asyncio.TaskGroup() as group:
                    mining = group.create_task(self._mine()) if self.miner is not None else None
                    try:
                        yield
                    finally:
                        logger.info("stopping")
                        if mining is not None:
                            mining.cancel()
        finally:
            await self._close()
        if self._failure is not None:
            raise self._failure

    async def stopped(self) -> None:
        """Wait until somebody calls `stop`, or the disk fails."""
        await self._stop.wait()

    def stop(self) -> None:
        """Ask the node to stop. On the event loop's thread."""
        self._stop.set()

    async def _start_network(self) -> None:
        try:
            await self.network.start()
        except OSError as error:
            await self.network.stop()
            raise _no_port("p2p", self.config.p2p.host, self.config.p2p.port, error) from None

    async def _mine(self) -> None:
        """Run the miner once the chain of the peers is here."""
        assert self.miner is not None
        await self._catch_up()
        self._mining = True
        try:
            await self.miner.run()
        except* StorageError as errors:
            self._fail(errors)
        finally:
            self._mining = False

    async def _catch_up(self) -> None:
        """Wait for the peers' chain: what is mined below it is wasted. Give up on peers that bring nothing."""
        loop = asyncio.get_running_loop()
        height, progress = self.chain.tip.height, loop.time()
        while self._why_behind() and loop.time() - progress < CATCH_UP_SECONDS:
            await asyncio.sleep(CATCH_UP_LOOK_SECONDS)
            if self.chain.tip.height != height:
                height, progress = self.chain.tip.height, loop.time()

    async def _close(self) -> None:
        """Let what has begun end, then close the files."""
        await self.intake.close()
        for pool in (self._bench, self._reads, self._compute):
            await asyncio.to_thread(pool.close)
        self._store.close()
        logger.info("stopped", extra={"height": self.chain.tip.height})

    def _raised(self, error: Exception) -> None:
        """What ran on a thread raised this: a failing disk stops the node, whoever ran into it."""
        if isinstance(error, StorageError):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """An error, or a group of them, after which nothing may be written any more. From any task of the loop."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self._failure is None:
            self._failure = error if isinstance(error, StorageError) else StorageError(str(error))
            logger.critical("storage failed", extra={"error": str(error)})
        self._stop.set()

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
            idle_duty=mining.idle_duty,
        )

    def _make_rpc(self) -> RpcServer[Context]:
        rpc = self.config.rpc
        settings = RpcConfig(
            host=rpc.host,
            port=rpc.port,
            allowed_hosts=frozenset(name.lower() for name in rpc.allowed_hosts),
            allowed_origins=frozenset(rpc.cors_origins),
            shutdown_seconds=1.0,
        )
        probes = Probes(health=self._health, ready=self.ready, metrics=self.metrics.text)
        routes = TensorRoutes(self._context).routes
        info = Info(TITLE, software_version())
        return RpcServer(settings, info, TABLE, self._context, self._hub, probes, self.metrics.called, routes)

    # ------------------------------------------------------------------ probes

    def _health(self) -> Readiness:
        return Readiness(self._failure is None, "" if self._failure is None else str(self._failure))

    def ready(self) -> Readiness:
        """Whether the node takes its full part; if not, the first reason."""
        if self._failure is not None:
            return Readiness(False, str(self._failure))
        if self.network.address is None:
            return Readiness(False, "not listening for peers")
        if behind := self._why_behind():
            return Readiness(False, behind)
        if self.miner is not None and not self._mining:
            return Readiness(False, "the miner is not running")
        return Readiness(True)

    def _why_behind(self) -> str:
        """What keeps the node from the network's tip; empty when it is there."""
        peers = self.network.peers()
        if self.config.p2p.peers and not peers:
            return "no peer is connected"
        known = max([self.chain.best_header.height, *(peer.height for peer in peers)])
        if is_syncing(self.chain) or known - self.chain.tip.height > 2:
            return f"syncing: height {self.chain.tip.height} of {known}"
        return ""

    def _reading(self) -> Reading:
        stats = self.miner.stats if self.miner is not None else MinerStats()
        return Reading(
            height=self.chain.tip.height,
            best_header_height=self.chain.best_header.height,
            peers=len(self.network.peers()),
            mempool_transactions=len(self.intake.pool),
            mempool_bytes=self.intake.pool.total_bytes,
            results=len(self.intake.results),
            tensor_bytes=self.chain.tensors.total_bytes,
            ready=self.ready().ok,
            mined={name: float(value) for name, value in stats.counters().items()},
        )

    # ------------------------------------------------------------------ for RPC

    @property
    def rpc_address(self) -> str:
        """URL of the RPC server, once it serves."""
        return self._address

    def info(self) -> NodeInfo:
        """See `node_info`."""
        prefix = self.chain.params.address_prefix
        return NodeInfo(
            version=software_version(),
            network=self.chain.params.network,
            node_id=self._identity.key.hex(),
            p2p_address=str(self.network.address or ""),
            rpc_address=self._address,
            miner=None if self._worker is None else encode_address(self._worker.address, prefix),
            uptime_seconds=round(time.monotonic() - self._started_at, 1),
            peers=len(self.network.peers()),
            height=self.chain.tip.height,
        )

    def peers(self) -> list[PeerView]:
        """See `node_peers`."""
        return [PeerView(**_fields(PeerView, peer)) for peer in self.network.peers()]

    def mempool(self) -> MempoolInfo:
        """See `node_mempool`."""
        pool = self.intake.pool
        return MempoolInfo(len(pool), pool.total_bytes, len(self.intake.results))

    def mining(self) -> MiningInfo:
        """See `node_mining`."""
        if self.miner is None:
            return MiningInfo(enabled=False)
        return MiningInfo(**_fields(MiningInfo, self.miner.stats) | {"enabled": True})

    def add_peer(self, address: str) -> None:
        """Connect to host:port and stay connected. Raises ValueError."""
        self.network.add_peer(Address.parse(address))


def _fields(view: type[Struct], source: object) -> dict[str, Any]:
    """What `source` has of a view's fields."""
    return {name: getattr(source, name) for name in view.__struct_fields__ if hasattr(source, name)}


def _warm_kernels() -> None:
    """Nobody waits for a compiler later: this takes under a second from numba's cache, eleven without it."""
    started = time.perf_counter()
    work.warm()
    freivalds.warm()
    logger.info("kernels are warm", extra={"seconds": round(time.perf_counter() - started, 2)})


def _open_chain(config: Config, clock: Callable[[], int], metrics: Metrics) -> tuple[ChainParams, LevelStore, Chain]:
    try:
        rules = genesis.rules_of(config.network, config.genesis_file)
    except genesis.GenesisError as error:
        raise StartError(error.code, error.message, error.fix) from None
    try:
        config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(config.directory, error) from None
    try:
        store = LevelStore(config.directory / "chain")
    except StoreInUse:
        fix = "stop the node that uses it, or choose another --data-dir"
        raise StartError("data-dir-in-use", f"another node uses {config.directory}", fix) from None
    except StorageError as error:
        raise StartError("storage", str(error), "check the directory, its mode and the free space") from None
    try:
        tensors = TensorStore(config.directory / "tensors", config.limits.tensor_cache_mib << 20)
        chain = Chain(rules, store, tensors, clock, metrics.imported, config.allow_deep_reorg)
        return rules, store, chain
    except StorageError as error:
        store.close()
        fix = "choose another --data-dir, or remove this one to synchronise anew"
        raise StartError("storage", str(error), fix) from None


def _load_keys(config: Config) -> tuple[Identity, WorkerKey | None]:
    """The node's identity and, if it mines, its worker's key; made at the first start."""
    try:
        identity = load_or_create(config.directory / "node.key")
        return identity, WorkerKey.load_or_create(config.worker_key_file) if config.mining.enabled else None
    except IdentityError as error:
        raise StartError(error.code, error.message, error.fix) from None
    except WorkerKeyError as error:
        raise StartError("worker-key-unusable", error.message, error.fix) from None


def _keep_genesis(path: Path, rules: ChainParams) -> None:
    """Remember the rules beside the chain that follows them, so that later starts need no --genesis."""
    if path.exists():
        return
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(genesis.dump(rules))
        fresh.replace(path)
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def _network_config(config: Config) -> NetworkConfig:
    try:
        peers = tuple(Address.parse(text) for text in config.p2p.peers)
    except ValueError as error:
        raise StartError("config", f"a peer's address cannot be read: {error}", "write it as host:port") from None
    return NetworkConfig(
        listen=Address(config.p2p.host, config.p2p.port),
        static_peers=peers,
        allow_private=config.network != "mainnet",
        book_path=config.directory / "peers",
        agent=f"tilework/{software_version()}",
    )


def _no_port(what: str, host: str, port: int, error: OSError) -> StartError:
    fix = f"stop whatever listens there, or choose another --{what}-port (0 lets the system choose)"
    return StartError("port-in-use", f"cannot listen on {host}:{port} for {what}: {error.strerror or error}", fix)


def _unwritable(directory: Path, error: OSError) -> StartError:
    fix = "choose a --data-dir that you can write to"
    return StartError("data-dir-unwritable", f"cannot write to {directory}: {error.strerror}", fix)
