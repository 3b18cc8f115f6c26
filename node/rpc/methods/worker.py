"""`worker_*`: who works, with what bond and record."""

from __future__ import annotations

from api.params import OfWorker, WorkerListing
from api.work import WorkerView
from consensus.params import ChainParams
from consensus.rules import workers
from consensus.state import WORKERS, StateReader, Worker
from node.chain.headers import HeaderEntry
from node.rpc.context import Context
from node.rpc.registry import Table

TABLE: Table[Context] = Table()


@TABLE.method("worker_get")
async def worker_get(node: Context, params: OfWorker) -> WorkerView:
    """A worker's registration, bond, score and packets. `registered` is false for any other account."""
    address = node.address(params.address)
    worker, height = await node.read(lambda reader, tip: (WORKERS.get(reader, address), tip.height))
    return _view(node.chain.params, params.address.lower(), worker, height)


@TABLE.method("worker_list")
async def worker_list(node: Context, params: WorkerListing) -> list[WorkerView]:
    """The registered workers, best score first."""
    rules = node.chain.params

    def everybody(reader: StateReader, tip: HeaderEntry) -> tuple[list[tuple[bytes, Worker]], int]:
        best = list(WORKERS.scan(reader))
        if params.active_only:
            best = [(address, worker) for address, worker in best if workers.is_active(rules, worker, tip.height)]
        best.sort(key=lambda pair: (-pair[1].score, -pair[1].bond, pair[0]))
        return best[: params.limit], tip.height

    best, height = await node.read(everybody)
    return [_view(rules, node.text(address), worker, height) for address, worker in best]


def _view(rules: ChainParams, address: str, worker: Worker | None, height: int) -> WorkerView:
    if worker is None:
        return WorkerView(address, False, False, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, ())
    return WorkerView(
        address=address,
        registered=worker.retired_at == 0,
        active=workers.is_active(rules, worker, height),
        bond=worker.bond,
        score=worker.score,
        slots=workers.slot_count(rules, worker),
        slots_used=len(worker.slots),
        min_price=worker.min_price,
        max_unit_bytes=worker.max_unit_bytes,
        max_packets=worker.max_packets,
        since=worker.since,
        seen=worker.seen,
        retired_at=worker.retired_at or None,
        held=tuple(slot.packet_id.hex() for slot in worker.slots),
    )
