"""Workers: registration, bonds, slots and scores (docs/protocol.md, section 9)."""

from __future__ import annotations

from msgspec.structs import replace

from consensus.errors import ConsensusError, Reason
from consensus.params import ChainParams
from consensus.rules.execution import Execution
from consensus.state import BOND_RETURNS, WORKERS, Mark, Slot, Worker
from consensus.transaction import RegisterWorker, TxBody


def slot_count(params: ChainParams, worker: Worker) -> int:
    """Packets that the worker may hold at once: the least of what it declares, its bond covers and its score allows."""
    return min(worker.max_packets, worker.bond // params.slot_bond, 1 + worker.score // 8)


def is_active(params: ChainParams, worker: Worker, height: int) -> bool:
    """Whether the worker can be dealt packets at `height`: in force, recently seen and not retired."""
    in_force = worker.since == 0 or worker.since + params.registration_delay <= height
    return in_force and worker.retired_at == 0 and height - worker.seen <= params.liveness


def register(execution: Execution, body: TxBody, payload: RegisterWorker) -> None:
    """Join, or refresh: add to the bond, replace the declaration, count as seen. A retired worker starts anew."""
    address = body.address
    known = WORKERS.get(execution.state, address)
    bond = payload.bond + (known.bond if known else 0)
    if bond < execution.params.slot_bond:
        raise ConsensusError(Reason.INSUFFICIENT_BOND, bond, execution.params.slot_bond)
    execution.debit(address, payload.bond)
    if known is None:
        known = Worker(body.sender, payload.x25519_key, 0, 0, 0, 0, since=execution.height, seen=execution.height)
    elif known.retired_at:
        BOND_RETURNS.delete(execution.state, _bond_return_height(execution.params, known.retired_at), address)
        known = replace(known, retired_at=0, since=execution.height)
    record = replace(
        known,
        x25519_key=payload.x25519_key,
        min_price=payload.min_price,
        max_unit_bytes=payload.max_unit_bytes,
        max_packets=payload.max_packets,
        bond=bond,
        seen=execution.height,
    )
    WORKERS.put(execution.state, record, address)


def retire(execution: Execution, body: TxBody) -> None:
    """Deal the sender nothing more and schedule the return of its bond, after its last window."""
    address = body.address
    worker = WORKERS.get(execution.state, address)
    if worker is None:
        raise ConsensusError(Reason.UNKNOWN_WORKER, address, "a registered worker")
    if worker.retired_at:
        raise ConsensusError(Reason.ALREADY_RETIRED, f"retired at {worker.retired_at}")
    WORKERS.put(execution.state, replace(worker, retired_at=execution.height), address)
    BOND_RETURNS.put(execution.state, Mark(), _bond_return_height(execution.params, execution.height), address)


def return_bonds(execution: Execution) -> None:
    """Pay out the bonds that are due at this height and forget their workers."""
    for address, _ in BOND_RETURNS.scan(execution.state, execution.height):
        worker = WORKERS.get(execution.state, address)
        assert worker is not None, "a scheduled bond without its worker"
        execution.credit(address, worker.bond)
        WORKERS.delete(execution.state, address)
        BOND_RETURNS.delete(execution.state, execution.height, address)


def see(execution: Execution, address: bytes) -> None:
    """A worker that mined a block is alive, whatever its unit was."""
    worker = WORKERS.get(execution.state, address)
    if worker is not None and worker.seen != execution.height:
        WORKERS.put(execution.state, replace(worker, seen=execution.height), address)


def take_slot(execution: Execution, address: bytes, slot: Slot) -> None:
    """Occupy a free slot with a packet."""
    worker = WORKERS.get(execution.state, address)
    assert worker is not None, "dealt to an unknown worker"
    WORKERS.put(execution.state, replace(worker, slots=(*worker.slots, slot)), address)


def free_slot(execution: Execution, address: bytes, packet_id: bytes) -> None:
    """Free the slot of a packet that was dropped: neither a miss nor an answer."""
    worker = WORKERS.get(execution.state, address)
    assert worker is not None, "a packet held by an unknown worker"
    WORKERS.put(execution.state, replace(worker, slots=_without(worker, packet_id)), address)


def answered(execution: Execution, address: bytes, packet_id: bytes, burned: int) -> None:
    """Free the slot, count the answer and raise the score by what was burned for it."""
    worker = WORKERS.get(execution.state, address)
    assert worker is not None, "an answer from an unknown worker"
    params = execution.params
    record = replace(
        worker,
        seen=execution.height,
        ended=worker.ended + 1,
        score=min(worker.score + burned // params.score_unit, params.score_cap),
        slots=_without(worker, packet_id),
    )
    WORKERS.put(execution.state, record, address)


def missed(execution: Execution, address: bytes, packet_id: bytes) -> int:
    """Free the slot, count the miss and burn a quarter of a slot's bond. Returns the grains burned."""
    worker = WORKERS.get(execution.state, address)
    assert worker is not None, "a miss of an unknown worker"
    fine = min(execution.params.slot_bond // 4, worker.bond)
    record = replace(
        worker,
        ended=worker.ended + 1,
        missed=worker.missed + 1,
        bond=worker.bond - fine,
        slots=_without(worker, packet_id),
    )
    WORKERS.put(execution.state, record, address)
    execution.burn(fine)
    return fine


def decay_scores(execution: Execution) -> None:
    """At heights divisible by `window`: lose ceil(score · missed / ended / 3) and start a new period."""
    if execution.height % execution.params.window:
        return
    for address, worker in list(WORKERS.scan(execution.state)):
        if worker.ended:
            loss = -(-worker.score * worker.missed // (3 * worker.ended))
            WORKERS.put(execution.state, replace(worker, score=worker.score - loss, ended=0, missed=0), address)


def _without(worker: Worker, packet_id: bytes) -> tuple[Slot, ...]:
    return tuple(slot for slot in worker.slots if slot.packet_id != packet_id)


def _bond_return_height(params: ChainParams, retired_at: int) -> int:
    return retired_at + params.window + 1
