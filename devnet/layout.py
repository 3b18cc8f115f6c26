"""Where a devnet keeps its things, and what each of its nodes is told: directories, ports, genesis, keys, commands.

.devnet/
    devnet.json       everything about the network, for people and scripts
    genesis.json      its rules, made at the first start
    lock              held by the supervisor while the network is up; contains its process id
    control.sock      where the supervisor takes orders
    devnet.log        the supervisor's words, when it runs in the background
    env               variables that make `tilework wallet` and the rest use this network: source it
    wallet/           the user's account, encrypted under the password in wallet-password
    node0/ node1/ …   each node's data directory, with worker.key and node.log
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec
from msgspec import Struct

from consensus import params
from consensus.address import encode_address
from consensus.errors import Refusal
from consensus.params import ChainParams
from consensus.transition import genesis_transition
from devnet import keys
from node import genesis

VERSION = 1
HOST = "127.0.0.1"
RPC_PORT = 8645
P2P_OFFSET = 1_000
"""From a node's RPC port to its port for peers."""
NODES = 3
MAX_NODES = len(keys.SECRETS) - 1
"""Each node works for an account of its own; account 0 is the user's."""

WARNING = (
    "The keys of these accounts are public: everybody knows the mnemonic. "
    "Never send anything of value to them, on any network."
)

IDLE_UNITS_PER_BLOCK = 1.5
"""Worth of a block at the anchor target, 24 idle tickets, in units of 16 tickets."""

_HALFLIFE_BLOCKS = 30
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_SECONDS = 0.05
_MAX_SOCKET_PATH_BYTES = 100
"""Systems differ between 103 and 107."""


class DevnetError(Refusal):
    """The devnet cannot do what was asked: a stable `code`, what happened, and what to do about it."""


class NodeRecord(Struct, frozen=True):
    """One node. `pid` is None while it does not run."""

    index: int
    name: str
    role: str
    rpc: str
    p2p: str
    metrics: str
    log: str
    data_dir: str
    worker: str
    pid: int | None = None


class AccountRecord(Struct, frozen=True):
    """A funded account and who uses it."""

    index: int
    address: str
    use: str


class WalletRecord(Struct, frozen=True):
    """The keystore with account 0, ready for `tilework wallet`."""

    directory: str
    account: str
    address: str
    password_file: str


class Record(Struct, frozen=True):
    """The content of devnet.json. `status` is starting, ready or stopped; a supervisor killed at once leaves it as it
    was, so only the lock tells whether the network is up."""

    warning: str
    version: int
    status: str
    pid: int | None
    network: str
    genesis_hash: str
    genesis: str
    spacing_ms: int
    mnemonic: str
    wallet: WalletRecord
    nodes: tuple[NodeRecord, ...]
    accounts: tuple[AccountRecord, ...]


