"""Real node processes for tests: each in a directory of its own, on free ports, ended with the test.

Nothing sleeps for a fixed time: `until` polls what the test waits for, and fails with what it saw last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from consensus.params import ChainParams
from devnet import layout
from devnet.layout import HOST, Layout
from devnet.processes import node_environment

T = TypeVar("T")

PATIENCE_S = 60.0
"""For what takes a second or two on a quiet machine."""

UNIT_S = 0.006
"""An idle unit, by the clock, on a machine with other things to do."""


class RpcFailed(Exception):
    """A node did not answer, or refused."""


def until(look: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """The first truthy answer of `look`. An unreachable node is asked again."""
    deadline = time.monotonic() + patience_s
    seen: object = None
    while time.monotonic() < deadline:
        try:
            answer = look()
        except RpcFailed as error:
            seen = error
        else:
            if answer:
                return answer
            seen = answer
        time.sleep(0.1)
    raise AssertionError(f"waited {patience_s:g} s for {what}; saw last: {seen!r}")


def call(url: str, method: str, **params: object) -> Any:
    """The result of a JSON-RPC call. Raises RpcFailed."""
    body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            answer = msgspec.json.decode(reply.read())
    except (OSError, urllib.error.URLError, msgspec.DecodeError) as error:
        raise RpcFailed(f"{url}: {error}") from None
    if "error" in answer:
        raise RpcFailed(f"{url} {method}: {answer['error']}")
    return answer["result"]


def is_ready(url: str) -> bool:
    """Whether a node says that it is."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def tilework(*arguments: str, environment: dict[str, str] | None = None, patience_s: float = 120) -> Any:
    """Run a command to its end with --json; gives what it printed, and fails with its errors if its status is not 0."""
    done = subprocess.run(
        layout.command(*arguments, "--json"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | (environment or {}),
        timeout=patience_s,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: status {done.returncode}\n{done.stdout.decode()}{done.stderr.decode()}"
    lines = done.stdout.decode().strip().splitlines()
    return msgspec.json.decode(lines[-1]) if lines else None


def is_running(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class RealNode:
    """A node's place, and its process while it runs. `peers` are ports to dial."""

    directory: Path
    genesis: Path
    rpc_port: int
    p2p_port: int
    idle_duty: float
    peers: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.rpc_port}"

    @property
    def arguments(self) -> list[str]:
        """Its command line, after `tilework`."""
        arguments = ["node", "run", "--network", "devnet", "--genesis", str(self.genesis)]
        arguments += ["--data-dir", str(self.directory), "--rpc-port", str(self.rpc_port)]
        arguments += ["--p2p-port", str(self.p2p_port)]
        for port in self.peers:
            arguments += ["--peer", f"{HOST}:{port}"]
        if self.idle_duty:
            arguments += ["--mine", "--idle-duty", f"{self.idle_duty:.9f}"]
        return arguments

    def start(self) -> None:
        """On a leash: it ends with the test run, whatever happens to it."""
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "devnet.leash", "tilework", *self.arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=node_environment(os.environ),
            )

    def wait_ready(self) -> None:
        def look() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the node ended:\n{self.log()}"
            return is_ready(self.url)

        until(look, f"{self.directory.name} to be ready")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; gives its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(15)
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None
        return status

    def call(self, method: str, **params: object) -> Any:
        return call(self.url, method, **params)

    def height(self) -> int:
        return int(self.call("chain_info")["height"])

    def tip(self) -> str:
        return str(self.call("chain_info")["tip"])

    def id_at(self, height: int) -> str:
        return str(self.call("chain_getHeader", height=height)["id"])

    def log(self) -> str:
        return (self.directory / "node.log").read_text(errors="replace")


@dataclass
class Rig:
    """A network's rules and directory; makes nodes."""

    directory: Path
    rules: ChainParams
    genesis: Path
    nodes: list[RealNode] = field(default_factory=list)

    def node(self, peers: Sequence[int] = (), units_per_block: float = layout.IDLE_UNITS_PER_BLOCK / 2) -> RealNode:
        """A new node that makes `units_per_block` idle units per spacing; with the default, two win a block in it.

        A unit's time is taken as the usual one, not measured: tests need blocks soon, not an exact rate.
        """
        rpc_port, p2p_port = free_ports(2)
        duty = min(1.0, units_per_block / (self.rules.spacing_ms / 1000) * UNIT_S)
        directory = self.directory / f"node{len(self.nodes)}"
        made = RealNode(directory, self.genesis, rpc_port, p2p_port, duty, peers)
        self.nodes.append(made)
        return made


@contextlib.contextmanager
def rig(directory: Path, spacing_ms: int = 500) -> Iterator[Rig]:
    """A devnet of a test's own; at the end no node is left."""
    place = Layout(directory)
    rules = layout.establish(place, spacing_ms)
    made = Rig(directory, rules, place.genesis)
    try:
        yield made
    finally:
        for node in made.nodes:
            if node.process is not None:
                node.end(signal.SIGKILL)


def agree(nodes: Sequence[RealNode], height: int) -> bool:
    """Whether all nodes have reached `height` with the same block."""
    return min(node.height() for node in nodes) >= height and len({node.id_at(height) for node in nodes}) == 1
