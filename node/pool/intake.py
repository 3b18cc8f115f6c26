"""The one door by which transactions, Results, blocks and tensors enter: from RPC, from peers, from the own miner.

Whatever passes has been verified, is in its pool or in the chain, and is announced to the observers. Checks run off the
event loop; the same thing arriving twice at once is checked once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from consensus import crypto, validation
from consensus.block import Block
from consensus.errors import ConsensusError, MissingTensor, Reason
from consensus.proofs.products import check_operands
from consensus.rules import jobs, payloads
from consensus.state import PACKETS, WORKERS, Packet, PacketStatus, ledger
from consensus.tensor import Tensor
from consensus.transaction import Result, Transaction
from consensus.validation import Strips
from node.chain.chain import Import
from node.chain.headers import HeaderEntry
from node.chain.snapshot import Staging
from node.chain.tensors import TensorStore
from node.chain.verified import VerifiedProducts, VerifiedSignatures
from node.compute import Compute
from node.pool.mempool import EXPIRY_BLOCKS, Mempool, PoolError, PoolReason, TipView
from node.pool.results import ResultPool, WaitingRoom

T = TypeVar("T")

logger = logging.getLogger("tilework.intake")

UPLOAD_QUOTA_BYTES = 1 << 30
"""Most bytes of tensors that no block claims yet."""
_ACCOUNTS_PER_QUOTA = 16
"""One account's jobs may have this part of the quota, …"""
_GOSSIP_PER_QUOTA = 2
"""… and all that came from peers this part: the rest is there for this node's own users."""
_MAX_EXPECTED = 4_096
UNCLAIMED_BLOCKS = 2 * EXPIRY_BLOCKS
"""Blocks for which such a tensor is kept: a transaction that needs it may wait for half of them."""


class NotYet(Exception):
    """A signed Result whose packet nobody is known to hold. It is kept, and tried again at the next tips."""


class Observer(Protocol):
    """Is told what has entered, on the event loop; returns at once."""

    def new_tip(self, change: Import) -> None: ...

    def new_transaction(self, tx: Transaction, txid: bytes) -> None: ...

    def new_result(self, result: Result, result_id: bytes) -> None: ...


class IntakeChain(TipView, Protocol):
    """What the door needs of the chain."""

    @property
    def genesis_hash(self) -> bytes: ...
    @property
    def tensors(self) -> TensorStore: ...
    @property
    def products(self) -> VerifiedProducts: ...
    @property
    def signatures(self) -> VerifiedSignatures: ...
    def add_block(self, block: Block, strips: Strips | None = None) -> Import: ...
    def adopt(self, above: HeaderEntry, staged: Staging) -> Import: ...
    def keep_tensor(self, commitment: bytes, blocks: int) -> None: ...


