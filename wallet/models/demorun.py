"""The demonstration: real digits classified by jobs on the chain, and everything about it checked.

Each layer's product is bought, the little arithmetic between them is done here in integers, and the logits must equal
those of the same network computed locally, bit for bit. The blocks that packets won are looked up by their headers.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from msgspec import Struct

from consensus.block import PacketUnit, decode_header
from consensus.errors import ConsensusError
from consensus.proofs import freivalds
from consensus.shape import Shape
from consensus.transaction import packet_id_of
from wallet.accounts.amounts import format_tile
from wallet.client.client import Client
from wallet.client.job import Job
from wallet.client.matrices import Int8Matrix, Int32Matrix
from wallet.client.offers import total_macs, worthwhile_packets
from wallet.models.demo import Demo, count_correct
from wallet.models.quantised import run as run_network
from wallet.models.quantised import run_local

Told = Callable[[str], None]


class LayerReport(Struct, frozen=True):
    """How a layer's product was bought. `verify_ms`: median of Freivalds' checks of its packets, and of the whole."""

    rows: int
    inner: int
    cols: int
    jobs: tuple[str, ...]
    packets: int
    macs: int
    seconds: float
    verify_ms: float
    verify_whole_ms: float


class WorkerReport(Struct, frozen=True):
    """What a worker did, and what it was paid for it, shares of others and the burned part not counted."""

    address: str
    packets: int
    pay_grains: int


class Report(Struct, frozen=True):
    """The outcome. `failures` says in words what did not hold; it is empty if all is well."""

    images: int
    correct: int
    float_correct: int
    equals_local: bool
    layers: tuple[LayerReport, ...]
    workers: tuple[WorkerReport, ...]
    blocks_won: tuple[int, ...]
    paid_grains: int
    burned_grains: int
    fees_grains: int
    seconds: float
    failures: tuple[str, ...]


async def run(client: Client, demo: Demo, packets: int, price: int | None, tell: Told) -> Report:
    """Classify the demonstration's images through jobs of at most about `packets` packets a layer.

    `price`: grains per 2⁴⁰ of weight; None: what workers ask. Raises `WalletError` if a product cannot be had;
    whatever else is wrong stands in the report.
    """
    begin = time.monotonic()
    local = asyncio.create_task(asyncio.to_thread(run_local, demo.network, demo.images))
    await asyncio.to_thread(freivalds.warm)
    jobs: list[Job] = []
    layers: list[LayerReport] = []

    async def buy(x: Int8Matrix, w: Int8Matrix) -> Int32Matrix:
        started = time.monotonic()
        count = min(packets, worthwhile_packets(Shape(x.shape[0], x.shape[1], w.shape[1])))
        job = await client.submit(x, w, packets=count, price=price, attempts=3)
        jobs.append(job)
        count = len(job.slices.packets)
        tell(f"layer {len(jobs)}: {x.shape[0]}×{x.shape[1]} times {w.shape[0]}×{w.shape[1]} in {count} packets")
        product = await job.result(
            on_progress=lambda now: tell(f"  {now.verified} of {count} verified, {now.held} at work")
        )
        layers.append(_layer_report(job, time.monotonic() - started))
        return product

    logits = await run_network(demo.network, demo.images, buy)
    equal = bool(np.array_equal(logits, await local))
    correct, expected = count_correct(logits, demo.labels), demo.manifest.quantised_correct
    won = await _blocks_won(client, jobs)
    costs = [await job.cost() for job in jobs]
    failures = []
    if not equal:
        failures.append("the answer differs from the local computation")
    if correct != expected:
        failures.append(f"{correct} images are classified correctly, not {expected}")
    if not won:
        failures.append("no packet of the job won a block")
    return Report(
        images=len(demo.labels),
        correct=correct,
        float_correct=demo.manifest.float_correct,
        equals_local=equal,
        layers=tuple(layers),
        workers=_worker_reports(jobs),
        blocks_won=won,
        paid_grains=sum(cost.paid for cost in costs),
        burned_grains=sum(cost.burned for cost in costs),
        fees_grains=sum(cost.fees for cost in costs),
        seconds=time.monotonic() - begin,
        failures=tuple(failures),
    )


def _packets(count: int) -> str:
    return f"{count} packet{'' if count == 1 else 's'}"


def told(report: Report) -> str:
    """The report in words."""
    packets = sum(layer.packets for layer in report.layers)
    lines = [
        f"{report.images} handwritten digits, classified through {_packets(packets)} in {report.seconds:.1f} s",
        "",
        f"  accuracy     {report.correct / report.images:.2%} in 7-bit integers on the chain, "
        f"{report.float_correct / report.images:.2%} in float32",
        f"  exact        {'equal bit for bit to the local computation' if report.equals_local else 'NOT EQUAL'}",
    ]
    for number, layer in enumerate(report.layers, start=1):
        lines.append(
            f"  layer {number}      {layer.rows}×{layer.inner} · {layer.inner}×{layer.cols}: "
            f"{_packets(layer.packets)}, {layer.macs / 1e9:.2f} GMAC, {layer.seconds:.1f} s; "
            f"checks {layer.verify_ms:.2f} ms a packet, {layer.verify_whole_ms:.2f} ms the whole"
        )
    lines += [
        f"  worker       {worker.address}: {_packets(worker.packets)}, {format_tile(worker.pay_grains)} TILE"
        for worker in report.workers
    ]
    lines += [
        f"  paid         {format_tile(report.paid_grains)} TILE, of it {format_tile(report.burned_grains)} burned; "
        f"{format_tile(report.fees_grains)} TILE in transaction fees",
        f"  blocks won   {', '.join(map(str, report.blocks_won)) or 'none'}",
        "",
        "verdict: " + ("all checks passed" if not report.failures else "FAILED: " + "; ".join(report.failures)),
    ]
    return "\n".join(lines)


def _layer_report(job: Job, seconds: float) -> LayerReport:
    grid, checks = job.slices.grid, job.checks
    return LayerReport(
        rows=grid.shape.m,
        inner=grid.shape.k,
        cols=grid.shape.n,
        jobs=job.ids,
        packets=len(job.slices.packets),
        macs=total_macs(job.slices),
        seconds=seconds,
        verify_ms=1000 * statistics.median(checks.packets),
        verify_whole_ms=1000 * checks.whole,
    )


def _worker_reports(jobs: list[Job]) -> tuple[WorkerReport, ...]:
    packets, pay = Counter[str](), Counter[str]()
    for job in jobs:
        for answer in job.answers.values():
            assert answer.worker is not None, "somebody answered"
            packets[answer.worker] += 1
            pay[answer.worker] += worker_pay(answer.fee)
    return tuple(WorkerReport(address, count, pay[address]) for address, count in packets.most_common())


def worker_pay(fee: int) -> int:
    """What of a packet's fee goes to its worker: a tenth burns, a fiftieth is the including miner's (docs/protocol.md,
    section 9)."""
    return fee - max(1, fee // 10) - fee // 50


async def _blocks_won(client: Client, jobs: list[Job]) -> tuple[int, ...]:
    """Heights of main-chain blocks whose unit is one of the jobs' packets, by their headers."""
    own = {
        packet_id_of(bytes.fromhex(job_id), index)
        for job in jobs
        for job_id in job.ids
        for index in range(len(job.slices.packets))
    }
    claimed = sorted({height for job in jobs for height in job.snapshot().blocks_won})
    won = []
    for height in claimed:
        view = await client.gateway.header(height)
        try:
            header = None if view is None else decode_header(bytes.fromhex(view.raw))
        except ConsensusError:
            continue
        if header is not None and isinstance(header.core.unit, PacketUnit) and header.core.unit.packet_id in own:
            won.append(height)
    return tuple(won)
