"""Accounts on disk: one JSON file per account in a directory, the key inside encrypted under a password.

Argon2id (RFC 9106) stretches the password into a cipher key and a check value; ChaCha20-Poly1305 (RFC 8439) encrypts
the private key with the whole header (address and KDF parameters included) as associated data. So the address can
be read without the password, and once the password is given any change of the file is noticed. The check value
tells a wrong password from a changed file, and commits to the key, which the cipher alone does not.

Deriving takes ~1 s and 256 MiB: asynchronous callers use a thread.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from consensus.address import NETWORK_PREFIXES, AddressError, encode_address, split_address
from consensus.crypto import address_of
from wallet.accounts.files import write_secret
from wallet.accounts.journal import Journal
from wallet.accounts.keys import SigningKey
from wallet.accounts.password import PUBLIC_PASSWORD
from wallet.errors import ExitCode, WalletError
from worker.files import OpenToOthers, read_private

MAX_FILE_BYTES = 16 << 10
MAX_MEMORY_KIB = 1 << 20
MAX_ITERATIONS = 16
MAX_LANES = 16

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)
_WORTHLESS = ("devnet", "regtest")
"""Networks whose money nobody minds to lose."""
_PUBLIC_MARK = "KEYS-ARE-PUBLIC"
_CIPHER_KEY_BYTES = 32
_CHECK_BYTES = 16

_Hex12 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{24}\Z")]
_Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Hex48 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{96}\Z")]
_Path = Annotated[str, msgspec.Meta(max_length=64)]


class KdfParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cost of one guess at the password (Argon2id). The defaults follow RFC 9106's advice for a laptop.

    The bounds hold for files too: nobody's file makes us allocate or compute more. Raises `ValueError`.
    """

    memory_kib: int = 256 << 10
    iterations: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= MAX_LANES:
            raise ValueError(f"lanes must be 1 … {MAX_LANES}, not {self.lanes}")
        if not 1 <= self.iterations <= MAX_ITERATIONS:
            raise ValueError(f"iterations must be 1 … {MAX_ITERATIONS}, not {self.iterations}")
        if not 8 * self.lanes <= self.memory_kib <= MAX_MEMORY_KIB:
            raise ValueError(f"memory_kib must be {8 * self.lanes} … {MAX_MEMORY_KIB}, not {self.memory_kib}")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What can be read without the password; authenticated as a whole."""

    version: Literal[1]
    address: str
    public_key: _Hex32
    path: _Path
    kdf: Literal["argon2id"]
    kdf_params: KdfParams
    salt: _Hex16
    cipher: Literal["chacha20-poly1305"]
    nonce: _Hex12


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: _Header
    check: _Hex16
    ciphertext: _Hex48


@dataclass(frozen=True, slots=True)
class Account:
    """What is public of a stored account."""

    name: str
    address: bytes
    prefix: str
    public_key: bytes
    path: str
    """Derivation path, or "" for a key that came from no mnemonic."""
    file: Path

    @property
    def address_text(self) -> str:
        """The address as shown."""
        return encode_address(self.address, self.prefix)


class Keystore:
    """The accounts of one directory. Each file is named after its account: <name>.json."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def journal(self) -> Journal:
        """What its accounts have signed."""
        return Journal(self.directory)

    def mark_public(self) -> None:
        """Say that what is in this directory is everybody's: no account of value is made here from now on."""
        self._make_directory()
        (self.directory / _PUBLIC_MARK).write_text("A devnet's accounts: their keys are public.\n")

    def names(self) -> list[str]:
        """Names of the accounts, sorted; none if there is no directory yet."""
        if not self.directory.is_dir():
            return []
        return sorted(file.stem for file in self.directory.glob("*.json") if _NAME.fullmatch(file.stem))

    def owner(self, address: bytes) -> Account:
        """The account of an address. Raises `WalletError` (account-not-found)."""
        for name in self.names():
            try:
                account = self.account(name)
            except WalletError:  # one bad file must not hide the other accounts
                continue
            if account.address == address:
                return account
        message = f"the account that sent it is not in {self.directory}"
        fix = "name its directory with --dir, or import its key there: tilework wallet import NAME"
        raise WalletError("account-not-found", message, fix, ExitCode.NOT_FOUND)

    def account(self, name: str) -> Account:
        """The public side of an account. Raises `WalletError`: account-not-found, keystore-*."""
        file = self._file(name)
        return _public_side(name, file, self._read(name).header)

    def check_free(self, name: str, network: str) -> None:
        """Raises `WalletError` if no account of `network` may be created under `name`: account-name, account-exists,
        and devnet-only where it would be of value in a devnet's directory, which `devnet reset` deletes."""
        if network not in _WORTHLESS and (self.directory / _PUBLIC_MARK).exists():
            message = f"{self.directory} is a devnet's, which `tilework devnet reset` deletes: no place for {network}"
            fix = "choose another directory (--dir PATH), in a shell that has not sourced the devnet's env"
            raise WalletError("devnet-only", message, fix)
        if os.path.lexists(self._file(name)):
            message = f"there is an account {name!r} in {self.directory} already"
            raise WalletError("account-exists", message, "choose another name; `tilework wallet list` shows them")

    def create(
        self,
        name: str,
        key: SigningKey,
        password: str,
        network: str,
        path: str = "",
        kdf_params: KdfParams | None = None,
    ) -> Account:
        """Store `key` as an account of `network`, encrypted; nothing is ever overwritten.

        Raises `WalletError`: file-not-written, as `check_free`, and devnet-only, too, where it would be of value under
        the devnet's password, which everybody knows.
        """
        self.check_free(name, network)
        if network not in _WORTHLESS and password == PUBLIC_PASSWORD:
            message = f"that password is the devnet's, which everybody knows: no account of {network} under it"
            fix = "give another --password-file, or none to be asked, in a shell that has not sourced the devnet's env"
            raise WalletError("devnet-only", message, fix)
        self._make_directory()
        params = kdf_params or KdfParams()
        salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
        header = _Header(
            version=1,
            address=encode_address(key.address, NETWORK_PREFIXES[network]),
            public_key=key.public_key.hex(),
            path=path,
            kdf="argon2id",
            kdf_params=params,
            salt=salt.hex(),
            cipher="chacha20-poly1305",
            nonce=nonce.hex(),
        )
        cipher_key, check = _derive(password, salt, params)
        ciphertext = ChaCha20Poly1305(cipher_key).encrypt(nonce, key.private_key, msgspec.msgpack.encode(header))
        content = msgspec.json.encode(_File(header, check.hex(), ciphertext.hex()))
        file = self._file(name)
        write_secret(file, msgspec.json.format(content, indent=2) + b"\n")
        return _public_side(name, file, header)

    def unlock(self, name: str, password: str) -> SigningKey:
        """The key of an account. Raises `WalletError`: account-not-found, wrong-password, keystore-*."""
        stored = self._read(name)
        header = stored.header
        cipher_key, check = _derive(password, bytes.fromhex(header.salt), header.kdf_params)
        if not hmac.compare_digest(check, bytes.fromhex(stored.check)):
            message = f"the password does not open account {name!r}"
            raise WalletError("wrong-password", message, "try again; without it, import the account from its words")
        try:
            private_key = ChaCha20Poly1305(cipher_key).decrypt(
                bytes.fromhex(header.nonce), bytes.fromhex(stored.ciphertext), msgspec.msgpack.encode(header)
            )
        except InvalidTag as error:
            message = f"{self._file(name)} was changed after it was written: do not pay to the address it shows"
            raise WalletError(
                "keystore-tampered", message, "restore the file from a copy, or import the account's words"
            ) from error
        return SigningKey(private_key)

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make the directory {self.directory}: {error.strerror}"
            fix = "choose another with --dir or TILEWORK_WALLET_DIR"
            raise WalletError("file-not-written", message, fix, ExitCode.INTERNAL) from error

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            message = f"{name!r} cannot name an account"
            fix = "use 1 to 32 of a-z, 0-9, - and _, beginning with a letter or digit"
            raise WalletError("account-name", message, fix, ExitCode.USAGE)
        return self.directory / f"{name}.json"

    def _read(self, name: str) -> _File:
        file = self._file(name)
        try:
            content = read_private(file, MAX_FILE_BYTES)
        except FileNotFoundError as error:
            message = f"there is no account {name!r} in {self.directory}"
            fix = "`tilework wallet list` shows the accounts; --dir or TILEWORK_WALLET_DIR chooses the directory"
            raise WalletError("account-not-found", message, fix, ExitCode.NOT_FOUND) from error
        except OSError as error:
            message = f"cannot read {file}: {error.strerror}"
            raise WalletError("keystore-unreadable", message, "check who owns the file, and its mode") from error
        except OpenToOthers as error:
            raise WalletError("keystore-mode", f"{file} has {error}", f"chmod 600 {file}") from None
        if len(content) > MAX_FILE_BYTES:
            raise _damaged(file, f"it is larger than {MAX_FILE_BYTES} bytes")
        try:
            return msgspec.json.decode(content, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(file, str(error)) from error


def _public_side(name: str, file: Path, header: _Header) -> Account:
    public_key = bytes.fromhex(header.public_key)
    try:
        prefix, address = split_address(header.address)
    except AddressError as error:
        raise _damaged(file, str(error)) from error
    if address != address_of(public_key):
        raise _damaged(file, "its address does not belong to its public key")
    return Account(name, address, prefix, public_key, header.path, file)


def _derive(password: str, salt: bytes, params: KdfParams) -> tuple[bytes, bytes]:
    """The cipher key and the check value. NFKC makes a password the same from every keyboard."""
    kdf = Argon2id(
        salt=salt,
        length=_CIPHER_KEY_BYTES + _CHECK_BYTES,
        iterations=params.iterations,
        lanes=params.lanes,
        memory_cost=params.memory_kib,
    )
    try:
        derived = kdf.derive(unicodedata.normalize("NFKC", password).encode())
    except MemoryError as error:
        message = f"this account needs {params.memory_kib >> 10} MiB of memory for a moment"
        raise WalletError("out-of-memory", message, "close other programs and try again") from error
    return derived[:_CIPHER_KEY_BYTES], derived[_CIPHER_KEY_BYTES:]


def _damaged(file: Path, detail: str) -> WalletError:
    fix = "restore the file from a copy, or import the account from its words"
    return WalletError("keystore-damaged", f"{file} is damaged or no account file: {detail}", fix)