class Layout:
    """The paths of one devnet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.expanduser().absolute()
        self.record = self.directory / "devnet.json"
        self.genesis = self.directory / "genesis.json"
        self.lock = self.directory / "lock"
        self.control = self.directory / "control.sock"
        self.log = self.directory / "devnet.log"
        self.environment = self.directory / "env"
        self.wallet = self.directory / "wallet"
        self.password = self.directory / "wallet-password"

    def node(self, index: int) -> Path:
        """Data directory of a node."""
        return self.directory / f"node{index}"

    # ------------------------------------------------------------------ the record

    def read(self) -> Record:
        """devnet.json. Raises DevnetError: no-devnet, devnet-damaged."""
        try:
            record = msgspec.json.decode(self.record.read_bytes(), type=Record)
        except FileNotFoundError:
            message = f"there is no devnet in {self.directory}"
            raise DevnetError("no-devnet", message, "start one with `tilework devnet up`, or name its --dir") from None
        except OSError as error:
            message = f"cannot read {self.record}: {error.strerror}"
            raise DevnetError("devnet-unreadable", message, "check who owns the directory, and its mode") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"{self.record} is damaged: {error}"
            fix = "`tilework devnet up` writes it anew; `tilework devnet reset` clears everything"
            raise DevnetError("devnet-damaged", message, fix) from None
        if record.version != VERSION:
            fix = f"remove {self.directory}, or use the version that made it"
            raise DevnetError("devnet-damaged", f"{self.record} is of another version", fix)
        return record

    def write(self, record: Record) -> None:
        """Replace devnet.json; a reader sees the old one or the new one."""
        fresh = self.record.with_suffix(".tmp")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        fresh.replace(self.record)

    # ------------------------------------------------------------------ the lock

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the one supervisor. Raises DevnetError: already-running, not-writable, path-too-long."""
        if len(os.fsencode(self.control)) > _MAX_SOCKET_PATH_BYTES:
            message = f"the path {self.control} is too long for a socket"
            raise DevnetError("path-too-long", message, "choose a directory nearer to the root: --dir")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # Opened for appending: whoever finds it held must not have emptied it.
            file = self.lock.open("a")
        except OSError as error:
            message = f"cannot write to {self.directory}: {error.strerror}"
            raise DevnetError("not-writable", message, "choose a directory of your own: --dir") from None
        with file:
            if not _acquire(file):
                message = f"the devnet in {self.directory} is already running"
                fix = "use it (`tilework devnet status`), stop it (`tilework devnet stop`), or choose another --dir"
                raise DevnetError("already-running", message, fix)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def supervisor(self) -> int | None:
        """The process that holds the lock; None if nobody does. The number is read while the lock is held, so it is
        that process's own and no later one's."""
        try:
            with self.lock.open("r") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0) or None
        except OSError:
            return None
        return None

    def remove(self) -> None:
        """Delete everything. Raises DevnetError: already-running, no-devnet."""
        if not self.record.exists() and not self.genesis.exists():
            message = f"{self.directory} is not a devnet's directory: nothing was deleted"
            raise DevnetError("no-devnet", message, "name the devnet's directory with --dir")
        with self.hold():
            shutil.rmtree(self.directory)


# ---------------------------------------------------------------------- making a network


