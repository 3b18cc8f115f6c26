"""`worker_*`: who works, with what bond and record."""

from __future__ import annotations

from msgspec.structs import replace

from api.params import OfWorker, WorkerListing
from api.work import DeclarationView, WorkerView
from consensus.params import ChainParams
from consensus.rules import workers
from consensus.state import WORKERS, StateReader, Worker, ledger
from node.chain.headers import HeaderEntry
from node.rpc.context import Context
from node.rpc.registry import Table

TABLE: Table[Context] = Table()


@TABLE.method("worker_get")
async def worker_get(node: Context, params: OfWorker) -> WorkerView:
    """A worker's declaration, bond, record and packets. `registered` is false for any other account."""
    address = node.address(params.address)
    worker, tick = await node.read(lambda reader, _tip: (WORKERS.get(reader, address), ledger(reader).tick))
    view = _view(node.chain.params, params.address.lower(), worker, tick)
    return replace(view, lost=await node.compute.run(node.chain.archive.lost, address))


@TABLE.method("worker_list")
async def worker_list(node: Context, params: WorkerListing) -> list[WorkerView]:
    """The registered workers, those who earned most first."""
    rules = node.chain.params

    def everybody(reader: StateReader, _tip: HeaderEntry) -> tuple[list[tuple[bytes, Worker]], int]:
        tick, best = ledger(reader).tick, list(WORKERS.scan(reader))
        if params.active_only:
            best = [(address, worker) for address, worker in best if workers.is_active(rules, worker, tick)]
        best.sort(key=lambda pair: (-pair[1].paid, -pair[1].bond, pair[0]))
        return best[: params.limit], tick

    best, tick = await node.read(everybody)
    return [_view(rules, node.text(address), worker, tick) for address, worker in best]


def _view(rules: ChainParams, address: str, worker: Worker | None, tick: int) -> WorkerView:
    if worker is None:
        return WorkerView(address, False, False, 0, 0, 0, 0, 0, None, 0, None, 0, 0, 0, ())
    declared, announced = worker.declared, worker.announced
    return WorkerView(
        address=address,
        registered=worker.retired_at == 0,
        active=workers.is_active(rules, worker, tick),
        bond=worker.bond,
        reserved=worker.reserved,
        places=declared.places,
        min_price=declared.min_price,
        max_unit_bytes=declared.max_unit_bytes,
        announced=DeclarationView(worker.announced_for, announced.min_price, announced.max_unit_bytes, announced.places)
        if worker.announced_for
        else None,
        seen=worker.seen,
        retired_at=worker.retired_at or None,
        paid=worker.paid,
        burned=worker.burned,
        missed=worker.missed,
        held=tuple(holding.packet_id.hex() for holding in worker.holds),
    )
