"""An outside miner: takes units from a node over RPC, works them, and hands in blocks and signed Results.

The node is not trusted with what would cost the miner: the header must reward its address and hash to the seed that is
worked on, and operands must be those that the header commits to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from api.params import ForMiner, SignedResult, Submission
from api.work import ResultAccepted, UnitOffer, WorkAccepted
from consensus import work
from consensus.block import MAX_HEADER_BYTES, HeaderCore, PacketUnit, PairUnit
from consensus.codec import decode, encode
from consensus.errors import ConsensusError
from consensus.shape import Shape
from consensus.tensor import Tensor
from consensus.work.unit import Int8
from wallet.client.gateway import Gateway
from wallet.client.rpc import NetworkError, RpcError
from wallet.client.transactions import Rules
from wallet.errors import ExitCode, WalletError
from worker.compute import LowPriorityCompute
from worker.duty import usual_duty
from worker.key import WorkerKey
from worker.loop import MiningLoop
from worker.source import ProductGone, UnitLost, Win
from worker.stats import MinerStats

_REPORT_SECONDS = 10.0
_LOOK_SECONDS = 10.0
"""Without a word of a new block for so long, the miner asks."""
_PATIENCE_SECONDS = 600.0
"""A miner outlives its node's restarts."""
_TOO_LATE = frozenset({"stale-unit", "unknown-unit"})
"""Why a block is not taken when another came first."""


@dataclass(frozen=True)
class RemoteUnit:
    """A unit that the node offered, checked."""

    core: HeaderCore
    seed: bytes

    @property
    def shape(self) -> Shape:
        """Of the unit's product."""
        return self.core.unit.shape

    def another(self) -> None:
        """None: the node takes back the units that it gave out, and no others."""


class RemoteUnits:
    """A `UnitSource` over a node's RPC. Raises `WalletError`: network, node-lies.

    Attributes:
        tip_height: of the node's chain, as far as its owner has heard.
    """

    def __init__(self, gateway: Gateway, network: Rules, key: WorkerKey, tell: Callable[[str], None]) -> None:
        self.tip_height = 0
        self._gateway = gateway
        self._network = network
        self._key = key
        self._tell = tell

    async def next_unit(self, idle: bool) -> RemoteUnit | None:
        """See `UnitSource`."""
        params = ForMiner(self._network.address_text(self._key.address))
        with _losses():
            offer: UnitOffer = await self._gateway.ask("work_getUnit", params, result=UnitOffer)
        core = self._checked_core(offer)
        if not isinstance(core.unit, PacketUnit) and not idle:
            return None
        return RemoteUnit(core, core.seed)

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
        if not core.unit.shape.is_unit():
            raise _lie(f"no unit is {core.unit.shape}")
        if isinstance(core.unit, PairUnit):
            raise _lie("nobody here asked for a pair of matrices of its own")
        return core

    async def operands(self, unit: RemoteUnit) -> tuple[Int8, Int8]:
        """See `UnitSource`."""
        assert isinstance(unit.core.unit, PacketUnit)
        matrices = []
        for spec in (unit.core.unit.left, unit.core.unit.right):
            with _losses():
                matrix = await self._gateway.tensor(spec.commitment.hex(), np.int8, spec.rows, spec.cols)
            if matrix is None:
                raise UnitLost("the node does not serve an operand of the packet")
            tensor = await asyncio.to_thread(Tensor, matrix, spec.side)
            if tensor.commitment != spec.commitment:
                raise _lie("an operand is not the one that the header commits to")
            matrices.append(tensor.matrix)
        return matrices[0], matrices[1]

    def is_stale(self, unit: RemoteUnit) -> bool:
        """See `UnitSource`."""
        return self.tip_height >= unit.core.height

    async def submit(self, unit: RemoteUnit, win: Win) -> bool:
        """See `UnitSource`."""
        state = win.state.astype("<u4").tobytes().hex()
        answer = self._key.answer_of(unit.core.unit, win.product, self._network.genesis_hash)
        signed = None if answer is None else encode(answer).hex()
        params = Submission(unit.core.id.hex(), win.i, win.j, state, signed)
        try:
            if win.product is not None:
                await self._gateway.upload(win.product)
            taken: WorkAccepted = await self._gateway.rpc.call("work_submit", params, result=WorkAccepted)
        except RpcError as error:
            self.lost("block lost", error.message)
            if error.code in _TOO_LATE:
                return False
            raise UnitLost(error.message) from error
        except NetworkError as error:  # asked again, the node would know the unit no more: there is nothing to gain
            self.lost("block lost", error.message)
            return False
        return taken.accepted

    async def publish(self, packet: PacketUnit, commitment: bytes, product: Tensor | None) -> None:
        """See `UnitSource`."""
        result = self._key.result(packet.packet_id, commitment, self._network.genesis_hash)
        with _losses():
            if product is not None:
                await self._gateway.upload(product)
            await self._gateway.ask("work_result", SignedResult(encode(result).hex()), result=ResultAccepted)

    def lost(self, what: str, why: str) -> None:
        """See `UnitSource`."""
        self._tell(f"{what}: {why}")


