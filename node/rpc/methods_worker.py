"""`worker_*`: who works, with what bond and record."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from consensus.params import ChainParams
from consensus.rules import workers
from consensus.state import WORKERS, StateReader, Worker
from node.chain.headers import HeaderEntry
from node.rpc.context import Context
from node.rpc.registry import Params, Table
from node.rpc.views_work import WorkerView

TABLE: Table[Context] = Table()

MAX_WORKERS = 1000


class OfWorker(Params, frozen=True):
    """A worker."""

    address: Annotated[str, Meta(max_length=90, description="Address of the worker's account.")]


class Listing(Params, frozen=True):
    """Which workers."""

    active_only: Annotated[bool, Meta(description="Only those that packets are dealt to.")] = False
    limit: Annotated[int, Meta(ge=1, le=MAX_WORKERS, description="Most workers to give.")] = 100


@TABLE.method("worker_get")
async def worker_get(node: Context, params: OfWorker) -> WorkerView:
    """A worker's registration, bond, score and packets. `registered` is false for any other account."""
    address = node.address(params.address)
    worker, height = await node.read(lambda reader, tip: (WORKERS.get(reader, address), tip.height))
    return _view(node.chain.params, params.address.lower(), worker, height)


@TABLE.method("worker_list")
async def worker_list(node: Context, params: Listing) -> list[WorkerView]:
    """The registered workers, best score first."""
    rules = node.chain.params

    def everybody(reader: StateReader, tip: HeaderEntry) -> tuple[list[tuple[bytes, Worker]], int]:
        found = list(WORKERS.scan(reader))
        if params.active_only:
            found = [(address, worker) for address, worker in found if workers.is_active(rules, worker, tip.height)]
        found.sort(key=lambda pair: (-pair[1].score, -pair[1].bond, pair[0]))
        return found[: params.limit], tip.height

    found, height = await node.read(everybody)
    return [_view(rules, node.text(address), worker, height) for address, worker in found]


def _view(rules: ChainParams, address: str, worker: Worker | None, height: int) -> WorkerView:
    if worker is None:
        return WorkerView(address, False, False, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, [])
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
        held=[slot.packet_id.hex() for slot in worker.slots],
    )
