"""What users ask for that consensus does not keep: where a transaction is, what happened to a packet, who was paid.

Every entry follows from a block and its transition, so that a reorganisation removes exactly what it had added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from consensus import events
from consensus.block import Block
from consensus.codec import U32, U63, Amount, Hash, Value, encode
from consensus.events import Event, Receipt, Returned
from consensus.rules import payloads
from node.chain import schema


class Outcome(Value, frozen=True):
    """What executing a block gave, kept beside it."""

    receipts: tuple[Receipt, ...]
    events: tuple[Event, ...]
    state_root: Hash
    reward: Amount


class Location(Value, frozen=True):
    """Where something stands: in a main-chain block, the n-th transaction or event of it."""

    block: Hash
    height: U63
    ordinal: U32


class Movement(Value, frozen=True):
    """Grains that came to (or left) an account, and why. `reference` is a transaction, packet, job or block id.

    A "miss" is taken from the bond, not from the account. A "bond" is one that came back.
    """

    height: U63
    kind: Literal["sent", "received", "packet", "escrow", "refund", "block", "miss", "bond"]
    amount: int
    reference: Hash


def entries(block: Block, block_id: bytes, outcome: Outcome) -> dict[bytes, bytes]:
    """All index entries of a main-chain block."""
    height = block.height
    keyed: dict[bytes, bytes] = {}
    for ordinal, receipt in enumerate(outcome.receipts):
        keyed[schema.transaction(receipt.txid)] = encode(Location(block_id, height, ordinal))
    for ordinal, event in enumerate(outcome.events):
        if isinstance(event, Returned):
            continue
        location = encode(Location(block_id, height, ordinal))
        keyed[schema.job_event(event.job, height, ordinal)] = location
        if isinstance(event, events.Dealt | events.Answered | events.Missed | events.Dropped):
            keyed[schema.packet_event(event.packet_id, height, ordinal)] = location
    for ordinal, (address, movement) in enumerate(_movements(block, block_id, outcome)):
        keyed[schema.movement(address, height, ordinal)] = encode(movement)
        if movement.kind == "miss":
            keyed[schema.loss(address, height, ordinal)] = encode(schema.Burned(-movement.amount))
    return keyed


def _movements(block: Block, block_id: bytes, outcome: Outcome) -> Iterator[tuple[bytes, Movement]]:
    height = block.height
    yield block.header.core.miner, Movement(height, "block", outcome.reward, block_id)
    for event in outcome.events:
        if isinstance(event, events.Answered):
            pay = event.fee - event.burned - event.share
            yield event.worker, Movement(height, "packet", pay, event.packet_id)
        elif isinstance(event, events.Opened):
            yield event.owner, Movement(height, "escrow", -event.escrow, event.job)
        elif isinstance(event, events.Closed):
            yield event.owner, Movement(height, "refund", event.refund, event.job)
        elif isinstance(event, events.Missed):
            yield event.worker, Movement(height, "miss", -event.burned, event.packet_id)
        elif isinstance(event, events.Returned):
            yield event.worker, Movement(height, "bond", event.bond, block_id)
    for tx, receipt in zip(block.body.transactions, outcome.receipts, strict=True):
        payload = tx.body.payload
        kind = payloads.kind_of(payload)
        spent = receipt.fee + (kind.spends(payload) if receipt.ok else 0)
        outputs = kind.view.outputs(payload) if receipt.ok else ()
        yield tx.body.address, Movement(height, "sent", -spent, receipt.txid)
        for output in outputs:
            yield output.address, Movement(height, "received", output.amount, receipt.txid)
