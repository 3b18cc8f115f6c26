"""Every decoder of bytes that come from outside, as a row: what it takes, what it may raise, and valid samples.

A row's `decode` gives the value's bytes again where there is one encoding of it, else None. Whatever it raises beyond
its `errors` is a fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
import random
import secrets
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import aiohttp
import msgspec
import numpy as np
from aiohttp.base_protocol import BaseProtocol
from msgspec import Raw, Struct, inspect
from yarl import URL

import api
import consensus
import node.chain
from api import npy
from api.params import Params
from consensus import codec, params, state, transition
from consensus.address import NETWORK_PREFIXES, AddressError, encode_address, split_address
from consensus.block import decode_header
from consensus.codec import Value
from consensus.errors import ConsensusError
from consensus.proofs import merkle, trie
from consensus.state import CorruptRecordError
from consensus.tensor import Tensor
from consensus.transaction import Result, Transaction, decode_transaction
from devnet import control
from devnet.layout import VERSION, DevnetError, Layout, Record
from node import config, genesis
from node.chain import schema
from node.chain.schema import StorageError
from node.chain.tensors import TensorStore
from node.p2p import messages
from node.p2p.book import Book
from node.p2p.door.frames import Frames
from node.p2p.handshake import Acquaintance, Introduction, Refused, greet_dialler, greet_listener, hello_message
from node.p2p.identity import IdentityError, certified_key, from_seed, load_or_create
from node.p2p.limits import DEFAULT, PREFIX_BYTES
from node.p2p.transport import ConnectionLost, Endpoint
from node.rpc.context import decode_hex
from node.rpc.jsonrpc import Dispatcher, RpcError
from node.rpc.methods.table import TABLE
from node.rpc.tensors import TensorRoutes
from tests.builders import ALICE, BOB, DAVE, operand, worker_chain
from tests.consensus.strategies import subclasses
from tests.fuzz.mutations import value
from wallet.accounts.keys import SigningKey
from wallet.accounts.keystore import KdfParams, Keystore
from wallet.client import rpc
from wallet.client.matrices import from_npy, load_matrix
from wallet.errors import WalletError
from wallet.models import demo
from worker.key import WorkerKey, WorkerKeyError

T = TypeVar("T")

LIMIT = 1 << 20
MAX_CONFIG_BYTES = 8 << 10
SAMPLES = 4


@dataclass(frozen=True)
class Decoder:
    """See the module. `kind` is the struct that it reads, where there is one."""

    name: str
    decode: Callable[[bytes], bytes | None]
    errors: tuple[type[Exception], ...]
    samples: tuple[bytes, ...]
    kind: object = None


def table(directory: Path) -> list[Decoder]:
    """All rows. Files are written into `directory`."""
    return [*_values(), *_entrances(), *_stored(directory), *_peers(), *_rpc(), *_files(directory), *_wallet(directory)]


def modules_of(package: Any) -> Iterator[Any]:
    """All modules of a package, imported."""
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        yield importlib.import_module(found.name)


def own_values() -> list[type[Value]]:
    """Every `Value` that the packages declare, but a network's rules: they are read from JSON (`api.rules`)."""
    for package in (consensus, node):
        list(modules_of(package))
    kinds = (kind for kind in subclasses(Value) if kind.__module__.split(".")[0] in ("consensus", "node"))
    return [kind for kind in kinds if kind is not params.ChainParams]


def answers() -> list[type[Struct]]:
    """Every struct of the RPC contract, parameters aside."""
    return [
        kind
        for module in modules_of(api)
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Struct)
        and kind.__module__ == module.__name__
        and not issubclass(kind, Params)
    ]


def _made(kind: object, encoded: Callable[[object], bytes] = codec.encode) -> tuple[bytes, ...]:
    rng = random.Random(str(kind))
    return tuple(encoded(value(rng, inspect.type_info(kind))) for _ in range(SAMPLES))


def _run(steps: Coroutine[Any, Any, T]) -> T:
    """The outcome of a coroutine that waits for nothing."""
    try:
        steps.send(None)
    except StopIteration as end:
        outcome: T = end.value
        return outcome
    raise AssertionError("it waits")


