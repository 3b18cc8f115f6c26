"""An outside miner: takes units from a node over RPC, works them, and hands in blocks and signed Results.

The node is not trusted with what would cost the miner: the header must reward its address and hash to the seed that is
worked on, and operands must be those that the header commits to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from consensus import work
from consensus.block import MAX_HEADER_BYTES, HeaderCore, Idle, PacketUnit, unit_shape
from consensus.codec import decode, encode
from consensus.errors import ConsensusError
from consensus.tensor import COLUMNS, ROWS, Tensor, left_spec, right_spec
from consensus.transaction import Result, ResultBody
from wallet.accounts.keys import PRIVATE_KEY_BYTES, SigningKey
from wallet.client.gateway import Gateway
from wallet.client.rpc import RpcError
from wallet.client.transactions import Network
from wallet.client.views import ResultAccepted, UnitOffer, WorkAccepted
from wallet.errors import ExitCode, WalletError
from wallet.models.quantised import Int8Matrix

MAX_KEY_FILE_BYTES = 1024

_REPORT_SECONDS = 10.0
_RETRY_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_PATIENCE_SECONDS = 600.0
"""A miner outlives its node's restarts."""


class UnitLost(WalletError):
    """The unit at hand cannot be worked, for no fault of the node's."""


class Statistics(Struct):
    """What was done. `macs` as packets are priced, `seconds` spent on them."""

    idle_units: int = 0
    packet_units: int = 0
    macs: int = 0
    seconds: float = 0.0
    results_sent: int = 0
    blocks_won: int = 0
    units_lost: int = 0


class _KeyFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A worker's key file: both secrets in hexadecimal. Results take the first."""

    version: int
    ed25519: str
    x25519: str


