"""Who is connected, and who may be: places, cooling-off after misbehaviour, one connection for each pair of nodes.

Whoever comes finds a place: where all are taken, a newcomer pushes out somebody of the most crowded network group, so
that nobody can hold them all with idle connections (as Bitcoin Core does it). The peers that answer quickest, that
brought transactions or blocks lately, and those that have stood longer than half of their crowd are not pushed out.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from node.p2p.limits import PeerLimits
from node.p2p.messages import Leave
from node.p2p.transport import Endpoint, host_group, household_of, is_local


class Connected(Protocol):
    """What is needed of a peer.

    Attributes:
        key: its node's, 32 bytes.
        since: when it came; the event loop's seconds, as the next two.
        brought_block_at, brought_item_at: when it last was the first to bring a block, a transaction or a Result; -inf
            where it never did.
        latency_ms: None before its first answer.
    """

    key: bytes
    address: Endpoint
    inbound: bool
    since: float
    brought_block_at: float
    brought_item_at: float
    latency_ms: float | None

    @property
    def is_gone(self) -> bool: ...
    def leave(self, reason: Leave) -> None: ...


_MANY = 4
"""So many peers of one network, and none of another, are no chance."""

P = TypeVar("P", bound=Connected)


class Admission(Generic[P]):
    """The connected peers by their nodes' keys, and the reasons for which others are turned away."""

    def __init__(self, own_key: bytes, limits: PeerLimits, rng: random.Random) -> None:
        self._own_key = own_key
        self._limits = limits
        self._rng = rng
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
        household = household_of(host)
        if self.is_cooling(household):
            return Leave.COOLING_DOWN
        same = sum(household_of(peer.address.host) == household for peer in self._inbound())
        if same >= self._limits.max_inbound_per_host and not is_local(host):
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
        if inbound and self._is_full() and not self._evictable():
            return Leave.FULL
        return None

    # ------------------------------------------------------------------ coming and going

    def admit(self, peer: P) -> None:
        """Both ends have agreed. Whom it replaces is sent away, or whom it pushes out."""
        replaced = self._peers.get(peer.key)
        if replaced is not None:
            replaced.leave(Leave.DUPLICATE)
        if peer.inbound and self._is_full() and (crowd := self._evictable()):
            self._rng.choice(crowd).leave(Leave.FULL)
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
        if not is_local(peer.address.host):
            self._cooling[household_of(peer.address.host)] = until
        while len(self._cooling) > self._limits.max_cooling:
            self._cooling.popitem(last=False)

    def is_cooling(self, who: bytes | str) -> bool:
        """Whether a key or a household is left alone."""
        return self._cooling.get(who, 0.0) > asyncio.get_running_loop().time()

    def only_group(self) -> str:
        """The one network group of all peers, if they could lead this node astray together; empty where there are more
        groups, few peers, or local ones."""
        hosts = [peer.address.host for peer in self.present()]
        groups = {host_group(host) for host in hosts}
        return groups.pop() if len(groups) == 1 and len(hosts) >= _MANY and not any(map(is_local, hosts)) else ""

    # ------------------------------------------------------------------ places

    def _inbound(self) -> list[P]:
        return [peer for peer in self.present() if peer.inbound]

    def _is_full(self) -> bool:
        return len(self._inbound()) >= self._limits.max_inbound

    def _evictable(self) -> list[P]:
        """Any of these may go: of the peers without merit those of the most crowded network group, its younger half."""
        peers = self._inbound()
        few = self._limits.max_inbound // 16
        crowds = Counter(host_group(peer.address.host) for peer in peers)
        protect: list[tuple[int, Callable[[P], float]]] = [
            (2 * few, lambda peer: -math.inf if peer.latency_ms is None else -peer.latency_ms),
            (few, lambda peer: peer.brought_item_at),
            (few, lambda peer: peer.brought_block_at),
        ]
        for count, merit in protect:
            best = sorted((peer for peer in peers if merit(peer) > -math.inf), key=merit, reverse=True)[:count]
            peers = [peer for peer in peers if peer not in best]
        most = max((crowds[host_group(peer.address.host)] for peer in peers), default=0)
        crowd = [peer for peer in peers if crowds[host_group(peer.address.host)] == most]
        return sorted(crowd, key=lambda peer: peer.since)[len(crowd) // 2 :]