class Intake:
    """See the module.

    Attributes:
        chain, pool, results: where things go.
        observers: who is told.
    """

    def __init__(
        self,
        chain: IntakeChain,
        pool: Mempool,
        results: ResultPool,
        compute: Compute,
        upload_quota_bytes: int = UPLOAD_QUOTA_BYTES,
        unclaimed_blocks: int = UNCLAIMED_BLOCKS,
    ) -> None:
        """The last two bound the tensors that no block claims."""
        self.chain = chain
        self.pool = pool
        self.results = results
        self.observers: list[Observer] = []
        self._compute = compute
        self._running: dict[Hashable, asyncio.Future[Any]] = {}
        self._importing = asyncio.Lock()
        self._waiting = WaitingRoom()
        self._uploads = _Uploads(upload_quota_bytes)
        self._unclaimed_blocks = unclaimed_blocks
        self._tasks: set[asyncio.Task[Any]] = set()

    async def transaction(self, tx: Transaction, compute: Compute | None = None) -> bytes:
        """Verify a transaction and keep it until a block takes it; returns its txid. A pending one may come again.

        `compute` is where it is verified, if not where the node's own work runs.

        Raises:
            ConsensusError: no block could ever hold it.
            PoolError: this node does not keep it.
            MissingTensor: an operand of its job is not here: upload or fetch it first.
        """
        txid = tx.body.txid(self.chain.genesis_hash)
        if txid not in self.pool:
            where = compute or self._compute
            # In flight by its full bytes, for a copy with a forged signature must not answer for the true one; and by
            # where it is verified, for whoever's turn comes late must not hold up the others.
            await self._once((tx, where), lambda: self._transaction(tx, txid, where))
        return txid

    async def result(self, result: Result, compute: Compute | None = None) -> bytes:
        """Verify a worker's answer and keep it until a block takes it; returns its id. `compute` as above.

        Raises:
            ConsensusError: it is false, or not the assignee's.
            MissingTensor: its product is not here.
            NotYet: the packet was not dealt to the worker in any block that this node has seen.
            PoolError: as NotYet, but there is no room to keep it.
        """
        known = self.results.get(result.body.packet_id)
        if known is None or known.body != result.body:
            where = compute or self._compute
            await self._once((result, where), lambda: self._result(result, where))
        return result.id(self.chain.genesis_hash)

    async def block(self, block: Block, strips: Strips | None = None) -> Import:
        """Import a block; see `Chain.add_block`. An import that has begun is finished even if the caller goes away."""
        return await asyncio.shield(self._spawn(self._block(block, strips)))

    async def adopt(self, above: HeaderEntry, staged: Staging) -> None:
        """Go on from a fetched state; see `Chain.adopt`. Observers hear of it with the next block."""
        await asyncio.shield(self._spawn(self._adopt(above, staged)))

    async def tensor(self, tensor: Tensor, obliged: bool = False) -> None:
        """Keep a tensor, durably, until a block claims it or some blocks have passed.

        `obliged`: a block or a packet in hand needs it, so it stands outside the quota.

        Raises:
            PoolError: too many bytes are unclaimed.
        """
        commitment = tensor.commitment
        if not obliged and (commitment in self._uploads or not self.chain.tensors.has(commitment)):
            self._uploads.add(commitment, tensor.spec.size, self.chain.tip.height + self._unclaimed_blocks)
        await self._compute.run(self._keep, tensor)

    async def close(self) -> None:
        """Wait for what has begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ transactions

    async def _transaction(self, tx: Transaction, txid: bytes, compute: Compute) -> None:
        try:
            await compute.run(self._check_transaction, tx, txid)
        except MissingTensor:
            # Nothing is kept for what no block can take: it would be kept for nothing.
            if self.pool.stands_behind_a_gap(tx):
                message = f"neither the job's operands are here nor what comes before its nonce, {tx.body.nonce}"
                fix = "send the transactions before it first, or upload its operands"
                raise PoolError(PoolReason.NONCE_GAP, message, fix) from None
            self._uploads.expect((operand.commitment for operand in payloads.operands(tx)), tx.body.address)
            raise
        if self.pool.add(tx, txid):
            for observer in self.observers:
                observer.new_transaction(tx, txid)

    def _check_transaction(self, tx: Transaction, txid: bytes) -> None:
        validation.check_transaction(self.chain.params, tx)
        if not self.pool.check(tx, txid):  # before its signature is worth verifying
            return
        self.chain.signatures.check([tx])
        check_operands(self.chain.products, payloads.operands(tx))

    # ------------------------------------------------------------------ Results

    async def _result(self, result: Result, compute: Compute) -> None:
        try:
            await compute.run(self._check_result, result)
        except NotYet:
            if not self._waiting.add(result, self.chain.tip.height):
                fix = "send it again once the packet's block is here"
                raise PoolError(
                    PoolReason.TOO_MANY_EARLY_RESULTS, "no room for a result whose packet is unknown", fix
                ) from None
            raise
        self._waiting.remove(result)
        if self.results.add(result):
            for observer in self.observers:
                observer.new_result(result, result.id(self.chain.genesis_hash))

    def _check_result(self, result: Result) -> None:
        """Cheapest first: nobody but the assignee can make this node multiply."""
        body = result.body
        packet, worker, tick = self.chain.read(
            lambda s: (PACKETS.get(s, body.packet_id), WORKERS.get(s, body.worker), ledger(s).tick)
        )
        if worker is None:
            raise ConsensusError(Reason.UNKNOWN_WORKER, body.worker, "a registered worker")
        if not crypto.verify(worker.public_key, body.signing_hash(self.chain.genesis_hash), result.signature):
            raise ConsensusError(Reason.BAD_SIGNATURE, result.signature, "the worker's signature for this network")
        self._check_assignee(result, packet, tick)
        assert packet is not None, "somebody holds it"
        if not self.chain.products.product_holds(packet.left, packet.right, body.product):
            raise ConsensusError(Reason.WRONG_PRODUCT, body.product, "the packet's product")

    def _check_assignee(self, result: Result, packet: Packet | None, tick: int) -> None:
        if packet is not None and packet.status == PacketStatus.DONE:
            raise ConsensusError(Reason.DUPLICATE_RESULT, result.body.packet_id, "one result a packet")
        if packet is not None and packet.status == PacketStatus.HELD:
            if packet.worker == result.body.worker:
                return
            if jobs.deadline(self.chain.params, packet) > tick:
                raise ConsensusError(Reason.NOT_ASSIGNEE, result.body.worker, packet.worker)
        # Unknown, queued, or about to be missed and dealt anew: a block that this node lacks may have dealt it.
        raise NotYet(f"packet {result.body.packet_id.hex()} is not known to be dealt to {result.body.worker.hex()}")

    async def _retry_waiting(self) -> None:
        for result in self._waiting.due(self.chain.tip.height):
            try:
                await self.result(result)
            except (NotYet, MissingTensor):
                continue
            except (ConsensusError, PoolError):
                self._waiting.remove(result)

    # ------------------------------------------------------------------ blocks and tensors

    async def _block(self, block: Block, strips: Strips | None) -> Import:
        async with self._importing:
            change, claimed = await self._compute.run(self._import, block, strips)
            if change.tip_changed:
                self._uploads.claim(claimed)
                self._uploads.expire(self.chain.tip.height)
                for observer in self.observers:
                    observer.new_tip(change)
        if change.tip_changed and len(self._waiting):
            self._spawn(self._retry_waiting())
        return change

    def _import(self, block: Block, strips: Strips | None) -> tuple[Import, list[bytes]]:
        """Add the block and bring the pools to the new tip, on a thread. Also returns the tensors claimed now."""
        change = self.chain.add_block(block, strips)
        if not change.tip_changed:
            return change, []
        blocks = [done.block for done in change.connected]
        confirmed = {receipt.txid for done in change.connected for receipt in done.outcome.receipts}
        left = ((tx, tx.body.txid(self.chain.genesis_hash)) for tx in _transactions(reversed(change.disconnected)))
        self.pool.on_import(_transactions(blocks), [(tx, txid) for tx, txid in left if txid not in confirmed])
        self.results.on_import(event for done in change.connected for event in done.outcome.events)
        if change.disconnected:
            self.results.on_reorganisation(result for old in change.disconnected for result in old.body.results)
        return change, [commitment for new in blocks for commitment in validation.obliged_tensors(new)]

    async def _adopt(self, above: HeaderEntry, staged: Staging) -> None:
        async with self._importing:
            await self._compute.run(self._jump, above, staged)
            self._uploads.expire(self.chain.tip.height)

    def _jump(self, above: HeaderEntry, staged: Staging) -> None:
        gone = self.chain.adopt(above, staged).disconnected
        self.pool.on_jump()
        self.pool.on_import((), [(tx, tx.body.txid(self.chain.genesis_hash)) for tx in _transactions(reversed(gone))])
        self.results.on_reorganisation(result for old in gone for result in old.body.results)

    def _keep(self, tensor: Tensor) -> None:
        # The end of its time is written before the tensor: a crash between the two leaves nothing behind for ever.
        self.chain.keep_tensor(tensor.commitment, self._unclaimed_blocks)
        self.chain.tensors.add(tensor)

    # ------------------------------------------------------------------ machinery

    async def _once(self, key: Hashable, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`, or wait for the outcome of the one that does it already."""
        while (running := self._running.get(key)) is not None:
            await asyncio.wait([running])
            if not running.cancelled():
                running.result()
                return
            # Its caller went away in the middle: the next one in line does the work.
        done = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            await work()
        except asyncio.CancelledError:
            done.cancel()
            raise
        except BaseException as error:
            done.set_exception(error)
            done.exception()  # seen by this caller, whether or not others wait
            raise
        else:
            done.set_result(None)
        finally:
            del self._running[key]

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone away


