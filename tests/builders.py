"""Chains for tests: keys, transactions, jobs, results, and blocks that are really mined and really checked.

    chain = ChainBuilder()
    job = chain.job(ALICE, a, b)                          # numpy matrices, sliced
    chain.mine([chain.register(DAVE, packets=4)])         # mined on chain.tip, then validated in full
    chain.mine(count=8)
    chain.mine([job.transaction])                         # the job's packets are dealt at this block's end
    chain.mine(results=chain.answers(job))                # everybody who holds a packet answers
    chain.reject(Reason.BAD_HEIGHT, core={"height": 99})  # mined anew with that field, and refused for that reason

`chain.tip` is the block that the next one goes on: set it to any earlier node to build a branch. Every node keeps the
state after it, so a chain can be copied (`fork`) and branched at will. Keys, times and contents are all fixed, so equal
stories give equal hashes, and units that were evaluated once in a process are not evaluated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from consensus import params, state, validation, work
from consensus.block import Answer, Block, Body, Header, HeaderCore, PacketUnit, Proof, Unit, Zero
from consensus.crypto import H, address_of
from consensus.difficulty import MEDIAN_SPAN, block_work
from consensus.errors import ConsensusError, Reason
from consensus.params import PROTOCOL_VERSION, TILE, Allocation, ChainParams
from consensus.proofs.products import CheckedProducts, Products
from consensus.rules import jobs, payloads
from consensus.shape import MAX_UNIT_BYTES, Shape
from consensus.state import Changes, EmptyState, Group, Overlay, Packet, PacketStatus, StateReader, Worker
from consensus.tensor import COLUMNS, Tensor
from consensus.transaction import (
    CancelJob,
    Operand,
    Output,
    Pair,
    Payload,
    RegisterWorker,
    Result,
    ResultBody,
    RetireWorker,
    SubmitJob,
    Transaction,
    Transfer,
    TxBody,
    packet_id_of,
)
from consensus.transition import Transition, apply_block, genesis_transition
from consensus.validation import ParentContext, Strips
from consensus.work import Evaluation
from tests.fakes import MemoryTensors, Snapshot

GENESIS_TIME_MS = 1_700_000_000_000
FUNDS = 1_000_000 * TILE
"""Grains that genesis gives to each of `FUNDED`."""

_MAX_PENDING = 1024
"""Changes that a node keeps over its snapshot before it takes a new one."""

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Key:
    """An Ed25519 key that follows from its owner's name."""

    name: str

    @cached_property
    def private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(H("tw/test", self.name.encode()))

    @cached_property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    @cached_property
    def address(self) -> bytes:
        return address_of(self.public)

    def sign(self, genesis_hash: bytes, body: TxBody) -> Transaction:
        """The signed transaction, whoever `body` names as its sender."""
        return Transaction(body, self.private.sign(body.signing_hash(genesis_hash)))

    def claim(self, genesis_hash: bytes, packet: bytes, product: bytes) -> Result:
        """A signed Result of this worker."""
        body = ResultBody(packet, self.address, product)
        return Result(body, self.private.sign(body.signing_hash(genesis_hash)))

    def answer(self, genesis_hash: bytes, packet: bytes, product: bytes) -> Answer:
        """The same as it stands in a proof."""
        return Answer(product, self.public, self.claim(genesis_hash, packet, product).signature)


ALICE, BOB, CAROL = USERS = (Key("alice"), Key("bob"), Key("carol"))
DAVE, ERIN, FRANK, GRACE, HEIDI = WORKERS = (Key("dave"), Key("erin"), Key("frank"), Key("grace"), Key("heidi"))
FUNDED = USERS + WORKERS
MINER = Key("miner")
"""Mines whatever names no other miner; not funded."""
KEYS = {key.address: key for key in (*FUNDED, MINER)}


ONE_TILE = Shape(64, 4096, 64)
"""An idle unit that wins with certainty: k = 4096 at the easiest target leaves 4 losing tickets in 2²⁵⁶."""


def regtest(**changes: object) -> ChainParams:
    """Regtest with funded accounts. `changes` replace fields."""
    allocations = tuple(Allocation(key.address, FUNDS) for key in FUNDED)
    rules = params.regtest(GENESIS_TIME_MS, allocations)
    return replace(rules, **changes)


def operand(rows: int, cols: int, seed: int = 0) -> Int8:
    """A random matrix of 7-bit entries, in [−63, 63]."""
    return np.random.default_rng(seed).integers(-63, 64, (rows, cols), dtype=np.int8)


