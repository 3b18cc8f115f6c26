"""`tilework worker`: the account that a mining node works for.

Its key stays in its file: transactions are signed here, in this process, and only they go to the node.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec import Struct
from msgspec.structs import asdict

from api.work import WorkerView
from consensus.params import MAX_PLACES, ChainParams
from consensus.shape import MAX_UNIT_BYTES
from consensus.transaction import Payload, RegisterWorker, RetireWorker
from node.config import load
from tilework.options import keystore_option, load_worker_key, rpc_option
from tilework.output import CliError, Group, emit, notice
from wallet.accounts.amounts import format_tile, parse_tile
from wallet.accounts.journal import Journal, Note
from wallet.accounts.keystore import Keystore
from wallet.errors import ExitCode, WalletError
from worker.key import WorkerKey
from worker.price import DEFAULT_MULTIPLE, AskingPrice, idle_pay

if TYPE_CHECKING:
    from api.chain import ChainInfo
    from wallet.client.gateway import Gateway

WAIT_SECONDS = 120.0


class WorkerState(WorkerView, frozen=True):
    """`worker_get`, and the spendable balance beside it."""

    balance: int = 0


class Sent(Struct, frozen=True):
    """What was sent; `height` is null where it was not waited for."""

    address: str
    txid: str
    height: int | None


class IdlePrice(Struct, frozen=True):
    """What idle mining earns in the block after `height`, in grains per 2⁴⁰ multiply-accumulates."""

    height: int
    grains: int


def _key_file(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path:
    if path is not None:
        return path.expanduser()
    return load({}, os.environ).worker_key_file


key_option = click.option(
    "--worker-key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_key_file,
    help="The worker's key file. Default: the one that `tilework node run` uses in the same environment.",
)
"""Passes `key_file: Path`."""

wait_option = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait until a block holds the transaction."
)


@click.group(cls=Group)
def worker() -> None:
    """Register the account that a node mines for.

    A registered worker is dealt the packets of jobs and paid for their products. Registering takes a bond, which
    returns after `stop`; a part of it burns with every packet that is not answered in its window. The account must
    be funded first: by payments to its address, or by mining idle units.

    \b
    tilework worker status                the address to fund, and the registration
    tilework worker register --packets 4
    """


@worker.command()
@key_option
@rpc_option
@click.option(
    "--packets", type=click.IntRange(1, MAX_PLACES), default=4, show_default=True, help="Most packets at once."
)
@click.option("--bond", metavar="TILE", help="The whole bond. Default: what that many packets need.")
@click.option(
    "--price",
    help="Least price: a multiple of what idle mining earns now, like 1.0x, or grains per 2⁴⁰ of weight. "
    "Default: 1.0x on mainnet, else 0.",
)
@click.option(
    "--max-unit-mib",
    type=click.IntRange(1, MAX_UNIT_BYTES >> 20),
    default=MAX_UNIT_BYTES >> 20,
    show_default=True,
    help="Largest packet, operands and product together.",
)
@wait_option
@keystore_option
def register(
    key_file: Path,
    url: str,
    packets: int,
    bond: str | None,
    price: str | None,
    max_unit_mib: int,
    wait: bool,
    keystore: Keystore,
) -> None:
    """Register the worker, or change and refresh its registration. The bond that it already has counts: it can be
    raised, and comes back whole after `stop`.

    A key file that is missing is made, with a key of its own. A multiple is worked out once, now; a mining node with
    the same --price declares it anew as the difficulty moves. On mainnet such a node asks 1.0x, whatever was
    registered, unless it is given a --price of its own.
    """
    asking = None if price is None else AskingPrice.parse(price)
    key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = WorkerKey.load_or_create(key_file)
    whole = None if bond is None else parse_tile(bond)

    def payload(rules: ChainParams, state: WorkerState, info: ChainInfo) -> Payload:
        wished = asking or AskingPrice.parse(DEFAULT_MULTIPLE if info.network == "mainnet" else "0")
        min_price = wished.grains(rules, info.height + 1, int(info.target, 16))
        least = rules.min_reserve * packets
        if whole is not None and whole < state.bond:
            message = f"the bond is {format_tile(state.bond)} TILE now, and a registration cannot lower it"
            fix = "leave out --bond to keep it; `tilework worker stop` returns it"
            raise CliError("bond-below-present", message, fix)
        if whole is not None and whole < least:
            message = f"{packets} packets at once take a bond of {format_tile(least)} TILE, not {format_tile(whole)}"
            raise CliError("bond-too-low", message, "give a higher --bond, or fewer --packets")
        wanted = least if whole is None else whole
        added = max(0, wanted - state.bond)
        return RegisterWorker(key.x25519_key, min_price, max_unit_mib << 20, packets, added)

    sent = _send(key, url, keystore.journal, payload, "the worker's registration", wait)
    done = f"registered at height {sent.height}" if wait else "the registration is on its way"
    emit(sent, f"{sent.address}: {done} (transaction {sent.txid})")


@worker.command()
@key_option
@rpc_option
def status(key_file: Path, url: str) -> None:
    """Show what the worker has lost and earned, its address, balance, bond and packets."""
    state = asyncio.run(_ask(load_worker_key(key_file), url))
    standing = (
        "active" if state.active else "registered, not dealt to yet or any more" if state.registered else "no worker"
    )
    if state.retired_at is not None:
        standing = f"retired at tick {state.retired_at}"
    rows = {
        "lost": f"{format_tile(state.lost)} TILE of the bond, with {state.missed} packets that were not answered",
        "earned": f"{format_tile(state.paid)} TILE for packets",
        "address": state.address,
        "standing": standing,
        "balance": f"{format_tile(state.balance)} TILE",
        "bond": f"{format_tile(state.bond)} TILE",
        "price": f"{format_tile(state.min_price)} TILE per 2⁴⁰ of weight at least",
        "packets": f"{len(state.held)} held, {state.places} at once",
        "key": key_file,
    }
    emit(state, "\n".join(f"{name:<10}{value}" for name, value in rows.items()))


@worker.command()
@rpc_option
def price(url: str) -> None:
    """Show what idle mining earns now per 2⁴⁰ multiplications: a fair price for as much weight of packets."""
    found = asyncio.run(_idle_price(url))
    emit(found, f"{found.grains} grains ({format_tile(found.grains)} TILE) per 2⁴⁰ of weight at height {found.height}")


@worker.command()
@key_option
@rpc_option
@wait_option
@keystore_option
def stop(key_file: Path, url: str, wait: bool, keystore: Keystore) -> None:
    """Retire the worker: it is dealt nothing more, and its bond returns once its last window is over."""

    def payload(_rules: ChainParams, state: WorkerState, _info: ChainInfo) -> Payload:
        if state.retired_at is not None:
            message = f"the worker is retired since tick {state.retired_at}"
            fix = "nothing is to be done: its bond returns by itself; `tilework worker status` shows it"
            raise CliError("already-retired", message, fix)
        if not state.registered:
            message = f"{state.address} is not registered as a worker"
            raise CliError("unknown-worker", message, "name the worker's key file with --worker-key")
        return RetireWorker()

    sent = _send(load_worker_key(key_file), url, keystore.journal, payload, "the worker's retirement", wait)
    done = f"retired at height {sent.height}" if wait else "the retirement is on its way"
    emit(sent, f"{sent.address}: {done} (transaction {sent.txid})")


async def _ask(key: WorkerKey, url: str) -> WorkerState:
    from wallet.client.gateway import Gateway  # here and below: help needs no network library

    async with Gateway(url, patience_seconds=0) as gateway:
        network = await gateway.network()
        return await _state(gateway, network.address_text(key.address))


async def _idle_price(url: str) -> IdlePrice:
    from wallet.client.gateway import Gateway

    async with Gateway(url, patience_seconds=0) as gateway:
        network, info = await gateway.network(), await gateway.info()
        return IdlePrice(info.height, idle_pay(network.params, info.height + 1, int(info.target, 16)))


async def _state(gateway: Gateway, address: str) -> WorkerState:
    worker, account = await gateway.worker(address), await gateway.account(address)
    return WorkerState(**asdict(worker), balance=account.balance)


def _send(
    key: WorkerKey,
    url: str,
    journal: Journal,
    payload: Callable[[ChainParams, WorkerState, ChainInfo], Payload],
    what: str,
    wait: bool,
) -> Sent:
    """Build, sign and send one transaction of the worker's account. What is signed is named, whatever happens."""
    from wallet.client.payments import settle
    from wallet.client.purse import Purse
    from wallet.client.purse import Sent as Signed

    signed: list[Signed] = []

    async def send() -> Sent:
        from wallet.client.gateway import Gateway

        async with Gateway(url) as gateway:
            network = await gateway.network()
            purse = Purse(gateway, network, key.public_key, journal=journal)
            state, info = await _state(gateway, purse.address), await gateway.info()
            (sent,) = await purse.pay(
                key,
                [payload(network.params, state, info)],
                Note("worker", what),
                signed=signed.extend,
                tell=notice,
            )
            notice(f"transaction {sent.txid.hex()}" + "; waiting for a block" * wait)
            settled = await settle(gateway, network, sent, int(wait), WAIT_SECONDS, notice)
            return Sent(purse.address, settled.txid, settled.height)

    try:
        return asyncio.run(send())
    except WalletError as error:
        if error.code != "insufficient-balance":
            raise
        fix = "fund the account first: pay to its address (`tilework worker status`), or mine idle units with its key"
        raise CliError(error.code, error.message, fix) from None
    except KeyboardInterrupt:
        if not signed:
            raise
        txid = signed[0].txid.hex()
        message = f"interrupted; transaction {txid} may have been sent"
        fix = f"this asks, and sends the same one if need be: tilework wallet resend {txid}"
        raise CliError("interrupted", message, fix, ExitCode.INTERRUPTED, [txid]) from None
