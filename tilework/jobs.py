"""`tilework job` and `tilework demo`: buying products from the command line.

What they do is in `wallet.client.client` and `wallet.models.demorun`, imported when one of them runs: help needs no
network library.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tilework.options import (
    account_option,
    choose_account,
    confirm,
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
from wallet.errors import ExitCode

if TYPE_CHECKING:
    from api.work import Explanation, JobView
    from devnet.layout import Record
    from wallet.accounts.keys import SigningKey
    from wallet.client.job import Job, Progress
    from wallet.client.offers import Offer

DEVNET = Path(".devnet")
"""Where `tilework devnet up` describes the network that it runs, seen from the directory that it was started in."""

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where to write the product, as .npy (int32).",
)
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
@timeout_option
@fee_option
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
    timeout_seconds: float | None,
    max_fee: str | None,
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

    _check_output(output)
    left, right = load_matrix(x), load_matrix(w)
    account = choose_account(keystore, account_name)
    memory_bound = None if memory_mib is None else int(memory_mib * (1 << 20))

    async def ask() -> Offer:
        async with Client(url, prefix=account.prefix) as client:
            return await client.offer(left, right, price=price, packets=packets, life=life, memory_bound=memory_bound)

    resume = ""

    async def buy(offer: Offer, key: SigningKey) -> None:
        nonlocal resume
        async with Client(url, key, prefix=account.prefix, max_fee_grains=max_fee_grains(max_fee)) as client:
            ordered = await client.order(offer, attempts=attempts)
            summary = {"jobs": ordered.ids, "packets": offer.packets, "price": offer.price}
            resume = f"tilework job result {','.join(ordered.ids)} {x} {w} -o {output}"
            if not wait:
                emit(summary, f"submitted; for the product: {resume}")
                return
            notice(f"submitted; should this be interrupted: {resume}")
            await _finish(ordered, output, timeout_seconds, summary)

    offer = asyncio.run(ask())
    notice(_described(offer))
    confirm("Submit it?", yes)
    key = unlock(keystore, account, password_file)
    try:
        asyncio.run(buy(offer, key))
    except KeyboardInterrupt:
        if not resume:
            raise
        message = "interrupted; the job goes on"
        raise CliError("interrupted", message, f"for the product: {resume}", ExitCode.INTERRUPTED) from None


@job.command()
@click.argument("jobs", metavar="JOB")
@click.argument("x", type=click.Path(path_type=Path))
@click.argument("w", type=click.Path(path_type=Path))
@output_option
@timeout_option
@rpc_option
def result(jobs: str, x: Path, w: Path, output: Path, timeout_seconds: float | None, url: str) -> None:
    """Fetch the product of JOB, submitted earlier with the matrices in the files X and W.

    A product that took several jobs needs them all, separated by commas.
    """
    from wallet.client.client import Client
    from wallet.client.matrices import load_matrix

    _check_output(output)
    left, right = load_matrix(x), load_matrix(w)

    async def fetch() -> None:
        async with Client(url) as client:
            ordered = await client.attach(jobs.split(","), left, right)
            await _finish(
                ordered, output, timeout_seconds, {"jobs": ordered.ids, "packets": len(ordered.slices.packets)}
            )

    asyncio.run(fetch())


@job.command()
@click.argument("job_id", metavar="JOB")
@rpc_option
def status(job_id: str, url: str) -> None:
    """Show how far JOB is, and what it has cost."""
    from wallet.client.gateway import Gateway
    from wallet.client.job import unknown_job

    async def look() -> JobView:
        async with Gateway(url) as gateway:
            view = await gateway.job(job_id)
            if view is None:
                raise unknown_job(job_id)
            return view

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
    """Show the account's jobs, newest first."""
    from wallet.client.gateway import Gateway

    owner = None if everybody else choose_account(keystore, account_name).address_text

    async def look() -> list[JobView]:
        async with Gateway(url) as gateway:
            return await gateway.jobs(owner, limit)

    jobs = asyncio.run(look())
    lines = [f"{v.job}  {v.status:<9}  {v.done:>4} of {v.packets:<4}  {format_tile(v.paid)} TILE" for v in jobs]
    emit({"jobs": jobs}, "\n".join(lines) or "no jobs yet: tilework job submit x.npy w.npy -o c.npy")


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
        async with Client(url, key, prefix=account.prefix, max_fee_grains=max_fee_grains(max_fee)) as client:
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
        async with Client(url, key, prefix=account.prefix) as client:
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


def _check_output(output: Path) -> None:
    """Before anything is paid: the product must have somewhere to go."""
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        message = f"cannot write {output}: {error.strerror}"
        fix = "name a file in a directory that you can write to"
        raise CliError("file-not-written", message, fix, ExitCode.USAGE) from error


def _described(offer: Offer) -> str:
    grid = offer.slices.grid
    return (
        f"{grid.shape}: {offer.packets} packets of at most "
        f"{grid.unit_bytes / (1 << 20):.1f} MiB in {len(offer.parts)} job(s) at "
        f"{format_tile(offer.price)} TILE per 2⁴⁰ of weight: {format_tile(offer.escrow)} TILE in escrow, and fees; "
        f"{offer.able} of {offer.places} places work for that"
    )


async def _finish(ordered: Job, output: Path, timeout_seconds: float | None, summary: dict[str, object]) -> None:
    """Wait for the product, write it, and say what it cost."""
    from wallet.client.matrices import save_matrix

    with _progress_bar() as show:
        product = await ordered.result(timeout_seconds, show)
    await asyncio.to_thread(save_matrix, output, product)
    cost, last = await ordered.cost(), ordered.snapshot()
    outcome = {
        "output": str(output),
        "rows": product.shape[0],
        "cols": product.shape[1],
        "workers": last.workers,
        "blocks_won": last.blocks_won,
        "cost": cost,
    }
    won = f", and won {len(last.blocks_won)} block(s)" if last.blocks_won else ""
    paid = f"{format_tile(cost.paid)} TILE to {last.workers} worker(s), {format_tile(cost.fees)} TILE in fees"
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
