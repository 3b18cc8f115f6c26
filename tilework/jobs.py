"""`tilework job` and `tilework demo`: buying products from the command line.

What they do is in `wallet.client.client` and `wallet.models.demorun`, imported when one of them runs: help needs no
network library.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tilework.options import (
    account_option,
    choose_account,
    confirm,
    dry_run_option,
    fee_option,
    keystore_option,
    max_fee_grains,
    password_option,
    rpc_option,
    unlock,
    yes_option,
)
from tilework.output import CliError, Command, Group, emit, notice, wants_json
from wallet.accounts.amounts import format_tile
from wallet.accounts.keystore import Keystore
from wallet.errors import ExitCode, WalletError

if TYPE_CHECKING:
    from api.work import Explanation, JobView
    from devnet.layout import Record
    from wallet.accounts.keys import SigningKey
    from wallet.client.job import Job, Progress
    from wallet.client.offers import Offer
    from wallet.client.purse import Awaited

DEVNET = Path(".devnet")
"""Where `tilework devnet up` describes the network that it runs, seen from the directory that it was started in."""

CLOSING_SECONDS = 60.0
"""How long a job whose product is here may take to close, which says what it has cost in the end."""

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where to write the product, as .npy (int32).",
)
force_option = click.option("--force", is_flag=True, help="Replace the output file if there is one.")
timeout_option = click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up waiting after that (status 6); the job goes on.",
)


@click.group(cls=Group)
def job() -> None:
    """Buy matrix products, and see what became of them.

    \b
    tilework job submit x.npy w.npy -o c.npy     c = x @ w, exactly
    tilework job status JOB
    tilework job explain JOB                     who was paid for what, and why not

    Matrices are .npy files of integers in [-63, 63].
    """


@job.command()
@click.argument("x", type=click.Path(path_type=Path))
@click.argument("w", type=click.Path(path_type=Path))
@output_option
@click.option("--price", type=click.IntRange(1), help="Grains per 2⁴⁰ of weight [default: what workers ask].")
@click.option("--packets", type=click.IntRange(1), help="About how many packets [default: one for each place].")
@click.option("--memory", "memory_mib", type=click.FloatRange(0, 32, min_open=True), help="MiB of the largest packet.")
@click.option(
    "--life",
    type=click.IntRange(1),
    metavar="TICKS",
    help="How long the offer stands. A tick is a block, or where blocks come quicker a quarter of their spacing.",
)
@click.option(
    "--attempts",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="How often to offer packets that nobody answered.",
)
@click.option("--wait/--no-wait", default=True, help="Wait for the product, or only submit.")
@force_option
@timeout_option
@fee_option
@dry_run_option
@yes_option
@rpc_option
@account_option
@password_option
@keystore_option
def submit(
    x: Path,
    w: Path,
    output: Path,
    price: int | None,
    packets: int | None,
    memory_mib: float | None,
    life: int | None,
    attempts: int,
    wait: bool,
    force: bool,
    timeout_seconds: float | None,
    max_fee: str | None,
    dry_run: bool,
    yes: bool,
    url: str,
    account_name: str | None,
    password_file: Path | None,
    keystore: Keystore,
) -> None:
    """Buy the product of the matrices in the files X and W.

    It is cut into packets, which workers of the network compute; each answer is checked, and so is the whole.
    """
    from wallet.client.client import Client
    from wallet.client.matrices import load_matrix
    from wallet.client.purse import Purse
    from wallet.client.transactions import max_fee as most_of

    _check_output(output, force, x, w)
    left, right = load_matrix(x), load_matrix(w)
    account = choose_account(keystore, account_name)
    memory_bound = None if memory_mib is None else int(memory_mib * (1 << 20))
    limit = max_fee_grains(max_fee)

    async def ask() -> tuple[Offer, int]:
        async with Client(url, prefix=account.prefix) as client:
            offer = await client.offer(left, right, price=price, packets=packets, life=life, memory_bound=memory_bound)
            purse = Purse(client.gateway, client.network, account.public_key, limit)
            bodies = await purse.prepare([part.payload for part in offer.parts], "the job")
            return offer, sum(map(most_of, bodies))

    def resume(ids: Sequence[str]) -> str:
        return _resume(ids, x, w, output, force)

    offer, fees = asyncio.run(ask())
    summary: dict[str, object] = {
        "packets": offer.packets,
        "price": offer.price,
        "escrow_grains": offer.escrow,
        "max_fee_grains": fees,
        "max_cost_grains": offer.escrow + fees,
    }
    if dry_run:
        emit(summary | {"status": "not sent"}, f"would submit {_described(offer, fees, attempts)}")
        return
    notice(_described(offer, fees, attempts))
    confirm("Submit it?", yes)
    key = unlock(keystore, account, password_file)
    ordered: Job | None = None

    async def buy() -> None:
        nonlocal ordered
        async with Client(url, key, prefix=account.prefix, max_fee_grains=limit, journal=keystore.journal) as client:
            ordered = client.job(offer, attempts=attempts, resume=resume, tell=notice)
            await ordered.place(offer)
            summary["jobs"] = ordered.ids
            if not wait:
                emit(summary, f"submitted; for the product: {resume(ordered.ids)}")
                return
            notice(f"submitted; should this be interrupted: {resume(ordered.ids)}")
            await _finish(ordered, output, force, timeout_seconds, summary)

    with _naming(lambda: () if ordered is None else ordered.ids, resume):
        asyncio.run(buy())


@job.command()
@click.argument("jobs", metavar="JOB")
@click.argument("x", type=click.Path(path_type=Path))
@click.argument("w", type=click.Path(path_type=Path))
@output_option
@force_option
@timeout_option
@rpc_option
@keystore_option
def result(
    jobs: str,
    x: Path,
    w: Path,
    output: Path,
    force: bool,
    timeout_seconds: float | None,
    url: str,
    keystore: Keystore,
) -> None:
    """Fetch the product of JOB, submitted earlier with the matrices in the files X and W.

    A product that took several jobs needs them all, separated by commas. A job that was signed and has not arrived at
    the node is sent now: it can only be paid once.
    """
    from wallet.client.client import Client
    from wallet.client.matrices import load_matrix

    _check_output(output, force, x, w)
    left, right = load_matrix(x), load_matrix(w)
    ids = jobs.split(",")

    async def fetch() -> None:
        async with Client(url, journal=keystore.journal) as client:
            ordered = await client.attach(ids, left, right)
            summary: dict[str, object] = {"jobs": ordered.ids, "packets": len(ordered.slices.packets)}
            await _finish(ordered, output, force, timeout_seconds, summary)

    with _naming(lambda: ids, lambda ids: _resume(ids, x, w, output, force)):
        asyncio.run(fetch())


@job.command()
@click.argument("job_id", metavar="JOB")
@rpc_option
@keystore_option
def status(job_id: str, url: str, keystore: Keystore) -> None:
    """Show how far JOB is, and what it has cost."""
    from wallet.client.gateway import Gateway
    from wallet.client.job import unknown_job

    async def look() -> JobView:
        async with Gateway(url) as gateway:
            view = await gateway.job(job_id)
            if view is not None:
                return view
            signed = keystore.journal.find(job_id)
            if signed is None or not signed.resume:
                raise unknown_job(job_id)
            message = f"job {job_id} was signed here, and the node does not have it"
            fix = f"to go on with that very job: {signed.resume}"
            raise CliError("job-not-found", message, fix, ExitCode.NOT_FOUND, [job_id])

    view = asyncio.run(look())
    escrow, where = (view.escrow, "held") if view.refund is None else (view.refund, "returned")
    rows = {
        "status": view.status,
        "owner": view.owner,
        "packets": f"{view.done} done, {view.held} held, {view.queued} queued, of {view.packets}",
        "workers": view.workers,
        "blocks won": ", ".join(map(str, view.blocks_won)) or "none",
        "price": f"{format_tile(view.price)} TILE per 2⁴⁰ of weight",
        "paid": f"{format_tile(view.paid)} TILE, of it {format_tile(view.burned)} burned",
        "escrow": f"{format_tile(escrow)} TILE {where}",
        "expiry": f"tick {view.expiry}",
    }
    emit(view, "\n".join(f"{name:<12}{value}" for name, value in rows.items()))


@job.command("list")
@click.option("--all", "everybody", is_flag=True, help="Everybody's jobs, not the account's alone.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="Most jobs.")
@rpc_option
@account_option
@keystore_option
def list_(everybody: bool, limit: int, url: str, account_name: str | None, keystore: Keystore) -> None:
    """Show the account's jobs, newest first: before those on the chain what was signed here and is not there yet."""
    from wallet.client.gateway import Gateway
    from wallet.client.purse import look_up

    owner = None if everybody else choose_account(keystore, account_name).address_text

    async def look() -> tuple[list[Awaited], list[JobView]]:
        async with Gateway(url) as gateway:
            network = await gateway.network()
            awaited = await look_up(gateway, network, keystore.journal, owner, kind="job")
            return awaited, await gateway.jobs(owner, limit)

    awaited, jobs = asyncio.run(look())
    waiting = [one for one in awaited if one.state != "confirmed"]
    lines = [_waiting_line(one) for one in waiting]
    lines += [f"{v.job}  {v.status:<9}  {v.done:>4} of {v.packets:<4}  {format_tile(v.paid)} TILE" for v in jobs]
    emit(
        {"waiting": [one.fields() for one in waiting], "jobs": jobs},
        "\n".join(lines) or "no jobs yet: tilework job submit x.npy w.npy -o c.npy",
    )


