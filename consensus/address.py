"""How an account address is shown: bech32m (BIP-350), with a prefix that names the network.

The checksum finds any four wrong characters; the prefix keeps test money and real money apart. Nothing in the
protocol depends on this text form: blocks and transactions carry the 20 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from consensus.crypto import address_of

__all__ = [
    "ADDRESS_BYTES",
    "NETWORK_PREFIXES",
    "AddressError",
    "address_of",
    "decode_address",
    "decode_words",
    "encode_address",
    "encode_words",
    "split_address",
]

ADDRESS_BYTES = 20

NETWORK_PREFIXES = {"mainnet": "tile", "devnet": "tdev", "regtest": "tdev"}
"""Human-readable part of the addresses of each network; equal to `ChainParams.address_prefix`."""

_MAX_CHARS = 90
_CHECKSUM_WORDS = 6
_CHECKSUM_CONSTANT = 0x2BC830A3
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_WORD_OF = {character: word for word, character in enumerate(_ALPHABET)}


class AddressError(ValueError):
    """A text is not an address, or not one of this network. The message says which rule it breaks."""


def encode_address(address: bytes, prefix: str) -> str:
    """The bech32m text of a 20-byte address, lower case: `prefix` + "1" + 38 characters."""
    assert len(address) == ADDRESS_BYTES
    return encode_words(prefix, _regroup(address, 8, 5, pad=True))


def decode_address(text: str, prefix: str) -> bytes:
    """The 20 bytes of an address of the network with `prefix`. Raises `AddressError`."""
    other, address = split_address(text)
    if other != prefix:
        raise AddressError(
            f"the address is for {_networks(other)} (it begins with {other!r}), not for {_networks(prefix)}"
        )
    return address


def split_address(text: str) -> tuple[str, bytes]:
    """The prefix and the 20 bytes of an address of any Tilework network. Raises `AddressError`."""
    prefix, words = decode_words(text)
    if prefix not in NETWORK_PREFIXES.values():
        known = " or ".join(repr(name + "1") for name in sorted(set(NETWORK_PREFIXES.values())))
        raise AddressError(f"an address begins with {known}, this one with {prefix + '1'!r}")
    address = bytes(_regroup(words, 5, 8, pad=False))
    if len(address) != ADDRESS_BYTES:
        raise AddressError(f"an address holds {ADDRESS_BYTES} bytes, this one {len(address)}")
    return prefix, address


def encode_words(prefix: str, words: Sequence[int]) -> str:
    """The bech32m text of 5-bit `words` under a lower-case `prefix` (BIP-350)."""
    residue = _polymod([*_expand(prefix), *words, *[0] * _CHECKSUM_WORDS]) ^ _CHECKSUM_CONSTANT
    checksum = [residue >> 5 * (_CHECKSUM_WORDS - 1 - i) & 31 for i in range(_CHECKSUM_WORDS)]
    text = prefix + "1" + "".join(_ALPHABET[word] for word in (*words, *checksum))
    assert len(text) <= _MAX_CHARS
    return text


def decode_words(text: str) -> tuple[str, list[int]]:
    """The lower-case prefix and the 5-bit words of any bech32m text (BIP-350). Raises `AddressError`."""
    if len(text) > _MAX_CHARS:
        raise AddressError(f"an address has at most {_MAX_CHARS} characters, this one has {len(text)}")
    for position, character in enumerate(text, start=1):
        if not 33 <= ord(character) <= 126:
            raise AddressError(f"character {position} ({character!r}) cannot be part of an address")
    if text != text.lower() and text != text.upper():
        raise AddressError("an address is written in lower case or in upper case, not in both")
    text = text.lower()
    split = text.rfind("1")
    if split < 1:
        raise AddressError("an address has a prefix, a '1' and then its data")
    prefix, data = text[:split], text[split + 1 :]
    if len(data) < _CHECKSUM_WORDS:
        raise AddressError("the address is too short to hold its checksum")
    for position, character in enumerate(data, start=split + 2):
        if character not in _WORD_OF:
            raise AddressError(f"character {position} ({character!r}) never stands after the '1' of an address")
    words = [_WORD_OF[character] for character in data]
    if _polymod([*_expand(prefix), *words]) != _CHECKSUM_CONSTANT:
        raise AddressError("the checksum does not match: at least one character is wrong or missing")
    return prefix, words[:-_CHECKSUM_WORDS]


def _expand(prefix: str) -> list[int]:
    codes = prefix.encode("ascii")
    return [*(code >> 5 for code in codes), 0, *(code & 31 for code in codes)]


def _polymod(words: Iterable[int]) -> int:
    """Remainder of the words, as a polynomial over GF(32), by the BCH generator of BIP-173."""
    remainder = 1
    for word in words:
        top = remainder >> 25
        remainder = (remainder & 0x1FFFFFF) << 5 ^ word
        for bit, factor in enumerate(_GENERATOR):
            if top >> bit & 1:
                remainder ^= factor
    return remainder


def _regroup(values: Iterable[int], width: int, new_width: int, *, pad: bool) -> list[int]:
    """The same bits in groups of another width, most significant first.

    Without `pad`, what is left over must be fewer than `width` zero bits, so that one value has one text.
    """
    pending, bits, groups = 0, 0, []
    for value in values:
        pending = pending << width | value
        bits += width
        while bits >= new_width:
            bits -= new_width
            groups.append(pending >> bits)
            pending &= (1 << bits) - 1
    if pad and bits:
        groups.append(pending << new_width - bits)
    elif not pad and (bits >= width or pending):
        raise AddressError("the address does not fill whole bytes")
    return groups


def _networks(prefix: str) -> str:
    names = [network for network, its_prefix in NETWORK_PREFIXES.items() if its_prefix == prefix]
    return " or ".join(names) or f"the network of prefix {prefix!r}"
