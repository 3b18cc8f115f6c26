"""What keeps a node from being of use though it runs: said once in the log, and in `node_info` while it is so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from consensus.address import encode_address
from consensus.rules import workers
from consensus.state import WORKERS, StateReader, Worker, ledger
from node.compute import Compute
from node.rpc.context import ReadChain
from node.rpc.methods.chain import is_syncing

logger = logging.getLogger("tilework.node")

LOOK_SECONDS = 5.0
QUIET_SECONDS = 60.0
QUIET_BLOCKS = 30
"""Without a block for so many intended block times, and so many seconds, nobody mines: chance alone would need e³⁰
attempts for that."""


class Notes:
    """Used on the event loop.

    Attributes:
        texts: what there is to say now.
    """

    def __init__(
        self,
        chain: ReadChain,
        peers: Callable[[], int],
        worker: bytes | None,
        compute: Compute,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`peers` counts those connected, or configured; `worker` is who is mined for; `compute` reads the state."""
        self.texts: tuple[str, ...] = ()
        self._chain = chain
        self._peers = peers
        self._worker = worker
        self._compute = compute
        self._clock = clock
        self._tip = chain.tip
        self._since = clock()
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """See how things are, and log what is new."""
        found = {kind: text for kind, text in await self._found() if text}
        for kind in found.keys() - self._told:
            logger.log(logging.INFO if kind == "worker" else logging.WARNING, found[kind])
        self._told = set(found)
        self.texts = tuple(found.values())

    async def _found(self) -> list[tuple[str, str]]:
        worker = "" if self._worker is None else await self._compute.run(self._why_not_dealt, self._worker)
        return [("alone", self._why_alone()), ("quiet", self._why_quiet()), ("worker", worker)]

    def _why_alone(self) -> str:
        if self._chain.params.network != "mainnet" or self._peers():
            return ""
        return (
            "no peer is connected, and there is no public network yet: name a node that you know with --peer "
            "HOST:PORT, or try everything on this machine with `tilework devnet up`"
        )

    def _why_quiet(self) -> str:
        if self._chain.tip is not self._tip or is_syncing(self._chain):
            self._tip, self._since = self._chain.tip, self._clock()
        quiet = self._clock() - self._since
        if quiet < quiet_limit(self._chain.params.spacing_ms):
            return ""
        return f"all miners are gone: no block for {quiet:.0f} s, so that nothing is confirmed, dealt or paid"

    def _why_not_dealt(self, address: bytes) -> str:
        """Why the node's own worker is dealt no packets."""
        params = self._chain.params

        def read(reader: StateReader) -> tuple[Worker | None, int]:
            return WORKERS.get(reader, address), ledger(reader).tick

        worker, tick = self._chain.read(read)
        if worker is None:
            text = encode_address(address, params.address_prefix)
            return f"the worker {text} is not registered, and mines idle units only: see `tilework worker register`"
        if worker.retired_at:
            return "the worker is retired, and mines idle units only: `tilework worker register` brings it back"
        if worker.announced_for and not worker.declared.places:
            return ""  # on its way
        if workers.is_active(params, worker, tick):
            return ""
        return "the worker is dealt nothing: it was not seen for long, or its bond is used up; register it again"


def quiet_limit(spacing_ms: int) -> float:
    """Seconds without a block after which it is said, on a network with that spacing."""
    return max(QUIET_SECONDS, QUIET_BLOCKS * spacing_ms / 1000)
