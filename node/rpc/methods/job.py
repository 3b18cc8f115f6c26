"""`job_*`: jobs and their packets, open or long closed, and who was paid for what."""

from __future__ import annotations

from itertools import islice

from api.errors import NOT_FOUND
from api.params import JobListing, OfJob, OfPacket
from api.work import Explanation, JobView, PacketView
from consensus import events
from consensus.state import GROUPS, PACKETS
from node.rpc.context import Context, ReadChain
from node.rpc.jsonrpc import RpcError
from node.rpc.registry import Table
from node.rpc.story import JobRecord, explanation, gather, job_view, packet_views

TABLE: Table[Context] = Table()


_SCANNED_BLOCKS = 2_000
"""How far back a list of everybody's jobs reaches beyond those that are open."""
_SCANNED_MOVEMENTS = 20_000
"""How many movements of one owner are looked through for jobs."""


@TABLE.method("job_get", errors=[NOT_FOUND])
async def job_get(node: Context, params: OfJob) -> JobView:
    """A job: how far it is, what it has cost, which blocks it has won."""
    return await node.compute.run(lambda: job_view(_record(node, params.job), node.text))


@TABLE.method("job_packets", errors=[NOT_FOUND])
async def job_packets(node: Context, params: OfJob) -> list[PacketView]:
    """A job's packets in order, also after it has closed. Products are downloaded from `/tensors/{product}`."""
    return await node.compute.run(lambda: packet_views(_record(node, params.job), node.text))


@TABLE.method("job_list")
async def job_list(node: Context, params: JobListing) -> list[JobView]:
    """Jobs of one account or of everybody, newest first: those that are open, and those of the last 2,000 blocks."""
    owner = None if params.owner is None else node.address(params.owner)

    def listing() -> list[JobView]:
        ids = _recent(node.chain, params.limit) if owner is None else _owned(node.chain, owner, params.limit)
        records = (gather(node.chain, job, None) for job in ids)
        return [job_view(record, node.text) for record in records if record is not None]

    return await node.compute.run(listing)


@TABLE.method("job_explain", errors=[NOT_FOUND])
async def job_explain(node: Context, params: OfPacket) -> Explanation:
    """Who held a packet when, and in one sentence who was paid how much for it, or why nobody was."""
    packet_id = bytes.fromhex(params.packet)

    def explain() -> Explanation:
        job = params.job or _job_of(node.chain, packet_id)
        record = None if job is None else gather(node.chain, bytes.fromhex(job), None)
        if record is None or packet_id not in record.packet_ids:
            fix = "Take the id from `job_packets`; for one that was never dealt, name its `job` too."
            raise RpcError(NOT_FOUND, f"There is no packet {params.packet}", fix=fix)
        return explanation(record, packet_id, node.text)

    return await node.compute.run(explain)


def _record(node: Context, job: str) -> JobRecord:
    job_id = bytes.fromhex(job)
    record = gather(node.chain, job_id, node.door.pool.get(job_id))
    if record is None:
        fix = "See with `tx_get` whether its transaction was accepted and took effect."
        raise RpcError(NOT_FOUND, f"There is no job {job}", fix=fix)
    return record


def _job_of(chain: ReadChain, packet_id: bytes) -> str | None:
    packet = chain.read(lambda state: PACKETS.get(state, packet_id))
    if packet is not None:
        return packet.job.hex()
    history = chain.archive.packet_events(packet_id)
    return history[0][1].job.hex() if history else None


def _owned(chain: ReadChain, owner: bytes, limit: int) -> list[bytes]:
    """The jobs of an account, newest first: each moved its escrow when it was opened."""
    movements = islice(chain.archive.movements(owner), _SCANNED_MOVEMENTS)
    return list(islice((m.reference for m in movements if m.kind == "escrow"), limit))


def _recent(chain: ReadChain, limit: int) -> list[bytes]:
    """Everybody's jobs, newest first."""
    ids: dict[bytes, None] = {}
    tip = chain.tip.height
    for height in range(tip, max(tip - _SCANNED_BLOCKS, 0), -1):
        outcome = chain.archive.outcome(chain.archive.id_at(height) or bytes(32))
        opened = [] if outcome is None else [e.job for e in outcome.events if isinstance(e, events.Opened)]
        ids.update(dict.fromkeys(reversed(opened)))
        if len(ids) >= limit:
            break
    older = chain.read(lambda state: [(group.sequence, job) for job, group in GROUPS.scan(state)])
    ids.update(dict.fromkeys(job for _, job in sorted(older, reverse=True)))
    return list(islice(ids, limit))