@job.command()
@click.argument("job_id", metavar="JOB")
@rpc_option
def explain(job_id: str, url: str) -> None:
    """Tell, for each packet of JOB, who held it when and who was paid, or why nobody was."""
    from wallet.client.gateway import Gateway
    from wallet.client.job import explain as tell

    async def look() -> list[Explanation]:
        async with Gateway(url) as gateway:
            return await tell(gateway, job_id)

    stories = asyncio.run(look())
    lines: list[str] = []
    for story in stories:
        lines.append(f"packet {story.index}: {story.verdict}")
        lines += [f"    {line.height:>8}  {line.text}" for line in story.history]
    emit({"packets": stories}, "\n".join(lines))


@job.command()
@click.argument("job_id", metavar="JOB")
@fee_option
@yes_option
@rpc_option
@account_option
@password_option
@keystore_option
def cancel(
    job_id: str,
    max_fee: str | None,
    yes: bool,
    url: str,
    account_name: str | None,
    password_file: Path | None,
    keystore: Keystore,
) -> None:
    """Withdraw the packets of JOB that nobody holds; those held may still be answered, and are then paid for."""
    from wallet.client.client import Client

    account = choose_account(keystore, account_name)

    async def withdraw(key: SigningKey) -> list[str]:
        limit = max_fee_grains(max_fee)
        async with Client(url, key, prefix=account.prefix, max_fee_grains=limit, journal=keystore.journal) as client:
            return await client.cancel([job_id])

    confirm(f"Cancel {job_id}?", yes)
    sent = asyncio.run(withdraw(unlock(keystore, account, password_file)))
    emit({"job": job_id, "transactions": sent}, f"the cancellation is on its way: {', '.join(sent)}")


