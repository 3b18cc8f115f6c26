"""What to offer for a product: the price that workers take, the memory that they have, and the jobs that follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from api.work import WorkerView
from consensus.params import ChainParams
from consensus.rules import jobs
from consensus.shape import MAX_UNIT_BYTES, Shape
from consensus.transaction import Operand, Pair, SubmitJob
from wallet.client.slicing import Grid, Slices, choose_grid, into_jobs, padded
from wallet.errors import ExitCode, WalletError

SMALLEST_PACKET_MACS = 1 << 26
"""Packets are not made smaller than that for the sake of more hands: their handling would cost more than they save."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the client asks for; None leaves it to the market.

    price: grains per 2⁴⁰ of weight. packets: about how many. life: ticks for which the offer stands. memory_bound:
    bytes of the largest packet, operands and product.
    """

    price: int | None = None
    packets: int | None = None
    life: int | None = None
    memory_bound: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One job of an offer: its payload, and which of the product's packets its packets are."""

    payload: SubmitJob
    packets: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A product cut into packets, and the jobs that would buy them. Amounts in grains. `able` and `places` as of the
    `Deal` behind it; 0 where packets are only offered again."""

    slices: Slices
    parts: tuple[Part, ...]
    price: int
    life: int
    escrow: int
    able: int = 0
    places: int = 0

    @property
    def packets(self) -> int:
        """How many products are bought."""
        return len(self.slices.packets)


@dataclass(frozen=True, slots=True)
class Deal:
    """Terms that somebody will take: price, and the grid of packets that fits the memory.

    able: places, of all `places` that are active, which take such packets at that price now.
    """

    price: int
    grid: Grid
    able: int
    places: int


def find_deal(params: ChainParams, workers: Sequence[WorkerView], shape: Shape, terms: Terms) -> Deal:
    """Complete `terms` for X (m, k) times W (k, n) of `shape`: what suits the workers of half of the places or more.

    Raises `WalletError`: price-too-low, no-worker (nobody active), no-able-worker, and those of `choose_grid`.
    """
    if terms.price is not None and terms.price < params.min_price:
        message = f"a price of {terms.price} is below the network's least, {params.min_price} grains per 2⁴⁰ of weight"
        raise WalletError("price-too-low", message, f"offer {params.min_price} or more", ExitCode.USAGE)
    serving = [worker for worker in workers if worker.active]
    if not serving:
        fix = "wait until one is, or start one: tilework node run --mine, then tilework worker register"
        raise WalletError("no-worker", "no worker is active on this network", fix)
    bound = terms.memory_bound
    if bound is None:
        bound = min(MAX_UNIT_BYTES, _median([(worker.max_unit_bytes, worker.places) for worker in serving]))
    places = sum(worker.places for worker in serving)
    packets = min(places, worthwhile_packets(shape)) if terms.packets is None else terms.packets
    grid = choose_grid(shape, bound, packets)
    roomy = [worker for worker in serving if worker.max_unit_bytes >= grid.unit_bytes]
    if not roomy:
        most = max(worker.max_unit_bytes for worker in serving)
        message = f"packets of {grid.unit_bytes} bytes are too large for every active worker"
        raise WalletError("no-able-worker", message, f"set a memory bound of at most {most} bytes")
    least = min(worker.min_price for worker in roomy)
    price = terms.price
    if price is None:
        # The upper half of the places costs more; half of them is enough to be served.
        price = max(params.min_price, _median([(_asked(worker), worker.places) for worker in roomy]))
    if price < least:
        message = f"no active worker with that much memory works for {price} grains per 2⁴⁰ of weight"
        raise WalletError("no-able-worker", message, f"offer {least} or more")
    able = sum(worker.places for worker in roomy if worker.min_price <= price)
    return Deal(price, grid, able, places)


def life_of(params: ChainParams, terms: Terms) -> int:
    """How long an offer stands: by default half of what is allowed. Raises `WalletError` (expiry-invalid)."""
    if terms.life is None:
        return params.max_life // 2
    # The transaction waits for a block or two, and a packet must still have a whole window.
    least = 2 * params.window
    if not least <= terms.life <= params.max_life:
        message = f"an offer cannot stand for {terms.life} ticks"
        raise WalletError("expiry-invalid", message, f"choose {least} to {params.max_life} ticks", ExitCode.USAGE)
    return terms.life


def make_offer(
    params: ChainParams, slices: Slices, price: int, life: int, tick: int, wanted: Sequence[int] | None = None
) -> Offer:
    """The jobs that buy the packets `wanted` (indices; None: all), expiring `life` ticks after `tick`."""
    indices = range(len(slices.packets)) if wanted is None else wanted
    parts = tuple(
        Part(_payload(slices, packets, price, tick + life), tuple(packets))
        for packets in into_jobs(slices, params, indices)
    )
    fees = [jobs.job_fees(params, part.payload) for part in parts]
    escrow = sum(sum(part) for part in fees)
    return Offer(slices, parts, price, life, escrow)


def worthwhile_packets(shape: Shape) -> int:
    """Into how many packets a product of `shape` may be cut before they become too small to be worth it."""
    return max(1, math.prod(map(padded, shape)) // SMALLEST_PACKET_MACS)


def total_macs(slices: Slices) -> int:
    """Multiply-accumulates that the packets are priced by."""
    return sum(slices.shape(packet).macs for packet in slices.packets)


def _payload(slices: Slices, packets: Sequence[int], price: int, expiry: int) -> SubmitJob:
    chosen = [slices.packets[index] for index in packets]
    lefts = {index: position for position, index in enumerate(dict.fromkeys(packet.left for packet in chosen))}
    rights = {index: position for position, index in enumerate(dict.fromkeys(packet.right for packet in chosen))}
    return SubmitJob(
        lefts=tuple(_operands(slices, lefts, right=False)),
        rights=tuple(_operands(slices, rights, right=True)),
        packets=tuple(Pair(lefts[packet.left], rights[packet.right]) for packet in chosen),
        threshold=len(packets),
        price=price,
        expiry=expiry,
    )


def _operands(slices: Slices, indices: dict[int, int], *, right: bool) -> Iterator[Operand]:
    for index in indices:
        spec = (slices.rights if right else slices.lefts)[index].spec
        yield Operand(spec.root, spec.rows, spec.cols)


def _asked(worker: WorkerView) -> int:
    """What a worker's price is, or soon will be if that is more: the packets are to be dealt then, too."""
    return max(worker.min_price, 0 if worker.announced is None else worker.announced.min_price)


def _median(weighted: list[tuple[int, int]]) -> int:
    """The lower median of (value, weight) pairs: half of the weight or more is at or above it, and at or below."""
    total, passed = sum(weight for _, weight in weighted), 0
    for value, weight in sorted(weighted):
        passed += weight
        if 2 * passed >= total:
            return value
    raise AssertionError("the median of nothing")
