"""Jobs: a group of packets from its opening to its closing (docs/protocol.md, section 9).

QUEUED ──dealt──▶ HELD ──answered──▶ DONE
   ▲               │
   └────missed─────┘        the group closes: complete (+ grace), expired, or cancelled with nothing held
"""

from __future__ import annotations

from msgspec.structs import replace

from consensus import events
from consensus.codec import MAX_AMOUNT
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_DIMENSION, MAX_PACKETS, MAX_TENSOR_BYTES, MAX_UNIT_BYTES, TILE_SIDE, ChainParams
from consensus.rules import workers
from consensus.rules.execution import Execution
from consensus.state import (
    CLOSINGS,
    DEADLINES,
    DONE,
    GROUPS,
    HELD,
    PACKETS,
    QUEUE,
    QUEUED,
    WITHDRAWN,
    Entry,
    Group,
    Mark,
    Packet,
)
from consensus.transaction import OPEN, SubmitJob, TxBody, macs, packet_id, unit_bytes

MACS_PER_PRICE = 1 << 20


def packet_fee(params: ChainParams, price: int, m: int, n: int, k: int) -> int:
    """Grains for a packet at `price` grains per 2²⁰ MACs, rounded up."""
    return max(params.min_fee, -(-price * macs(m, n, k) // MACS_PER_PRICE))


def escrow_of(fees: list[int], threshold: int) -> int:
    """The most that a group can pay: the `threshold` largest fees, and a quarter of each of the rest."""
    ordered = sorted(fees, reverse=True)
    return sum(ordered[:threshold]) + sum(fee // 4 for fee in ordered[threshold:])


def job_fees(params: ChainParams, job: SubmitJob) -> list[int]:
    """Each packet's fee, in order."""
    shapes = [(job.lefts[p.left].rows, job.rights[p.right].cols, job.lefts[p.left].cols) for p in job.packets]
    return [packet_fee(params, job.price, m, n, k) for m, n, k in shapes]


def check(params: ChainParams, job: SubmitJob) -> None:
    """The rules that a job can break by itself, whatever the state."""
    if job.mode != OPEN:
        raise ConsensusError(Reason.UNSUPPORTED_MODE, job.mode, OPEN)
    if not 1 <= len(job.packets) <= MAX_PACKETS:
        raise ConsensusError(Reason.BAD_PAYLOAD, f"{len(job.packets)} packets", f"1 to {MAX_PACKETS}")
    if not 1 <= job.threshold <= len(job.packets):
        raise ConsensusError(Reason.BAD_PAYLOAD, f"threshold {job.threshold}", f"1 to {len(job.packets)}")
    if job.price < params.min_price:
        raise ConsensusError(Reason.PRICE_TOO_LOW, job.price, params.min_price)
    for operand in (*job.lefts, *job.rights):
        for side in (operand.rows, operand.cols):
            if side % TILE_SIDE or not TILE_SIDE <= side <= MAX_DIMENSION:
                raise ConsensusError(Reason.BAD_PAYLOAD, f"a side of {side}", "a multiple of 64 in 64…4096")
    pairs = {(p.left, p.right) for p in job.packets}
    # Unused or repeated operands would oblige everyone to fetch bytes for nothing; a repeated pair is one product
    # that the second assignee could copy from the first.
    if len(pairs) != len(job.packets):
        raise ConsensusError(Reason.BAD_PAYLOAD, "a pair of operands stands twice", "distinct packets")
    if {left for left, _ in pairs} != set(range(len(job.lefts))):
        raise ConsensusError(Reason.BAD_PAYLOAD, "left operands unused or missing", f"0 to {len(job.lefts) - 1}")
    if {right for _, right in pairs} != set(range(len(job.rights))):
        raise ConsensusError(Reason.BAD_PAYLOAD, "right operands unused or missing", f"0 to {len(job.rights) - 1}")
    if len(set(job.lefts)) != len(job.lefts) or len(set(job.rights)) != len(job.rights):
        raise ConsensusError(Reason.BAD_PAYLOAD, "an operand stands twice", "distinct operands")
    for left, right in pairs:
        a, b = job.lefts[left], job.rights[right]
        if a.cols != b.rows:
            raise ConsensusError(Reason.BAD_PAYLOAD, f"{a.rows}×{a.cols} times {b.rows}×{b.cols}", "equal inner sides")
        size = unit_bytes(a.rows, b.cols, a.cols)
        if size > MAX_UNIT_BYTES:
            raise ConsensusError(Reason.UNIT_TOO_LARGE, size, MAX_UNIT_BYTES)
    operand_bytes = sum(spec.size for spec in job.operands())
    room = MAX_TENSOR_BYTES - 4 * params.idle_m * params.idle_n
    if operand_bytes > room:  # no block could hold it, not even one whose own unit is idle
        raise ConsensusError(Reason.TOO_MANY_TENSOR_BYTES, operand_bytes, room)
    total = sum(job_fees(params, job))
    if total > MAX_AMOUNT:
        raise ConsensusError(Reason.AMOUNT_OVERFLOW, total, MAX_AMOUNT)


def submit(block: Execution, body: TxBody, txid: bytes, job: SubmitJob) -> None:
    """Open the group: move its escrow out of the owner's account and queue its packets."""
    params, height, owner = block.params, block.height, body.address
    if not height + params.window < job.expiry <= height + params.max_life:
        expected = f"{height + params.window + 1} to {height + params.max_life}"
        raise ConsensusError(Reason.BAD_EXPIRY, job.expiry, expected)
    fees = job_fees(params, job)
    escrow = escrow_of(fees, job.threshold)
    block.debit(owner, escrow)
    group = Group(
        owner=owner,
        packets=len(job.packets),
        threshold=job.threshold,
        price=job.price,
        expiry=job.expiry,
        mode=job.mode,
        sequence=block.sequence,
        opened_at=height,
        escrow=escrow,
        closes_at=job.expiry,
    )
    block.sequence += 1
    GROUPS.put(block.state, group, txid)
    CLOSINGS.put(block.state, Mark(), group.closes_at, txid)
    for index, (pair, fee) in enumerate(zip(job.packets, fees, strict=True)):
        a, b = job.lefts[pair.left], job.rights[pair.right]
        packet = Packet(txid, index, a.rows, a.cols, b.cols, a.root, b.root, fee)
        enqueue(block, group, packet)
    block.events.append(events.Opened(txid, owner, group.packets, group.threshold, escrow))


def cancel(block: Execution, body: TxBody, job: bytes) -> None:
    """Withdraw the packets that nobody holds; held ones run out their windows under the same rules."""
    group = GROUPS.get(block.state, job)
    if group is None:
        raise ConsensusError(Reason.UNKNOWN_JOB, job, "an open job")
    if group.owner != body.address:
        raise ConsensusError(Reason.NOT_OWNER, body.address, group.owner)
    if group.cancelled or group.completed_at:
        raise ConsensusError(Reason.ALREADY_CANCELLED, "cancelled" if group.cancelled else "complete", "an open job")
    withdrawn = withdraw_queued(block, job, group)
    group = replace(group, cancelled=True)
    block.events.append(events.Cancelled(job, withdrawn))
    if not group.held:
        group = _reschedule(block, job, group, block.height)
    GROUPS.put(block.state, group, job)


def enqueue(block: Execution, group: Group, packet: Packet) -> None:
    """Put a packet into the queue, at the age of its job."""
    identity = packet_id(packet.job, packet.index)
    PACKETS.put(block.state, replace(packet, status=QUEUED, worker=bytes(20), slot=0, dealt_at=0), identity)
    QUEUE.put(block.state, Entry(identity), *_queue_key(group, packet))


def dequeue(block: Execution, group: Group, packet: Packet) -> None:
    """Take a packet out of the queue."""
    QUEUE.delete(block.state, *_queue_key(group, packet))


def withdraw_queued(block: Execution, job: bytes, group: Group) -> int:
    """Take a group's waiting packets out of the queue for good; returns how many."""
    withdrawn = 0
    for index in range(group.packets):
        identity = packet_id(job, index)
        packet = PACKETS.get(block.state, identity)
        assert packet is not None, "a group without its packet"
        if packet.status == QUEUED:
            dequeue(block, group, packet)
            PACKETS.put(block.state, replace(packet, status=WITHDRAWN), identity)
            withdrawn += 1
    return withdrawn


def held_packet(block: Execution, identity: bytes, worker: bytes) -> Packet:
    """The packet, if `worker` holds it: UNKNOWN_PACKET or NOT_ASSIGNEE otherwise (a duplicate finds it done)."""
    packet = PACKETS.get(block.state, identity)
    if packet is None:
        raise ConsensusError(Reason.UNKNOWN_PACKET, identity, "a packet of an open group")
    if packet.status == DONE:
        raise ConsensusError(Reason.DUPLICATE_RESULT, identity, "one result a packet")
    if packet.status != HELD or packet.worker != worker:
        raise ConsensusError(Reason.NOT_ASSIGNEE, worker, packet.worker if packet.status == HELD else "nobody")
    return packet


def answer(block: Execution, identity: bytes, packet: Packet, product: bytes, won: bool) -> None:
    """Pay for a verified product: in full up to the threshold, a quarter in the grace after it."""
    group = GROUPS.get(block.state, packet.job)
    assert group is not None, "a packet without its group"
    late = group.done >= group.threshold
    fee = packet.fee // 4 if late else packet.fee
    burned = max(1, fee // 10)
    share = fee // 50
    block.burn(burned)
    block.reward += share
    block.credit(packet.worker, fee - burned - share)
    workers.answered(block, packet.worker, identity, burned)
    PACKETS.put(block.state, replace(packet, status=DONE), identity)
    if not group.completed_at:
        # A completed group's packets share one end, its closing; only open ones have deadlines of their own.
        DEADLINES.delete(block.state, deadline(block.params, packet), identity)
    block.events.append(events.Answered(packet.job, identity, packet.worker, product, fee, burned, share, late, won))
    group = replace(group, escrow=group.escrow - fee, done=group.done + 1, held=group.held - 1)
    if group.done == group.threshold:
        group = _complete(block, packet.job, group)
    if not group.held and (group.completed_at or group.cancelled):
        group = _reschedule(block, packet.job, group, block.height)
    GROUPS.put(block.state, group, packet.job)


def close_finished(block: Execution) -> None:
    """Close the groups due now that are complete, or cancelled with nothing held."""
    for job, group in _due(block):
        if group.completed_at or group.cancelled:
            _close(block, job, group, events.COMPLETED if group.completed_at else events.WITHDRAWN)


def miss_windows(block: Execution) -> None:
    """Packets whose window ends now without an answer: fine their holders and queue them again."""
    for identity, _ in list(DEADLINES.scan(block.state, block.height)):
        packet = PACKETS.get(block.state, identity)
        assert packet is not None, "a deadline without its packet"
        group = GROUPS.get(block.state, packet.job)
        assert group is not None, "a packet without its group"
        DEADLINES.delete(block.state, block.height, identity)
        fine = workers.missed(block, packet.worker, identity)
        block.events.append(events.Missed(packet.job, identity, packet.worker, fine))
        group = replace(group, held=group.held - 1)
        if group.cancelled:
            PACKETS.put(block.state, replace(packet, status=WITHDRAWN), identity)
            if not group.held:
                group = _reschedule(block, packet.job, group, block.height)
        else:
            enqueue(block, group, packet)
        GROUPS.put(block.state, group, packet.job)


def expire(block: Execution) -> None:
    """Close what is still due at this height: groups that expired, or that lost their last held packet just now."""
    for job, group in _due(block):
        _close(block, job, group, events.WITHDRAWN if group.cancelled else events.EXPIRED)


def deadline(params: ChainParams, packet: Packet) -> int:
    """Last height at which a held packet can be answered while its group is not complete."""
    return packet.dealt_at + params.window


def _complete(block: Execution, job: bytes, group: Group) -> Group:
    """The threshold is reached: deal no more, and let the packets still held earn a quarter through the grace."""
    withdraw_queued(block, job, group)
    for index in range(group.packets):
        identity = packet_id(job, index)
        packet = PACKETS.get(block.state, identity)
        if packet is not None and packet.status == HELD:
            DEADLINES.delete(block.state, deadline(block.params, packet), identity)
    until = block.height + block.params.grace
    block.events.append(events.Completed(job, until))
    return _reschedule(block, job, replace(group, completed_at=block.height), until)


def _close(block: Execution, job: bytes, group: Group, why: int) -> None:
    """Forget the group and its packets, free the slots of those still held, return the unspent escrow."""
    for index in range(group.packets):
        identity = packet_id(job, index)
        packet = PACKETS.get(block.state, identity)
        assert packet is not None, "a group without its packet"
        if packet.status == HELD:
            workers.free_slot(block, packet.worker, identity)
            block.events.append(events.Dropped(job, identity, packet.worker))
        elif packet.status == QUEUED:
            dequeue(block, group, packet)
        PACKETS.delete(block.state, identity)
    CLOSINGS.delete(block.state, group.closes_at, job)
    GROUPS.delete(block.state, job)
    block.credit(group.owner, group.escrow)
    block.events.append(events.Closed(job, group.owner, group.escrow, group.done, why))


def _due(block: Execution) -> list[tuple[bytes, Group]]:
    due = []
    for job, _ in CLOSINGS.scan(block.state, block.height):
        group = GROUPS.get(block.state, job)
        assert group is not None, "a scheduled closing without its group"
        due.append((job, group))
    return due


def _reschedule(block: Execution, job: bytes, group: Group, closes_at: int) -> Group:
    CLOSINGS.delete(block.state, group.closes_at, job)
    CLOSINGS.put(block.state, Mark(), closes_at, job)
    return replace(group, closes_at=closes_at)


def _queue_key(group: Group, packet: Packet) -> tuple[int, int, bytes]:
    return MAX_AMOUNT - group.price, group.sequence, packet.index.to_bytes(4, "big")
