"""A job's story: what the state knows of it while it is open, and what the index knows of it for ever.

`gather` reads everything about one job; the views are pure functions of what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import UnionType
from typing import TypeVar

from api.work import Explanation, JobEventName, JobStatus, JobView, PacketState, PacketView, StoryLine
from consensus import events
from consensus.events import JobEvent
from consensus.params import ChainParams
from consensus.rules import jobs
from consensus.state import GROUPS, PACKETS, Group, Packet, PacketStatus, StateReader
from consensus.transaction import SubmitJob, Transaction, packet_id_of
from node.rpc.context import ReadChain

E = TypeVar("E", bound=JobEvent)

Text = Callable[[bytes], str]
"""Shows an address."""

_STATUS: dict[PacketStatus, PacketState] = {
    PacketStatus.QUEUED: "queued",
    PacketStatus.HELD: "held",
    PacketStatus.DONE: "done",
    PacketStatus.WITHDRAWN: "withdrawn",
}


@dataclass(frozen=True)
class JobRecord:
    """Everything that is known of a job.

    Attributes:
        group, packets: from the state; None and empty before the job is in a block and after it has closed.
        events: (height, event), oldest first.
    """

    params: ChainParams
    job: bytes
    owner: bytes
    payload: SubmitJob
    group: Group | None
    packets: dict[bytes, Packet]
    events: list[tuple[int, JobEvent]]

    @property
    def packet_ids(self) -> list[bytes]:
        """The ids of its packets, in order."""
        return [packet_id_of(self.job, index) for index in range(len(self.payload.packets))]

    def of(self, packet_id: bytes) -> list[tuple[int, JobEvent]]:
        """The events of one packet and of the job as a whole."""
        return [(height, event) for height, event in self.events if getattr(event, "packet_id", packet_id) == packet_id]


def gather(chain: ReadChain, job: bytes, pending: Transaction | None) -> JobRecord | None:
    """The record of a job; None if no such job was opened. `pending` is its transaction, if it is in the mempool."""
    confirmed = chain.archive.transaction(job)
    if confirmed is None:
        tx, history = pending, []
    else:
        tx, history = (confirmed[1] if confirmed[2].ok else None), chain.archive.job_events(job)
    if tx is None or not isinstance(tx.body.payload, SubmitJob):
        return None
    payload = tx.body.payload
    packet_ids = [packet_id_of(job, index) for index in range(len(payload.packets))]

    def held_by_state(state: StateReader) -> tuple[Group | None, dict[bytes, Packet]]:
        group = GROUPS.get(state, job)
        if group is None:
            return None, {}
        pairs = ((packet_id, PACKETS.get(state, packet_id)) for packet_id in packet_ids)
        return group, {packet_id: packet for packet_id, packet in pairs if packet is not None}

    group, packets = chain.read(held_by_state)
    return JobRecord(chain.params, job, tx.body.address, payload, group, packets, history)


def job_view(record: JobRecord, text: Text) -> JobView:
    """The job as a whole."""
    group, payload = record.group, record.payload
    answers = [(height, event) for height, event in record.events if isinstance(event, events.Answered)]
    closing = _last(record.events, events.Closed)
    opening = _last(record.events, events.Opened)
    completion = _last(record.events, events.Completed)
    return JobView(
        job=record.job.hex(),
        owner=text(record.owner),
        status=_job_status(record),
        packets=len(payload.packets),
        threshold=payload.threshold,
        price=payload.price,
        expiry=payload.expiry,
        mode=payload.mode,
        done=len(answers),
        held=0 if group is None else group.held,
        queued=sum(_packet_status(record, packet, False) == "queued" for packet in record.packets.values()),
        escrow=0 if group is None else group.escrow,
        opened_at=None if opening is None else opening[0],
        completed_at=None if completion is None else completion[0],
        closed_at=None if closing is None else closing[0],
        refund=None if closing is None else closing[1].refund,
        paid=sum(event.fee for _, event in answers),
        burned=sum(event.burned for _, event in answers),
        workers=len({event.worker for _, event in answers}),
        blocks_won=tuple(height for height, event in answers if event.won),
    )


def packet_views(record: JobRecord, text: Text) -> list[PacketView]:
    """Its packets, in order; also after the job has closed."""
    answers = {
        event.packet_id: (height, event) for height, event in record.events if isinstance(event, events.Answered)
    }
    views = []
    shapes = [record.payload.shape(packet) for packet in record.payload.packets]
    fees = jobs.job_fees(record.params, record.payload)
    for index, (packet_id, (m, k, n), fee) in enumerate(zip(record.packet_ids, shapes, fees, strict=True)):
        packet, (answered_at, answer) = record.packets.get(packet_id), answers.get(packet_id, (None, None))
        held = packet is not None and packet.status == PacketStatus.HELD
        worker = packet.worker if packet is not None and held else answer.worker if answer is not None else None
        views.append(
            PacketView(
                packet_id=packet_id.hex(),
                index=index,
                m=m,
                k=k,
                n=n,
                fee=fee,
                status=_packet_status(record, packet, answer is not None),
                worker=None if worker is None else text(worker),
                deadline=jobs.deadline(record.params, packet) if packet is not None and held else None,
                product=None if answer is None else answer.product.hex(),
                answered_at=answered_at,
                won=answer is not None and answer.won,
            )
        )
    return views


def explanation(record: JobRecord, packet_id: bytes, text: Text) -> Explanation:
    """What happened to one packet, and why somebody was or was not paid."""
    history = [
        StoryLine(height, name_of(event), _worker(event, text), tell(event, text))
        for height, event in record.of(packet_id)
    ]
    index = record.packet_ids.index(packet_id)
    return Explanation(packet_id.hex(), record.job.hex(), index, tuple(history), _verdict(record, packet_id, text))


# --- one event -----------------------------------------------------------------------------------------------------

_NAMES: dict[type, JobEventName] = {
    events.Opened: "opened",
    events.Dealt: "dealt",
    events.Answered: "answered",
    events.Missed: "missed",
    events.Dropped: "dropped",
    events.Completed: "completed",
    events.Cancelled: "cancelled",
    events.Closed: "closed",
}


def name_of(event: JobEvent) -> JobEventName:
    """The name of an event's kind."""
    return _NAMES[type(event)]


