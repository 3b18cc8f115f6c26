"""Workers: registration, bonds, and the array of places (docs/protocol.md, section 9).

A declaration counts `registration_delay` ticks after it was made, and so does whatever else moves places in the array:
nobody moves them for a draw that is known. What changes a worker's places only notes when they are to be reviewed; the
reviews that are due are bounded in each block, whatever falls due together.
"""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from consensus.errors import ConsensusError, Reason
from consensus.events import Returned
from consensus.params import MAX_PLACES, ChainParams
from consensus.rules.execution import Execution
from consensus.state import PLACES, REVIEWS, WORKERS, Declaration, Holding, Mark, Packet, Place, Worker
from consensus.transaction import RegisterWorker, TxBody


def reserve(params: ChainParams, fee: int) -> int:
    """The part of a bond that stands for a packet with this fee, and burns if it is missed."""
    return max(params.min_reserve, 4 * fee)


def is_active(params: ChainParams, worker: Worker, tick: int) -> bool:
    """Whether the worker can be dealt packets at `tick`: declared in force, recently seen and not retired."""
    return worker.declared.places > 0 and not worker.retired_at and _is_live(params, worker, tick)


def check(_params: ChainParams, payload: RegisterWorker) -> None:
    """The rules that a registration can break by itself."""
    if not 1 <= payload.max_packets <= MAX_PLACES:
        raise ConsensusError(Reason.BAD_PAYLOAD, f"{payload.max_packets} packets at once", f"1 to {MAX_PLACES}")


def register(execution: Execution, body: TxBody, payload: RegisterWorker) -> None:
    """Join, or declare anew: add to the bond, announce the declaration, count as seen. A retired worker starts anew."""
    address, tick = body.address, execution.tick
    known = WORKERS.get(execution.state, address)
    bond, needed = payload.bond + (known.bond if known else 0), payload.max_packets * execution.params.min_reserve
    if bond < needed:
        raise ConsensusError(Reason.INSUFFICIENT_BOND, bond, needed)
    execution.debit(address, payload.bond)
    worker = known or Worker(body.sender, payload.x25519_key, bond, seen=tick)
    if worker.retired_at:
        worker = replace(worker, retired_at=0, declared=Declaration())
    worker = replace(
        worker,
        x25519_key=payload.x25519_key,
        bond=bond,
        seen=tick,
        announced=Declaration(payload.min_price, payload.max_unit_bytes, payload.max_packets),
        announced_for=tick + execution.params.registration_delay,
    )
    _put_for_review(execution, address, worker, worker.announced_for)


def retire(execution: Execution, body: TxBody) -> None:
    """Deal the sender nothing more. Its places go after the delay, its bond returns after its last window."""
    address = body.address
    worker = WORKERS.get(execution.state, address)
    if worker is None:
        raise ConsensusError(Reason.UNKNOWN_WORKER, address, "a registered worker")
    if worker.retired_at:
        raise ConsensusError(Reason.ALREADY_RETIRED, f"retired at tick {worker.retired_at}")
    worker = replace(worker, retired_at=execution.tick, announced_for=0)
    _put_for_review(execution, address, worker, execution.tick + execution.params.registration_delay)


def see(execution: Execution, address: bytes) -> None:
    """A worker that mined a block is alive, whatever its unit was. One that had lapsed is dealt to after the delay."""
    worker = WORKERS.get(execution.state, address)
    if worker is not None:
        _put_seen(execution, address, worker)


def hold(execution: Execution, place: Place, packet_id: bytes, packet: Packet) -> None:
    """Give a packet to a free place: part of the bond now stands for it."""
    worker = _known(execution, place.worker)
    worker = replace(
        worker,
        reserved=worker.reserved + reserve(execution.params, packet.fee),
        holds=(*worker.holds, Holding(place.number, packet_id, packet.job)),
    )
    WORKERS.put(execution.state, worker, place.worker)
    execution.held += 1
    execution.held_bytes += packet.shape.product_bytes


def let_go(execution: Execution, packet_id: bytes, packet: Packet) -> None:
    """Free the place of a packet that was dropped: neither a miss nor an answer."""
    WORKERS.put(execution.state, _without(execution, packet_id, packet), packet.worker)


def answered(execution: Execution, packet_id: bytes, packet: Packet, paid: int, burned: int) -> None:
    """Free the place and note what was paid, and what of the fee was burned."""
    worker = _without(execution, packet_id, packet)
    worker = replace(worker, paid=worker.paid + paid, burned=worker.burned + burned)
    _put_seen(execution, packet.worker, worker)


def missed(execution: Execution, packet_id: bytes, packet: Packet) -> int:
    """Free the place and burn what stood for the packet, so that the bond bears fewer places. Returns the grains."""
    worker = _without(execution, packet_id, packet)
    fine = reserve(execution.params, packet.fee)
    bond = worker.bond - fine
    assert bond >= 0, "the reserve is part of the bond"
    execution.burn(fine)
    worker = replace(
        worker,
        bond=bond,
        missed=worker.missed + 1,
        declared=_covered(execution.params, worker.declared, bond),
        announced=_covered(execution.params, worker.announced, bond),
    )
    if worker.declared.places < len(worker.places):
        _put_for_review(execution, packet.worker, worker, execution.tick + execution.params.registration_delay)
    else:
        WORKERS.put(execution.state, worker, packet.worker)
    return fine


