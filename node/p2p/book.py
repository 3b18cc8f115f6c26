"""Addresses of other nodes: where to dial when the configured peers are not enough.

Addresses stand in buckets by network group (the /16 of an IPv4 address, the /32 of an IPv6 one), under a secret of this
node's own, so that whoever owns one network fills few buckets and cannot tell which (Heilman et al., "Eclipse Attacks
on Bitcoin's Peer-to-Peer Network", 2015). Anchors, the last outbound peers, survive restarts and are dialled first.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import random
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from consensus.crypto import H
from node.p2p.limits import PeerLimits
from node.p2p.transport import Endpoint, host_group, ip_of

logger = logging.getLogger("tilework.network")

BUCKETS = 64
BUCKET_SIZE = 16
BUCKETS_PER_SOURCE = 4
"""Buckets that one network group's addresses can reach at all."""
MAX_ANCHORS = 4
MAX_FAILURES = 8
"""Dials in a row after which an address that never answered is forgotten."""
MAX_FILE_BYTES = 1 << 20


class Entry(msgspec.Struct):
    """One address and what is known of it. Times are Unix milliseconds, 0 where it never happened."""

    host: str
    port: int
    seen_ms: int = 0
    answered_ms: int = 0
    tried_ms: int = 0
    failures: int = 0

    @property
    def address(self) -> Endpoint:
        """Where to dial."""
        return Endpoint(self.host, self.port)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    secret: str
    anchors: list[str]
    entries: list[Entry]


def network_group(address: Endpoint) -> str:
    """The network that an address to dial belongs to; ValueError for a name. On loopback every port is a node of its
    own."""
    return str(address) if ip_of(address.host).is_loopback else host_group(address.host)


def is_acceptable(address: Endpoint, allow_private: bool) -> bool:
    """Whether an address that a stranger names may be dialled: an IP literal that leads to a public host.

    `allow_private` (devnet) takes loopback and private networks as well.
    """
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        return False
    if not 1 <= address.port <= 65535 or ip.is_multicast or ip.is_unspecified:
        return False
    if ip.is_loopback:
        return allow_private
    return not ip.is_reserved and (ip.is_global or (allow_private and ip.is_private))