def tell(event: JobEvent, text: Text) -> str:
    """An event in words."""
    match event:
        case events.Opened():
            return (
                f"opened by {text(event.owner)}: {event.packets} packets, {event.threshold} needed, "
                f"{event.escrow} grains in escrow"
            )
        case events.Dealt():
            return f"dealt to {text(event.worker)}, who may answer through tick {event.deadline}"
        case events.Answered():
            return f"answered by {text(event.worker)}: {_payment(event)}"
        case events.Missed():
            return f"{text(event.worker)} did not answer in its window and lost {event.burned} grains of its bond"
        case events.Dropped():
            return f"{text(event.worker)} did not answer, but the job was complete when its window ended: no fine"
        case events.Completed():
            return "the job has all results that it needs; packets still held may be answered in their windows"
        case events.Cancelled():
            return "cancelled by its owner: packets that nobody held are withdrawn"
        case events.Closed():
            why = ("complete", "expired", "cancelled")[event.why]
            return f"closed ({why}) with {event.done} results; {event.refund} grains went back to {text(event.owner)}"


def _payment(event: events.Answered) -> str:
    pay = event.fee - event.burned - event.share
    won = "; the product also won the block" if event.won else ""
    return (
        f"paid {pay} grains of a fee of {event.fee} "
        f"({event.burned} burned, {event.share} to the miner who included it){won}"
    )


def _worker(event: JobEvent, text: Text) -> str | None:
    worker: bytes | None = getattr(event, "worker", None)
    return None if worker is None else text(worker)


# --- conclusions ---------------------------------------------------------------------------------------------------


def _job_status(record: JobRecord) -> JobStatus:
    closing = _last(record.events, events.Closed)
    if closing is not None:
        return ("closed", "expired", "cancelled")[closing[1].why]
    if record.group is None:
        return "pending"
    if record.group.completed_at:
        return "complete"
    return "cancelled" if record.group.cancelled else "open"


def _packet_status(record: JobRecord, packet: Packet | None, answered: bool) -> PacketState:
    if packet is not None:
        waits_in_vain = packet.status == PacketStatus.QUEUED and record.group is not None and record.group.ended
        return "withdrawn" if waits_in_vain else _STATUS[packet.status]
    if answered:
        return "done"
    return "queued" if not record.events else "withdrawn"


def _verdict(record: JobRecord, packet_id: bytes, text: Text) -> str:
    """One sentence."""
    own = [(height, event) for height, event in record.events if getattr(event, "packet_id", None) == packet_id]
    answer = _last(own, events.Answered)
    if answer is not None:
        return f"{text(answer[1].worker)} was {_payment(answer[1])} at height {answer[0]}."
    before = f" Before that, {len(misses)} window(s) passed unanswered." if (misses := _all_misses(own)) else ""
    packet = record.packets.get(packet_id)
    if packet is not None and packet.status == PacketStatus.HELD:
        until = jobs.deadline(record.params, packet)
        return f"Nobody is paid yet: {text(packet.worker)} holds it and may answer through tick {until}.{before}"
    if packet is not None and _packet_status(record, packet, False) == "queued":
        return f"Nobody is paid yet: it waits in the queue for a worker who is able to take it.{before}"
    if not record.events:
        return "Nobody is paid yet: the job's transaction waits for a block."
    dropped = _last(own, events.Dropped)
    if dropped is not None:
        holder = text(dropped[1].worker)
        return f"Nobody was paid: {_end(record, events.Completed)} while {holder} still held it.{before}"
    return f"Nobody was paid: {_end(record, events.Completed | events.Cancelled)} while nobody held it.{before}"


def _end(record: JobRecord, kinds: UnionType | type[JobEvent]) -> str:
    """What ended the wait for a packet without an answer: the first event of `kinds`, else the job's expiry."""
    for height, event in record.events:
        if isinstance(event, kinds):
            if isinstance(event, events.Cancelled):
                return f"its owner cancelled the job at height {height}"
            return f"the job had the {record.payload.threshold} results that it needs at height {height}"
    closing = _last(record.events, events.Closed)
    if closing is not None:
        return f"the job expired at height {closing[0]}"
    return f"the job expires at tick {record.payload.expiry}, too soon for another window,"


def _all_misses(own: Iterable[tuple[int, JobEvent]]) -> list[int]:
    return [height for height, event in own if isinstance(event, events.Missed)]


def _last(story: Iterable[tuple[int, JobEvent]], kind: type[E]) -> tuple[int, E] | None:
    return next(((height, event) for height, event in reversed(list(story)) if isinstance(event, kind)), None)
