"""What the methods are given: the chain, the doors into it, and the node around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from api.errors import INVALID_PARAMS, REJECTED, UNAVAILABLE
from api.node import MempoolInfo, MiningInfo, NodeInfo, PeerView
from consensus.address import AddressError, decode_address, encode_address
from consensus.block import Answer, Block
from consensus.codec import decode
from consensus.errors import ConsensusError, MissingTensor, Reason
from consensus.params import ChainParams
from consensus.state import StateReader
from consensus.tensor import Tensor
from consensus.transaction import Result, Transaction
from node.chain.archive import Archive
from node.chain.chain import Import
from node.chain.headers import HeaderEntry
from node.chain.split import Split
from node.chain.tensors import TensorStore
from node.compute import Compute
from node.mining.desk import DeskError, WorkUnit
from node.pool.mempool import Mempool, NonceError, PoolError
from node.pool.results import ResultPool
from node.rpc.answers import AtHand
from node.rpc.jsonrpc import RpcError

T = TypeVar("T")


class ReadChain(Protocol):
    """The chain as it is read: nothing here moves it."""

    @property
    def params(self) -> ChainParams: ...
    @property
    def genesis_hash(self) -> bytes: ...
    @property
    def tensors(self) -> TensorStore: ...
    @property
    def archive(self) -> Archive: ...
    @property
    def tip(self) -> HeaderEntry: ...
    @property
    def base(self) -> HeaderEntry: ...
    @property
    def best_header(self) -> HeaderEntry: ...
    @property
    def split(self) -> Split | None: ...
    def entry(self, block_id: bytes) -> HeaderEntry | None: ...
    def block(self, block_id: bytes) -> Block | None: ...
    def read(self, function: Callable[[StateReader], T]) -> T: ...


class Door(Protocol):
    """How things enter; `node.pool.intake.Intake`."""

    @property
    def pool(self) -> Mempool: ...
    @property
    def results(self) -> ResultPool: ...
    async def transaction(self, tx: Transaction) -> bytes: ...
    async def result(self, result: Result) -> bytes: ...
    async def tensor(self, tensor: Tensor) -> None: ...


class Desk(Protocol):
    """Units for outside miners; `node.mining.desk.WorkDesk`."""

    async def get_unit(self, worker: bytes) -> WorkUnit: ...
    async def submit(self, unit_id: bytes, i: int, j: int, state: bytes, answer: Answer | None = None) -> Import: ...


class Host(Protocol):
    """The node around the chain; `node.service.Node`."""

    def info(self) -> NodeInfo: ...
    def peers(self) -> list[PeerView]: ...
    def mempool(self) -> MempoolInfo: ...
    def mining(self) -> MiningInfo: ...
    def add_peer(self, address: str) -> None:
        """ValueError for what is no host:port."""


@dataclass(frozen=True)
class Context:
    """The methods' first argument. `compute` runs what touches the store or computes: never on the event loop."""

    chain: ReadChain
    door: Door
    desk: Desk
    host: Host
    compute: Compute
    at_hand: AtHand

    @classmethod
    def of(cls, chain: ReadChain, door: Door, desk: Desk, host: Host, compute: Compute) -> Context:
        """The context of a node with these parts."""
        at_hand = AtHand(lambda: chain.tip, lambda: chain.best_header, lambda: chain.base, lambda: door.pool.version)
        return cls(chain, door, desk, host, compute, at_hand)

    @property
    def prefix(self) -> str:
        """How addresses of this network begin."""
        return self.chain.params.address_prefix

    async def read(self, function: Callable[[StateReader, HeaderEntry], T]) -> T:
        """Evaluate `function` on the tip's state and the tip that it belongs to."""
        chain = self.chain
        return await self.compute.run(lambda: chain.read(lambda state: function(state, chain.tip)))

    def address(self, text: str) -> bytes:
        """The 20 bytes of an address of this network, or INVALID_PARAMS."""
        try:
            return decode_address(text, self.prefix)
        except AddressError as error:
            fix = f"Give an address of this network: it begins with {self.prefix}1."
            raise RpcError(INVALID_PARAMS, f"Invalid params: {error}", fix=fix) from None

    def text(self, address: bytes) -> str:
        """The bech32m text of an address."""
        return encode_address(address, self.prefix)


def decode_hex(kind: type[T], text: str, limit: int, what: str) -> T:
    """A canonical value from hexadecimal digits, or INVALID_PARAMS."""
    try:
        return decode(kind, bytes.fromhex(text), limit)
    except ValueError:
        fix = "Write the bytes as lower-case hexadecimal digits without 0x."
        raise RpcError(INVALID_PARAMS, f"Invalid params: the {what} is not hexadecimal", fix=fix) from None
    except ConsensusError as error:
        fix = f"Send the canonical encoding of one {what}."
        message = f"Invalid params: not a {what}: {error}"
        raise RpcError(INVALID_PARAMS, message, fix=fix, reason=error.reason.value) from None


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the refusals of chain, pools and desk into errors that say what to do."""
    try:
        yield
    except ConsensusError as error:
        fix = _FIXES.get(error.reason, "Correct it; the same bytes will be refused again.")
        raise RpcError(REJECTED, f"Rejected: {error}", fix=fix, reason=error.reason.value) from None
    except (PoolError, DeskError) as error:
        nonces = (error.account_nonce, error.next_nonce) if isinstance(error, NonceError) else (None, None)
        message, fix = f"Rejected: {error.message}", _sentence(error.fix)
        raise RpcError(REJECTED, message, fix=fix, reason=error.code, nonces=nonces) from None
    except MissingTensor as error:
        fix = "Upload it first: PUT /tensors."
        message = f"Tensor {error.commitment.hex()} is not here"
        raise RpcError(UNAVAILABLE, message, fix=fix, reason="missing-tensor") from None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


_FIXES = {
    Reason.BAD_SIGNATURE: "Sign it for this network: the signature covers the genesis hash of `chain_info`.",
    Reason.WRONG_NONCE: "Use `next_nonce` of `state_getAccount`.",
    Reason.INSUFFICIENT_BALANCE: "Fund the account, or send less.",
    Reason.GAS_LIMIT_TOO_LOW: "Raise the gas limit to what is expected.",
    Reason.OPERAND_OUT_OF_RANGE: "Scale the operands into [-63, 63].",
    Reason.UNIT_TOO_LARGE: "Cut the job into smaller packets.",
    Reason.PRICE_TOO_LOW: "Offer at least `min_price` of `chain_info`.",
    Reason.BAD_EXPIRY: "Choose an expiry in the range that is named.",
    Reason.NOT_ASSIGNEE: "Only the worker that holds a packet can answer it; `job_explain` tells who that is.",
    Reason.DUPLICATE_RESULT: "Nothing is to be done: the packet is answered.",
    Reason.UNKNOWN_WORKER: "Register the worker first: `tilework worker register`.",
    Reason.UNKNOWN_PACKET: "See the job's packets with `job_packets`; those of closed jobs are gone.",
    Reason.WRONG_PRODUCT: "Compute the product again: it is not that of the packet's operands.",
}