class Book:
    """A bounded set of addresses: at most `BUCKETS` × `BUCKET_SIZE`."""

    def __init__(
        self, allow_private: bool, rng: random.Random, limits: PeerLimits, secret: bytes | None = None
    ) -> None:
        self._allow_private = allow_private
        self._rng = rng
        self._limits = limits
        self._secret = secret or os.urandom(16)
        self._buckets: list[dict[Endpoint, Entry]] = [{} for _ in range(BUCKETS)]
        self.anchors: list[Endpoint] = []

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets)

    def __contains__(self, address: Endpoint) -> bool:
        return address in self._bucket(address)

    def add(self, address: Endpoint, now_ms: int) -> bool:
        """Remember an address that somebody named; False if it is not acceptable or better ones fill its bucket."""
        if not is_acceptable(address, self._allow_private):
            return False
        bucket = self._bucket(address)
        if (known := bucket.get(address)) is not None:
            known.seen_ms = max(known.seen_ms, now_ms)
            return True
        if len(bucket) >= BUCKET_SIZE:
            worst = max(bucket.values(), key=lambda entry: (entry.answered_ms == 0, entry.failures, -entry.seen_ms))
            if worst.answered_ms and not worst.failures:
                return False
            if not worst.failures and self._rng.random() < 0.5:
                return False  # nobody can push out all untried addresses by naming many
            del bucket[worst.address]
        bucket[address] = Entry(address.host, address.port, seen_ms=now_ms)
        return True

    def note_answer(self, address: Endpoint, now_ms: int) -> None:
        """A dialled address turned out to be a node of this network."""
        if self.add(address, now_ms):
            entry = self._bucket(address)[address]
            entry.answered_ms = entry.tried_ms = now_ms
            entry.failures = 0

    def note_failure(self, address: Endpoint, now_ms: int) -> None:
        """A dial failed. Who never answered is forgotten after a while; who did is kept for better days."""
        entry = self._bucket(address).get(address)
        if entry is None:
            return
        entry.tried_ms = now_ms
        entry.failures += 1
        if entry.failures >= MAX_FAILURES and (not entry.answered_ms or entry.failures >= 4 * MAX_FAILURES):
            del self._bucket(address)[address]

    def forget(self, address: Endpoint) -> None:
        """This one leads nowhere, or back here."""
        self._bucket(address).pop(address, None)

    def pick(self, now_ms: int, avoid: Collection[Endpoint], groups: Collection[str]) -> Endpoint | None:
        """An address to dial that has rested from failures: a random bucket's, not in `avoid`, in none of `groups`."""
        order = list(range(BUCKETS))
        self._rng.shuffle(order)
        for number in order:
            rested = [
                entry
                for entry in self._buckets[number].values()
                if entry.address not in avoid
                and network_group(entry.address) not in groups
                # A time that is still to come was noted under a clock that has been corrected since.
                and not 0 <= now_ms - entry.tried_ms < self._rest_ms(entry)
            ]
            if rested:
                return self._rng.choice(rested).address
        return None

    def sample(self, count: int) -> list[Endpoint]:
        """Some addresses that answered lately, for a peer who asks."""
        good = [entry.address for bucket in self._buckets for entry in bucket.values() if entry.answered_ms]
        return self._rng.sample(good, min(count, len(good)))

    def set_anchors(self, addresses: Iterable[Endpoint]) -> None:
        """The present outbound peers."""
        self.anchors = [a for a in addresses if is_acceptable(a, self._allow_private)][:MAX_ANCHORS]

    # ------------------------------------------------------------------ the file

    def dump(self) -> bytes:
        """The book as JSON."""
        entries = [entry for bucket in self._buckets for entry in bucket.values()]
        return msgspec.json.encode(_File(1, self._secret.hex(), [str(a) for a in self.anchors], entries))

    def load(self, data: bytes) -> None:
        """Take over what `dump` wrote. Every address is checked like a stranger's: files are edited.

        Raises:
            ValueError: not a book.
        """
        try:
            file = msgspec.json.decode(data, type=_File)
            secret = bytes.fromhex(file.secret)
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"no address book: {error}") from None
        if file.version != 1 or len(secret) != 16:
            raise ValueError(f"no address book of version 1: {file.version}")
        self._secret = secret
        self._buckets = [{} for _ in range(BUCKETS)]
        for entry in file.entries:
            if self.add(entry.address, entry.seen_ms):
                self._bucket(entry.address)[entry.address] = entry
        for text in file.anchors[:MAX_ANCHORS]:
            with contextlib.suppress(ValueError):
                self.set_anchors([*self.anchors, Endpoint.parse(text)])

    def _bucket(self, address: Endpoint) -> dict[Endpoint, Entry]:
        """The group chooses a few buckets, the address one of them."""
        try:
            group = network_group(address)
        except ValueError:
            return {}
        slot = H("tw/slot", self._secret + str(address).encode())[0] % BUCKETS_PER_SOURCE
        number = H("tw/bucket", self._secret + group.encode() + bytes([slot]))
        return self._buckets[int.from_bytes(number[:4], "big") % BUCKETS]

    def _rest_ms(self, entry: Entry) -> int:
        """Pause before the next dial: doubles with every failure in a row."""
        if not entry.tried_ms:
            return 0
        most = 64 * self._limits.backoff_most_s
        return int(1000 * min(most, self._limits.backoff_most_s * 2 ** min(entry.failures, 10) / 2))


def read_book(book: Book, path: Path) -> None:
    """Fill `book` from a file; a damaged one is reported and left aside: addresses can be learnt again."""
    try:
        with path.open("rb") as file:
            book.load(file.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("address book not read", extra={"path": str(path), "why": str(error)})


def write_book(data: bytes, path: Path) -> None:
    """Replace the file in one step; a full disk is reported, and the old book stays."""
    fresh = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        logger.warning("address book not written", extra={"path": str(path), "why": str(error)})