def load_worker_key(path: Path) -> SigningKey:
    """The signing key in a worker's key file. Raises `WalletError` (worker-key)."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        fix = "check the path; `tilework worker register` makes a key"
        message = f"cannot read the worker key {path}: {error.strerror}"
        raise WalletError("worker-key", message, fix, ExitCode.NOT_FOUND) from error
    if mode & 0o077:
        raise WalletError("worker-key", f"{path} has mode {mode:04o}: other users can reach it", f"chmod 600 {path}")
    try:
        stored = msgspec.json.decode(data, type=_KeyFile)
        secret = bytes.fromhex(stored.ed25519)
        if stored.version != 1 or len(secret) != PRIVATE_KEY_BYTES:
            raise ValueError("another version")
    except ValueError:  # without its cause, which could quote the file
        message = f"{path} is not a worker key"
        raise WalletError("worker-key", message, "restore it from a backup", ExitCode.USAGE) from None
    return SigningKey(secret)


class OutsideMiner:
    """Mines for the account of `key` through the node at `url`; `tell` is told every ten seconds how it goes.

    `idle_duty`: share of the time for which idle units run, 0 … 1.
    """

    def __init__(self, url: str, key: SigningKey, threads: int, idle_duty: float, tell: Callable[[str], None]) -> None:
        self.statistics = Statistics()
        self._gateway = Gateway(url, patience_seconds=_PATIENCE_SECONDS)
        self._key = key
        self._threads = threads
        self._idle_duty = idle_duty
        self._tell = tell
        self._told_at = time.monotonic()
        self._stopping = threading.Event()
        self._tip_moved = asyncio.Event()
        self._tip_height = 0

    async def run(self, units: int | None = None) -> None:
        """Work `units` units (None: until cancelled). Raises `WalletError`: network, node-lies."""
        async with self._gateway:
            network = await self._gateway.network()
            await asyncio.to_thread(work.warm)
            watching = asyncio.create_task(self._watch())
            try:
                await self._mine(network, units)
            finally:
                self._stopping.set()  # ends the unit at hand, in its thread
                watching.cancel()

    async def _mine(self, network: Network, units: int | None) -> None:
        done = 0
        while units is None or done < units:
            try:
                await self._step(network)
            except (RpcError, UnitLost) as error:
                # A block came first, or the operands are not there yet: the next unit will be another.
                self.statistics.units_lost += 1
                self._tell(f"unit lost: {error.message}")
                await asyncio.sleep(_RETRY_SECONDS)
            done += 1
            self._report()

    async def _watch(self) -> None:
        """Keep up with the tip: a new block makes the unit at hand stale, and its tickets are worth nothing."""
        async with self._gateway.heads() as heads:
            while True:
                height = await heads.wait(_REPORT_SECONDS)
                if height is not None:
                    self._tip_height = height
                    self._tip_moved.set()

    def _is_stale(self, core: HeaderCore) -> bool:
        return self._tip_height >= core.height or self._stopping.is_set()

    async def _step(self, network: Network) -> None:
        """One unit: get it, work it, hand in what came of it."""
        self._tip_moved.clear()
        params = {"miner": network.address_text(self._key.address)}
        offer: UnitOffer = await self._gateway.ask("work_getUnit", params, result=UnitOffer)
        core = self._checked_core(offer)
        shape = unit_shape(network.params, core.unit)
        interrupted = partial(self._is_stale, core)
        begin = time.monotonic()
        if isinstance(core.unit, Idle):
            evaluation = await asyncio.to_thread(work.evaluate_idle, core.seed, shape, self._threads, interrupted)
            if evaluation is not None:
                self._count(shape.macs, begin)
                self.statistics.idle_units += 1
                await self._win(core, offer, evaluation, shape.k)
            await self._rest(time.monotonic() - begin)
            return
        a, b = await self._operands(core.unit)
        evaluation = await asyncio.to_thread(work.evaluate, core.seed, a, b, self._threads, interrupted)
        self._count(shape.macs, begin)
        self.statistics.packet_units += 1
        if not await self._win(core, offer, evaluation, shape.k):
            await self._answer(network, core.unit, evaluation)

    def _checked_core(self, offer: UnitOffer) -> HeaderCore:
        """The header core to work on: it must reward us, and be what it is called."""
        try:
            core = decode(HeaderCore, bytes.fromhex(offer.core), MAX_HEADER_BYTES)
        except ConsensusError as error:
            raise _lie(f"its header cannot be read: {error}") from error
        if core.miner != self._key.address:
            raise _lie("its header rewards another account")
        if core.id.hex() != offer.id:
            raise _lie("its id is not that of its header")
        return core

    async def _operands(self, unit: PacketUnit) -> tuple[Int8Matrix, Int8Matrix]:
        """Both operands, which must be those that the header commits to."""
        left, right = left_spec(unit.m, unit.k, unit.a_root), right_spec(unit.k, unit.n, unit.b_root)
        found = []
        for spec, side in ((left, ROWS), (right, COLUMNS)):
            matrix = await self._gateway.tensor(spec.commitment.hex(), np.int8, spec.rows, spec.cols)
            if matrix is None:
                raise UnitLost("operand-missing", "the node does not serve an operand of the packet", "wait for it")
            tensor = await asyncio.to_thread(Tensor, matrix, side)
            if tensor.commitment != spec.commitment:
                raise _lie("an operand is not the one that the header commits to")
            found.append(tensor.matrix)
        return found[0], found[1]

    async def _win(self, core: HeaderCore, offer: UnitOffer, evaluation: work.Evaluation, k: int) -> bool:
        """Hand in the block, if the unit has won one and it is not too late; whether it was taken."""
        if evaluation.states is None:
            return False
        win = next(work.winning_tiles(core.seed, evaluation.states, core.target_int, k), None)
        if win is None or self._is_stale(core):
            return False
        i, j, _ = win
        product = await self._upload(evaluation)
        params = {
            "id": offer.id,
            "i": i,
            "j": j,
            "state": evaluation.states[i, j].astype("<u4").tobytes().hex(),
            "product": product.hex(),
        }
        try:
            taken: WorkAccepted = await self._gateway.rpc.call("work_submit", params, result=WorkAccepted)
        except RpcError as error:
            self._tell(f"block lost: {error.message}")
            return False
        self.statistics.blocks_won += taken.accepted
        return taken.accepted

    async def _answer(self, network: Network, unit: PacketUnit, evaluation: work.Evaluation) -> None:
        """Send the packet's product as a signed Result."""
        body = ResultBody(unit.packet_id, self._key.address, await self._upload(evaluation))
        result = Result(body, self._key.sign(body.signing_hash(network.genesis_hash)))
        await self._gateway.ask("work_result", {"result": encode(result).hex()}, result=ResultAccepted)
        self.statistics.results_sent += 1

    async def _upload(self, evaluation: work.Evaluation) -> bytes:
        tensor = await asyncio.to_thread(Tensor, evaluation.product)
        await self._gateway.upload(tensor)
        return tensor.commitment

    async def _rest(self, seconds: float) -> None:
        """After an idle unit that took `seconds`: pause as the duty says, but look for packets at each new block."""
        if self._idle_duty < 1:
            pause = seconds * (1 / self._idle_duty - 1) if self._idle_duty else _LONGEST_PAUSE_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, _LONGEST_PAUSE_SECONDS)):
                    await self._tip_moved.wait()

    def _count(self, multiplications: int, begin: float) -> None:
        self.statistics.macs += multiplications
        self.statistics.seconds += time.monotonic() - begin

    def _report(self) -> None:
        if time.monotonic() - self._told_at >= _REPORT_SECONDS:
            self._told_at = time.monotonic()
            self._tell(told(self.statistics))


def told(statistics: Statistics) -> str:
    """The statistics in words."""
    speed = statistics.macs / statistics.seconds / 1e9 if statistics.seconds else 0.0
    sent = f"{statistics.results_sent} results sent, {statistics.blocks_won} blocks won"
    return (
        f"{statistics.packet_units} packets and {statistics.idle_units} idle units at {speed:.1f} GMAC/s, "
        f"{sent}, {statistics.units_lost} units lost"
    )


def _lie(why: str) -> WalletError:
    message = f"the node handed out a unit that is not to be worked: {why}"
    return WalletError("node-lies", message, "do not trust this node; work for another", ExitCode.NETWORK)
