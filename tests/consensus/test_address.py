"""Addresses against the vectors of BIP-350, and the errors that a user meets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.address import (
    NETWORK_PREFIXES,
    AddressError,
    decode_address,
    decode_words,
    encode_address,
    encode_words,
    split_address,
)
from consensus.crypto import H, address_of
from consensus.params import devnet, mainnet, regtest

VALID_BECH32M = [
    "A1LQFN3A",
    "a1lqfn3a",
    "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
    "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
    "11llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllludsr8",
    "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
    "?1v759aa",
]

INVALID_BECH32M = [
    ("\x20" + "1xj0phk", "cannot be part"),
    ("\x7f" + "1g6xzxy", "cannot be part"),
    ("\x80" + "1vctc34", "cannot be part"),
    (
        "an84characterslonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11d6pts4",
        "at most 90",
    ),
    ("qyrz8wqd2c9m", "has a prefix"),
    ("1qyrz8wqd2c9m", "has a prefix"),
    ("y1b0jsk6g", "never stands after"),
    ("lt1igcx5c0", "never stands after"),
    ("in1muywd", "too short"),
    ("mm1crxm3i", "never stands after"),
    ("au1s5cgom", "never stands after"),
    ("M1VUXWEZ", "checksum"),
    ("16plkw9", "has a prefix"),
    ("1p2gdwpf", "has a prefix"),
]

# Witness programs of version 1 and later are bech32m: a version word, then whole bytes.
VALID_SEGWIT = [
    (
        "bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y",
        1,
        "751e76e8199196d454941c45d1b3a323f1433bd6751e76e8199196d454941c45d1b3a323f1433bd6",
    ),
    ("BC1SW50QGDZ25J", 16, "751e"),
    ("bc1zw508d6qejxtdg4y5r3zarvaryvaxxpcs", 2, "751e76e8199196d454941c45d1b3a323"),
    (
        "tb1pqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesf3hn0c",
        1,
        "000000c4a5cad46221b2a187905e5266362b99d5e91c6ce24d165dab93e86433",
    ),
    (
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
        1,
        "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
    ),
]

# The valid version 0 programs are bech32, whose checksum constant differs.
BECH32_NOT_BECH32M = [
    "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4",
    "tb1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3q0sl5k7",
    "tb1qqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesrxh6hy",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd",
    "tb1z0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqglt7rf",
    "BC1S0XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ54WELL",
    "BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P",
]

# All of BIP-350's invalid segwit addresses but those just above. Bech32m alone cannot refuse the ones marked
# None: their fault lies in the rules for witness programs, or in a prefix of another chain.
INVALID_SEGWIT = [
    ("tc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq5zuyut", None),
    ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kemeawh", None),
    ("tb1q0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq24jc47", None),
    ("bc1p38j9r5y49hruaue7wxjce0updqjuyyx0kh56v8s25huc6995vvpql3jow4", "never stands after"),
    ("BC130XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ7ZWS8R", None),
    ("bc1pw5dgrnzv", None),
    ("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v8n0nx0muaewav253zgeav", None),
    ("tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq47Zagq", "not in both"),
    ("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v07qwwzcrf", "whole bytes"),
    ("tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vpggkg4j", "whole bytes"),
    ("bc1gmk9yu", "checksum"),
]


@pytest.mark.parametrize("text", VALID_BECH32M)
def test_bip350_valid_texts_round_trip(text: str) -> None:
    prefix, words = decode_words(text)
    assert encode_words(prefix, words) == text.lower()


@pytest.mark.parametrize(("text", "complaint"), INVALID_BECH32M)
def test_bip350_invalid_texts_are_refused_for_their_reason(text: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        decode_words(text)


@pytest.mark.parametrize(("text", "version", "program"), VALID_SEGWIT)
def test_bip350_valid_witness_programs(text: str, version: int, program: str) -> None:
    prefix, words = decode_words(text)
    assert words[0] == version
    assert encode_words(prefix, [version, *words_of(bytes.fromhex(program))]) == text.lower()


@pytest.mark.parametrize("text", BECH32_NOT_BECH32M)
def test_bip350_the_older_checksum_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="checksum"):
        decode_words(text)


@pytest.mark.parametrize(("text", "complaint"), INVALID_SEGWIT)
def test_bip350_invalid_witness_programs_are_no_addresses(text: str, complaint: str | None) -> None:
    if complaint == "whole bytes":
        # Padding is checked after the prefix: put the same data, without the version, under one of ours.
        text = encode_words("tile", decode_words(text)[1][1:])
    with pytest.raises(AddressError, match=complaint or "begins with"):
        split_address(text)


@given(st.binary(min_size=20, max_size=20), st.sampled_from(["tile", "tdev"]))
def test_every_address_round_trips_in_both_cases(address: bytes, prefix: str) -> None:
    text = encode_address(address, prefix)
    assert len(text) == 43
    assert decode_address(text, prefix) == address
    assert split_address(text.upper()) == (prefix, address)


@given(
    st.binary(min_size=20, max_size=20),
    st.dictionaries(st.integers(5, 42), st.integers(1, 31), min_size=1, max_size=4),
)
def test_up_to_four_wrong_characters_are_always_found(address: bytes, errors: dict[int, int]) -> None:
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    text = list(encode_address(address, "tdev"))
    for position, difference in errors.items():
        text[position] = alphabet[alphabet.index(text[position]) ^ difference]
    with pytest.raises(AddressError, match="checksum"):
        decode_address("".join(text), "tdev")


@given(st.text(max_size=100))
def test_any_text_gives_an_address_or_an_error(text: str) -> None:
    with pytest.raises(AddressError):
        split_address(text)


def test_an_address_is_the_start_of_the_hash_of_the_key() -> None:
    public_key = bytes(range(32))
    assert address_of(public_key) == H("tw/addr", public_key)[:20]


def test_an_address_of_another_network_names_both() -> None:
    text = encode_address(bytes(20), "tile")
    with pytest.raises(AddressError, match=r"for mainnet .*'tile'.* not for devnet or regtest"):
        decode_address(text, "tdev")


def test_a_stranger_prefix_is_named() -> None:
    with pytest.raises(AddressError, match="'tdev1' or 'tile1', this one with 'bc1'"):
        split_address(encode_words("bc", words_of(bytes(20))))


@pytest.mark.parametrize("size", [0, 19, 21, 32])
def test_a_wrong_length_is_refused(size: int) -> None:
    with pytest.raises(AddressError, match=f"20 bytes, this one {size}"):
        decode_address(encode_words("tdev", words_of(bytes(size))), "tdev")


def test_mixed_case_is_refused() -> None:
    text = encode_address(bytes(20), "tdev")
    with pytest.raises(AddressError, match="not in both"):
        decode_address("T" + text[1:], "tdev")


def test_prefixes_are_those_of_the_chain_parameters() -> None:
    for params in (mainnet(), devnet(0), regtest(0)):
        assert NETWORK_PREFIXES[params.network] == params.address_prefix


def words_of(data: bytes) -> list[int]:
    """`data` as 5-bit words padded with zeros, by way of one large integer."""
    count = -(-len(data) * 8 // 5)
    value = int.from_bytes(data, "big") << count * 5 - len(data) * 8
    return [value >> 5 * (count - 1 - i) & 31 for i in range(count)]
