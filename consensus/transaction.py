"""Transactions and Results: what accounts ask of the chain, and what workers answer (docs/protocol.md, 7 and 9)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from consensus import crypto
from consensus.codec import U16, U32, U63, Address, Amount, Hash, PublicKey, Signature, Value, decode, encode
from consensus.params import MAX_TX_BYTES
from consensus.shape import Shape
from consensus.tensor import TensorSpec, left_spec, right_spec

OPEN, DIRECT, SEALED = 0, 1, 2
"""Modes of a group: who checks the products, and who can read them."""


class Output(Value, frozen=True):
    """Grains for one address."""

    address: Address
    amount: Amount


class Transfer(Value, frozen=True, tag=0):
    """Pay one or several addresses; `memo` is at most 256 bytes of anything."""

    outputs: tuple[Output, ...]
    memo: bytes = b""


class RegisterWorker(Value, frozen=True, tag=1):
    """Join, refresh or change a declaration; `bond` grains are added to the bond.

    `min_price` is in grains per 2⁴⁰ of weight, `max_unit_bytes` bounds mk + kn + 4mn, `max_packets` are held at once.
    """

    x25519_key: PublicKey
    min_price: Amount
    max_unit_bytes: U63
    max_packets: U16
    bond: Amount


class RetireWorker(Value, frozen=True, tag=2):
    """Stop being dealt packets; the bond returns window + 1 blocks later."""


class Operand(Value, frozen=True):
    """One int8 matrix by the Merkle root of its strips: its side follows from the list that it stands in."""

    root: Hash
    rows: U32
    cols: U32


class Pair(Value, frozen=True):
    """A packet: left operand `left` times right operand `right`, as indices into the job's lists."""

    left: U16
    right: U16


class SubmitJob(Value, frozen=True, tag=3):
    """Open a group of packets, any `threshold` of which complete it.

    Operands stand once in `lefts` and `rights` however many packets share them. `price` is in grains per 2⁴⁰ of
    weight (`Shape.weight`).
    """

    lefts: tuple[Operand, ...]
    rights: tuple[Operand, ...]
    packets: tuple[Pair, ...]
    threshold: U32
    price: Amount
    expiry: U63
    mode: Annotated[int, Meta(ge=OPEN, le=SEALED)] = OPEN

    def left(self, packet: Pair) -> TensorSpec:
        """Spec of a packet's left operand."""
        operand = self.lefts[packet.left]
        return left_spec(operand.rows, operand.cols, operand.root)

    def right(self, packet: Pair) -> TensorSpec:
        """Spec of a packet's right operand."""
        operand = self.rights[packet.right]
        return right_spec(operand.rows, operand.cols, operand.root)

    def shape(self, packet: Pair) -> Shape:
        """Shape of a packet's product."""
        left = self.lefts[packet.left]
        return Shape(left.rows, left.cols, self.rights[packet.right].cols)

    def operands(self) -> list[TensorSpec]:
        """Specs of all operands, each once per list."""
        return [left_spec(o.rows, o.cols, o.root) for o in self.lefts] + [
            right_spec(o.rows, o.cols, o.root) for o in self.rights
        ]


class CancelJob(Value, frozen=True, tag=4):
    """Withdraw the packets of one's own job that nobody holds."""

    job: Hash


# Tags 5–10 belong to DeployAgent, UpdateAgent, CallAgent, AcceptResult, Dispute and Rate.
Payload: TypeAlias = Transfer | RegisterWorker | RetireWorker | SubmitJob | CancelJob


class TxBody(Value, frozen=True):
    """What is signed. `tip` and `max_base_fee` are grains per gas."""

    sender: PublicKey
    nonce: U63
    tip: Amount
    gas_limit: U63
    max_base_fee: Amount
    payload: Payload

    @property
    def address(self) -> bytes:
        """The sender's account."""
        return crypto.address_of(self.sender)

    def signing_hash(self, genesis_hash: bytes) -> bytes:
        """The message under the signature; bound to one network by its genesis hash."""
        return crypto.H("tw/tx", genesis_hash + encode(self))

    def txid(self, genesis_hash: bytes) -> bytes:
        """The id: independent of the signature, which its sender could vary."""
        return crypto.H("tw/txid", genesis_hash + encode(self))


class Transaction(Value, frozen=True):
    """A body and its Ed25519 signature."""

    body: TxBody
    signature: Signature

    def is_signed(self, genesis_hash: bytes) -> bool:
        """Whether the signature is the sender's, for this network."""
        return crypto.verify(self.body.sender, self.body.signing_hash(genesis_hash), self.signature)


class ResultBody(Value, frozen=True):
    """A worker's claim that `product` (commitment of C) is packet `packet_id`'s product."""

    packet_id: Hash
    worker: Address
    product: Hash

    def signing_hash(self, genesis_hash: bytes) -> bytes:
        """The message under the worker's signature."""
        return crypto.H("tw/result", genesis_hash + encode(self))


class Result(Value, frozen=True):
    """A claim and the worker's signature, checked under the key that the worker registered with."""

    body: ResultBody
    signature: Signature

    def id(self, genesis_hash: bytes) -> bytes:
        """Names the claim in gossip, whatever its signature bytes."""
        return self.body.signing_hash(genesis_hash)


def decode_transaction(data: bytes) -> Transaction:
    """A canonical transaction of at most 128 KiB, or ConsensusError."""
    return decode(Transaction, data, MAX_TX_BYTES)


def packet_id_of(txid: bytes, index: int) -> bytes:
    """H("tw/packet", txid ‖ u32 index)."""
    return crypto.H("tw/packet", txid + index.to_bytes(4, "little"))
