"""Headers, proofs and bodies (docs/protocol.md, section 5)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from consensus import crypto
from consensus.codec import (
    U32,
    U63,
    ZERO_HASH,
    Address,
    Hash,
    Nonce8,
    PublicKey,
    Signature,
    Value,
    decode,
    encode,
)
from consensus.params import PROTOCOL_VERSION, ChainParams
from consensus.proofs import merkle
from consensus.shape import TILE_SIDE, OfShape
from consensus.tensor import OfOperands
from consensus.transaction import Result, ResultBody, Transaction

MAX_HEADER_BYTES = 1024


class Zero(OfShape, Value, frozen=True, tag=0):
    """Zero operands of any shape that a packet may have: the unit of a miner for whom no job waits.

    Nobody needs its product, which follows from the noise. Whatever lottery a packet of zeros would buy, this has.
    """

    m: U32
    k: U32
    n: U32


class PacketUnit(OfOperands, Value, frozen=True, tag=1):
    """A dealt packet, mined by its assignee, whose signed answer stands in the proof.

    Operand roots stand in the core, so that the work of a header can be checked alone.
    """

    packet_id: Hash
    a_root: Hash
    b_root: Hash
    m: U32
    k: U32
    n: U32


class PairUnit(OfOperands, Value, frozen=True, tag=2):
    """Any two matrices: a miner's own work. Nothing is paid for it but the subsidy, and nobody needs its product."""

    a_root: Hash
    b_root: Hash
    m: U32
    k: U32
    n: U32


Unit: TypeAlias = Zero | PacketUnit | PairUnit


class HeaderCore(Value, frozen=True):
    """What the block id covers, and what the noise of its work is drawn from.

    `parent_ticket` is the winning ticket of the parent's proof: unknown before that work was done, so it is the chain's
    randomness. `state_root` is the state after the parent: nobody has to execute before mining.
    """

    version: U32
    chain_id: U32
    height: U63
    parent: Hash
    parent_ticket: Hash
    time_ms: U63
    target: Hash
    miner: Address
    state_root: Hash
    body_root: Hash
    unit: Unit
    nonce: Nonce8

    @property
    def id(self) -> bytes:
        """H("tw/block", core)."""
        return crypto.H("tw/block", encode(self))

    @property
    def seed(self) -> bytes:
        """H("tw/work", core): the seed of the unit's noise."""
        return crypto.H("tw/work", encode(self))

    @property
    def target_int(self) -> int:
        """The target as an integer."""
        return int.from_bytes(self.target, "big")


class Answer(Value, frozen=True):
    """A packet unit's Result in short: what the core says already (packet, worker) is left out.

    `key` is the worker's public key, so that whoever sees the header alone can tell that its miner signed, and no third
    party can put another product in.
    """

    product: Hash
    key: PublicKey
    signature: Signature


class Proof(Value, frozen=True):
    """The winning tile, its claimed state (16 × u32, little-endian), and a packet unit's answer.

    Outside the id: one core may have several winning tiles, and a bad proof rules out only its own copy.
    """

    i: U32
    j: U32
    state: Annotated[bytes, Meta(min_length=64, max_length=64)]
    answer: Answer | None = None


class Header(Value, frozen=True):
    """A core and its proof; genesis has none."""

    core: HeaderCore
    proof: Proof | None

    @property
    def id(self) -> bytes:
        """The block id."""
        return self.core.id

    @property
    def ticket(self) -> bytes:
        """The winning ticket, from the *claimed* state; 32 zero bytes for genesis."""
        if self.proof is None:
            return ZERO_HASH
        return crypto.ticket(self.core.seed, self.proof.i, self.proof.j, self.proof.state)

    @property
    def copy_id(self) -> bytes:
        """Which copy of its core this is; see the function `copy_id`."""
        return copy_id(self.proof)

    @property
    def result(self) -> Result | None:
        """The implicit Result of a packet unit."""
        unit = self.core.unit
        if not isinstance(unit, PacketUnit) or self.proof is None or self.proof.answer is None:
            return None
        answer = self.proof.answer
        return Result(ResultBody(unit.packet_id, self.core.miner, answer.product), answer.signature)


def copy_id(proof: Proof | None) -> bytes:
    """H("tw/copy", proof): tells the copies of one core apart, by everything that could differ."""
    return ZERO_HASH if proof is None else crypto.H("tw/copy", encode(proof))


class Body(Value, frozen=True):
    """Results and transactions, in the order in which they execute."""

    results: tuple[Result, ...] = ()
    transactions: tuple[Transaction, ...] = ()

    def root(self) -> bytes:
        """H("tw/body", txs root ‖ u32 count ‖ results root ‖ u32 count); leaves are full bytes with signatures."""
        parts = b""
        for items in (self.transactions, self.results):
            leaves = [merkle.leaf_hash(encode(item)) for item in items]
            parts += merkle.root(leaves) + len(leaves).to_bytes(4, "little")
        return crypto.H("tw/body", parts)


class Block(Value, frozen=True):
    """A header and its body."""

    header: Header
    body: Body

    @property
    def id(self) -> bytes:
        """The block id."""
        return self.header.core.id

    @property
    def height(self) -> int:
        """Blocks between this one and genesis."""
        return self.header.core.height


def genesis(params: ChainParams, state_root: bytes) -> Block:
    """The first block: no parent, no proof, an empty body; its state root is the funded accounts' own."""
    body = Body()
    core = HeaderCore(
        version=PROTOCOL_VERSION,
        chain_id=params.chain_id,
        height=0,
        parent=ZERO_HASH,
        parent_ticket=ZERO_HASH,
        time_ms=params.genesis_time_ms,
        target=params.anchor_target,
        miner=bytes(20),
        state_root=state_root,
        body_root=body.root(),
        unit=Zero(TILE_SIDE, TILE_SIDE, TILE_SIDE),
        nonce=params.hash[:8],
    )
    return Block(Header(core, None), body)


def decode_header(data: bytes) -> Header:
    """A canonical header, or ConsensusError."""
    return decode(Header, data, MAX_HEADER_BYTES)
