"""Opening what a node needs before it can run: its rules, its store, its keys. Whatever is wrong is a `StartError`."""

from __future__ import annotations

import resource
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from consensus.address import AddressError, decode_address
from consensus.errors import Refusal
from consensus.params import ChainParams
from node import genesis
from node.chain.chain import Chain
from node.chain.store import LevelStore, StorageError, StoreDamaged, StoreInUse
from node.chain.tensors import TensorStore
from node.config import Config
from node.p2p.identity import Identity, IdentityError, load_or_create
from node.p2p.network import NetworkConfig
from node.p2p.transport import Endpoint
from worker.key import WorkerKey, WorkerKeyError

DESCRIPTORS = 1024
"""Open files and connections that a node must be allowed. Peers, strangers and dials take 144 at most and RPC 256;
LevelDB takes a fifth of all; the rest is for tensors' files and for connections that are being turned away."""

RESTORE = "restore the data directory from a copy, or remove its chain/ and tensors/ to synchronise anew"
"""What to do about a damaged database; the keys beside it are not concerned."""


class StartError(Refusal):
    """The node cannot start: a stable `code`, what is wrong, and what to do about it."""


def software_version() -> str:
    """The installed version."""
    try:
        return version("tilework")
    except PackageNotFoundError:
        return "unknown"


def reserve_descriptors() -> None:
    """Raise this process's limit of open files to what a node needs, where it is lower: no stranger can exhaust them.

    Raises:
        StartError: the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _allows(soft):
        return
    if not _allows(hard):
        text = f"this process may open {hard} files, and a node needs {DESCRIPTORS}"
        raise StartError("too-few-descriptors", text, f"allow more: ulimit -n {DESCRIPTORS}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def _allows(limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= DESCRIPTORS


def open_chain(config: Config, clock: Callable[[], int], imported: Callable[[float], None]) -> tuple[LevelStore, Chain]:
    """The chain in the data directory; founded there at the first start. `imported`: see `Chain`."""
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
    except StoreDamaged as error:
        raise StartError("storage", str(error), RESTORE) from None
    except StorageError as error:
        raise StartError("storage", str(error), "check the directory, its mode and the free space") from None
    try:
        tensors = TensorStore(config.directory / "tensors", config.limits.tensor_cache_mib << 20)
        return store, Chain(rules, store, tensors, clock, imported, config.allow_deep_reorg)
    except StoreDamaged as error:
        store.close()
        raise StartError("storage", str(error), RESTORE) from None
    except StorageError as error:
        store.close()
        fix = "choose another --data-dir, or remove chain/ and tensors/ of this one to synchronise anew"
        raise StartError("storage", str(error), fix) from None


def load_keys(config: Config) -> tuple[Identity, WorkerKey | None]:
    """The node's identity and, if it mines, its worker's key; made at the first start."""
    try:
        identity = load_or_create(config.directory / "node.key")
        return identity, WorkerKey.load_or_create(config.worker_key_file) if config.mining.enabled else None
    except IdentityError as error:
        raise StartError(error.code, error.message, error.fix) from None
    except WorkerKeyError as error:
        raise StartError("worker-key-unusable", error.message, error.fix) from None


def payee_of(config: Config, rules: ChainParams) -> bytes | None:
    """The address that earnings are sent to, if there is one."""
    mining = config.mining
    if mining.payout is None:
        return None
    if not mining.enabled:
        raise StartError("config", "--payout is for a node that mines", "give --mine, too, or leave out --payout")
    try:
        return decode_address(mining.payout, rules.address_prefix)
    except AddressError as error:
        message = f"--payout is no address of {rules.network}: {error}"
        raise StartError("config", message, f"copy the whole address; it begins with {rules.address_prefix}1") from None


def keep_genesis(path: Path, rules: ChainParams) -> None:
    """Remember the rules beside the chain that follows them, so that later starts need no --genesis."""
    if path.exists():
        return
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(genesis.dump(rules))
        fresh.replace(path)
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def network_config(config: Config) -> NetworkConfig:
    """What the network needs of the settings."""
    try:
        peers = tuple(Endpoint.parse(text) for text in config.p2p.peers)
    except ValueError as error:
        raise StartError("config", f"a peer's address cannot be read: {error}", "write it as host:port") from None
    return NetworkConfig(
        listen=Endpoint(config.p2p.host, config.p2p.port),
        static_peers=peers,
        allow_private=config.network != "mainnet",
        book_path=config.directory / "peers",
        agent=f"tilework/{software_version()}",
    )


def no_port(what: str, host: str, port: int, error: OSError) -> StartError:
    """A port cannot be had."""
    fix = f"stop whatever listens there, or choose another --{what}-port (0 lets the system choose)"
    return StartError("port-in-use", f"cannot listen on {host}:{port} for {what}: {error.strerror or error}", fix)


def _unwritable(directory: Path, error: OSError) -> StartError:
    fix = "choose a --data-dir that you can write to, and that has free space"
    return StartError("data-dir-unwritable", f"cannot write to {directory}: {error.strerror}", fix)