@click.command(cls=Command)
@click.option(
    "--packets", type=click.IntRange(1, 60), default=16, show_default=True, help="About how many packets a layer."
)
@click.option("--price", type=click.IntRange(1), help="Grains per 2⁴⁰ of weight [default: what workers ask].")
@rpc_option
@account_option
@password_option
@keystore_option
@click.pass_context
def demo(
    context: click.Context,
    packets: int,
    price: int | None,
    url: str,
    account_name: str | None,
    password_file: Path | None,
    keystore: Keystore,
) -> ExitCode:
    """Classify handwritten digits: 2,000 images through a network of two layers, each layer a job on the chain.

    The answer must equal the local computation bit for bit, and a packet must have won a block. Without options it
    runs on the devnet of this directory, if there is one.
    """
    from wallet.client.client import Client
    from wallet.models import demorun
    from wallet.models.demo import load_demo

    names = ("url", "keystore", "account_name", "password_file")
    if all(context.get_parameter_source(name) is ParameterSource.DEFAULT for name in names):
        devnet = _local_devnet()
        if devnet is not None:
            url, keystore, account_name = (
                devnet.nodes[0].rpc,
                Keystore(Path(devnet.wallet.directory)),
                devnet.wallet.account,
            )
            password_file = Path(devnet.wallet.password_file)
    account = choose_account(keystore, account_name)
    key = unlock(keystore, account, password_file)

    async def run() -> demorun.Report:
        async with Client(url, key, prefix=account.prefix, journal=keystore.journal) as client:
            return await demorun.run(client, load_demo(), packets, price, notice)

    report = asyncio.run(run())
    emit(report, demorun.told(report))
    return ExitCode.INTERNAL if report.failures else ExitCode.OK


# ---------------------------------------------------------------------- inside


def _local_devnet() -> Record | None:
    """The devnet that was started in this directory, if any."""
    from devnet.layout import DevnetError, Layout  # help needs no chain

    try:
        return Layout(DEVNET).read()
    except DevnetError:
        return None


