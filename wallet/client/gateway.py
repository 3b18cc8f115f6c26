"""A node as the wallet sees it: typed calls that sit out a node's restart, tensors, and the wait for the next block.

Whatever may be asked twice is asked again while the node cannot be reached, for `patience_seconds` in all; a node that
has never answered is given up sooner. Transactions may be: one has one id however often it arrives.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt

from api import errors, npy, topics
from api.chain import AccountView, ChainInfo, Fees, HeaderView, MovementView, ProofView, Supply, TxSent, TxView
from api.node import NodeInfo
from api.params import (
    MAX_WORKERS,
    History,
    JobListing,
    OfAccount,
    OfJob,
    OfPacket,
    OfTransaction,
    OfWorker,
    SignedTransaction,
    WhichBlock,
    WorkerListing,
)
from api.rules import ParamsView
from api.work import Explanation, JobView, PacketView, Uploaded, WorkerView
from consensus.codec import encode
from consensus.params import MAX_TENSOR_BYTES
from consensus.tensor import COLUMNS, Tensor
from consensus.transaction import Transaction
from wallet.client.matrices import from_npy, to_npy
from wallet.client.rpc import NetworkError, ParamsLike, RpcClient, RpcError, Subscription
from wallet.client.transactions import Rules
from wallet.errors import ExitCode, WalletError

T = TypeVar("T")

Told = Callable[[str], None]
"""Takes a line about how far a wait has come."""


def silent(_line: str) -> None:
    """Tells nobody."""


_TRANSIENT = frozenset({errors.NOT_READY.name, errors.TIMEOUT.name, errors.LIMIT.name})
"""Refusals that are about the moment and not about the call."""
_REFUSALS = frozenset({errors.REJECTED.name, errors.INVALID_PARAMS.name, errors.UNAVAILABLE.name})
"""Refusals that are about the call."""
_QUIET_SECONDS = 60.0
_QUIET_BLOCKS = 30
"""After so many intended block times without one, and so many seconds, nobody mines."""
_FIRST_CONTACT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


class Gateway:
    """One node. An asynchronous context manager; `patience_seconds` bounds how long a lost node is waited for."""

    def __init__(self, url: str, *, patience_seconds: float = 30.0, timeout_seconds: float = 15.0) -> None:
        self.url = url
        self._patience_seconds = patience_seconds
        self._timeout_seconds = timeout_seconds
        self._has_answered = False
        self._spacing_seconds = 0.0

    async def __aenter__(self) -> Self:
        self.rpc = RpcClient(self.url, timeout_seconds=self._timeout_seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.rpc.close()

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `attempt`, made again while the node cannot be reached or is not ready."""
        begin, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
        while True:
            try:
                outcome = await attempt()
                self._has_answered = True
                return outcome
            except WalletError as error:
                passing = isinstance(error, NetworkError) or (isinstance(error, RpcError) and error.name in _TRANSIENT)
                patience = self._patience_seconds
                if not self._has_answered:
                    patience = min(patience, _FIRST_CONTACT_SECONDS)
                if not passing or time.monotonic() + pause > begin + patience:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def ask(self, method: str, params: ParamsLike | None = None, *, result: type[T]) -> T:
        """Call a method that may be called twice."""
        return await self.patiently(lambda: self.rpc.call(method, params, result=result))

    # ------------------------------------------------------------------ the chain

    async def info(self) -> ChainInfo:
        """The network and its tip."""
        return await self.ask("chain_info", result=ChainInfo)

    async def network(self) -> Rules:
        """The network's rules, whose genesis hash has been checked. Raises `WalletError` (network-mismatch)."""
        info = await self.info()
        view: ParamsView = await self.ask("chain_params", result=ParamsView)
        try:
            params = view.params()
        except ValueError as error:
            fix = "use a node of the same version"
            raise WalletError("network-mismatch", f"the node's rules make no sense: {error}", fix) from error
        self._spacing_seconds = params.spacing_ms / 1000
        return Rules(params, bytes.fromhex(info.genesis_hash))

    async def supply(self) -> Supply:
        """All grains after the tip."""
        return await self.ask("chain_supply", result=Supply)

    async def node(self) -> NodeInfo:
        """The node itself."""
        return await self.ask("node_info", result=NodeInfo)

    async def block_header(self, block_id: str) -> HeaderView:
        """A header by its block's id. Raises `RpcError` where the node has none."""
        return await self.ask("chain_getHeader", WhichBlock(id=block_id), result=HeaderView)

    async def header(self, height: int) -> HeaderView | None:
        """The main chain's header at a height; None if it is not there yet."""
        return await _or_none(self.ask("chain_getHeader", WhichBlock(height=height), result=HeaderView))

    @asynccontextmanager
    async def heads(self, tell: Told = silent) -> AsyncIterator[Heads]:
        """Waits for blocks, for as long as the context lasts; `tell` hears when there are none for long."""
        async with AsyncExitStack() as stack:
            yield Heads(self.rpc, stack, tell, max(_QUIET_SECONDS, _QUIET_BLOCKS * self._spacing_seconds))

    # ------------------------------------------------------------------ accounts and transactions

    async def account(self, address: str) -> AccountView:
        """An account after the tip."""
        return await self.ask("state_getAccount", OfAccount(address), result=AccountView)

    async def proof(self, address: str) -> ProofView:
        """A proof of an account's record after the tip."""
        return await self.ask("state_getProof", OfAccount(address), result=ProofView)

    async def fees(self) -> Fees:
        """The next block's base fee and a tip."""
        return await self.ask("tx_fees", result=Fees)

    async def transaction(self, txid: str) -> TxView | None:
        """A transaction; None if the node knows of none."""
        return await _or_none(self.ask("tx_get", OfTransaction(txid), result=TxView))

    async def history(self, address: str, limit: int, before: int | None = None) -> list[MovementView]:
        """What came to and left an account, newest first; below the height `before`, if given."""
        params = History(address, limit, before)
        return await self.ask("tx_history", params, result=list[MovementView])

    async def send(self, tx: Transaction, txid: str) -> None:
        """Bring a transaction to the node, in as many attempts as it takes.

        Raises `RpcError` where `is_refusal` of it: the node does not take it, and knows nothing of it. Any other
        `WalletError` leaves open whether it has arrived.
        """

        async def attempt() -> None:
            try:
                sent = await self.rpc.call("tx_send", SignedTransaction(encode(tx).hex()), result=TxSent)
                if sent.txid != txid:
                    fix = "see that this is the RPC address of a node of the same version"
                    raise NetworkError(f"{self.url} took another transaction than was sent", fix)
            except WalletError:
                # The answer was lost, or this attempt refused because an earlier one has brought it into a block.
                if await self._look_up(txid) is None:
                    raise

        await self.patiently(attempt)

    async def _look_up(self, txid: str) -> TxView | None:
        """A transaction, asked for once."""
        return await _or_none(self.rpc.call("tx_get", OfTransaction(txid), result=TxView))

    # ------------------------------------------------------------------ jobs and workers

    async def job(self, job: str) -> JobView | None:
        """A job; None if no such job was opened. Raises `WalletError` (job-invalid) for what is no id."""
        check_job_id(job)
        return await _or_none(self.ask("job_get", OfJob(job), result=JobView))

    async def packets(self, job: str) -> list[PacketView]:
        """A job's packets, in order."""
        return await self.ask("job_packets", OfJob(job), result=list[PacketView])

    async def jobs(self, owner: str | None, limit: int) -> list[JobView]:
        """Jobs of one account or of everybody, newest first."""
        return await self.ask("job_list", JobListing(owner, limit), result=list[JobView])

    async def explain(self, packet: str, job: str | None = None) -> Explanation:
        """Who held a packet when, and who was paid."""
        return await self.ask("job_explain", OfPacket(packet, job), result=Explanation)

    async def worker(self, address: str) -> WorkerView:
        """An account as a worker; not `registered` where it is none."""
        return await self.ask("worker_get", OfWorker(address), result=WorkerView)

    async def workers(self) -> list[WorkerView]:
        """The workers that packets are dealt to, best first."""
        params = WorkerListing(active_only=True, limit=MAX_WORKERS)
        return await self.ask("worker_list", params, result=list[WorkerView])

    # ------------------------------------------------------------------ tensors

    async def upload(self, tensor: Tensor) -> None:
        """Bring a tensor to the node, unless it is there. Raises `WalletError`: commitment-differs, or a refusal."""
        path = f"tensors/{tensor.commitment.hex()}"
        if await self.patiently(lambda: self.rpc.has(path)):
            return
        side = "columns" if tensor.spec.side == COLUMNS else "rows"

        async def put() -> Uploaded:
            # Made anew for each attempt: a stream that was sent in part is spent.
            body = await asyncio.to_thread(to_npy, tensor.matrix)
            return await self.rpc.put("tensors", body, query={"side": side}, result=Uploaded)

        stored = await self.patiently(put)
        if stored.commitment != tensor.commitment.hex():
            fix = "use another node, or one of the same version"
            raise WalletError("commitment-differs", "the node committed to another matrix than was sent", fix)

    async def tensor(self, commitment: str, dtype: npt.DTypeLike, rows: int, cols: int) -> npt.NDArray[Any] | None:
        """A matrix of this type and shape, unverified; None if the node does not serve such a one."""
        limit = MAX_TENSOR_BYTES + npy.MAX_HEAD_BYTES + 16
        data = await self.patiently(lambda: self.rpc.get(f"tensors/{commitment}", limit=limit))
        try:
            return None if data is None else from_npy(data, dtype, (rows, cols))
        except ValueError:
            return None


