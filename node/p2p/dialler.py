"""Whom to dial, and when again: configured peers for ever, the others out of the address book."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from node.p2p.admission import Admission
from node.p2p.book import Book, network_group
from node.p2p.handshake import Refused
from node.p2p.limits import PeerLimits
from node.p2p.messages import Leave
from node.p2p.peer import Peer
from node.p2p.transport import ConnectionLost, Endpoint

logger = logging.getLogger("tilework.network")


class Dialler:
    """Keeps the outbound places filled.

    Attributes:
        own: where this node itself listens, if it does: not to be dialled.
    """

    def __init__(
        self,
        connect: Callable[[Endpoint], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        admission: Admission[Peer],
        book: Book,
        limits: PeerLimits,
        clock: Callable[[], int],
        rng: random.Random,
    ) -> None:
        """`connect` runs one connection from start to end; Refused, ConnectionLost where it did not come about.

        `spawn` starts a task of the network's; `clock` gives Unix milliseconds.
        """
        self.own: Endpoint | None = None
        self._connect = connect
        self._spawn = spawn
        self._admission = admission
        self._book = book
        self._limits = limits
        self._clock = clock
        self._rng = rng
        self._keys: dict[Endpoint, bytes] = {}
        self._dialling: set[Endpoint] = set()
        self._static: set[Endpoint] = set()

    def keep(self, address: Endpoint) -> None:
        """Dial an address from now on, again and again."""
        if address not in self._static:
            self._static.add(address)
            self._spawn(self._keep_dialling(address))

    def note_key(self, address: Endpoint, key: bytes) -> None:
        """Which node listens at an address, as it proved when it was dialled: it is not dialled again while that node
        is connected. What a stranger says of itself does not count, or it could keep a configured peer from being
        dialled."""
        self._keys[address] = key

    async def fill(self) -> None:
        """Fill the outbound places: first with the anchors, then from the book, one network group each."""
        waiting = list(self._book.anchors)
        while True:
            if len(self._dialling) < self._limits.max_outbound:  # an address stays there while its session lasts
                address = waiting.pop(0) if waiting else self._pick()
                if address is not None and address not in self._dialling | self._static:
                    self._spawn(self._dial_once(address))
            await asyncio.sleep(self._limits.book_dial_s * self._rng.uniform(0.5, 1.0))

    async def _keep_dialling(self, address: Endpoint) -> None:
        """A configured peer: dial, and dial again with growing, jittered pauses, for ever."""
        pause = self._limits.backoff_first_s
        loop = asyncio.get_running_loop()
        while True:
            key = self._keys.get(address)
            if key is None or (key not in self._admission and not self._admission.is_cooling(key)):
                begun = loop.time()
                try:
                    await self._dial(address)
                except Refused as refusal:
                    logger.info("peer refuses", extra={"address": str(address), "why": str(refusal)})
                    if refusal.reason is Leave.SELF:
                        return
                except ConnectionLost as error:
                    logger.debug("dial failed", extra={"address": str(address), "why": str(error)})
                lasted = loop.time() - begun > 2 * self._limits.backoff_most_s
                pause = self._limits.backoff_first_s if lasted else min(2 * pause, self._limits.backoff_most_s)
            else:
                pause = self._limits.backoff_first_s
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))

    async def _dial_once(self, address: Endpoint) -> None:
        try:
            await self._dial(address)
        except Refused as refusal:
            if refusal.reason in (Leave.SELF, Leave.WRONG_GENESIS):
                self._book.forget(address)
            else:
                self._book.note_failure(address, self._clock())
        except ConnectionLost:
            self._book.note_failure(address, self._clock())
        finally:
            if address not in self._static and self._keys.get(address) not in self._admission:
                self._keys.pop(address, None)

    async def _dial(self, address: Endpoint) -> None:
        self._dialling.add(address)
        try:
            await self._connect(address)
        finally:
            self._dialling.discard(address)

    def _pick(self) -> Endpoint | None:
        present = self._admission.present()
        connected = {peer.home for peer in present}
        connected |= {address for address, key in self._keys.items() if key in self._admission}
        groups = {_group(address) for address in self._dialling}  # those that are being dialled, and those connected
        own = {self.own} if self.own is not None else set()
        return self._book.pick(self._clock(), connected | self._dialling | self._static | own, groups)


def _group(address: Endpoint) -> str:
    try:
        return network_group(address)
    except ValueError:
        return address.host