# ---------------------------------------------------------------------- consensus


def _values() -> Iterator[Decoder]:
    for kind in own_values():

        def decode(data: bytes, kind: type[Value] = kind) -> bytes:
            return codec.encode(codec.decode(kind, data, LIMIT))

        yield Decoder(f"{kind.__module__}.{kind.__qualname__}", decode, (ConsensusError,), _made(kind), kind)


def _entrances() -> Iterator[Decoder]:
    """The functions that others call, on what a chain really holds."""
    chain = worker_chain([DAVE], worked=True)
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction, chain.transfer(ALICE, BOB, 5)])
    block = chain.tip.block
    yield Decoder(
        "header",
        lambda data: codec.encode(decode_header(data)),
        (ConsensusError,),
        (codec.encode(block.header), codec.encode(chain.node(block.header.core.parent).header)),
    )
    yield Decoder(
        "transaction",
        lambda data: codec.encode(decode_transaction(data)),
        (ConsensusError,),
        tuple(codec.encode(tx) for tx in block.body.transactions),
    )
    root, nodes = trie.update({}.get, {b"k%d" % number: b"v" for number in range(40)})
    proofs = [codec.encode(trie.prove(nodes.get, key)) for key in (b"k1", b"k2", b"absent")]

    def proof(data: bytes) -> bytes:
        evidence = codec.decode(trie.Proof, data, trie.MAX_PROOF_BYTES)
        holds = [trie.verify(root, b"k1", claim, evidence) for claim in (b"v", b"w", None)]
        assert holds == [data == proofs[0], False, False], "a changed proof proves nothing"
        return codec.encode(evidence)

    yield Decoder("state proof", proof, (ConsensusError,), tuple(proofs))
    leaves = [merkle.leaf_hash(b"%d" % number) for number in range(5)]
    path = b"".join(merkle.path(leaves, 3))

    def strip_path(data: bytes) -> None:
        siblings = [data[at : at + 32] for at in range(0, len(data), 32)]
        assert merkle.verify(merkle.root(leaves), 5, 3, leaves[3], siblings) == (data == path)

    yield Decoder("Merkle path", strip_path, (), (path,))

    def address(data: bytes) -> None:
        split_address(data.decode("utf-8", "replace"))

    yield Decoder(
        "address", address, (AddressError,), (encode_address(ALICE.address, NETWORK_PREFIXES["devnet"]).encode(),)
    )
    for one in state_tables():

        def record(data: bytes, one: state.Table[Any] = one) -> None:
            one.record(data)

        kind = one.kind
        yield Decoder(f"state table {one.prefix!r}", record, (CorruptRecordError,), _made(kind), one)


def state_tables() -> list[state.Table[Any]]:
    """Every table of the state."""
    return [one for one in vars(state).values() if isinstance(one, state.Table)]


# ---------------------------------------------------------------------- what is stored


def _stored(directory: Path) -> Iterator[Decoder]:
    for module in modules_of(node.chain):
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, Value) and kind.__module__ == module.__name__):
                continue

            def decode(data: bytes, kind: type[Value] = kind) -> None:
                schema.decode(kind, data)

            yield Decoder(f"stored {kind.__name__}", decode, (StorageError,), _made(kind))
    undo: state.Changes = {b"a" * 21: b"x" * 40, b"#\x01": None, b"l": b""}

    def changes(data: bytes) -> None:
        schema.decode_changes(data)

    yield Decoder("undo data", changes, (StorageError,), (schema.encode_changes(undo),))

    def heights(data: bytes) -> bytes:
        return data[:1] + schema.tensor_expiry(*schema.unpack_tensor_expiry(data))[1:]

    yield Decoder("tensor expiry", heights, (StorageError,), (schema.tensor_expiry(7, bytes(32)),))

    tensor = Tensor(operand(128, 64))
    TensorStore(directory / "tensors").add(tensor)
    (file,) = (directory / "tensors").glob("??/*.tensor")

    def tensor_file(data: bytes) -> None:
        file.write_bytes(data)
        store = TensorStore(directory / "tensors", cache_bytes=0)
        store.strip(tensor.commitment, 1)
        found = store.tensor(tensor.commitment)
        assert found is None or found.spec == tensor.spec

    yield Decoder("tensor file", tensor_file, (), (file.read_bytes(),))


