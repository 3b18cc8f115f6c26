"""Dealing: which waiting packets go to which workers, at the end of a block (docs/protocol.md, section 9).

The draw hashes a ticket that nobody knew before the work of four blocks ago was done, so no worker chooses its
packets and no owner its workers.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import NamedTuple

from msgspec.structs import replace

from consensus import events
from consensus.crypto import H
from consensus.params import MAX_TENSOR_BYTES
from consensus.rules import jobs, workers
from consensus.rules.execution import Execution
from consensus.state import DEADLINES, GROUPS, PACKETS, QUEUE, WORKERS, Group, Mark, Packet, PacketStatus, Slot, Worker
from consensus.transaction import OPEN


class FreeSlot(NamedTuple):
    """One packet's worth of an active worker."""

    address: bytes
    number: int
    worker: Worker


def deal(execution: Execution, randomness: bytes) -> None:
    """Give queued packets to free slots, both in order; open groups may give one worker several packets."""
    waiting = _examined(execution)
    if not waiting:
        return
    free = _free_slots(execution, randomness)
    held = _held(execution)
    holders = {(job, address) for job, address, _ in held}
    # All products held must fit into the blocks of one window, with half of their bytes left for new operands: else
    # workers would be fined for answers that no block had room for.
    room = execution.params.window * MAX_TENSOR_BYTES // 2 - sum(product_bytes for _, _, product_bytes in held)
    # Pass 1 spreads a group over distinct workers. Pass 2 gives what is left of open groups to anyone who is able:
    # the chain checks every product, so one worker with many packets is no danger there.
    for spreads in (True, False):
        remaining = []
        for packet_id, packet, group in waiting:
            slot = _first_able(free, packet, group, holders if spreads else set())
            if slot is None or not (spreads or group.mode == OPEN):
                remaining.append((packet_id, packet, group))
                continue
            room -= packet.shape.product_bytes
            if room < 0:
                return  # and not on to smaller ones: a large packet must not be passed over for ever
            free.remove(slot)
            holders.add((packet.job, slot.address))
            _hand(execution, packet_id, packet, slot)
        waiting = remaining


def _examined(execution: Execution) -> list[tuple[bytes, Packet, Group]]:
    """The packets whose turn it is. Those of ended groups, and those too close to their expiry for a whole window,
    leave the queue for good, so that they do not block others."""
    examined = []
    for packet_id in _turns(execution):
        packet = PACKETS.get(execution.state, packet_id)
        assert packet is not None, "a queued packet that does not exist"
        group = GROUPS.get(execution.state, packet.job)
        assert group is not None, "a packet without its group"
        if not group.ended and execution.height + execution.params.window < group.expiry:
            examined.append((packet_id, packet, group))
        else:
            jobs.dequeue(execution, group, packet)
            PACKETS.put(execution.state, replace(packet, status=PacketStatus.WITHDRAWN), packet_id)
    return examined


def _turns(execution: Execution) -> list[bytes]:
    """At most `max_examined` queued packets: half from the queue's head, and half by a round through all of it.

    The head is for those who pay most. The round goes on where the last block's ended, so that dear packets which
    nobody is able to make hold nobody up for longer than it takes to pass them.
    """
    state, prefix, most = execution.state, QUEUE.key(), execution.params.max_examined
    head = dict(islice(state.scan(prefix), most - most // 2))
    behind = chain(state.scan(prefix, execution.dealt_through), state.scan(prefix))
    others = ((key, data) for key, data in behind if key not in head)
    seen: dict[bytes, bytes] = {}
    for key, data in islice(others, most // 2):
        if key in seen:  # once around
            break
        seen[key] = data
        execution.dealt_through = key
    return [QUEUE.record(data).packet_id for data in (*head.values(), *seen.values())]


def _free_slots(execution: Execution, randomness: bytes) -> list[FreeSlot]:
    drawn = []
    for address, worker in WORKERS.scan(execution.state):
        if not workers.is_active(execution.params, worker, execution.height):
            continue
        taken = {slot.index for slot in worker.slots}
        # A worker whose bond or score has shrunk may hold packets in slots beyond its count: they count all the same.
        room = workers.slot_count(execution.params, worker) - len(taken)
        for index in range(workers.slot_count(execution.params, worker)):
            if room > 0 and index not in taken:
                order = H("tw/deal", randomness + address + index.to_bytes(4, "little"))
                drawn.append((order, FreeSlot(address, index, worker)))
                room -= 1
    drawn.sort(key=lambda pair: pair[0])
    return [slot for _, slot in drawn]


def _held(execution: Execution) -> list[tuple[bytes, bytes, int]]:
    """(group, worker, bytes of the product) for every packet held."""
    held = []
    for address, worker in WORKERS.scan(execution.state):
        for slot in worker.slots:
            packet = PACKETS.get(execution.state, slot.packet_id)
            assert packet is not None, "a slot with an unknown packet"
            held.append((packet.job, address, packet.shape.product_bytes))
    return held


def _first_able(
    free: list[FreeSlot], packet: Packet, group: Group, holders: set[tuple[bytes, bytes]]
) -> FreeSlot | None:
    """The first free slot of a worker that is able and, as `holders` tells, holds no packet of the group."""
    able = (slot for slot in free if (packet.job, slot.address) not in holders and _is_able(slot, packet, group))
    return next(able, None)


def _is_able(slot: FreeSlot, packet: Packet, group: Group) -> bool:
    worker = slot.worker
    return worker.max_unit_bytes >= packet.shape.unit_bytes and worker.min_price <= group.price


def _hand(execution: Execution, packet_id: bytes, packet: Packet, slot: FreeSlot) -> None:
    group = GROUPS.get(execution.state, packet.job)
    assert group is not None, "a packet without its group"
    jobs.dequeue(execution, group, packet)
    held = replace(packet, status=PacketStatus.HELD, worker=slot.address, slot=slot.number, dealt_at=execution.height)
    until = jobs.deadline(execution.params, held)
    PACKETS.put(execution.state, held, packet_id)
    DEADLINES.put(execution.state, Mark(), until, packet_id)
    GROUPS.put(execution.state, replace(group, held=group.held + 1), packet.job)
    workers.take_slot(execution, slot.address, Slot(slot.number, packet_id))
    execution.events.append(events.Dealt(packet.job, packet_id, slot.address, slot.number, until))