class OutsideMiner:
    """Mines for the account of `key` through the node at `url`; `tell` is told every ten seconds how it goes.

    `idle_duty`: share of the time for which idle units run, 0 … 1; None: what is usual on the network.

    Attributes:
        stats: counters.
    """

    def __init__(
        self, url: str, key: WorkerKey, threads: int, idle_duty: float | None, tell: Callable[[str], None]
    ) -> None:
        self.stats = MinerStats()
        self._gateway = Gateway(url, patience_seconds=_PATIENCE_SECONDS)
        self._key = key
        self._threads = threads
        self._idle_duty = idle_duty
        self._tell = tell

    async def run(self, units: int | None = None) -> None:
        """Work `units` units (None: until cancelled). Raises `WalletError`: network, node-lies."""
        bench = LowPriorityCompute()
        try:
            async with self._gateway:
                network = await self._gateway.network()
                if fault := await bench.run(work.warm):
                    self._tell(f"KERNELS NOT USED: this machine computes slowly, and rightly: {fault}")
                source = RemoteUnits(self._gateway, network, self._key, self._tell)
                duty = usual_duty(network.params.network) if self._idle_duty is None else self._idle_duty
                loop = MiningLoop(source, bench=bench, rng=random.Random(), threads=self._threads, idle_duty=duty)
                self.stats = loop.stats
                await self._mine(source, loop, units)
        except ExceptionGroup as failures:
            raise _gravest(failures) from failures
        finally:
            bench.close()  # the unit at hand ends within a band: the loop has told it to

    async def _mine(self, source: RemoteUnits, loop: MiningLoop[RemoteUnit], units: int | None) -> None:
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._watch(source, loop)), group.create_task(self._report())]
            try:
                await loop.run(units)
            finally:
                for task in beside:
                    task.cancel()

    async def _watch(self, source: RemoteUnits, loop: MiningLoop[RemoteUnit]) -> None:
        """Keep up with the tip: a new block makes the unit at hand stale, and may bring packets or undo answers."""
        async with self._gateway.heads(self._tell) as heads:
            while True:
                height = await heads.wait(_LOOK_SECONDS)
                try:
                    source.tip_height = (await self._gateway.info()).height if height is None else height
                except RpcError as error:
                    source.lost("tip not known", error.message)
                loop.wake()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._tell(told(self.stats))


def told(stats: MinerStats) -> str:
    """The counters in words."""
    return (
        f"{stats.packet_units} packets and {stats.idle_units} idle units at {stats.macs_per_second / 1e9:.1f} GMAC/s, "
        f"{stats.results_sent} results sent, {stats.blocks_won} blocks won, {stats.units_lost} units lost"
    )


@contextmanager
def _losses() -> Iterator[None]:
    """The node's refusals, as the loop knows them: a block came first, say, or operands are not there yet."""
    try:
        yield
    except RpcError as error:
        kind = ProductGone if error.reason == "missing-tensor" else UnitLost
        raise kind(error.message) from error


def _lie(why: str) -> WalletError:
    message = f"the node handed out a unit that is not to be worked: {why}"
    return WalletError("node-lies", message, "do not trust this node; work for another", ExitCode.NETWORK)


def _gravest(failures: BaseExceptionGroup[Exception]) -> Exception:
    """The one to tell: a fault of ours before a refusal."""
    errors = list(_leaves(failures))
    return next((error for error in errors if not isinstance(error, WalletError)), errors[0])


def _leaves(failures: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in failures.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