def exact(a: Int8, b: Int8) -> Int32:
    """The true product. Exact in float64: every partial sum is below 2⁵³."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)


@dataclass(frozen=True)
class Job:
    """A job built from two matrices: its signed transaction, and how its packets tile the product."""

    transaction: Transaction
    id: bytes
    payload: SubmitJob
    packets: tuple[bytes, ...]
    places: tuple[tuple[slice, slice], ...]
    """Per packet, the block of the product that it adds to."""
    shape: tuple[int, int]

    def assemble(self, products: Mapping[bytes, Int32]) -> Int32:
        """The job's product from those of all its packets."""
        total = np.zeros(self.shape, np.int32)
        for packet_id, place in zip(self.packets, self.places, strict=True):
            total[place] += products[packet_id]
        return total


@dataclass(frozen=True, eq=False)
class Node:
    """A block that was accepted, and the state after it."""

    block: Block
    parent: Node | None
    transition: Transition
    base: Snapshot
    state: Overlay
    """One layer over `base`, however long the chain is."""
    total_work: int

    @property
    def header(self) -> Header:
        return self.block.header

    @property
    def height(self) -> int:
        return self.block.height

    def context(self) -> ParentContext:
        """What a child's header is checked against."""
        times: list[int] = []
        node: Node | None = self
        while node is not None and len(times) < MEDIAN_SPAN:
            times.append(node.header.core.time_ms)
            node = node.parent
        return ParentContext(self.header, times[::-1])


@dataclass(frozen=True)
class Candidate:
    """A block with its proof, and the strips of its tile (None for idle units)."""

    block: Block
    strips: Strips | None


