"""Dealing: which waiting packets go to which workers, at the end of a block (docs/protocol.md, section 9).

The draw hashes a ticket that nobody knew before the work of four blocks ago was done, so no worker chooses its
packets and no owner its workers.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from consensus import events, jobs, workers
from consensus.crypto import H
from consensus.execution import Execution
from consensus.state import (
    DEADLINES,
    GROUPS,
    HELD,
    PACKETS,
    QUEUE,
    WITHDRAWN,
    WORKERS,
    Group,
    Mark,
    Packet,
    Slot,
    Worker,
)
from consensus.transaction import OPEN, unit_bytes


class FreeSlot(NamedTuple):
    """One packet's worth of an active worker."""

    address: bytes
    number: int
    worker: Worker


def deal(block: Execution, randomness: bytes) -> None:
    """Give queued packets to free slots, both in order; open groups may give one worker several packets."""
    waiting = _examined(block)
    if not waiting:
        return
    free = _free_slots(block, randomness)
    holders = _holders(block)
    # Pass 1 spreads a group over distinct workers. Pass 2 gives what is left of open groups to anyone who is able:
    # the chain checks every product, so one worker with many packets is no danger there.
    remaining = []
    for identity, packet, group in waiting:
        slot = next((s for s in free if (packet.job, s.address) not in holders and _is_able(s, packet, group)), None)
        if slot is None:
            remaining.append((identity, packet, group))
            continue
        free.remove(slot)
        holders.add((packet.job, slot.address))
        _hand(block, identity, packet, slot)
    for identity, packet, group in remaining:
        if group.mode != OPEN:
            continue
        slot = next((s for s in free if _is_able(s, packet, group)), None)
        if slot is not None:
            free.remove(slot)
            _hand(block, identity, packet, slot)


def reward_per_packet(price: int, threshold: int, packets: int) -> int:
    """What a packet of the group earns on average, in grains per 2²⁰ MACs: k of n in full, the rest a quarter."""
    return price * (3 * threshold + packets) // (4 * packets)


def _examined(block: Execution) -> list[tuple[bytes, Packet, Group]]:
    """The packets at the queue's head. Those too close to their expiry for a whole window leave the queue for good,
    so that they do not stand before others."""
    found = []
    for _, entry in list(islice(QUEUE.scan(block.state), block.params.max_examined)):
        packet = PACKETS.get(block.state, entry.packet_id)
        assert packet is not None, "a queued packet that does not exist"
        group = GROUPS.get(block.state, packet.job)
        assert group is not None, "a packet without its group"
        if block.height + block.params.window < group.expiry:
            found.append((entry.packet_id, packet, group))
        else:
            jobs.dequeue(block, group, packet)
            PACKETS.put(block.state, replace(packet, status=WITHDRAWN), entry.packet_id)
    return found


def _free_slots(block: Execution, randomness: bytes) -> list[FreeSlot]:
    drawn = []
    for address, worker in WORKERS.scan(block.state):
        if not workers.is_active(block.params, worker, block.height):
            continue
        taken = {slot.index for slot in worker.slots}
        # A worker whose bond or score has shrunk may hold packets in slots beyond its count: they count all the same.
        room = workers.slot_count(block.params, worker) - len(taken)
        for index in range(workers.slot_count(block.params, worker)):
            if room > 0 and index not in taken:
                order = H("tw/deal", randomness + address + index.to_bytes(4, "little"))
                drawn.append((order, FreeSlot(address, index, worker)))
                room -= 1
    drawn.sort(key=lambda pair: pair[0])
    return [slot for _, slot in drawn]


def _holders(block: Execution) -> set[tuple[bytes, bytes]]:
    """(group, worker) for every packet held."""
    pairs = set()
    for address, worker in WORKERS.scan(block.state):
        for slot in worker.slots:
            packet = PACKETS.get(block.state, slot.packet_id)
            assert packet is not None, "a slot with an unknown packet"
            pairs.add((packet.job, address))
    return pairs


def _is_able(slot: FreeSlot, packet: Packet, group: Group) -> bool:
    worker = slot.worker
    return worker.max_unit_bytes >= unit_bytes(packet.m, packet.n, packet.k) and worker.min_price <= reward_per_packet(
        group.price, group.threshold, group.packets
    )


def _hand(block: Execution, identity: bytes, packet: Packet, slot: FreeSlot) -> None:
    group = GROUPS.get(block.state, packet.job)
    assert group is not None, "a packet without its group"
    jobs.dequeue(block, group, packet)
    held = replace(packet, status=HELD, worker=slot.address, slot=slot.number, dealt_at=block.height)
    until = jobs.deadline(block.params, held)
    PACKETS.put(block.state, held, identity)
    DEADLINES.put(block.state, Mark(), until, identity)
    GROUPS.put(block.state, replace(group, held=group.held + 1), packet.job)
    workers.take_slot(block, slot.address, Slot(slot.number, identity))
    block.events.append(events.Dealt(packet.job, identity, slot.address, slot.number, until))
