"""Every key of the node's database and how its values are packed. Pure functions: `node.chain.store` does the I/O.

    key                                   value                      what
    m ‖ name                              by name                    single records: `FORMAT`, `WRITTEN`, `TIP`, …
    h ‖ block id                          StoredHeader               a checked header, all its copies: of a body that is
                                                                     kept, or of a main chain's block below the base
    b ‖ block id                          Body                       a body, executed or not
    r ‖ block id                          UTF-8 text                 why executing the block was refused
    n ‖ height                            block id                   the main chain
    e ‖ block id                          Outcome                    receipts and events of a main-chain block
    u ‖ block id                          changes                    what undoes a main-chain block
    w ‖ block id ‖ ticket                 Strips                     what proves a packet header's tile
    x ‖ transaction id                    Location                   where a transaction stands
    j ‖ job ‖ height ‖ ordinal            Location                   events of a job
    p ‖ packet id ‖ height ‖ ordinal      Location                   events of a packet
    a ‖ address ‖ height ‖ ordinal        Movement                   what came to and left an account
    l ‖ address ‖ height ‖ ordinal        Burned                     what a worker's bond lost by a miss
    s ‖ state key                         the state's value          the state after the tip, trie nodes included
    z ‖ state key                         the state's value          the same: `PLACE` tells which; the other is spare
    t ‖ commitment                        height                     through which a tensor is kept
    y ‖ height ‖ commitment               empty                      the same, in the order in which tensors expire

Heights are 8 bytes and ordinals 4, big-endian, so that keys sort by them. All other parts but the last have a fixed
length, so that no key is ambiguous and a prefix of parts is a range of keys. Values are `consensus.codec` encodings
unless stated.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from consensus.block import HeaderCore, Proof
from consensus.codec import U63, Amount, Hash, Value, decoder_of, encode
from consensus.state import Changes

T = TypeVar("T")

FORMAT_VERSION = 2
"""Changes whenever an older node would misread the database. 1 had no misses and no returned bonds among the movements:
it is taken over as it is, and tells of those from then on."""
READABLE_VERSIONS = (1, FORMAT_VERSION)

META = b"m"
HEADER = b"h"
BODY = b"b"
REFUSED = b"r"
MAIN = b"n"
OUTCOME = b"e"
UNDO = b"u"
STRIPS = b"w"
TRANSACTION = b"x"
JOB_EVENT = b"j"
PACKET_EVENT = b"p"
MOVEMENT = b"a"
LOSS = b"l"
STATE = b"s"
STATE_TOO = b"z"
TENSOR_UNTIL = b"t"
TENSOR_EXPIRY = b"y"

FORMAT = META + b"format"
"""→ FORMAT_VERSION in decimal digits."""
WRITTEN = META + b"written"
"""→ the number of the last batch (8 bytes, big-endian): the store's own, in every batch."""
TIP = META + b"tip"
"""→ Tip."""
BASE = META + b"base"
"""→ Tip: the block whose state was fetched, not computed; nothing at or below it can be undone. Absent: genesis."""
PLACE = META + b"place"
"""→ the prefix of the state after the tip, `STATE` where absent. What stands under the other is of no value."""

_HASH, _ADDRESS, _HEIGHT, _ORDINAL = 32, 20, 8, 4


class StorageError(Exception):
    """What should be durable cannot be read or written. Fatal: the node stops before it builds upon it."""


class Tip(Value, frozen=True):
    """The executed block with the most work, and the root of the state that it left."""

    block: Hash
    height: U63
    state_root: Hash


class Burned(Value, frozen=True):
    """Grains of a worker's bond that burned with a packet."""

    grains: Amount


class StoredHeader(Value, frozen=True):
    """A header core and the proof of every copy that was checked, the first announced first; genesis has None."""

    core: HeaderCore
    proofs: tuple[Proof | None, ...]


def header(block_id: bytes) -> bytes:
    """Key of a StoredHeader."""
    return HEADER + _sized(block_id, _HASH)


def body(block_id: bytes) -> bytes:
    """Key of a Body."""
    return BODY + _sized(block_id, _HASH)


def refused(block_id: bytes) -> bytes:
    """Key of the reason for which a block was refused in execution."""
    return REFUSED + _sized(block_id, _HASH)


