"""`tilework devnet`: a local network of real nodes, with funded accounts, workers and a wallet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from consensus.params import TILE
from devnet import control, keys
from devnet import layout as layouts
from devnet.control import Order
from devnet.layout import MAX_NODES, DevnetError, Layout, NodeRecord, Record, command
from devnet.supervisor import Devnet, DevnetStatus, running
from devnet.watch import NetworkState
from tilework.options import DIRECTORY_VARIABLE as WALLET_DIRECTORY_VARIABLE
from tilework.options import RPC_VARIABLE
from tilework.output import Group, emit, notice, wants_json
from wallet.accounts.keys import SigningKey, account_path
from wallet.accounts.keystore import KdfParams, Keystore
from wallet.accounts.password import PASSWORD_FILE_VARIABLE, PUBLIC_PASSWORD
from wallet.errors import ExitCode

DIRECTORY_VARIABLE = "TILEWORK_DEVNET_DIR"
ACCOUNT = "user"

_PUBLIC_KDF = KdfParams(memory_kib=8 << 10, iterations=1, lanes=1)
QUIET_SECONDS = 60.0
"""Without a block for so long, it is said."""
_STATUS_SECONDS = 1.0
_PLAIN_STATUS_SECONDS = 10.0
_DETACH_SECONDS = 240.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.2
_TABLE_WIDTH = 200


def _open_layout(_context: click.Context, _option: click.Parameter, directory: Path) -> Layout:
    return Layout(directory)


directory_option = click.option(
    "--dir",
    "layout",
    envvar=DIRECTORY_VARIABLE,
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".devnet"),
    show_default=True,
    callback=_open_layout,
    help=f"Directory of the devnet [env {DIRECTORY_VARIABLE}].",
)
"""Passes `layout: Layout`."""


@click.group(cls=Group)
def devnet() -> None:
    """A local network of real nodes.

    Every node is a process of its own, mines, and works for jobs. Ten accounts hold 1,000,000 TILE each. Their keys
    are public: never send anything of value to them.

    \b
    tilework devnet up                    start three nodes; Ctrl-C stops them
    tilework devnet up --detach           the same in the background
    tilework devnet kill 1                cut one off, as a power failure would
    tilework devnet restart 1             and see it catch up
    """


@devnet.command()
@directory_option
@click.option(
    "--nodes",
    "count",
    type=click.IntRange(1, MAX_NODES),
    help=f"How many.  [default: as many as there were, {layouts.NODES} at first]",
)
@click.option(
    "--block-time",
    "spacing",
    type=click.FloatRange(0.2, 60),
    help="Seconds between blocks of a new network.  [default: 2]",
)
@click.option(
    "--rpc-port",
    "first_port",
    type=click.IntRange(0, 55_000),
    help="RPC port of the first node, the others follow; refused where one is taken. 0 lets the system choose.  "
    f"[default: those of the last start, {layouts.RPC_PORT} and what follows at first, or else any that are free]",
)
@click.option("--demo", is_flag=True, help="Run the demo job as soon as the network is ready.")
@click.option("--detach", is_flag=True, help="Run in the background once the network is ready.")
def up(
    layout: Layout, count: int | None, spacing: float | None, first_port: int | None, demo: bool, detach: bool
) -> int:
    """Start the network: the one that was there before, or a new one.

    Says "ready" once every node serves and its worker can be dealt packets. Then it shows the network's state until
    Ctrl-C stops all of it.
    """
    if detach:
        _start_detached(layout, count, spacing, first_port)
        record = layout.read()
        _emit_ready(record)
        return _run_demo(record) if demo else ExitCode.OK
    with layout.hold():
        _make_wallet(layout)
        return _until_stopped(_foreground(layout, count, spacing, first_port, demo))


@devnet.command()
@directory_option
def status(layout: Layout) -> None:
    """Show the nodes and the state of the network."""
    record = layout.read()
    try:
        answer = msgspec.json.decode(control.send(layout.control, Order("status")), type=DevnetStatus)
    except DevnetError as error:
        if error.code != "not-running":
            raise
        emit({"running": False, "devnet": record}, f"stopped; start it with `tilework devnet up` ({layout.record})")
        return
    if not wants_json():
        _print(_table(answer.devnet, answer.network))
    emit({"running": True, "devnet": answer.devnet, "network": answer.network}, status_line(answer.network))


@devnet.command()
@directory_option
@click.argument("node", type=click.IntRange(0, MAX_NODES - 1), required=False)
@click.option(
    "--lines", type=click.IntRange(0, 100_000), default=20, show_default=True, help="How many lines of each log."
)
@click.option("--follow", "-f", is_flag=True, help="Keep showing what is added, until Ctrl-C.")
def logs(layout: Layout, node: int | None, lines: int, follow: bool) -> None:
    """Show the end of NODE's log, or of every node's."""
    nodes = layout.read().nodes
    if node is not None and node >= len(nodes):
        fix = f"nodes are numbered from 0 to {len(nodes) - 1}"
        raise DevnetError("no-such-node", f"there is no node {node}", fix)
    chosen = nodes if node is None else nodes[node : node + 1]
    offsets = {}
    for one in chosen:
        content = _content(one)
        offsets[one.name] = len(content)
        kept = content.decode(errors="replace").splitlines()
        _show_log(one, kept[len(kept) - min(lines, len(kept)) :], prefixed=len(chosen) > 1)
    while follow:
        for one in chosen:
            added = _content(one, offsets[one.name])
            whole = added[: added.rfind(b"\n") + 1]
            offsets[one.name] += len(whole)
            _show_log(one, whole.decode(errors="replace").splitlines(), prefixed=len(chosen) > 1)
        time.sleep(_POLL_SECONDS)


@devnet.command()
@directory_option
def stop(layout: Layout) -> None:
    """Stop all nodes; the chain stays for the next `up`."""
    layout.read()
    pid = layout.supervisor()
    if pid is None:
        emit({"stopped": False}, "nothing was running")
        return
    deadline = time.monotonic() + _STOP_SECONDS
    _signal(pid, signal.SIGTERM)
    while layout.supervisor() == pid:
        if time.monotonic() > deadline:
            # Its nodes are on a leash: they stop when it is gone.
            _signal(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    emit({"stopped": True}, "stopped")


@devnet.command()
@directory_option
def reset(layout: Layout) -> None:
    """Delete the network: its chain, logs, keys and wallet. It must not be running."""
    layout.remove()
    emit({"removed": str(layout.directory)}, f"{layout.directory} is gone; `tilework devnet up` makes a new network")


@devnet.command()
@directory_option
@click.argument("node", type=click.IntRange(0, MAX_NODES - 1))
def kill(layout: Layout, node: int) -> None:
    """End NODE at once (SIGKILL), as a power failure would."""
    layout.read()
    record = msgspec.json.decode(control.send(layout.control, Order("kill", node)), type=NodeRecord)
    emit(record, f"{record.name} is killed; bring it back with `tilework devnet restart {node}`")


@devnet.command()
@directory_option
@click.argument("node", type=click.IntRange(0, MAX_NODES - 1))
def restart(layout: Layout, node: int) -> None:
    """Start NODE again, after a clean stop if it still runs; returns when it is ready."""
    layout.read()
    record = msgspec.json.decode(control.send(layout.control, Order("restart", node)), type=NodeRecord)
    emit(record, f"{record.name} is ready again (process {record.pid})")


def _signal(pid: int, number: signal.Signals) -> None:
    """Signal a supervisor that held its lock a moment ago."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# ---------------------------------------------------------------------- up


