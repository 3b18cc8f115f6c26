"""`tilework node`: run a node, write its configuration, look at it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from msgspec import Struct

from api.chain import ChainInfo
from api.node import MempoolInfo, MiningInfo, NodeInfo
from node.config import CONFIG_VARIABLE, SETTINGS, Config, Setting, load, template
from tilework.options import rpc_option
from tilework.output import CliError, Command, Group, emit
from wallet.errors import ExitCode

if TYPE_CHECKING:
    from node.service import Node


class SettingOption(click.Option):
    """One setting of the node as a flag. What was not given is left to the other sources."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        default = "none" if setting.default in (None, ()) else str(setting.default).lower()
        shown = "" if setting.default is None else f"; default {default}"
        names = [setting.flag, setting.key]
        is_flag = setting.bare is bool
        if is_flag:
            names[0] += "/--no-" + setting.flag.removeprefix("--")
        literal = get_args(setting.bare) if get_origin(setting.bare) is Literal else ()
        super().__init__(
            names,
            help=f"{setting.description}  [{setting.variable}{shown}]",
            type=None if is_flag else click.Choice(literal) if literal else click.STRING,
            metavar=None if is_flag or literal else _metavar(setting),
            multiple=setting.is_many,
            is_flag=is_flag,
            default=None,
        )


def _metavar(setting: Setting) -> str:
    if setting.is_path:
        return "PATH"
    if setting.is_many:
        return "TEXT"
    return {int: "N", float: "SHARE"}.get(setting.bare, "TEXT")


class RunCommand(Command):
    """`node run`, whose settings are shown under the headings of their sections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params[:0] = [SettingOption(setting) for setting in SETTINGS]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section of the help for each section of the settings; the rest last."""
        settings = [param for param in self.params if isinstance(param, SettingOption)]
        for title, options in groupby(settings, lambda option: option.setting.title):
            with formatter.section(title):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])
        others = [param.get_help_record(ctx) for param in self.get_params(ctx) if not isinstance(param, SettingOption)]
        with formatter.section("Other options"):
            formatter.write_dl([record for record in others if record])


@click.group(cls=Group)
def node() -> None:
    """Run a node, configure it, look at it.

    \b
    tilework node run --network regtest --mine
    tilework node status
    """


@node.command(cls=RunCommand)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Settings in TOML; see `tilework node init-config`  [{CONFIG_VARIABLE}]",
)
def run(file: Path | None, **flags: object) -> int:
    """Run a node until it is told to stop (Ctrl-C, SIGTERM).

    Each setting comes from its flag, else from its variable in the environment, else from the --config file, else it
    has its default. The data directory belongs to one node at a time. RPC has no passwords: whoever reaches it may
    use the node, so it listens on this machine alone unless told otherwise.
    """
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    config = load(given, os.environ, file)
    idle = [setting.flag for setting in SETTINGS if setting.section == "mining" and setting.key in given]
    if idle and not config.mining.enabled and "mining_enabled" not in given:
        message = f"{', '.join(idle)} is for a node that mines, and this one would not"
        raise CliError("config", message, "give --mine, too, or leave it out", ExitCode.USAGE)
    return _run(config)


@node.command("init-config")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), required=False)
def init_config(path: Path | None) -> None:
    """Write a configuration file with every setting and its default to PATH, or show it."""
    text = template()
    if path is None:
        emit({"config": text}, text.rstrip())
        return
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise CliError("file-exists", f"{path} exists already", "choose another name, or move it away") from None
    emit({"path": str(path)}, f"{path}: edit it, then `tilework node run --config {path}`")


class _Status(Struct, frozen=True):
    node: NodeInfo
    chain: ChainInfo
    mempool: MempoolInfo
    mining: MiningInfo


@node.command()
@rpc_option
def status(url: str) -> None:
    """Show the state of a running node."""
    answers = asyncio.run(_ask_status(url))
    info, chain = answers.node, answers.chain
    lag = f", syncing to {chain.best_header_height}" if chain.syncing else ""
    mining, waiting = answers.mining, answers.mempool
    blocks = mining.idle_blocks + mining.packet_blocks
    rows = {
        "network": info.network,
        "height": f"{info.height}{lag}",
        "tip": chain.tip,
        "peers": info.peers,
        "mempool": f"{waiting.transactions} transactions, {waiting.results} results",
        "mining": f"{blocks} blocks, {mining.packets_answered} packets" if mining.enabled else "off",
        "miner": info.miner or "–",
        "RPC": info.rpc_address,
        "P2P": info.p2p_address,
        "node": info.node_id,
        "version": info.version,
        "up": f"{info.uptime_seconds:.0f} s",
    }
    lines = [f"{name:<9}{value}" for name, value in rows.items()]
    emit(answers, "\n".join([*lines, *(f"NOTE     {note}" for note in info.notes)]))


@node.command("rpc-docs")
def rpc_docs() -> None:
    """Show the documentation of every RPC method (docs/rpc.md)."""
    from node.rpc.methods.table import rpc_docs as page  # the methods import the chain, and with it the kernels

    text = page()
    emit({"page": text}, text.rstrip("\n"))


async def _ask_status(url: str) -> _Status:
    from wallet.client.rpc import RpcClient  # help needs no network library

    async with RpcClient(url) as rpc:
        return _Status(
            await rpc.call("node_info", result=NodeInfo),
            await rpc.call("chain_info", result=ChainInfo),
            await rpc.call("node_mempool", result=MempoolInfo),
            await rpc.call("node_mining", result=MiningInfo),
        )


_SWITCH_SECONDS = 1e-4
"""After how long Python passes its lock on to a thread that waits for it. With the usual 5 ms, a mining thread that
came back from a kernel waited so long for the lock of a busy node that units of 5 ms took 400."""


def _run(config: Config) -> int:
    """Start, serve, stop. SIGTERM before the loop runs ends the start, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(ExitCode.OK))
    from node import log, service  # with all that a node is made of
    from node.chain.store import StorageError, StoreDamaged
    from node.start import RESTORE

    try:
        log.configure(config.log)
        sys.setswitchinterval(_SWITCH_SECONDS)
        return asyncio.run(_serve(service.Node(config)))
    except StorageError as error:
        safe = "free space or repair the disk, then start the node again: what was committed is safe"
        fix = RESTORE if isinstance(error, StoreDamaged) else safe
        raise CliError("storage", f"the node stopped: {error}", fix, ExitCode.INTERNAL) from None


async def _serve(running_node: Node) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running_node.stop)
    async with running_node.running():
        info = running_node.report.info()
        emit(info, f"{info.network} node at height {info.height}: RPC {info.rpc_address}, P2P {info.p2p_address}")
        await running_node.stopped()
    return ExitCode.OK