def _check_output(output: Path, force: bool, *inputs: Path) -> None:
    """Before anything is paid: the product must have somewhere to go, and not onto what is to be kept."""
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            message = f"{output} is one of the matrices: the product must not replace it"
            raise CliError("file-exists", message, "name another file with -o", ExitCode.USAGE)
    if os.path.lexists(output) and not force:
        fix = "name another file with -o, or give --force to replace it"
        raise CliError("file-exists", f"{output} exists already", fix, ExitCode.USAGE)
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        message = f"cannot write {output}: {error.strerror}"
        fix = "name a file in a directory that you can write to"
        raise CliError("file-not-written", message, fix, ExitCode.USAGE) from error


def _described(offer: Offer, fees: int, attempts: int) -> str:
    grid = offer.slices.grid
    again = " (each further attempt costs such fees again)" if attempts > 1 else ""
    return (
        f"{grid.shape}: {offer.packets} packets of at most {grid.unit_bytes / (1 << 20):.1f} MiB in "
        f"{len(offer.parts)} job(s) at {format_tile(offer.price)} TILE per 2⁴⁰ of weight; "
        f"{offer.able} of {offer.places} places work for that\n"
        f"  escrow  {format_tile(offer.escrow)} TILE, which pays for answers; what has none comes back\n"
        f"  fees    at most {format_tile(fees)} TILE{again}\n"
        f"  in all  at most {format_tile(offer.escrow + fees)} TILE"
    )


def _resume(ids: Sequence[str], x: Path, w: Path, output: Path, force: bool) -> str:
    """The command that fetches the product of jobs."""
    paths = [shlex.quote(str(path)) for path in (x, w, output)]
    return f"tilework job result {','.join(ids)} {paths[0]} {paths[1]} -o {paths[2]}" + " --force" * force


@contextmanager
def _naming(ids: Callable[[], Sequence[str]], resume: Callable[[Sequence[str]], str]) -> Iterator[None]:
    """Whatever fails once there are jobs names them, and says how to go on where they do."""
    try:
        yield
    except KeyboardInterrupt:
        if not (known := ids()):
            raise
        message = f"interrupted; the job goes on: {', '.join(known)}"
        fix = f"for the product: {resume(known)}"
        raise CliError("interrupted", message, fix, ExitCode.INTERRUPTED, known) from None
    except WalletError as error:
        if not (known := ids()):
            raise
        lost_sight = error.exit_code in (ExitCode.NETWORK, ExitCode.TIMEOUT)
        fix = f"do not pay again. The job goes on; for the product: {resume(known)}" if lost_sight else error.fix
        raise WalletError(error.code, error.message, fix, error.exit_code).naming(known, "job") from error


def _waiting_line(one: Awaited) -> str:
    line = f"{one.txid}  {one.state:<9}  {one.signed.what}"
    return line + (f"\n    the node does not have it; {one.advice}" if one.state == "unknown" else "")


async def _finish(
    ordered: Job, output: Path, force: bool, timeout_seconds: float | None, summary: dict[str, object]
) -> None:
    """Wait for the product, write it, and say what it cost."""
    from wallet.client.matrices import save_matrix

    with _progress_bar() as show:
        product = await ordered.result(timeout_seconds, show)
    await asyncio.to_thread(save_matrix, output, product, replace=force)
    notice(f"{output}: {product.shape[0]}×{product.shape[1]}, checked; waiting for the job to close")
    cost, last = await ordered.final_cost(CLOSING_SECONDS), ordered.snapshot()
    outcome = {
        "output": str(output),
        "rows": product.shape[0],
        "cols": product.shape[1],
        "workers": last.workers,
        "blocks_won": last.blocks_won,
        "cost": cost,
    }
    won = f", and won {len(last.blocks_won)} block(s)" if last.blocks_won else ""
    paid = (
        f"{format_tile(cost.total)} TILE: {format_tile(cost.paid)} to {last.workers} worker(s), "
        f"{format_tile(cost.fees)} in fees"
    )
    if cost.refunded or cost.held:
        held = f", {format_tile(cost.held)} still in escrow" if cost.held else ""
        paid += f" ({format_tile(cost.refunded)} came back{held})"
    emit(summary | outcome, f"{output}: {product.shape[0]}×{product.shape[1]}, checked; cost {paid}{won}")


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error, for people."""
    if wants_json():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("waiting for a block")

        def show(progress: Progress) -> None:
            words = f"{progress.held} at work" if progress.status == "open" else progress.status
            bar.update(task, total=progress.packets, completed=progress.verified, description=words)

        yield show