# ---------------------------------------------------------------------- peers


class _Script:
    """A connection on which the other end has said everything already."""

    def __init__(self, frames: bytes) -> None:
        self.remote = Endpoint("192.0.2.1", 1)
        self.listener_key, self.binding = bytes(32), bytes(32)
        self._frames = iter(frames.split(_BETWEEN))

    async def send(self, frame: bytes) -> None:
        pass

    async def receive(self) -> bytes:
        for frame in self._frames:
            return frame
        raise ConnectionLost("closed")

    def settle(self) -> None:
        pass

    async def close(self) -> None:
        pass


_BETWEEN = b"<the next frame>"


def _peers() -> Iterator[Decoder]:
    for row in messages.DECLARATIONS:

        def decode(data: bytes, row: messages.Declaration = row) -> bytes:
            messages.read_prefix(data)
            messages.check_size(row, data)
            return data[:PREFIX_BYTES] + messages.encode_frame(messages.decode_payload(row, data))[PREFIX_BYTES:]

        frames = tuple(bytes((row.code, 0, 0, 0, 9)) + data for data in _made(row.struct))
        yield Decoder(f"message {row.struct.__name__}", decode, (ConsensusError,), frames, row)
    me, status = from_seed(bytes(32)), messages.Status(1, bytes(32), bytes(32))
    own = Introduction(me, bytes(32), "me", 1, lambda: status)
    welcome, ready = (
        messages.encode_frame(messages.Welcome(messages.P2P_VERSION, bytes(32), bytes(32), "x")),
        messages.encode_frame(status),
    )
    refusal = messages.encode_frame(messages.Goodbye(5, "full"))

    def dialling(data: bytes) -> None:
        assert isinstance(_run(greet_listener(_Script(data), own)), Acquaintance)

    def listening(data: bytes) -> None:
        with patch.object(secrets, "token_bytes", bytes):  # or no sample could be signed
            assert isinstance(_run(greet_dialler(_Script(data), own, lambda _key: None)), Acquaintance)

    you = from_seed(bytes(range(32)))
    signature = you.sign(hello_message(bytes(32), bytes(32), bytes(32), bytes(32)))
    hello = messages.encode_frame(
        messages.Hello(messages.P2P_VERSION, bytes(32), bytes(32), "x", you.key, 1, signature)
    )
    errors = (Refused, ConnectionLost)
    yield Decoder("what a listener says", dialling, errors, (welcome + _BETWEEN + ready, welcome + _BETWEEN + refusal))
    yield Decoder("what a dialler says", listening, errors, (hello + _BETWEEN + ready, refusal))

    def watched(data: bytes) -> None:
        frames = Frames()
        for at in range(0, len(data), 1000):
            frames.fault_in(data[at : at + 1000])

    head = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
    yield Decoder("WebSocket bytes", watched, (), (head + b"\x82\x05hello\x82\x7e\x01\x00" + bytes(256), head))

    def certificate(data: bytes) -> None:
        assert len(certified_key(data) or bytes(32)) == 32

    yield Decoder("certificate", certificate, (), (me.certificate,))


# ---------------------------------------------------------------------- JSON-RPC


async def _parsed(name: str, raw: Raw) -> bytes:
    """Calls no method, but reads its parameters."""
    TABLE[name].parse(raw)
    return b"null"