def establish(layout: Layout, spacing_ms: int | None) -> ChainParams:
    """The network's rules: those in genesis.json, or new ones from now on that fund the ten accounts.

    `spacing_ms` is for a new network (None: the devnet's own); an old one must agree. Raises DevnetError.
    """
    if layout.genesis.exists():
        try:
            rules = genesis.load(layout.genesis)
        except genesis.GenesisError as error:
            raise DevnetError("genesis-damaged", error.message, "`tilework devnet reset` clears everything") from None
        if spacing_ms not in (None, rules.spacing_ms):
            message = f"the network in {layout.directory} has a block every {rules.spacing_ms / 1000:g} s"
            fix = "leave out --block-time, or clear the network first: tilework devnet reset"
            raise DevnetError("block-time-fixed", message, fix)
        return rules
    rules = params.devnet(time.time_ns() // 1_000_000, keys.allocations())
    if spacing_ms is not None:
        rules = msgspec.structs.replace(rules, spacing_ms=spacing_ms, halflife_ms=_HALFLIFE_BLOCKS * spacing_ms)
    fresh = layout.genesis.with_suffix(".tmp")
    fresh.write_bytes(genesis.dump(rules))
    fresh.replace(layout.genesis)
    return rules


def describe(
    layout: Layout, rules: ChainParams, count: int | None, wallet_account: str, first_port: int | None = None
) -> Record:
    """The record of a network of `count` nodes (None: as many as before) that is about to start, on ports that are free
    now.

    RPC ports are those from `first_port` on (0: any), or for None those of an earlier start where they are still free,
    then the usual ones, then any. Raises DevnetError (port-taken) where one that was asked for is not free.
    """
    try:
        before = {node.index: node for node in layout.read().nodes}
    except DevnetError:
        before = {}
    count = count or len(before) or NODES
    wished = [first_port + index for index in range(count)] if first_port else []
    for port in wished:
        if not _is_free(port):
            message = f"port {port} on {HOST} is taken, and --rpc-port {first_port} wants it"
            raise DevnetError("port-taken", message, "stop what listens there, choose another, or leave out --rpc-port")
    taken: set[int] = set(wished)
    nodes = []
    for index in range(count):
        old = before.get(index) if first_port is None else None
        base = RPC_PORT if first_port is None else first_port
        usual = base + index if base else 0
        rpc = wished[index] if wished else _free_port([_port_of(old.rpc)] if old else [], usual, taken)
        p2p = _free_port([_port_of(old.p2p)] if old else [], usual and usual + P2P_OFFSET, taken)
        data_dir = layout.node(index)
        nodes.append(
            NodeRecord(
                index=index,
                name=f"node{index}",
                role="miner, worker",
                rpc=f"http://{HOST}:{rpc}",
                p2p=f"{HOST}:{p2p}",
                metrics=f"http://{HOST}:{rpc}/metrics",
                log=str(data_dir / "node.log"),
                data_dir=str(data_dir),
                worker=_address(rules, index + 1),
            )
        )
    genesis_block, _ = genesis_transition(rules)
    return Record(
        warning=WARNING,
        version=VERSION,
        status="starting",
        pid=os.getpid(),
        network=rules.network,
        genesis_hash=genesis_block.id.hex(),
        genesis=str(layout.genesis),
        spacing_ms=rules.spacing_ms,
        mnemonic=keys.MNEMONIC,
        wallet=WalletRecord(str(layout.wallet), wallet_account, _address(rules, 0), str(layout.password)),
        nodes=tuple(nodes),
        accounts=tuple(
            AccountRecord(index, _address(rules, index), _use(index, count)) for index in range(len(keys.SECRETS))
        ),
    )


def prepare_node(layout: Layout, index: int) -> None:
    """Make a node's directory with its worker key, mode 0600 like any other."""
    layout.node(index).mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        keys.account(index + 1).create(layout.node(index) / "worker.key")


def node_arguments(record: Record, index: int, idle_duty: float) -> list[str]:
    """The command line of a node, after `tilework`."""
    node = record.nodes[index]
    arguments = ["node", "run", "--network", "devnet", "--genesis", record.genesis, "--data-dir", node.data_dir]
    arguments += ["--rpc-host", HOST, "--rpc-port", str(_port_of(node.rpc))]
    arguments += ["--p2p-host", HOST, "--p2p-port", str(_port_of(node.p2p))]
    for other in record.nodes:
        if other.index != index:
            arguments += ["--peer", other.p2p]
    return [*arguments, "--mine", "--mine-threads", "1", "--idle-duty", f"{idle_duty:.9f}"]


class Measured(Struct, frozen=True):
    """What one thread of this machine needs, as `devnet.warmup` found it."""

    idle_unit_seconds: float


def idle_duty(rules: ChainParams, unit_seconds: float, count: int) -> float:
    """The share of its time for which each of `count` nodes makes idle units, so that together they win a block per
    spacing at the anchor target."""
    units_per_second = IDLE_UNITS_PER_BLOCK / (rules.spacing_ms / 1000)
    return min(1.0, units_per_second * unit_seconds / count)


def command(*arguments: str) -> list[str]:
    """The same interpreter running `tilework` with `arguments`."""
    return [sys.executable, "-m", "tilework", *arguments]


def _acquire(file: TextIO) -> bool:
    """Take the lock; more than one attempt, since `Layout.supervisor` tries it too, for a moment."""
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_SECONDS)
    return False


def _address(rules: ChainParams, index: int) -> str:
    return encode_address(keys.account(index).address, rules.address_prefix)


def _use(index: int, count: int) -> str:
    if index == 0:
        return "yours"
    return f"worker of node{index - 1}" if index <= count else "free"


def _port_of(place: str) -> int:
    return int(place.rpartition(":")[2])


def _is_free(port: int) -> bool:
    return _bound(port) is not None


def _bound(port: int) -> int | None:
    """The port that the system gives for `port` (0: any) now; None if it is taken."""
    with socket.socket() as probe:
        # As servers do: a port that only lingers in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _free_port(first: Sequence[int], usual: int, taken: set[int]) -> int:
    """A port that is free now and not `taken`, which it joins."""
    for port in (*first, usual, 0, 0, 0, 0):
        if port in taken:
            continue
        number = _bound(port)
        if number is not None and number not in taken:
            taken.add(number)
            return number
    raise DevnetError("no-port", f"no port is free on {HOST}", "close some programs that listen there")