class Heads:
    """Waits for the next block: by subscription, and by the clock while there is none."""

    def __init__(self, rpc: RpcClient, stack: AsyncExitStack, tell: Told, quiet_seconds: float) -> None:
        """`tell` hears, once in a while, that there has been no block for `quiet_seconds` and more."""
        self._rpc = rpc
        self._stack = stack
        self._tell = tell
        self._quiet_seconds = quiet_seconds
        self._heard_at = self._told_at = time.monotonic()
        self._events: Subscription[HeaderView] | None = None

    async def wait(self, seconds: float) -> int | None:
        """The next block's height; None after `seconds`, or when a block may have been missed."""
        height = await self._next(seconds)
        now = time.monotonic()
        if height is not None:
            self._heard_at = self._told_at = now
        elif now - self._told_at > self._quiet_seconds:
            self._tell(f"all miners are gone: no block for {now - self._heard_at:.0f} s (still waiting)")
            self._told_at = now
        return height

    async def _next(self, seconds: float) -> int | None:
        try:
            async with asyncio.timeout(seconds):
                if self._events is None:
                    await self._subscribe()
                    return None  # a block may have come just before
                return (await anext(self._events)).height
        except TimeoutError:
            return None
        except WalletError:
            await self._stack.aclose()
            self._events = None
            await asyncio.sleep(min(seconds, _LONGEST_PAUSE_SECONDS))
            return None

    async def _subscribe(self) -> None:
        self._events = await self._stack.enter_async_context(self._rpc.subscribe(topics.NEW_HEADS, HeaderView))


def is_refusal(error: WalletError) -> bool:
    """Whether a node has said for good that it does not take what was sent. Its own troubles (time-outs, faults) say
    nothing of the kind."""
    return isinstance(error, RpcError) and error.name in _REFUSALS


def check_job_id(job: str) -> None:
    """Raise `WalletError` (job-invalid) unless `job` can be a job's id: 64 lowercase hexadecimal digits."""
    if not re.fullmatch("[0-9a-f]{64}", job):
        fix = "copy all 64 digits; `tilework job list` shows them"
        raise WalletError("job-invalid", f"{job[:80]!r} is not the id of a job", fix, ExitCode.USAGE)


async def together(calls: Iterable[Callable[[], Awaitable[T]]], at_once: int = 4) -> list[T]:
    """The outcomes of `calls`, `at_once` of them under way at a time; the first failure ends them all."""
    limit = asyncio.Semaphore(at_once)

    async def run(call: Callable[[], Awaitable[T]]) -> T:
        async with limit:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(call)) for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _or_none(call: Awaitable[T]) -> T | None:
    """The outcome of a call, None where the node says that there is no such thing."""
    try:
        return await call
    except RpcError as error:
        if error.name == errors.NOT_FOUND.name:
            return None
        raise