def _rpc() -> Iterator[Decoder]:
    def observe(_method: str, _seconds: float, outcome: str) -> None:
        assert outcome != "INTERNAL_ERROR"

    async def answer(data: bytes) -> None:
        dispatcher = Dispatcher({method.name for method in TABLE}, call_seconds=60, observe=observe)
        said = await dispatcher.respond(data, _parsed, lambda _size: None)
        assert said is None or msgspec.json.decode(said, type=list[Raw] | dict[str, Raw])

    runner = asyncio.Runner()

    def respond(data: bytes) -> None:
        runner.run(answer(data))

    calls = []
    for method in TABLE:
        for made in _made(method.params, msgspec.json.encode)[:2]:
            calls.append(
                b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}' % (len(calls), method.name.encode(), made)
            )
    batch = b"[" + b",".join(calls[:40:5]) + b"]"
    by_place = b'{"jsonrpc":"2.0","id":"x","method":"chain_getBlock","params":[7]}'
    yield Decoder("JSON-RPC", respond, (), (*calls, batch, by_place))
    for kind in (Transaction, Result):

        def hexadecimal(data: bytes, kind: type[Value] = kind) -> bytes:
            text = data.decode("utf-8", "replace")
            return codec.encode(decode_hex(kind, text, LIMIT, "thing")).hex().encode()

        def lowered(data: bytes, decode: Callable[[bytes], bytes] = hexadecimal) -> None:
            assert decode(data) == bytes.fromhex(data.decode()).hex().encode()

        samples = tuple(data.hex().encode() for data in _made(kind))
        yield Decoder(f"{kind.__name__} in hexadecimal", lowered, (RpcError,), samples)

    async def receive(data: bytes) -> None:
        body = aiohttp.StreamReader(BaseProtocol(asyncio.get_running_loop()), LIMIT)
        body.feed_data(data)
        body.feed_eof()
        async with contextlib.AsyncExitStack() as stack:
            routes = TensorRoutes(SimpleNamespace())  # type: ignore[arg-type]  # reading needs nothing of the node
            matrix = await routes._receive(SimpleNamespace(content=body), stack)  # type: ignore[arg-type]
        assert npy.head(matrix.dtype, *matrix.shape)

    def upload(data: bytes) -> None:
        runner.run(receive(data))

    yield Decoder("tensor upload", upload, (RpcError,), (_npy(operand(64, 64)), _npy(np.ones((64, 64), np.int32))))


def _npy(matrix: Any) -> bytes:
    return npy.head(matrix.dtype, *matrix.shape) + matrix.tobytes()


# ---------------------------------------------------------------------- a node's files, and a wallet's


def _file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def decode(data: bytes) -> None:
        path.touch(0o600)
        path.write_bytes(data)
        read(path)

    return decode


def _files(directory: Path) -> Iterator[Decoder]:
    rules = genesis.dump(params.devnet(1_700_000_000_000, ()))

    def founded(path: Path) -> None:
        transition.genesis_transition(genesis.load(path))

    yield Decoder("genesis file", _file(directory / "genesis.json", founded), (genesis.GenesisError,), (rules,))

    settings = (
        b'network = "devnet"\ndata_dir = "x"\n[rpc]\nport = 1\nallowed_hosts = ["a"]\n[mining]\nidle_duty = 0.5\n'
    )

    def configured(path: Path) -> None:
        with contextlib.suppress(OSError):  # a name that is too long, say: for whoever opens it
            config.load({}, {}, path).directory.exists()

    bare = config.template().encode().replace(b"\n#", b"\n")
    # Of a key with sixty thousand dots tomllib makes a minute's work; only the operator writes here.
    short = _file(directory / "c.toml", configured)
    yield Decoder("configuration", lambda data: short(data[:MAX_CONFIG_BYTES]), (config.ConfigError,), (settings, bare))

    book = Book(True, random.Random(1), DEFAULT)
    for number in range(20):
        book.note_answer(Endpoint(f"10.{number}.0.1", 7000 + number), 1000 + number)
    book.set_anchors([Endpoint("10.1.0.1", 7001), Endpoint("fd00::1", 5)])

    def read_book(data: bytes) -> None:
        fresh = Book(True, random.Random(1), DEFAULT)
        fresh.load(data)
        fresh.pick(10**12, (), ())
        fresh.note_failure(Endpoint("10.1.0.1", 7001), 5)
        fresh.dump()

    yield Decoder("address book", read_book, (ValueError, RecursionError), (book.dump(),))

    (directory / "keys").mkdir()
    load_or_create(directory / "keys" / "node.key")
    node_key = (directory / "keys" / "node.key").read_bytes()
    yield Decoder("node key", _file(directory / "keys" / "node.key", load_or_create), (IdentityError,), (node_key,))
    WorkerKey(bytes(32), bytes(range(32))).create(directory / "keys" / "worker.key")
    worker_key = (directory / "keys" / "worker.key").read_bytes()
    read_worker = _file(directory / "keys" / "worker.key", WorkerKey.load)
    yield Decoder("worker key", read_worker, (WorkerKeyError,), (worker_key,))

    place = Layout(directory)
    record = _file(place.record, lambda _path: place.read())
    written = value(random.Random(1), inspect.type_info(Record))
    assert isinstance(written, Record)
    good = msgspec.json.encode(msgspec.structs.replace(written, version=VERSION))
    yield Decoder("devnet record", record, (DevnetError,), (good, *_made(Record, msgspec.json.encode)))

    async def obey(_order: control.Order) -> control.Answer:
        return control.Answer()

    def order(data: bytes) -> None:
        _run(control._answer(data, obey))

    yield Decoder("devnet order", order, (), (b'{"do":"kill","node":1}', *_made(control.Order, msgspec.json.encode)))


