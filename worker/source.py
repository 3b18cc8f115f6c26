"""Where units come from and go to: what the mining loop asks of a node, be it in this process or behind RPC."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, TypeVar

from consensus.block import HeaderCore, PacketUnit
from consensus.shape import Shape
from consensus.tensor import Tensor
from consensus.work.unit import Int8, UInt32

IDLE_SHAPE = Shape(512, 2048, 512)
"""What a miner evaluates while no packet waits: five milliseconds or so, ten times what it takes to ask for a unit."""


class Unit(Protocol):
    """A candidate: the header core that is to win, the `seed` of its work, and the shape of its product."""

    @property
    def core(self) -> HeaderCore: ...

    @property
    def seed(self) -> bytes: ...

    @property
    def shape(self) -> Shape: ...

    def another(self) -> Self | None:
        """The same with a nonce of its own; None where only its source can make one."""


U = TypeVar("U", bound=Unit)


class Win(NamedTuple):
    """A unit's first winning tile (i, j), its state (16 uint32), and a packet's whole product."""

    i: int
    j: int
    state: UInt32
    product: Tensor | None


class UnitLost(Exception):
    """A unit, a block or a product came to nothing, and the next one may fare better; the text says why."""


class ProductGone(UnitLost):
    """A product that the source was given earlier is there no longer."""


class UnitSource(Protocol[U]):
    """A node, as the loop sees it. What is not a `UnitLost` ends the loop.

    Whoever owns a source tells the loop of each new tip (`MiningLoop.wake`).
    """

    async def next_unit(self, idle: bool) -> U | None:
        """A packet that the worker holds and whose answer is not known, each once for every tip; else an idle unit.

        A packet comes again at the next tip if its answer has not arrived, or is on the chain no longer. None: there
        is no packet and `idle` is false.
        """

    async def operands(self, unit: U) -> tuple[Int8, Int8]:
        """Both operands of a packet, as its header commits to them."""

    def is_stale(self, unit: U) -> bool:
        """Whether the unit can no longer win. Called from any thread, between bands of tiles."""

    async def submit(self, unit: U, win: Win) -> bool:
        """Send the block out; whether it became the tip. The source tells its owner how it went.

        Raises:
            UnitLost: it was refused, though it did not come too late.
        """

    async def publish(self, packet: PacketUnit, commitment: bytes, product: Tensor | None) -> None:
        """Sign and send a packet's answer; `product` is None where the source was given it before.

        Raises:
            ProductGone: it must be made anew.
        """

    def lost(self, what: str, why: str) -> None:
        """Tell the owner that something came to nothing."""
