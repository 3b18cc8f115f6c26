"""The node key file and the certificate that carries the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from consensus.crypto import verify
from node.p2p.identity import IdentityError, certified_key, from_seed, load_or_create


def test_a_key_is_made_once_and_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.key"
    first = load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(path) == first or load_or_create(path).certificate == first.certificate
    assert [entry.name for entry in path.parent.iterdir()] == ["node.key"]
    assert verify(first.key, b"message", first.sign(b"message"))


def test_the_certificate_carries_the_key_and_is_signed_by_it() -> None:
    identity = from_seed(bytes(range(32)))
    assert certified_key(identity.certificate) == identity.key
    certificate = x509.load_der_x509_certificate(identity.certificate)
    key = certificate.public_key()
    assert isinstance(key, Ed25519PublicKey)
    key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    assert from_seed(bytes(range(32))).certificate == identity.certificate


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_or_create(path)


def _x25519() -> bytes:
    return X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


_TOO_SHORT = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VvBCIEIHExqH0yiX9dQuu+rX90dpf+0G1+HsvNoswTQ/T0xGir
-----END PRIVATE KEY-----
"""
"""An X448 key of 32 bytes."""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"-----BEGIN PRIVATE KEY-----\n",
        b"\x00" * 10_000,
        _x25519(),
        _TOO_SHORT,
    ],
)
def test_a_damaged_key_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="restore it, or remove it"):
        load_or_create(path)
    assert path.read_bytes() == content


def test_no_key_comes_from_what_is_no_certificate() -> None:
    assert certified_key(b"") is None
    assert certified_key(b"\x30\x82" + bytes(100)) is None


@pytest.mark.parametrize("version", [1, 3, 127])
def test_a_certificate_of_another_version_carries_no_key(version: int) -> None:
    certificate = from_seed(bytes(32)).certificate
    third = b"\xa0\x03\x02\x01\x02"
    assert certified_key(certificate.replace(third, third[:-1] + bytes((version,)), 1)) is None
