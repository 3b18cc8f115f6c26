"""Hashes, the keystream and signatures (docs/protocol.md, section 2)."""

from __future__ import annotations

import hashlib
from functools import cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

_FIELD = 2**255 - 19
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD - 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})


@cache
def _person(tag: str) -> bytes:
    # hashlib.blake2b pads the personalisation with zeros and refuses more than 16 bytes.
    return tag.encode("ascii")


def H(tag: str, data: bytes | memoryview) -> bytes:  # noqa: N802  (the protocol's name)
    """BLAKE2b-256 of `data`, personalised by `tag` (ASCII, at most 16 bytes): RFC 7693. Every use has its own tag."""
    return hashlib.blake2b(data, digest_size=32, person=_person(tag)).digest()


def stream(seed: bytes, label: str, size: int, first_block: int = 0) -> bytes:
    """The first `size` bytes of the ChaCha20 keystream (zero nonce, RFC 8439) under H("tw/prg", seed ‖ label).

    first_block: begin at that block of 64 bytes instead, which costs nothing.
    """
    key = H("tw/prg", seed + label.encode("ascii"))
    nonce = first_block.to_bytes(4, "little") + bytes(12)
    return Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(size))


def ticket_hasher(seed: bytes) -> hashlib.blake2b:
    """H("tw/ticket", seed ‖ …), to be copied and continued with `tile_bytes` for each tile of one unit."""
    return hashlib.blake2b(seed, digest_size=32, person=_person("tw/ticket"))


def tile_bytes(i: int, j: int, state: bytes | memoryview) -> bytes:
    """u32le(i) ‖ u32le(j) ‖ state: what a ticket adds to its unit's seed."""
    return i.to_bytes(4, "little") + j.to_bytes(4, "little") + state


def ticket(seed: bytes, i: int, j: int, state: bytes) -> bytes:
    """H("tw/ticket", seed ‖ u32le(i) ‖ u32le(j) ‖ state): a tile's lottery ticket (docs/protocol.md, section 4)."""
    hasher = ticket_hasher(seed)
    hasher.update(tile_bytes(i, j, state))
    return hasher.digest()


def address_of(public_key: bytes) -> bytes:
    """The 20-byte account address of an Ed25519 public key."""
    return H("tw/addr", public_key)[:20]


def is_strict_public_key(public_key: bytes) -> bool:
    """Whether `public_key` is 32 bytes with a canonical y that is not of small order.

    Verifiers differ on the others (OpenSSL takes them, libsodium does not), so consensus refuses them first.
    """
    if len(public_key) != 32:
        return False
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    return y < _FIELD and y not in _SMALL_ORDER_Y


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is a strict Ed25519 signature (RFC 8032) of `message`; never raises."""
    if len(signature) != 64 or not is_strict_public_key(public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
