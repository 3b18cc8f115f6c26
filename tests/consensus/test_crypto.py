"""Hashes, the keystream and strict signatures."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st

from consensus import crypto
from consensus.crypto import H
from tests.builders import ALICE

P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def test_h_is_personalised_blake2b_256() -> None:
    assert H("tw/block", b"abc") == hashlib.blake2b(b"abc", digest_size=32, person=b"tw/block").digest()


def test_h_without_a_tag_is_plain_blake2b_256() -> None:
    """The parameter block's personalisation of zeros is the default of RFC 7693: a digest that others publish."""
    assert H("", b"").hex() == "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"


def test_h_separates_its_tags() -> None:
    tags = ["tw/block", "tw/tx", "tw/txid", "tw/work", "tw/prg", "tw/ticket", "tw/leaf", "tw/node", "tw/root"]
    assert len({H(tag, b"") for tag in tags}) == len(tags)


def test_a_tag_of_17_bytes_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="16"):
        H("tw/" + 14 * "x", b"")


def test_chacha20_keystream_of_rfc_8439() -> None:
    """Section 2.4.2's key and nonce with counter 1: the cipher that `stream` uses takes counter ‖ nonce."""
    key, nonce = bytes(range(32)), bytes.fromhex("000000000000004a00000000")
    cipher = Cipher(algorithms.ChaCha20(key, (1).to_bytes(4, "little") + nonce), mode=None).encryptor()
    plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen"
    assert cipher.update(plain)[:32].hex() == "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"


def chacha20_block(key: bytes, counter: int) -> bytes:
    """One block of the zero-nonce keystream, written from RFC 8439, section 2.3."""

    def quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            mixed = s[z] ^ s[x]
            s[z] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF

    words = [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *words, counter, 0, 0, 0]
    state = list(start)
    for _ in range(10):
        for column in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(state, *column)
        for diagonal in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(state, *diagonal)
    return b"".join(((x + y) & 0xFFFFFFFF).to_bytes(4, "little") for x, y in zip(state, start, strict=True))


def test_stream_is_the_zero_nonce_keystream_under_a_hashed_key() -> None:
    seed = bytes(range(32))
    key = hashlib.blake2b(seed + b"left", digest_size=32, person=b"tw/prg").digest()
    assert crypto.stream(seed, "left", 150) == (b"".join(chacha20_block(key, n) for n in range(3)))[:150]


def test_a_shorter_stream_is_a_prefix() -> None:
    assert crypto.stream(b"s", "p", 1000).startswith(crypto.stream(b"s", "p", 77))
    assert crypto.stream(b"s", "p", 64) != crypto.stream(b"s", "q", 64)
    assert crypto.stream(b"s", "p", 1000)[5 * 64 :] == crypto.stream(b"s", "p", 1000 - 5 * 64, first_block=5)


RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_rfc_8032_vectors(key: str, message: str, signature: str) -> None:
    k, m, s = (bytes.fromhex(part) for part in (key, message, signature))
    assert crypto.verify(k, m, s)
    assert not crypto.verify(k, m + b"x", s)
    assert not crypto.verify(k, m, s[:-1] + bytes([s[-1] ^ 1]))
    assert not crypto.verify(k, m, s[:-1])
    assert not crypto.verify(k + b"x", m, s)


def test_a_signature_with_the_group_order_added_is_refused() -> None:
    """S + L satisfies the same equation (RFC 8032, section 5.1.7, demands S < L)."""
    signature = ALICE.private.sign(b"m")
    s = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    assert crypto.verify(ALICE.public, b"m", signature)
    assert not crypto.verify(ALICE.public, b"m", signature[:32] + s.to_bytes(32, "little"))


Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    """Addition on −x² + y² = 1 + d·x²·y² (affine; RFC 8032, section 5.1)."""
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + t, P - 2, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - t, P - 2, P) % P,
    )


def points_with_y(y: int) -> list[Point]:
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    return [(x, y) for x in {root, P - root if root else 0}] if root * root % P == square else []


@pytest.mark.parametrize("y", sorted(crypto._SMALL_ORDER_Y))
def test_small_order_keys_are_refused(y: int) -> None:
    """Each excluded y really belongs to points of order 1, 2, 4 or 8, and both signs of x are refused."""
    points = points_with_y(y)
    assert points
    for point in points:
        doubled = point
        for _ in range(3):
            doubled = add(doubled, doubled)
        assert doubled == (0, 1)
    for sign in (0, 1):
        assert not crypto.is_strict_public_key((y | sign << 255).to_bytes(32, "little"))


def test_there_are_no_other_points_of_small_order() -> None:
    assert sum(len(points_with_y(y)) for y in crypto._SMALL_ORDER_Y) == 8


@pytest.mark.parametrize("y", [P, P + 1, P + 3, 2**255 - 1])
def test_non_canonical_keys_are_refused(y: int) -> None:
    for sign in (0, 1):
        assert not crypto.is_strict_public_key((y | sign << 255).to_bytes(32, "little"))


def test_the_forgery_that_a_small_order_key_allows_is_refused() -> None:
    """With A the neutral element, R = S·B verifies every message for verifiers that take such keys."""
    neutral = (1).to_bytes(32, "little")
    assert not crypto.verify(neutral, b"anything", neutral + bytes(32))


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_verify_never_raises(key: bytes, signature: bytes) -> None:
    assert not crypto.verify(key, b"m", signature)


def test_an_address_is_20_bytes_of_the_keys_hash() -> None:
    assert (
        crypto.address_of(ALICE.public)
        == hashlib.blake2b(ALICE.public, digest_size=32, person=b"tw/addr").digest()[:20]
    )
