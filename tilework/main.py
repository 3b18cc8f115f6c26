"""`tilework`: the one command, which mounts the node's commands and the wallet's.

Commands are loaded when they are used: help, completion and the wallet's small commands need no kernels.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

import click

from tilework.output import Group


class _Mounted(NamedTuple):
    """A command: the module and attribute that hold it, and its line in the help."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "devnet": _Mounted("tilework.devnet", "devnet", "A local network of real nodes, to try everything on."),
    "demo": _Mounted("tilework.jobs", "demo", "Classify handwritten digits through paid jobs."),
    "wallet": _Mounted("tilework.wallet", "wallet", "Accounts, payments and signatures."),
    "job": _Mounted("tilework.jobs", "job", "Buy matrix products, and see what became of them."),
    "worker": _Mounted("tilework.worker", "worker", "Register the account that a node mines for."),
    "mine": _Mounted("tilework.mine", "mine", "Work for a node from another process or machine."),
    "node": _Mounted("tilework.node", "node", "Run a node, configure it, look at it."),
}


class Root(Group):
    """The outermost group: loads a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        mounted = COMMANDS.get(cmd_name)
        if mounted is None:
            return None
        command: click.Command = getattr(import_module(mounted.module), mounted.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing what it names."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, mounted.summary) for name, mounted in COMMANDS.items()])


@click.group(cls=Root)
@click.version_option(version("tilework"), prog_name="tilework", message="%(prog)s %(version)s")
def main() -> None:
    """Tilework: a blockchain whose blocks are won by multiplying the matrices that somebody paid for.

    \b
    tilework devnet up --demo             see it all, on this machine
    tilework job submit a.npy b.npy -o c.npy
    tilework wallet send ADDRESS 1.5

    Every command takes --json. Exit statuses: 0 done, 2 usage, 3 refused or not enough, 4 not found, 5 network,
    6 time-out, 130 interrupted, 1 anything else.
    """
