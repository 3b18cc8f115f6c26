"""The key file of a mining node, the one secret that a node holds: it signs Results, and packets are sealed to it.

A worker is an account, so whoever has this file can spend what the worker has earned: it is created with mode 0600,
and a file that others could read is refused.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from consensus import crypto
from consensus.block import Answer, PacketUnit, Unit
from consensus.errors import Refusal
from consensus.tensor import Tensor
from consensus.transaction import Result, ResultBody, Transaction, TxBody
from worker.files import OpenToOthers, create_private, read_private, text_of

_VERSION = 1
_SECRET_BYTES = 32
_MAX_FILE_BYTES = 1024


class WorkerKeyError(Refusal):
    """A key file that cannot be used. `message` says why and `fix` what to do; neither holds a secret."""


class WorkerKeyUnreadable(WorkerKeyError):
    """There is no such file, or the system does not let us read it."""


class WorkerKeyMalformed(WorkerKeyError):
    """The file holds something else."""


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: both secrets in hex. A key with expanded or encrypted secrets would be another version.

    `check` follows from them: any other 32 bytes are a key, too, and whatever they earned would not be found again. It
    is empty in older files.
    """

    version: int
    ed25519: str
    x25519: str
    check: str = ""


class WorkerKey:
    """A worker's Ed25519 account key and X25519 sealing key.

    Attributes:
        public_key: Ed25519, 32 bytes; sender of the worker's transactions.
        x25519_key: X25519, 32 bytes; what `RegisterWorker` declares.
        address: the worker's account, 20 bytes.
    """

    def __init__(self, ed25519_secret: bytes, x25519_secret: bytes) -> None:
        """From two secrets of 32 bytes; ValueError on another length."""
        self._secrets = ed25519_secret, x25519_secret
        self._signer = Ed25519PrivateKey.from_private_bytes(ed25519_secret)
        self.public_key = self._signer.public_key().public_bytes_raw()
        self.x25519_key = X25519PrivateKey.from_private_bytes(x25519_secret).public_key().public_bytes_raw()
        self.address = crypto.address_of(self.public_key)

    def __repr__(self) -> str:
        return f"WorkerKey({self.address.hex()})"

    @classmethod
    def generate(cls) -> WorkerKey:
        """A new key from the system's randomness."""
        return cls(secrets.token_bytes(_SECRET_BYTES), secrets.token_bytes(_SECRET_BYTES))

    @classmethod
    def load(cls, path: Path) -> WorkerKey:
        """The key in `path`; WorkerKeyError if it cannot be read, is open to others, or is no key file."""
        try:
            data = read_private(path, _MAX_FILE_BYTES)
        except OSError as error:
            fix = "check the path; `tilework worker register`, or a node that mines, makes a new key there"
            raise WorkerKeyUnreadable(
                "worker-key", f"cannot read the worker key {path}: {error.strerror}", fix
            ) from None
        except OpenToOthers as error:
            message = f"the worker key {path} is open to other users (mode {error.mode:04o})"
            raise WorkerKeyError("worker-key", message, f"run: chmod 600 {path}") from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, name: str) -> WorkerKey:
        """The key in the content of a key file called `name`; WorkerKeyMalformed if it is none."""
        try:
            if len(data) > _MAX_FILE_BYTES:
                raise ValueError("too large")
            stored = msgspec.json.decode(text_of(data), type=_Stored)
            if stored.version != _VERSION:
                raise ValueError("another version")
            pair = bytes.fromhex(stored.ed25519), bytes.fromhex(stored.x25519)
            if stored.check and stored.check != _check_of(*pair):
                raise ValueError("changed")
            return cls(*pair)
        except ValueError:  # the cause could quote the file
            raise WorkerKeyMalformed(
                "worker-key", f"{name} is not a worker key", "restore it from a backup or move it away"
            ) from None

    @classmethod
    def load_or_create(cls, path: Path) -> WorkerKey:
        """The key in `path`, made now if there is none. Never replaces a file."""
        if not os.path.lexists(path):
            with contextlib.suppress(FileExistsError):  # another process was first: its key is the one
                cls.generate().create(path)
        return cls.load(path)

    def create(self, path: Path) -> None:
        """Write a new key file: complete and mode 0600 from the moment it can be seen.

        Raises:
            FileExistsError: there is something at `path`; it stays as it is.
            WorkerKeyError: the file cannot be written.
        """
        ed25519, x25519 = self._secrets
        stored = _Stored(_VERSION, ed25519.hex(), x25519.hex(), _check_of(ed25519, x25519))
        data = msgspec.json.encode(stored) + b"\n"
        try:
            create_private(path, data)
        except FileExistsError:
            raise
        except OSError as error:
            message = f"cannot write the worker key {path}: {error.strerror}"
            raise WorkerKeyError("worker-key", message, "check the directory and the free space") from error

    @property
    def account_secret(self) -> bytes:
        """The 32 secret bytes of the account (RFC 8032): whoever has them can spend what it earned."""
        return self._secrets[0]

    def result(self, packet_id: bytes, product: bytes, genesis_hash: bytes) -> Result:
        """A signed claim that `product` (a commitment) is the packet's product."""
        body = ResultBody(packet_id, self.address, product)
        return Result(body, self._signer.sign(body.signing_hash(genesis_hash)))

    def answer(self, packet_id: bytes, product: bytes, genesis_hash: bytes) -> Answer:
        """The same claim in short, as it stands beside a header whose unit is the packet."""
        return Answer(product, self.public_key, self.result(packet_id, product, genesis_hash).signature)

    def answer_of(self, unit: Unit, product: Tensor | None, genesis_hash: bytes) -> Answer | None:
        """What stands beside the header of a unit that won; None where nobody needs its product."""
        if not isinstance(unit, PacketUnit) or product is None:
            return None
        return self.answer(unit.packet_id, product.commitment, genesis_hash)

    def transaction(self, body: TxBody, genesis_hash: bytes) -> Transaction:
        """Sign a transaction of the worker's own account: a registration, a payment of what it earned."""
        assert body.sender == self.public_key, "another account's transaction"
        return Transaction(body, self._signer.sign(body.signing_hash(genesis_hash)))


def _check_of(ed25519_secret: bytes, x25519_secret: bytes) -> str:
    return crypto.H("tw/worker-file", ed25519_secret + x25519_secret)[:8].hex()
