"""A TCP proxy in user space that delays, stalls and cuts what passes: a network's bad days, from one seed.

TCP never loses bytes, it delays them until they were sent again; so "loss" here holds a chunk, and all that follows it,
back for a retransmission's time. The proxy leaves from an address of its own: peers learn nothing from it that would
lead around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from types import TracebackType

HOST = "127.0.0.1"
SOURCE = "127.0.0.9"
"""Where connections to the target seem to come from; nobody listens there."""
CHUNK_BYTES = 16 << 10
RETRANSMISSION_S = 0.25


class Proxy:
    """Forwards connections to `target_port` from `port`, on a thread of its own. `with` it.

    `delay_s` is added to each chunk, `loss` the chance that a chunk is "lost". `cut()` drops every connection and takes
    no more, until `heal()`.
    """

    def __init__(self, target_port: int, seed: int = 0, delay_s: float = 0.0, loss: float = 0.0) -> None:
        self.port = 0
        self._target_port = target_port
        self._rng = random.Random(seed)
        self._delay_s = delay_s
        self._loss = loss
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    def cut(self) -> None:
        """Partition: connections end, and new ones end at once."""
        self._loop.call_soon_threadsafe(self._cut)

    def heal(self) -> None:
        """Forward again."""
        self._is_cut = False

    def _cut(self) -> None:
        self._is_cut = True
        for writer in self._open:
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0.05))

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()
        self._cut()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            onward = await asyncio.open_connection(HOST, self._target_port, local_addr=(SOURCE, 0))
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, onward[1]}
        self._open |= ends
        try:
            await asyncio.gather(self._pump(reader, onward[1]), self._pump(onward[0], writer))
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                lost = self._rng.random() < self._loss
                if pause := self._delay_s + (RETRANSMISSION_S if lost else 0.0):
                    await asyncio.sleep(pause)
                writer.write(chunk)
                await writer.drain()
        # One direction's end is the connection's: WebSockets do not half-close.
        writer.transport.abort()
