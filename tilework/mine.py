"""`tilework mine`: an outside miner. It works for a node over RPC, with a worker key that never leaves this process.

The node hands out units: packets that were dealt to the key, idle ones otherwise. What the miner is told is checked
as far as it concerns the miner: the block must reward its own address, and its operands must be those of the header.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from tilework.options import load_worker_key, rpc_option
from tilework.output import CliError, Command, emit, notice
from wallet.errors import ExitCode

NICENESS = 10


@click.command(cls=Command)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The worker's key file, as `tilework worker register --worker-key FILE` makes it (mode 0600).  [required]",
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads that multiply.")
@click.option("--units", type=click.IntRange(1), metavar="N", help="Stop after N units [default: go on until Ctrl-C].")
@click.option(
    "--idle-duty",
    type=click.FloatRange(0, 1),
    help="Share of the time to spend on idle units, 0 for packets only; those run at full speed.  "
    "[default: 0.001 on a devnet, else 1]",
)
@rpc_option
def mine(key_file: Path | None, threads: int, units: int | None, idle_duty: float | None, url: str) -> ExitCode:
    """Work for a node from another process or machine, until Ctrl-C.

    Blocks reward the key's account. If that account is registered as a worker (`tilework worker register`), packets
    are dealt to it and answered here; do not run two miners with one key. Runs at low priority.

    To spend what it earns, import the key file: tilework wallet import NAME --from-file FILE
    """
    from wallet.client.units import OutsideMiner, told

    if key_file is None:
        fix = "name it with --key FILE; `tilework worker register --worker-key FILE` makes one and registers it"
        raise CliError("usage", "mining needs a worker's key", fix, ExitCode.USAGE)
    key = load_worker_key(key_file, malformed=ExitCode.USAGE)
    os.nice(NICENESS)
    miner = OutsideMiner(url, key, threads, idle_duty, notice)
    status = ExitCode.OK
    try:
        asyncio.run(miner.run(units))
    except KeyboardInterrupt:
        status = ExitCode.INTERRUPTED
    emit(miner.stats.counters(), told(miner.stats))
    return status