def _transactions(blocks: Iterable[Block]) -> Iterator[Transaction]:
    return (tx for block in blocks for tx in block.body.transactions)


class _Uploads:
    """Which tensors no block claims yet, how large they are, and whose jobs they came for, if peers brought them.

    Forgotten at a restart; their time limits are not.
    """

    def __init__(self, quota_bytes: int) -> None:
        self._quota_bytes = quota_bytes
        self._tensors: dict[bytes, _Upload] = {}
        self._expected: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0
        self._bytes_of: Counter[bytes] = Counter()

    def __contains__(self, commitment: bytes) -> bool:
        return commitment in self._tensors

    def expect(self, commitments: Iterable[bytes], account: bytes) -> None:
        """Peers are asked for these, for a job of `account`."""
        for commitment in commitments:
            self._expected.setdefault(commitment, account)
            if len(self._expected) > _MAX_EXPECTED:
                self._expected.popitem(last=False)

    def add(self, commitment: bytes, size: int, until: int) -> None:
        """Count a tensor; PoolError where there is no room for it."""
        known = self._tensors.get(commitment)
        if known is not None:
            self._tensors[commitment] = known._replace(until=until)
            return
        account = self._expected.pop(commitment, _OWN_USERS)
        from_peers = self._bytes - self._bytes_of[_OWN_USERS]
        if account != _OWN_USERS:
            self._check(self._bytes_of[account] + size, self._quota_bytes // _ACCOUNTS_PER_QUOTA, "of its account")
            self._check(from_peers + size, self._quota_bytes // _GOSSIP_PER_QUOTA, "from peers")
        self._check(self._bytes + size, self._quota_bytes, "in all")
        self._count(account, size)
        self._tensors[commitment] = _Upload(size, until, account)

    def claim(self, commitments: list[bytes]) -> None:
        for commitment in commitments:
            upload = self._tensors.pop(commitment, None)
            if upload is not None:
                self._count(upload.account, -upload.size)

    def expire(self, height: int) -> None:
        self.claim([commitment for commitment, upload in self._tensors.items() if upload.until <= height])

    def _check(self, wanted: int, most: int, whose: str) -> None:
        if wanted > most:
            message = f"{wanted} bytes of tensors {whose} would wait for a block that needs them, at most {most} may"
            fix = "submit the jobs that need them, or wait until they are dropped"
            raise PoolError(PoolReason.UPLOAD_QUOTA, message, fix)

    def _count(self, account: bytes, size: int) -> None:
        self._bytes += size
        self._bytes_of[account] += size
        if not self._bytes_of[account]:
            del self._bytes_of[account]


_OWN_USERS = b""
"""The account of what came over RPC."""


class _Upload(NamedTuple):
    size: int
    until: int
    account: bytes
