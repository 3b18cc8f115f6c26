"""Who a node is: an Ed25519 key in a file that only its user reads, and the certificate that carries it in TLS.

The certificate is self-signed and the same at every start: nobody checks its dates or names, only that the other end
of the TLS session holds its key.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from consensus.crypto import H, is_strict_public_key
from consensus.errors import Refusal
from worker.files import OpenToOthers, create_private, read_private

_FIRST_DAY = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_NO_LAST_DAY = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""RFC 5280, 4.1.2.5: a certificate without a well-defined end."""

_MAX_KEY_FILE_BYTES = 4096

_RESTORE = "restore it, or remove it for a new identity"


class IdentityError(Refusal):
    """The key file cannot be used."""


@dataclass(frozen=True)
class Identity:
    """A node's key pair and certificate.

    Attributes:
        key: the public key, 32 bytes; it names the node.
        certificate: self-signed X.509, DER.
    """

    key: bytes
    certificate: bytes
    _private: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._private.sign(message)

    @property
    def private_pem(self) -> bytes:
        """The private key as PKCS #8, for the TLS library."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM, for the TLS library."""
        return x509.load_der_x509_certificate(self.certificate).public_bytes(Encoding.PEM)


def from_seed(seed: bytes) -> Identity:
    """The identity of a 32-byte Ed25519 seed."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tilework node")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1 + int.from_bytes(public[:16]))
        .not_valid_before(_FIRST_DAY)
        .not_valid_after(_NO_LAST_DAY)
        .sign(private, None)
    )
    return Identity(public, certificate.public_bytes(Encoding.DER), private)


def load_or_create(path: Path) -> Identity:
    """The identity in the PEM file `path`; a missing file is made, readable by its user alone.

    Raises:
        IdentityError: the file cannot be read, others can read it, or it holds no Ed25519 key.
    """
    try:
        if not path.exists():
            _create(path)
    except OSError as error:
        fix = "check the directory and the free space"
        raise IdentityError("key-unusable", f"cannot write the node key {path}: {error.strerror}", fix) from None
    try:
        private = load_pem_private_key(read_private(path, _MAX_KEY_FILE_BYTES), None)
    except OpenToOthers:
        raise IdentityError("key-unusable", f"{path} can be read by other users", f"run: chmod 600 {path}") from None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        raise IdentityError("key-unusable", f"{path} is no node key ({error})", _RESTORE) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise IdentityError("key-unusable", f"{path} holds another kind of key", _RESTORE)
    return from_seed(private.private_bytes_raw())


def certified_key(certificate: bytes) -> bytes | None:
    """The Ed25519 key (32 bytes) that a DER certificate carries; None where there is none that is acceptable."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm, InternalError, x509.InvalidVersion):
        return None
    if not isinstance(key, Ed25519PublicKey):
        return None
    raw = key.public_bytes_raw()
    return raw if is_strict_public_key(raw) else None


def certificate_hash(certificate: bytes) -> bytes:
    """H("tw/cert", DER): what a hello binds itself to."""
    return H("tw/cert", certificate)


def _create(path: Path) -> None:
    """Write a new key; if another process was faster, its key stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        create_private(path, from_seed(os.urandom(32)).private_pem)
