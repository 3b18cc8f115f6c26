"""Jobs: a group of packets from its opening to its closing (docs/protocol.md, section 9).

PacketStatus.QUEUED ──dealt──▶ PacketStatus.HELD ──answered──▶ PacketStatus.DONE
   ▲               │
   └────missed─────┘        the group closes with nothing held: complete, cancelled, or expired
"""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from consensus import events
from consensus.codec import MAX_AMOUNT
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_OPERAND_BYTES, MAX_PACKETS, ChainParams
from consensus.rules import workers
from consensus.rules.execution import Execution
from consensus.shape import MAX_UNIT_BYTES, Shape, is_side
from consensus.state import CLOSINGS, DEADLINES, GROUPS, PACKETS, QUEUE, Entry, Group, Mark, Packet, PacketStatus
from consensus.transaction import OPEN, SubmitJob, TxBody, packet_id_of

WEIGHT_PER_PRICE = 1 << 40


def packet_fee(params: ChainParams, price: int, shape: Shape) -> int:
    """Grains for a packet at `price` grains per 2⁴⁰ of its weight, rounded up."""
    return max(params.min_fee, -(-price * shape.weight // WEIGHT_PER_PRICE))


def job_fees(params: ChainParams, job: SubmitJob) -> list[int]:
    """Each packet's fee, in order. Every answer is paid in full, so their sum is the escrow."""
    return [packet_fee(params, job.price, job.shape(packet)) for packet in job.packets]


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
            if not is_side(side):
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
        size = Shape(a.rows, a.cols, b.cols).unit_bytes
        if size > MAX_UNIT_BYTES:
            raise ConsensusError(Reason.UNIT_TOO_LARGE, size, MAX_UNIT_BYTES)
    operand_bytes = sum(spec.size for spec in job.operands())
    if operand_bytes > MAX_OPERAND_BYTES:  # no block could hold it
        raise ConsensusError(Reason.TOO_MANY_TENSOR_BYTES, operand_bytes, MAX_OPERAND_BYTES)
    total = sum(job_fees(params, job))
    if total > MAX_AMOUNT:
        raise ConsensusError(Reason.AMOUNT_OVERFLOW, total, MAX_AMOUNT)


def submit(execution: Execution, body: TxBody, txid: bytes, job: SubmitJob) -> None:
    """Open the group: move its escrow out of the owner's account and queue its packets."""
    params, tick, owner = execution.params, execution.tick, body.address
    if not tick + params.window < job.expiry <= tick + params.max_life:
        expected = f"{tick + params.window + 1} to {tick + params.max_life}"
        raise ConsensusError(Reason.BAD_EXPIRY, job.expiry, expected)
    fees = job_fees(params, job)
    escrow = sum(fees)
    execution.debit(owner, escrow)
    group = Group(
        owner=owner,
        packets=len(job.packets),
        threshold=job.threshold,
        price=job.price,
        expiry=job.expiry,
        mode=job.mode,
        sequence=execution.sequence,
        opened_at=execution.height,
        kept_until=execution.height + job.expiry - tick + params.retention,
        escrow=escrow,
        closes_at=job.expiry,
    )
    execution.sequence += 1
    GROUPS.put(execution.state, group, txid)
    CLOSINGS.put(execution.state, Mark(), group.closes_at, txid)
    for index, (pair, fee) in enumerate(zip(job.packets, fees, strict=True)):
        a, b = job.lefts[pair.left], job.rights[pair.right]
        packet = Packet(txid, index, a.rows, a.cols, b.cols, a.root, b.root, fee)
        enqueue(execution, group, packet)
    execution.events.append(events.Opened(txid, owner, group.packets, group.threshold, escrow))


def cancel(execution: Execution, body: TxBody, job: bytes) -> None:
    """Withdraw the packets that nobody holds; held ones run out their windows under the same rules."""
    group = GROUPS.get(execution.state, job)
    if group is None:
        raise ConsensusError(Reason.UNKNOWN_JOB, job, "an open job")
    if group.owner != body.address:
        raise ConsensusError(Reason.NOT_OWNER, body.address, group.owner)
    if group.ended:
        raise ConsensusError(Reason.ALREADY_CANCELLED, "cancelled" if group.cancelled else "complete", "an open job")
    execution.events.append(events.Cancelled(job))
    GROUPS.put(execution.state, replace(_due_now(execution, job, group), cancelled=True), job)


def enqueue(execution: Execution, group: Group, packet: Packet) -> None:
    """Put a packet into the queue, at the age of its job."""
    packet_id = packet_id_of(packet.job, packet.index)
    PACKETS.put(
        execution.state, replace(packet, status=PacketStatus.QUEUED, worker=bytes(20), place=0, dealt_at=0), packet_id
    )
    QUEUE.put(execution.state, Entry(packet_id), *_queue_key(group, packet))


def dequeue(execution: Execution, group: Group, packet: Packet) -> None:
    """Take a packet out of the queue."""
    QUEUE.delete(execution.state, *_queue_key(group, packet))


def held_packet(execution: Execution, packet_id: bytes, worker: bytes) -> Packet:
    """The packet, if `worker` holds it: UNKNOWN_PACKET or NOT_ASSIGNEE otherwise (a duplicate finds it done)."""
    packet = PACKETS.get(execution.state, packet_id)
    if packet is None:
        raise ConsensusError(Reason.UNKNOWN_PACKET, packet_id, "a packet of an open group")
    if packet.status == PacketStatus.DONE:
        raise ConsensusError(Reason.DUPLICATE_RESULT, packet_id, "one result a packet")
    if packet.status != PacketStatus.HELD or packet.worker != worker:
        raise ConsensusError(
            Reason.NOT_ASSIGNEE, worker, packet.worker if packet.status == PacketStatus.HELD else "nobody"
        )
    return packet


def answer(execution: Execution, packet_id: bytes, packet: Packet, product: bytes, won: bool) -> None:
    """Pay for a verified product: its fee, whatever came before it. The threshold's answer completes the group."""
    group = GROUPS.get(execution.state, packet.job)
    assert group is not None, "a packet without its group"
    fee = packet.fee
    burned = max(1, fee // 10)
    share = fee // 50
    execution.burn(burned)
    execution.reward += share
    paid = fee - burned - share
    execution.credit(packet.worker, paid)
    workers.answered(execution, packet_id, packet, paid, burned)
    _settle(execution, group, packet_id, packet, PacketStatus.DONE)
    DEADLINES.delete(execution.state, deadline(execution.params, packet), packet_id)
    execution.events.append(events.Answered(packet.job, packet_id, packet.worker, product, fee, burned, share, won))
    group = replace(group, escrow=group.escrow - fee, done=group.done + 1, held=group.held - 1)
    if group.done == group.threshold:
        execution.events.append(events.Completed(packet.job))
        if not group.ended:
            group = _due_now(execution, packet.job, group)
        group = replace(group, completed_at=execution.height)
    GROUPS.put(execution.state, _let_go(execution, packet.job, group), packet.job)


def end_windows(execution: Execution) -> None:
    """Packets whose window has ended without an answer, oldest first: fine their holders and queue them again.

    A completed group needs no more answers: its holders are let go, and nobody is fined. At most `max_missed` windows
    end in a block; a packet whose window's end waits for its turn can still be answered.
    """
    execution.work_off(DEADLINES, execution.params.max_missed, partial(_end_window, execution))


def close_due(execution: Execution) -> None:
    """Go on closing the groups that are due, oldest first: expired ones, and those that have ended.

    At most `max_closed` packets are forgotten in a block, whatever falls due at one tick; the rest follows in the
    next blocks. What an opening may cost later was paid when it was opened.
    """
    execution.work_off(CLOSINGS, execution.params.max_closed, partial(_sweep, execution))


def deadline(params: ChainParams, packet: Packet) -> int:
    """The tick at whose first block a held packet can be answered last."""
    return packet.dealt_at + params.window


def may_be_dealt(execution: Execution, group: Group) -> bool:
    """Whether packets of the group can still be dealt: before its end, with a whole window before its expiry, and while
    its operands are kept for long after. (Blocks far quicker than ticks could outlast them otherwise.)"""
    params = execution.params
    lasts = execution.height + params.retention // 2 < group.kept_until
    return not group.ended and execution.tick + params.window < group.expiry and lasts


def _end_window(execution: Execution, packet_id: bytes, _left: int) -> int:
    """End the window of one packet that is still held: one step."""
    packet = PACKETS.get(execution.state, packet_id)
    assert packet is not None, "a deadline without its packet"
    group = GROUPS.get(execution.state, packet.job)
    assert group is not None, "a packet without its group"
    DEADLINES.delete(execution.state, deadline(execution.params, packet), packet_id)
    if group.completed_at:
        workers.let_go(execution, packet_id, packet)
        execution.events.append(events.Dropped(packet.job, packet_id, packet.worker))
    else:
        fine = workers.missed(execution, packet_id, packet)
        execution.events.append(events.Missed(packet.job, packet_id, packet.worker, fine))
    group = replace(group, held=group.held - 1)
    if group.ended or group.expiry <= execution.tick:
        _settle(execution, group, packet_id, packet, PacketStatus.WITHDRAWN)
    else:
        enqueue(execution, group, packet)
    GROUPS.put(execution.state, _let_go(execution, packet.job, group), packet.job)
    return 1


def _settle(execution: Execution, group: Group, packet_id: bytes, packet: Packet, status: PacketStatus) -> None:
    """Note how a held packet ended; behind the sweep of its group's closing, forget it."""
    if packet.index < group.swept:
        PACKETS.delete(execution.state, packet_id)
    else:
        PACKETS.put(execution.state, replace(packet, status=status), packet_id)


def _due_now(execution: Execution, job: bytes, group: Group) -> Group:
    """The group, its closing due from now on."""
    if group.closes_at:
        CLOSINGS.delete(execution.state, group.closes_at, job)
    CLOSINGS.put(execution.state, Mark(), execution.tick, job)
    return replace(group, closes_at=execution.tick)


def _let_go(execution: Execution, job: bytes, group: Group) -> Group:
    """The group after one of its holders is done: if only held packets were left, the last of them lets it close."""
    return _due_now(execution, job, group) if not group.closes_at and not group.held else group


def _sweep(execution: Execution, job: bytes, limit: int) -> int:
    """Forget at most `limit` packets of a group that is due; after the last, the group itself. Returns what that cost.

    Held packets stay until their own end, and the group until theirs; then the unspent escrow returns.
    """
    group = GROUPS.get(execution.state, job)
    assert group is not None, "a scheduled closing without its group"
    until = min(group.packets, group.swept + limit)
    for index in range(group.swept, until):
        packet_id = packet_id_of(job, index)
        packet = PACKETS.get(execution.state, packet_id)
        assert packet is not None, "a group without its packet"
        if packet.status == PacketStatus.QUEUED:
            dequeue(execution, group, packet)
        if packet.status != PacketStatus.HELD:
            PACKETS.delete(execution.state, packet_id)
    cost = max(1, until - group.swept)
    group = replace(group, swept=until)
    if until < group.packets:
        GROUPS.put(execution.state, group, job)
        return cost
    CLOSINGS.delete(execution.state, group.closes_at, job)
    if group.held:
        GROUPS.put(execution.state, replace(group, closes_at=0), job)
        return cost
    GROUPS.delete(execution.state, job)
    execution.credit(group.owner, group.escrow)
    execution.events.append(events.Closed(job, group.owner, group.escrow, group.done, _ending(group)))
    return cost


def _ending(group: Group) -> events.Ending:
    if group.completed_at:
        return events.Ending.COMPLETED
    return events.Ending.CANCELLED if group.cancelled else events.Ending.EXPIRED


def _queue_key(group: Group, packet: Packet) -> tuple[int, int, bytes]:
    return MAX_AMOUNT - group.price, group.sequence, packet.index.to_bytes(4, "big")