def review_due(execution: Execution) -> None:
    """Bring the places of workers whose review is due in line with what is in force, oldest first.

    At most `max_seated` steps are made in a block: one for each review that is begun, and one for each place added or
    taken away. The rest follows in the next blocks.
    """
    execution.work_off(REVIEWS, execution.params.max_seated, partial(_review, execution))


def _review(execution: Execution, address: bytes, limit: int) -> int:
    """Review one worker in at most `limit` steps. Returns how many it took."""
    params, tick, worker = execution.params, execution.tick, _known(execution, address)
    if worker.announced_for and worker.announced_for <= tick:
        worker = replace(worker, declared=worker.announced, announced_for=0)
    wanted = worker.declared.places if is_active(params, worker, tick) else 0
    cost = 1
    while len(worker.places) != wanted and cost < limit:
        worker = _seat(execution, address, worker) if len(worker.places) < wanted else _unseat(execution, worker)
        cost += 1
    if len(worker.places) != wanted:
        WORKERS.put(execution.state, worker, address)  # and the mark stays: the next block goes on
        return cost
    REVIEWS.delete(execution.state, worker.review_at, address)
    worker = replace(worker, review_at=0)
    if worker.retired_at and tick > worker.retired_at + params.window and not worker.holds:
        execution.credit(address, worker.bond)
        execution.events.append(Returned(address, worker.bond))
        WORKERS.delete(execution.state, address)
        return cost
    if worker.retired_at:
        nexts = [max(tick, worker.retired_at + params.window) + 1]
    else:
        nexts = [worker.announced_for] if worker.announced_for else []
        if _is_live(params, worker, tick):
            nexts.append(worker.seen + params.liveness + 1)
    if nexts:
        _put_for_review(execution, address, worker, min(nexts))
    else:
        WORKERS.put(execution.state, worker, address)
    return cost


def _seat(execution: Execution, address: bytes, worker: Worker) -> Worker:
    """Append the worker's next place to the array."""
    PLACES.put(execution.state, Place(address, len(worker.places)), execution.places)
    execution.places += 1
    return replace(worker, places=(*worker.places, execution.places - 1))


def _unseat(execution: Execution, worker: Worker) -> Worker:
    """Take the worker's last place out of the array, whose last one moves into the gap."""
    gap, worker = worker.places[-1], replace(worker, places=worker.places[:-1])
    execution.places -= 1
    last = PLACES.get(execution.state, execution.places)
    assert last is not None, "an array with a gap"
    PLACES.delete(execution.state, execution.places)
    if gap == execution.places:
        return worker
    PLACES.put(execution.state, last, gap)
    owner = _known(execution, last.worker)
    if owner.public_key == worker.public_key:
        return replace(worker, places=_moved(worker.places, last.number, gap))
    WORKERS.put(execution.state, replace(owner, places=_moved(owner.places, last.number, gap)), last.worker)
    return worker


def _moved(places: tuple[int, ...], number: int, position: int) -> tuple[int, ...]:
    return (*places[:number], position, *places[number + 1 :])


def _put_seen(execution: Execution, address: bytes, worker: Worker) -> None:
    worker = replace(worker, seen=execution.tick)
    if worker.review_at:
        WORKERS.put(execution.state, worker, address)
    else:
        _put_for_review(execution, address, worker, execution.tick + execution.params.registration_delay)


def _put_for_review(execution: Execution, address: bytes, worker: Worker, at: int) -> None:
    """Write the worker, to be reviewed at tick `at` or before."""
    if worker.review_at and worker.review_at <= at:
        WORKERS.put(execution.state, worker, address)
        return
    if worker.review_at:
        REVIEWS.delete(execution.state, worker.review_at, address)
    REVIEWS.put(execution.state, Mark(), at, address)
    WORKERS.put(execution.state, replace(worker, review_at=at), address)


def _is_live(params: ChainParams, worker: Worker, tick: int) -> bool:
    return tick - worker.seen <= params.liveness


def _covered(params: ChainParams, declaration: Declaration, bond: int) -> Declaration:
    """The declaration, with no more places than the bond bears."""
    return replace(declaration, places=min(declaration.places, bond // params.min_reserve))


def _known(execution: Execution, address: bytes) -> Worker:
    worker = WORKERS.get(execution.state, address)
    assert worker is not None, "a worker that is named somewhere is there"
    return worker


def _without(execution: Execution, packet_id: bytes, packet: Packet) -> Worker:
    """The holder of a packet without it."""
    worker = _known(execution, packet.worker)
    execution.held -= 1
    execution.held_bytes -= packet.shape.product_bytes
    return replace(
        worker,
        reserved=worker.reserved - reserve(execution.params, packet.fee),
        holds=tuple(holding for holding in worker.holds if holding.packet_id != packet_id),
    )