async def _foreground(
    layout: Layout, count: int | None, spacing: float | None, first_port: int | None, demo: bool
) -> int:
    """The network from its start until this task is cancelled; the exit status is the demo's."""
    spacing_ms = None if spacing is None else round(1000 * spacing)
    exit_status = int(ExitCode.OK)
    async with running(layout, count, spacing_ms, ACCOUNT, notice, first_port) as net:
        _write_environment(layout, net.record)
        _emit_ready(net.record)
        try:
            if demo:
                exit_status = await _demo_beside(net.record)
            await _show(net)
        except asyncio.CancelledError:
            notice("\nstopping")
    return exit_status


def _until_stopped(main: Coroutine[Any, Any, int]) -> int:
    """Run `main`; SIGINT, SIGTERM and the terminal's end cancel it. Raises Abort if it ends by that."""

    async def cancellable() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        return await main

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise click.exceptions.Abort from None


def _start_detached(layout: Layout, count: int | None, spacing: float | None, first_port: int | None) -> None:
    """Start the same command in the background, and return once its network is ready. Raises DevnetError."""
    with layout.hold():
        pass  # whatever would refuse the other process refuses this one first, in the open
    arguments = ["devnet", "up", "--dir", str(layout.directory)]
    for option, value in (("--nodes", count), ("--rpc-port", first_port), ("--block-time", spacing)):
        if value is not None:
            arguments += [option, str(value)]
    notice(f"starting in the background; progress is in {layout.log}")
    with layout.log.open("wb") as log:
        process = subprocess.Popen(
            command(*arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + _DETACH_SECONDS
        while not _is_ready(layout, process.pid):
            if process.poll() is not None:
                words = layout.log.read_text(errors="replace").strip()
                raise DevnetError("devnet-failed", f"the devnet ended:\n{words}", "do what its last lines say")
            if time.monotonic() > deadline:
                message = f"the devnet was not ready within {_DETACH_SECONDS:g} s"
                raise DevnetError("not-ready", message, f"read {layout.log}")
            time.sleep(_POLL_SECONDS)
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _is_ready(layout: Layout, pid: int) -> bool:
    try:
        record = layout.read()
    except DevnetError:
        return False
    return record.status == "ready" and record.pid == pid


def _make_wallet(layout: Layout) -> None:
    """Account 0 as an encrypted account, and its password's file."""
    layout.password.write_text(PUBLIC_PASSWORD + "\n")
    keystore = Keystore(layout.wallet)
    keystore.mark_public()
    if ACCOUNT not in keystore.names():
        keystore.create(ACCOUNT, SigningKey(keys.SECRETS[0]), PUBLIC_PASSWORD, "devnet", account_path(0), _PUBLIC_KDF)


def _variables(record: Record) -> dict[str, str]:
    """What makes `tilework` use this network and its wallet."""
    return {
        WALLET_DIRECTORY_VARIABLE: record.wallet.directory,
        PASSWORD_FILE_VARIABLE: record.wallet.password_file,
        RPC_VARIABLE: record.nodes[0].rpc,
    }


def _write_environment(layout: Layout, record: Record) -> None:
    """A file to source: `tilework` is found, and uses this network and its wallet from any directory."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in _variables(record).items()]
    lines += [f"export {DIRECTORY_VARIABLE}={shlex.quote(str(layout.directory))}", f'export PATH={programs}:"$PATH"']
    layout.environment.write_text("\n".join(lines) + "\n")


async def _demo_beside(record: Record) -> int:
    """Run the demo job beside the network; gives its exit status. It is ended with this task."""
    process = await asyncio.create_subprocess_exec(
        *_demo_command(), stdin=subprocess.DEVNULL, env=os.environ | _variables(record), process_group=0
    )
    try:
        return _report_demo(await process.wait())
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _run_demo(record: Record) -> int:
    return _report_demo(subprocess.run(_demo_command(), env=os.environ | _variables(record), check=False).returncode)


def _demo_command() -> list[str]:
    return command("demo", *(["--json"] if wants_json() else []))


def _report_demo(exit_status: int) -> int:
    if exit_status:
        notice(f"the demo job failed (status {exit_status}); the network goes on, try again with `tilework demo`")
    return exit_status


# ---------------------------------------------------------------------- what is shown


async def _show(net: Devnet) -> None:
    """How the network is, once a second in one line, or at times where there is no terminal."""
    console = Console()
    if wants_json() or not console.is_terminal:
        while True:
            notice(status_line(await net.look()))
            await asyncio.sleep(_PLAIN_STATUS_SECONDS)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(status_line(await net.look()), no_wrap=True, overflow="ellipsis"), refresh=True)
            await asyncio.sleep(_STATUS_SECONDS)


def status_line(state: NetworkState) -> str:
    """The network in one line."""
    peers = " ".join("–" if node.peers is None else str(node.peers) for node in state.nodes)
    useful = f"{100 * state.useful / state.recent:.0f} %" if state.recent else "–"
    parts = [
        f"height {state.height}",
        f"spread {state.spread}",
        f"peers {peers}",
        f"jobs {state.jobs}",
        f"useful {useful} of {state.recent} blocks",
        f"supply {state.circulating_grains / TILE:,.0f} TILE",
    ]
    parts += [f"{node.name} {'silent' if node.pid else 'down'}" for node in state.nodes if node.height is None]
    if state.quiet_seconds >= QUIET_SECONDS:
        parts.append(f"all miners are gone: no block for {state.quiet_seconds:.0f} s")
    return " · ".join(parts)


def _emit_ready(record: Record) -> None:
    if not wants_json():
        _print(_table(record, None))
    directory = Path(record.genesis).parent
    lines = [
        f"ready: {len(record.nodes)} nodes, a block every {record.spacing_ms / 1000:g} s",
        "",
        "Try, in another terminal:",
        f"  source {_shown(directory / 'env')}",
        "  tilework wallet balance",
        f"  tilework wallet send {record.accounts[-1].address} 1.5 --wait 2",
        "  tilework job submit a.npy b.npy -o c.npy",
        "  tilework devnet kill 1 && tilework devnet restart 1",
        "",
        click.style(f"WARNING: {record.warning}", fg="yellow", bold=True),
        f"         {record.mnemonic}",
    ]
    emit(record, "\n".join(lines))


def _table(record: Record, network: NetworkState | None) -> Table:
    """The nodes; with their heights where `network` is given."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("node", "role", "RPC", "P2P", "metrics", "log"):
        table.add_column(heading, no_wrap=True)
    if network is not None:
        table.add_column("height", justify="right")
    for index, node in enumerate(record.nodes):
        row = [node.name, node.role, node.rpc, node.p2p, node.metrics, _shown(Path(node.log))]
        if network is not None:
            height = network.nodes[index].height
            row.append("down" if node.pid is None else "silent" if height is None else str(height))
        table.add_row(*row)
    return table


def _print(table: Table) -> None:
    """Whole cells, so that they can be copied, even where the terminal is narrow."""
    Console(width=_TABLE_WIDTH).print(table, crop=False)


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _content(node: NodeRecord, offset: int = 0) -> bytes:
    """A node's log from `offset` on."""
    try:
        with open(node.log, "rb") as log:
            log.seek(offset)
            return log.read()
    except FileNotFoundError:
        return b""


def _show_log(node: NodeRecord, lines: list[str], *, prefixed: bool) -> None:
    for line in lines:
        emit({"node": node.name, "line": line}, f"{node.name}  {line}" if prefixed else line)
