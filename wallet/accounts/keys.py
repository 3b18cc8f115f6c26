"""From words to keys: BIP-39 mnemonics, SLIP-10 derivation for Ed25519, signing.

One mnemonic carries any number of accounts, at m/44'/1414089797'/index' (BIP-44's scheme; Ed25519 knows hardened
children only). The coin type is "TILE" read as a big-endian number; it is not registered in SLIP-44.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mnemonic import Mnemonic

from consensus.crypto import H, address_of, verify
from wallet.errors import ExitCode, WalletError

if TYPE_CHECKING:
    from consensus.transaction import Transaction, TxBody

COIN_TYPE = int.from_bytes(b"TILE", "big")
MAX_INDEX = 2**31 - 1

PRIVATE_KEY_BYTES = 32
SIGNED_MESSAGE_BYTES = 32 + 64

_NUMBER = re.compile(r"(?<![^\s])[0-9]{1,2}(?:[.):]|(?=\s))", re.ASCII)
"""Of an item of a list: stands alone, or before the word that it counts."""
_HARDENED = 2**31
_WORD_COUNTS = (12, 15, 18, 21, 24)


@dataclass(frozen=True, slots=True, repr=False)
class ExtendedKey:
    """A node of the derivation tree (SLIP-10): a private key and a chain code, 32 bytes each."""

    private_key: bytes
    chain_code: bytes

    @classmethod
    def master(cls, seed: bytes) -> ExtendedKey:
        """The root of the tree that grows from a BIP-39 seed."""
        return cls._split(b"ed25519 seed", seed)

    def child(self, index: int) -> ExtendedKey:
        """The hardened child `index` (written index'), 0 … 2³¹ − 1."""
        assert 0 <= index <= MAX_INDEX
        return self._split(self.chain_code, b"\x00" + self.private_key + (index + _HARDENED).to_bytes(4, "big"))

    def descendant(self, path: tuple[int, ...]) -> ExtendedKey:
        """The node reached by hardened children, from left to right."""
        node = self
        for index in path:
            node = node.child(index)
        return node

    @classmethod
    def _split(cls, key: bytes, data: bytes) -> ExtendedKey:
        digest = hmac.digest(key, data, "sha512")
        return cls(digest[:32], digest[32:])


class SigningKey:
    """An Ed25519 private key with what follows from it. Its text form shows the public key only."""

    def __init__(self, private_key: bytes) -> None:
        """Takes the 32 secret bytes of RFC 8032."""
        assert len(private_key) == PRIVATE_KEY_BYTES
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.address = address_of(self.public_key)

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self.public_key.hex()})"

    @property
    def private_key(self) -> bytes:
        """The 32 secret bytes."""
        return self._key.private_bytes_raw()

    def sign(self, digest: bytes) -> bytes:
        """The 64-byte signature of a 32-byte tagged hash. Callers hash under a tag of their own first, so that
        a signature made for one purpose never fits another."""
        assert len(digest) == 32
        return self._key.sign(digest)

    def transaction(self, body: TxBody, genesis_hash: bytes) -> Transaction:
        """Sign a transaction of this key's account, for the network of that genesis alone."""
        from consensus.transaction import Transaction  # with numpy, which keys do without

        assert body.sender == self.public_key, "another account's transaction"
        return Transaction(body, self.sign(body.signing_hash(genesis_hash)))

    def sign_message(self, message: bytes) -> bytes:
        """Public key ‖ signature (96 bytes) over H("tw/msg", message): never valid for a transaction ("tw/tx")."""
        return self.public_key + self.sign(H("tw/msg", message))


def verify_message(address: bytes, message: bytes, signed: bytes) -> bool:
    """Whether `signed` is what the owner of `address` made of `message` with `SigningKey.sign_message`."""
    public_key, signature = signed[:32], signed[32:]
    return (
        len(signed) == SIGNED_MESSAGE_BYTES
        and address_of(public_key) == address
        and verify(public_key, H("tw/msg", message), signature)
    )


def new_mnemonic(word_count: int = 24) -> str:
    """Fresh words from the operating system's generator: 24 carry 256 bits, 12 carry 128."""
    assert word_count in _WORD_COUNTS
    return _english().generate(word_count * 32 // 3)


def clean_mnemonic(text: str) -> str:
    """The words of `text` in lower case, one space apart; numbers before them (`1 word`, `1. word`, `1) word`, as lists
    have them) are left out. Raises `WalletError` (mnemonic-invalid), which names the position of a wrong word but never
    the word."""
    words = _NUMBER.sub(" ", unicodedata.normalize("NFKD", text)).lower().split()
    if len(words) not in _WORD_COUNTS:
        raise _mnemonic_error(f"a mnemonic has 12, 15, 18, 21 or 24 words, this one {len(words)}")
    known = _known_words()
    for position, word in enumerate(words, start=1):
        if word not in known:
            raise _mnemonic_error(f"word {position} is not in the English list of BIP-39")
    mnemonic = " ".join(words)
    if not _english().check(mnemonic):
        raise _mnemonic_error("the checksum does not match: a word is wrong, or two have changed places")
    return mnemonic


def seed_of(mnemonic: str, passphrase: str = "") -> bytes:
    """The 64-byte seed of valid words (BIP-39: PBKDF2, 2048 rounds)."""
    return hashlib.pbkdf2_hmac(
        "sha512",
        unicodedata.normalize("NFKD", mnemonic).encode(),
        unicodedata.normalize("NFKD", "mnemonic" + passphrase).encode(),
        2048,
    )


def account_key(mnemonic: str, index: int = 0) -> SigningKey:
    """The key of account `index` of valid words."""
    root = ExtendedKey.master(seed_of(mnemonic))
    return SigningKey(root.descendant((44, COIN_TYPE, index)).private_key)


def account_path(index: int) -> str:
    """Where `account_key` finds the key, as BIP-32 writes paths."""
    return f"m/44'/{COIN_TYPE}'/{index}'"


@cache
def _english() -> Mnemonic:
    return Mnemonic("english")


@cache
def _known_words() -> frozenset[str]:
    return frozenset(_english().wordlist)


def _mnemonic_error(message: str) -> WalletError:
    fix = "compare the words with your copy, in order; they are those that `tilework wallet new` showed"
    return WalletError("mnemonic-invalid", message, fix, ExitCode.USAGE)
