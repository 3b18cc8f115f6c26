"""The node processes of a devnet: started, watched, killed, restarted and stopped by one supervisor.

Only the supervisor signals a node, and only one that it has started and not yet waited for: its process id cannot be
another's. Each node is in a session of its own, so that Ctrl-C at the terminal reaches the supervisor alone, and on a
leash (`devnet.leash`), so that none is left behind when the supervisor is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devnet.layout import DevnetError
from node.config import CONFIG_VARIABLE, SETTINGS

STOP_SECONDS = 8.0
"""A node's clean shutdown takes at most five."""
_TAIL_LINES = 12
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def node_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What nodes see: one thread per library, since several nodes share the machine, and nobody else's settings."""
    settings = {CONFIG_VARIABLE, *(setting.variable for setting in SETTINGS)}
    return {name: value for name, value in environment.items() if name not in settings} | _ONE_THREAD


class NodeProcess:
    """One node, running or not."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        """`arguments` follow `tilework`; the output is appended to `log`."""
        self.name = name
        self.changed: Callable[[], None] = lambda: None
        """Called at each start and end."""
        self._arguments = arguments
        self._log = log
        self._process: Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._exit_status: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start a stopped node."""
        assert self._process is None, f"{self.name} runs already"
        self._exit_status = None
        command = [sys.executable, "-m", "devnet.leash", "tilework", *self._arguments]
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,
                stdout=log,
                stderr=STDOUT,
                env=node_environment(os.environ),
                start_new_session=True,
            )
        self._process = process
        self._watch = asyncio.create_task(self._wait(process))
        self.changed()

    async def stop(self, *, now: bool = False) -> None:
        """End it: cleanly, and if that takes too long or `now` is set, with SIGKILL. Nothing if it does not run."""
        if self._process is None or self._watch is None:
            return
        with contextlib.suppress(ProcessLookupError):
            (self._process.kill if now else self._process.terminate)()
        done, _ = await asyncio.wait([self._watch], timeout=STOP_SECONDS)
        if not done and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._watch

    def check_alive(self) -> None:
        """Raises DevnetError (node-failed), with its last words, if it was started and has ended."""
        if self._exit_status is not None:
            words = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
            message = f"{self.name} ended with status {self._exit_status}; its log ends with\n{words}"
            raise DevnetError("node-failed", message, f"the whole log is {self._log}")

    async def _wait(self, process: Process) -> None:
        self._exit_status = await process.wait()
        self._process = None
        self.changed()


class Processes:
    """All nodes of a devnet. `async with` it: at its end no process is left."""

    def __init__(self, nodes: Sequence[NodeProcess]) -> None:
        self.nodes = nodes

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))

    def node(self, index: int) -> NodeProcess:
        """Node `index`. Raises DevnetError (no-such-node)."""
        if not 0 <= index < len(self.nodes):
            fix = f"nodes are numbered from 0 to {len(self.nodes) - 1}"
            raise DevnetError("no-such-node", f"there is no node {index}", fix)
        return self.nodes[index]

    async def start(self) -> None:
        """Start all nodes."""
        for node in self.nodes:
            await node.start()

    def check_alive(self) -> None:
        """Raises DevnetError (node-failed), with its last words, if a node has ended."""
        for node in self.nodes:
            node.check_alive()