def _wallet(directory: Path) -> Iterator[Decoder]:
    accounts = Keystore(directory / "accounts")
    cheap = KdfParams(memory_kib=8, iterations=1, lanes=1)
    accounts.create("one", SigningKey(bytes(range(32))), "password", "devnet", kdf_params=cheap)
    account = (directory / "accounts" / "one.json").read_bytes()
    costs = b'"memory_kib": 8,\n      "iterations": 1,\n      "lanes": 1\n'
    assert costs in account

    def unlock(path: Path) -> None:
        accounts.account("one")
        if costs in path.read_bytes():  # a gibibyte, sixteen times, is what a file may ask for
            accounts.unlock("one", "password")

    yield Decoder("account", _file(directory / "accounts" / "one.json", unlock), (WalletError,), (account,))

    wide = _npy(operand(64, 64))
    fortran = (
        b"\x93NUMPY\x02\0\x50\0\0\0" + b"{'descr': '<i2', 'fortran_order': True, 'shape': (2, 3)}".ljust(79) + b"\n"
    )
    read_matrix = _file(directory / "m.npy", load_matrix)
    yield Decoder("matrix file", read_matrix, (WalletError,), (wide, fortran + bytes(12)))

    def matrix(data: bytes) -> bytes:
        return data[:-4096] + from_npy(data, np.int8, (64, 64)).tobytes()

    yield Decoder("matrix from a node", matrix, (ValueError,), (wide,))

    models = directory / "models"
    models.mkdir()
    manifest = (demo.DATA / demo.MANIFEST_NAME).read_bytes()
    archive = (demo.DATA / demo.ARRAYS_NAME).read_bytes()
    (models / demo.ARRAYS_NAME).write_bytes(archive)

    def model(path: Path) -> None:
        demo.load_demo(path.parent)

    yield Decoder("model manifest", _file(models / demo.MANIFEST_NAME, model), (WalletError,), (manifest,))
    # An archive is parsed only where its manifest names it, so the manifest must be there and whole.
    whole = directory / "whole"
    whole.mkdir()
    (whole / demo.MANIFEST_NAME).write_bytes(manifest)
    yield Decoder("model archive", _file(whole / demo.ARRAYS_NAME, model), (WalletError,), (archive,))
    for kind in answers():

        def answered(data: bytes, kind: type[Struct] = kind) -> None:
            with rpc._as_network_errors(URL("http://node")):
                answer = rpc._answer_decoder.decode(data)
                if answer.error is not None:
                    raise rpc.RpcError.of(answer.error)
                msgspec.json.decode(answer.result, type=kind)

        samples = tuple(b'{"jsonrpc":"2.0","id":1,"result":%b}' % made for made in _made(kind, msgspec.json.encode))
        refusal = b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"m","data":{"name":"LIMIT","fix":"f"}}}'
        yield Decoder(f"answer {kind.__name__}", answered, (WalletError,), (*samples, refusal), kind)
