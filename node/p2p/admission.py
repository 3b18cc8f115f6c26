"""Who is connected, and who may be: places, cooling-off after misbehaviour, one connection for each pair of nodes."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from node.p2p.limits import PeerLimits
from node.p2p.messages import Leave
from node.p2p.transport import Endpoint


class Connected(Protocol):
    """What is needed of a peer. `key` is its node's, 32 bytes."""

    key: bytes
    address: Endpoint
    inbound: bool

    @property
    def is_gone(self) -> bool: ...
    def leave(self, reason: Leave) -> None: ...


P = TypeVar("P", bound=Connected)


class Admission(Generic[P]):
    """The connected peers by their nodes' keys, and the reasons for which others are turned away."""

    def __init__(self, own_key: bytes, limits: PeerLimits) -> None:
        self._own_key = own_key
        self._limits = limits
        self._peers: dict[bytes, P] = {}
        self._cooling: OrderedDict[bytes | str, float] = OrderedDict()
        self._closed = False

    def __contains__(self, key: bytes | None) -> bool:
        return key in self._peers

    def present(self) -> list[P]:
        """The peers whose sessions have not ended."""
        return [peer for peer in self._peers.values() if not peer.is_gone]

    def close(self) -> None:
        """Admit nobody from now on."""
        self._closed = True

    # ------------------------------------------------------------------ who is wanted

    def unwanted_host(self, host: str) -> Leave | None:
        """Why a connection from this host is not even greeted."""
        if self._closed:
            return Leave.STOPPING
        if self.is_cooling(host):
            return Leave.COOLING_DOWN
        same = sum(peer.inbound and peer.address.host == host for peer in self.present())
        if same >= self._limits.max_inbound_per_host and not _is_local(host):
            return Leave.FULL
        return None

    def unwanted(self, key: bytes, inbound: bool) -> Leave | None:
        """Why a node with this key is not wanted, or no longer."""
        if self._closed:
            return Leave.STOPPING
        if self.is_cooling(key):
            return Leave.COOLING_DOWN
        present = self._peers.get(key)
        if present is not None and not present.is_gone:
            # Two nodes that dial each other at once must keep the same connection: the one that the lesser key dialled.
            lesser_dialled = (key < self._own_key) == inbound
            return None if present.inbound != inbound and lesser_dialled else Leave.DUPLICATE
        if inbound and sum(peer.inbound for peer in self.present()) >= self._limits.max_inbound:
            return Leave.FULL
        return None

    # ------------------------------------------------------------------ coming and going

    def admit(self, peer: P) -> None:
        """Both ends have agreed. Whom it replaces is sent away."""
        replaced = self._peers.get(peer.key)
        if replaced is not None:
            replaced.leave(Leave.DUPLICATE)
        self._peers[peer.key] = peer

    def discharge(self, peer: P, misbehaved: bool) -> None:
        """A session has ended. Whoever misbehaved is left alone for a while: its key, and its host unless many honest
        nodes may share it."""
        if self._peers.get(peer.key) is peer:
            del self._peers[peer.key]
        if not misbehaved:
            return
        until = asyncio.get_running_loop().time() + self._limits.cool_down_s
        self._cooling[peer.key] = until
        if not _is_local(peer.address.host):
            self._cooling[peer.address.host] = until
        while len(self._cooling) > self._limits.max_cooling:
            self._cooling.popitem(last=False)

    def is_cooling(self, who: bytes | str) -> bool:
        """Whether a key or a host is left alone."""
        return self._cooling.get(who, 0.0) > asyncio.get_running_loop().time()


def _is_local(host: str) -> bool:
    """Loopback and private networks: many nodes may share the host."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False
