"""The devnet's ten accounts. THEIR KEYS ARE PUBLIC: anyone can take whatever is sent to them, on any network.

They are accounts 0 … 9 of the mnemonic below, the usual one of test networks, at the wallet's own paths (a test derives
them anew). They stand here derived, since a node knows nothing of mnemonics.
"""

from __future__ import annotations

from consensus.crypto import H
from consensus.params import TILE, Allocation
from worker.key import WorkerKey

MNEMONIC = "test test test test test test test test test test test junk"

FUNDS = 1_000_000 * TILE
"""Grains that genesis gives to each account."""

SECRETS = tuple(
    map(
        bytes.fromhex,
        (
            "6e2c0cfd4bfd8cdd80b1eaef763ec4af3d6d96864f270ad7be8a150fca2bda19",
            "05861fe1bb5caff24aa56dae7951503d8c1c5ce85ab03a8f68e1cbfa94bae56d",
            "fcb305af3910a27b87eed81655728a76627ef55d99da78f5da2243e5e5aac82e",
            "3786b82d81f46ff1207dffbe68851759eb6ec7d514e2423810619b03aa8792f3",
            "c3b6d1031665e28886feda2c65aeb681341d471a4470f7bdd26feb5d1cc2d1b5",
            "f990adb0f5e4676c0dbd891088891a52a8a1529e8c5ec7d4cbfe58bea09049b9",
            "cdaee2b1a414115e2d88fa3c14748cc3db74d5c3d26cece78f91b91f30651a80",
            "5e8c6786a3e981389458e44a62bb6033fc0ec4cedb43c8f407f6549018cd76df",
            "871ad01f565b35dffe9c24761fbc7dbde70bb85f7a51676f04708af6c32a5ebf",
            "77193add963c2e49f7145012c65f70281ea721cf42e0fd2dfdb83c13737aa483",
        ),
    )
)
"""Ed25519 private keys (RFC 8032), 32 bytes each."""


def account(index: int) -> WorkerKey:
    """Account `index` (0 … 9) with a sealing key, as public as the rest, so that it can serve as a worker."""
    secret = SECRETS[index]
    return WorkerKey(secret, H("tw/devnet", secret))


def allocations() -> tuple[Allocation, ...]:
    """What genesis gives."""
    return tuple(Allocation(account(index).address, FUNDS) for index in range(len(SECRETS)))