class ChainBuilder:
    """A chain under construction. See the module's docstring.

    Args:
        rules: the network's params; `regtest()` by default.
        worked: True mines and checks every header. False, for rules that have nothing to do with work, gives headers
            a made-up tile and skips the header's checks; all else is checked as ever.
        idle: the shape of idle units.
    """

    def __init__(self, rules: ChainParams | None = None, worked: bool = True, idle: Shape = ONE_TILE) -> None:
        self.params = rules or regtest()
        self.idle = idle
        self.worked = worked
        self.tensors = MemoryTensors()
        self.products: Products = CheckedProducts(self.tensors)
        block, transition = genesis_transition(self.params)
        self.genesis_hash = block.id
        base = Snapshot({}).changed(transition.writes)
        self.tip = Node(block, None, transition, base, Overlay(base), block_work(block.header.core.target_int))
        self._nodes = {block.id: self.tip}
        self._nonces: dict[bytes, int] = {}

    # --- looking

    @property
    def state(self) -> StateReader:
        """The state after the tip."""
        return self.tip.state

    @property
    def height(self) -> int:
        return self.tip.height

    def node(self, block_id: bytes) -> Node:
        return self._nodes[block_id]

    def heaviest(self) -> Node:
        """The tip of the chain with the most work; first seen on a tie."""
        return max(self._nodes.values(), key=lambda node: node.total_work)

    def balance(self, key: Key) -> int:
        return state.account(self.state, key.address).balance

    def worker(self, key: Key) -> Worker:
        worker = state.WORKERS.get(self.state, key.address)
        assert worker is not None, f"{key.name} is no worker"
        return worker

    def packet(self, packet_id: bytes) -> Packet:
        packet = state.PACKETS.get(self.state, packet_id)
        assert packet is not None, "no such packet"
        return packet

    def group(self, job: Job) -> Group | None:
        """The job's group; None once it has closed."""
        return state.GROUPS.get(self.state, job.id)

    def holder(self, packet_id: bytes) -> Key | None:
        """Who holds a packet now."""
        packet = state.PACKETS.get(self.state, packet_id)
        return KEYS[packet.worker] if packet is not None and packet.status == PacketStatus.HELD else None

    def places(self) -> list[tuple[bytes, int]]:
        """The array of places: (worker, number) by position."""
        return [(place.worker, place.number) for _, place in state.PLACES.scan(self.state)]

    def held(self, *jobs_: Job) -> list[bytes]:
        """The packets of `jobs_` that somebody holds, in the jobs' order."""
        return [packet_id for job in jobs_ for packet_id in job.packets if self.holder(packet_id)]

    def supply(self) -> tuple[int, int]:
        """(issued − burned, the sum of all that every record holds), counted anew."""
        ledger = state.ledger(self.state)
        everything: Changes = dict(self.state.scan(b""))
        return ledger.issued - ledger.burned, state.holdings_change(EmptyState(), everything)

    def fork(self) -> ChainBuilder:
        """A copy that grows by itself from the same tip."""
        copy = object.__new__(ChainBuilder)
        copy.__dict__.update(self.__dict__)
        copy.tensors = MemoryTensors(self.tensors)
        copy.products = type(self.products)(copy.tensors)  # type: ignore[call-arg]  # one of the two of __init__
        copy._nodes = dict(self._nodes)
        copy._nonces = dict(self._nonces)
        return copy

    # --- transactions

    def tx(self, sender: Key, payload: Payload, **changes: Any) -> Transaction:
        """A signed transaction that would be the sender's next one; `changes` replace fields of its body."""
        nonce = state.account(self.state, sender.address).nonce + self._nonces.get(sender.address, 0)
        body = TxBody(sender.public, nonce, tip=0, gas_limit=0, max_base_fee=10**9, payload=payload)
        if "gas_limit" not in changes:  # a payload that breaks the rules may have no gas to compute
            body = replace(body, gas_limit=payloads.intrinsic_gas(self.params, body))
        body = replace(body, **changes)
        if "nonce" not in changes:
            self._nonces[sender.address] = self._nonces.get(sender.address, 0) + 1
        return sender.sign(self.genesis_hash, body)

    def transfer(self, sender: Key, recipient: Key, amount: int, **changes: Any) -> Transaction:
        return self.tx(sender, Transfer((Output(recipient.address, amount),)), **changes)

    def register(
        self,
        worker: Key,
        packets: int = 1,
        bond: int | None = None,
        min_price: int = 0,
        max_unit_bytes: int = MAX_UNIT_BYTES,
        **changes: Any,
    ) -> Transaction:
        """Join as a worker; the default bond is the least per packet."""
        bond = self.params.min_reserve * packets if bond is None else bond
        x25519_key = H("tw/test", b"x25519" + worker.address)
        return self.tx(worker, RegisterWorker(x25519_key, min_price, max_unit_bytes, packets, bond), **changes)

    def retire(self, worker: Key, **changes: Any) -> Transaction:
        return self.tx(worker, RetireWorker(), **changes)

    def cancel(self, owner: Key, job: Job, **changes: Any) -> Transaction:
        return self.tx(owner, CancelJob(job.id), **changes)

    def job(
        self,
        owner: Key,
        a: Int8,
        b: Int8,
        *,
        rows: int = 4096,
        cols: int = 4096,
        inner: int = 4096,
        threshold: int | None = None,
        price: int = 1 << 40,
        expiry: int | None = None,
        **changes: Any,
    ) -> Job:
        """A·B as a group of packets, sliced into at most `rows` × `inner` times `inner` × `cols`.

        By default every packet is needed, a MAC costs a grain, and the job lives for 100 blocks.
        """
        (m, k), n = a.shape, b.shape[1]
        i_slices, k_slices, j_slices = (
            [slice(start, min(start + step, size)) for start in range(0, size, step)]
            for size, step in ((m, rows), (k, inner), (n, cols))
        )
        lefts = {(i.start, c.start): self._operand(a[i, c]) for i in i_slices for c in k_slices}
        rights = {(c.start, j.start): self._operand(b[c, j], right=True) for c in k_slices for j in j_slices}
        left_list, right_list = list(dict.fromkeys(lefts.values())), list(dict.fromkeys(rights.values()))
        pairs, places = [], []
        for i in i_slices:
            for j in j_slices:
                for c in k_slices:
                    left, right = lefts[i.start, c.start], rights[c.start, j.start]
                    pairs.append(Pair(left_list.index(left), right_list.index(right)))
                    places.append((i, j))
        payload = SubmitJob(
            lefts=tuple(left_list),
            rights=tuple(right_list),
            packets=tuple(pairs),
            threshold=len(pairs) if threshold is None else threshold,
            price=price,
            expiry=self.height + 101 if expiry is None else expiry,
        )
        transaction = self.tx(owner, payload, **changes)
        txid = transaction.body.txid(self.genesis_hash)
        identities = tuple(packet_id_of(txid, index) for index in range(len(pairs)))
        return Job(transaction, txid, payload, identities, tuple(places), (m, n))

    def _operand(self, matrix: Int8, right: bool = False) -> Operand:
        tensor = self.tensors.add(Tensor(matrix, COLUMNS) if right else Tensor(matrix))
        return Operand(tensor.spec.root, tensor.spec.rows, tensor.spec.cols)

    # --- results

    def operands(self, packet_id: bytes) -> tuple[Tensor, Tensor]:
        """The operands of a packet."""
        packet = self.packet(packet_id)
        left, right = (self.tensors.tensor(spec.commitment) for spec in (packet.left, packet.right))
        assert left is not None
        assert right is not None
        return left, right

    def product(self, packet_id: bytes) -> Tensor:
        """The true product of a packet."""
        left, right = self.operands(packet_id)
        return self.tensors.add(Tensor(exact(left.matrix, right.matrix)))

    def result(self, packet_id: bytes, worker: Key | None = None, product: bytes | None = None) -> Result:
        """The holder's Result with the true product; `worker` and `product` say otherwise."""
        author = worker or self.holder(packet_id)
        assert author is not None, "nobody holds the packet"
        commitment = self.product(packet_id).commitment if product is None else product
        return author.claim(self.genesis_hash, packet_id, commitment)

    def answers(self, *jobs_: Job) -> list[Result]:
        """The Results of everybody who holds a packet of `jobs_`."""
        return [self.result(packet_id) for packet_id in self.held(*jobs_)]

    # --- blocks

    def mine(
        self,
        transactions: Iterable[Transaction] = (),
        results: Iterable[Result] = (),
        *,
        count: int = 1,
        **header: Any,
    ) -> Node:
        """Mine `count` blocks on the tip (the first with the contents), check them in full, and make them the tip.

        `header` may hold `packet` (mine this packet as its holder), `miner` (a Key), `time_ms` and whatever
        `candidate` takes.
        """
        node = self.accept(self.candidate(transactions, results, **header))
        for _ in range(count - 1):
            node = self.accept(self.candidate(**{k: v for k, v in header.items() if k == "miner"}))
        return node

    def candidate(
        self,
        transactions: Iterable[Transaction] = (),
        results: Iterable[Result] = (),
        *,
        packet: bytes | None = None,
        miner: Key | None = None,
        time_ms: int | None = None,
        core: Mapping[str, Any] | None = None,
        proof: Mapping[str, Any] | None = None,
    ) -> Candidate:
        """A mined block on the tip that nobody has checked.

        `core` replaces fields of the header before it is mined, `proof` fields of the proof that was found.
        """
        parent = self.tip.header
        body = Body(tuple(results), tuple(transactions))
        unit: Unit = Zero(*self.idle)
        if packet is not None:
            miner = miner or self.holder(packet)
            unit = self.packet_unit(packet)
        fields = HeaderCore(
            version=PROTOCOL_VERSION,
            chain_id=self.params.chain_id,
            height=self.height + 1,
            parent=parent.id,
            parent_ticket=parent.ticket,
            time_ms=parent.core.time_ms + self.params.spacing_ms if time_ms is None else time_ms,
            target=validation.expected_target(self.params, parent).to_bytes(32, "big"),
            miner=(miner or MINER).address,
            state_root=self.tip.transition.state_root,
            body_root=body.root(),
            unit=unit,
            nonce=bytes(8),
        )
        header, strips = self.seal(replace(fields, **(core or {})), packet, miner or MINER)
        if proof:
            assert header.proof is not None
            header = Header(header.core, replace(header.proof, **proof))
        return Candidate(Block(header, body), strips)

    def packet_unit(self, packet_id: bytes) -> PacketUnit:
        """The unit of a packet of the tip's state."""
        p = self.packet(packet_id)
        return PacketUnit(packet_id, p.a_root, p.b_root, p.m, p.k, p.n)

    def answer(self, packet_id: bytes, product: bytes | None = None, worker: Key | None = None) -> Answer:
        """The holder's answer as it stands in a proof; `product` and `worker` say otherwise."""
        body = self.result(packet_id, worker, product).body
        return KEYS[body.worker].answer(self.genesis_hash, packet_id, body.product)

    def _answer(self, core: HeaderCore, packet: bytes | None, miner: Key) -> Answer | None:
        """What belongs beside the core: the miner's answer, a made-up one where `core` alone names a packet."""
        if not isinstance(core.unit, PacketUnit):
            return None
        product = bytes(32) if packet is None else self.product(packet).commitment
        return KEYS.get(core.miner, miner).answer(self.genesis_hash, core.unit.packet_id, product)

    def seal(self, core: HeaderCore, packet: bytes | None = None, miner: Key = MINER) -> tuple[Header, Strips | None]:
        """Search nonces for a winning tile, and keep a packet's product."""
        operands = None if packet is None else self.operands(packet)
        if not self.worked:
            return Header(core, Proof(0, 0, core.seed + core.id, self._answer(core, packet, miner))), None
        target = min(core.target_int, params.MAX_TARGET)
        for nonce in range(1 << 16):
            core = replace(core, nonce=nonce.to_bytes(8, "little"))
            if operands is None:
                shape = self.idle
                evaluation, k = _evaluate_idle(core.seed, shape), shape.k
            else:
                a, b = operands[0].matrix, operands[1].matrix
                evaluation, k = work.evaluate(core.seed, a, b), a.shape[1]
            assert evaluation is not None
            assert evaluation.states is not None
            for i, j, _ in work.winning_tiles(core.seed, evaluation.states, target, k):
                tile = evaluation.states[i, j].astype("<u4").tobytes()
                strips = None if operands is None else strips_of(*operands, i, j)
                return Header(core, Proof(i, j, tile, self._answer(core, packet, miner))), strips
        raise AssertionError("no nonce wins: the target is not one for tests")

    def accept(self, candidate: Candidate, now_ms: int | None = None) -> Node:
        """Validate a block in full, on whichever parent it names, and make it the tip.

        Raises:
            ConsensusError: it is refused, and the builder is as it was.
            MissingTensor: a tensor that it obliges was dropped.
        """
        node = self._nodes.get(candidate.block.id)
        if node is None:
            node = self.check(candidate, now_ms)
            self._nodes[node.block.id] = node
        self.tip = node
        self._nonces.clear()
        return node

    def check(self, candidate: Candidate, now_ms: int | None = None) -> Node:
        """The node that the block would be; changes nothing."""
        block, strips = candidate.block, candidate.strips
        core = block.header.core
        parent = self._nodes.get(core.parent, self.tip)
        if self.worked:
            validation.check_header(self.params, block.header, parent.context(), now_ms)
            validation.check_answer(self.genesis_hash, block.header)
            validation.check_tile(block.header, strips)
        validation.check_body(self.params, self.genesis_hash, block)
        validation.check_signatures(self.genesis_hash, block.body.transactions)
        transition = apply_block(self.params, self.genesis_hash, parent.state, block, self.products)
        base, pending = parent.base, {**parent.state.writes, **transition.writes}
        if len(pending) > _MAX_PENDING:
            base, pending = base.changed(pending), {}
        total_work = parent.total_work + block_work(core.target_int)
        return Node(block, parent, transition, base, Overlay(base, pending), total_work)

    def reject(
        self,
        reason: Reason,
        transactions: Iterable[Transaction] = (),
        results: Iterable[Result] = (),
        *,
        candidate: Candidate | None = None,
        now_ms: int | None = None,
        **header: Any,
    ) -> ConsensusError:
        """Mine a block on the tip as `mine` would, and see it refused for exactly this reason, without a trace."""
        tip, before = self.tip, dict(self.state.scan(b""))
        bad = candidate or self.candidate(transactions, results, **header)
        with pytest.raises(ConsensusError) as caught:
            self.check(bad, now_ms)
        assert caught.value.reason == reason, f"refused, but for {caught.value}"
        assert self.tip is tip
        assert dict(self.state.scan(b"")) == before
        self._nonces.clear()
        return caught.value


def strips_of(left: Tensor, right: Tensor, i: int, j: int) -> Strips:
    """The strips and paths that prove the operands under tile (i, j)."""
    return Strips(left.strip(i), left.path(i), right.strip(j), right.path(j))


def worker_chain(
    workers: Sequence[Key] = (DAVE, ERIN, FRANK), worked: bool = False, idle: Shape = ONE_TILE, **changes: Any
) -> ChainBuilder:
    """A chain on which `workers` hold a place each, their registrations in force; `changes` as for `regtest`."""
    chain = ChainBuilder(regtest(**changes), worked, idle)
    chain.mine([chain.register(worker) for worker in workers])
    chain.mine(count=chain.params.registration_delay - 1)
    return chain


def fees_of(chain: ChainBuilder, job: Job) -> list[int]:
    """The fee of each packet."""
    return jobs.job_fees(chain.params, job.payload)


@lru_cache(maxsize=2048)
def _evaluate_idle(seed: bytes, shape: Shape) -> Evaluation | None:
    """The seed names the header core, and with it all that the result depends on."""
    return work.evaluate_idle(seed, shape)