def main(height: int) -> bytes:
    """Key of the main chain's block id at a height."""
    return MAIN + pack_height(height)


def outcome(block_id: bytes) -> bytes:
    """Key of an Outcome."""
    return OUTCOME + _sized(block_id, _HASH)


def undo(block_id: bytes) -> bytes:
    """Key of a block's undo data, packed by `encode_changes`."""
    return UNDO + _sized(block_id, _HASH)


def strips(block_id: bytes, ticket: bytes) -> bytes:
    """Key of the Strips that prove one copy of a packet header."""
    return STRIPS + _sized(block_id, _HASH) + _sized(ticket, _HASH)


def transaction(txid: bytes) -> bytes:
    """Key of a transaction's Location."""
    return TRANSACTION + _sized(txid, _HASH)


def job_events(job: bytes) -> bytes:
    """Prefix of a job's events."""
    return JOB_EVENT + _sized(job, _HASH)


def job_event(job: bytes, height: int, ordinal: int) -> bytes:
    """Key of a job event's Location."""
    return job_events(job) + pack_height(height) + _pack_ordinal(ordinal)


def packet_events(packet_id: bytes) -> bytes:
    """Prefix of a packet's events."""
    return PACKET_EVENT + _sized(packet_id, _HASH)


def packet_event(packet_id: bytes, height: int, ordinal: int) -> bytes:
    """Key of a packet event's Location."""
    return packet_events(packet_id) + pack_height(height) + _pack_ordinal(ordinal)


def movements(address: bytes) -> bytes:
    """Prefix of an account's movements."""
    return MOVEMENT + _sized(address, _ADDRESS)


def movement(address: bytes, height: int, ordinal: int) -> bytes:
    """Key of a Movement."""
    return movements(address) + pack_height(height) + _pack_ordinal(ordinal)


def losses(address: bytes) -> bytes:
    """Prefix of what a worker's bond has lost."""
    return LOSS + _sized(address, _ADDRESS)


def loss(address: bytes, height: int, ordinal: int) -> bytes:
    """Key of a Burned."""
    return losses(address) + pack_height(height) + _pack_ordinal(ordinal)


def tensor_until(commitment: bytes) -> bytes:
    """Key of the height, packed by `pack_height`, through which a tensor is kept."""
    return TENSOR_UNTIL + _sized(commitment, _HASH)


def tensor_expiry(height: int, commitment: bytes) -> bytes:
    """Key that finds a tensor by that height."""
    return TENSOR_EXPIRY + pack_height(height) + _sized(commitment, _HASH)


def unpack_tensor_expiry(key: bytes) -> tuple[int, bytes]:
    """(height, commitment) of a `tensor_expiry` key."""
    if len(key) != len(TENSOR_EXPIRY) + _HEIGHT + _HASH:
        raise StorageError(f"a tensor's expiry has a key of {len(key)} bytes")
    split = len(TENSOR_EXPIRY) + _HEIGHT
    return unpack_height(key[len(TENSOR_EXPIRY) : split]), key[split:]


def pack_height(height: int) -> bytes:
    """A height as 8 bytes, big-endian."""
    return height.to_bytes(_HEIGHT, "big")


def unpack_height(data: bytes) -> int:
    """The height that `pack_height` packed."""
    if len(data) != _HEIGHT:
        raise StorageError(f"a stored height has {len(data)} bytes")
    return int.from_bytes(data, "big")


def encode_changes(changes: Changes) -> bytes:
    """Undo data: a map from keys to previous values, nil where there was none."""
    return encode(changes)


def decode_changes(data: bytes) -> Changes:
    """The changes that `encode_changes` packed."""
    return decode(Changes, data)


def decode(kind: type[T], data: bytes) -> T:
    """A stored value. The node encoded it itself, so one that cannot be read means a damaged database.

    Raises:
        StorageError: the bytes are no encoding of `kind`.
    """
    try:
        value: T = decoder_of(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise StorageError(f"the database is damaged: a stored {name} cannot be read ({error})") from error
    return value


def _pack_ordinal(ordinal: int) -> bytes:
    return ordinal.to_bytes(_ORDINAL, "big")


def _sized(part: bytes, size: int) -> bytes:
    assert len(part) == size, f"a key's part of {len(part)} bytes, expected {size}"
    return part
