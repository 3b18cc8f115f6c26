"""Dealing: which waiting packets go to which workers, at the end of a block (docs/protocol.md, section 9).

A packet tries places of the array at random and takes the first that is free and able, so dealing costs the same
however many there are. The draw hashes a ticket that nobody knew before the work of four blocks ago was done, so no
worker chooses its packets.
"""

from __future__ import annotations

from itertools import chain, islice

from msgspec.structs import replace

from consensus import events
from consensus.crypto import H
from consensus.params import MAX_TENSOR_BYTES
from consensus.rules import jobs, workers
from consensus.rules.execution import Execution
from consensus.state import (
    DEADLINES,
    GROUPS,
    PACKETS,
    PLACES,
    QUEUE,
    WORKERS,
    Group,
    Mark,
    Packet,
    PacketStatus,
    Place,
    Worker,
)
from consensus.transaction import OPEN


def deal(execution: Execution, randomness: bytes) -> None:
    """Give queued packets to free places, in the queue's order."""
    # All answers due must fit into the blocks of one window, with half of their room left: else workers would be fined
    # for answers that no block had room for.
    params = execution.params
    room_bytes, room = params.window * MAX_TENSOR_BYTES // 2, params.window * params.max_results // 2
    draw = _Draw(execution, randomness)
    for packet_id, packet, group in _examined(execution):
        place = draw.place_for(packet_id, packet, group)
        if place is None:
            continue
        if execution.held >= room or execution.held_bytes + packet.shape.product_bytes > room_bytes:
            return  # and not on to smaller ones: a large packet must not be passed over for ever
        _hand(execution, packet_id, packet, place)
        draw.forget(place.worker)


class _Draw:
    """One block's tries at places; whatever was read stays at hand."""

    def __init__(self, execution: Execution, randomness: bytes) -> None:
        self._execution = execution
        self._randomness = randomness
        self._places: dict[int, Place] = {}
        self._workers: dict[bytes, Worker] = {}

    def place_for(self, packet_id: bytes, packet: Packet, group: Group) -> Place | None:
        """The first free place of an able worker among those that the packet tries.

        The first half of the tries spreads a group over workers that hold none of it. The other half gives packets of
        open groups to anyone who is able: the chain checks every product, so many of one group are no danger there.
        """
        count, params = self._execution.places, self._execution.params
        spread = params.max_tries // 2
        for number in range(params.max_tries if count and group.mode == OPEN else spread if count else 0):
            draw = H("tw/deal", self._randomness + packet_id + number.to_bytes(4, "little"))
            place = self._place(int.from_bytes(draw, "big") % count)
            worker = self._worker(place.worker)
            if self._takes(worker, place.number, packet, group) and (
                number >= spread or all(holding.job != packet.job for holding in worker.holds)
            ):
                return place
        return None

    def forget(self, address: bytes) -> None:
        """The worker has changed."""
        del self._workers[address]

    def _takes(self, worker: Worker, number: int, packet: Packet, group: Group) -> bool:
        """Whether the place is free, and its worker able to make the packet and good for it."""
        params, declared = self._execution.params, worker.declared
        return (
            declared.min_price <= group.price
            and declared.max_unit_bytes >= packet.shape.unit_bytes
            and number < declared.places > len(worker.holds)
            and worker.bond - worker.reserved >= workers.reserve(params, packet.fee)
            and workers.is_active(params, worker, self._execution.tick)
            and all(holding.number != number for holding in worker.holds)
        )

    def _place(self, index: int) -> Place:
        if index not in self._places:
            place = PLACES.get(self._execution.state, index)
            assert place is not None, "an array with a gap"
            self._places[index] = place
        return self._places[index]

    def _worker(self, address: bytes) -> Worker:
        if address not in self._workers:
            worker = WORKERS.get(self._execution.state, address)
            assert worker is not None, "a place without its worker"
            self._workers[address] = worker
        return self._workers[address]


def _examined(execution: Execution) -> list[tuple[bytes, Packet, Group]]:
    """The packets whose turn it is. Those of ended groups, and those that can't be dealt any more because too little of
    their job's life or of their operands' keeping is left, leave the queue for good, so that they block no others."""
    examined = []
    for packet_id in _turns(execution):
        packet = PACKETS.get(execution.state, packet_id)
        assert packet is not None, "a queued packet that does not exist"
        group = GROUPS.get(execution.state, packet.job)
        assert group is not None, "a packet without its group"
        if jobs.may_be_dealt(execution, group):
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


def _hand(execution: Execution, packet_id: bytes, packet: Packet, place: Place) -> None:
    group = GROUPS.get(execution.state, packet.job)
    assert group is not None, "a packet without its group"
    jobs.dequeue(execution, group, packet)
    held = replace(packet, status=PacketStatus.HELD, worker=place.worker, place=place.number, dealt_at=execution.tick)
    until = jobs.deadline(execution.params, held)
    PACKETS.put(execution.state, held, packet_id)
    DEADLINES.put(execution.state, Mark(), until, packet_id)
    GROUPS.put(execution.state, replace(group, held=group.held + 1), packet.job)
    workers.hold(execution, place, packet_id, held)
    execution.events.append(events.Dealt(packet.job, packet_id, place.worker, place.number, until))
