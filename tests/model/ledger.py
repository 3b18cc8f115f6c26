"""A second state transition: dictionaries, whole scans, no overlay, nothing of `consensus.rules`.

Only valid blocks are given to it; it says what the state is afterwards, and how each transaction ended. Sections are
those of docs/protocol.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from consensus.block import Block, PacketUnit
from consensus.codec import encode
from consensus.params import ChainParams
from consensus.transaction import CancelJob, RegisterWorker, RetireWorker, SubmitJob, Transfer

MIB = 1 << 20


def h(tag: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32, person=tag.encode()).digest()


@dataclass
class Worker:
    bond: int
    seen: int
    declared: tuple[int, int, int] = (0, 0, 0)  # price, bytes, places
    announced: tuple[int, int, int] = (0, 0, 0)
    announced_for: int = 0
    review_at: int = 0
    retired_at: int = 0
    reserved: int = 0
    paid: int = 0
    burned: int = 0
    missed: int = 0
    places: int = 0
    holds: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # packet → place number, job


@dataclass
class Packet:
    job: bytes
    index: int
    shape: tuple[int, int, int]
    fee: int
    status: str = "queued"
    worker: bytes = b""
    number: int = 0
    dealt_at: int = 0

    @property
    def product_bytes(self) -> int:
        return 4 * self.shape[0] * self.shape[2]

    @property
    def unit_bytes(self) -> int:
        m, k, n = self.shape
        return m * k + k * n + 4 * m * n


@dataclass
class Group:
    owner: bytes
    ids: list[bytes]
    threshold: int
    price: int
    expiry: int
    sequence: int
    kept_until: int
    escrow: int
    due_at: int | None
    done: int = 0
    completed: bool = False
    cancelled: bool = False
    swept: int = 0

    @property
    def ended(self) -> bool:
        return self.completed or self.cancelled


class Fails(Exception):
    """A payload that has no effect."""


class Model:
    """The state after some blocks."""

    def __init__(self, params: ChainParams, genesis_hash: bytes) -> None:
        self.params = params
        self.genesis_hash = genesis_hash
        self.balance = {allocation.address: allocation.amount for allocation in params.allocations}
        self.nonce: dict[bytes, int] = {}
        self.issued, self.burned = sum(self.balance.values()), 0
        self.base_fee = params.initial_base_fee
        self.sequence = self.height = self.tick = 0
        self.ticked_ms = params.genesis_time_ms
        self.tickets: list[bytes] = []
        self.workers: dict[bytes, Worker] = {}
        self.array: list[tuple[bytes, int]] = []
        self.packets: dict[bytes, Packet] = {}
        self.groups: dict[bytes, Group] = {}
        self.rewards: dict[int, tuple[bytes, int]] = {}
        self.through: tuple[int, int, int] | None = None
        self.reasons: list[str] = []

    # ------------------------------------------------------------------ a block (section 5)

    def apply(self, block: Block) -> None:
        p, core = self.params, block.header.core
        self.height = core.height
        if core.height == 1 or core.time_ms >= self.ticked_ms + p.spacing_ms // 4:
            self.tick, self.ticked_ms = self.tick + 1, core.time_ms
        minted = p.initial_subsidy >> min(core.height // p.halving_interval, 63)
        self.reward, self.reasons, gas = minted, [], 0
        self._see(core.miner)
        if isinstance(core.unit, PacketUnit):
            self._answer(core.unit.packet_id)
        for result in block.body.results:
            self._answer(result.body.packet_id)
        for tx in block.body.transactions:
            gas += self._transaction(tx)
        self._end_windows()
        self._close()
        self._review_all()
        self.rewards[core.height + p.maturity] = core.miner, self.reward
        if core.height in self.rewards:
            miner, amount = self.rewards.pop(core.height)
            self._credit(miner, amount)
        self.tickets = [*self.tickets, core.parent_ticket][-p.deal_lag :]
        self._deal(self.tickets[0])
        self.issued += minted
        target = p.gas_limit // 2
        step = self.base_fee * abs(gas - target) // target // p.base_fee_change_denominator
        self.base_fee = self.base_fee + max(step, 1) if gas > target else max(self.base_fee - step, 1)

    # ------------------------------------------------------------------ transactions (section 7)

    def _transaction(self, tx: Any) -> int:
        p, body, payload, address = self.params, tx.body, tx.body.payload, tx.body.address
        gas = p.gas.transaction + p.gas.byte * len(encode(payload))
        match payload:
            case Transfer():
                gas += p.gas.output * len(payload.outputs)
            case RegisterWorker():
                gas += p.gas.worker + p.gas.place * payload.max_packets
            case RetireWorker() | CancelJob():
                gas += p.gas.worker
            case SubmitJob():
                shapes = [self._shape(payload, pair) for pair in payload.packets]
                sides = [(o.rows, o.cols) for o in (*payload.lefts, *payload.rights)]
                products = sum(4 * m * n for m, _, n in shapes)
                gas += p.gas.job + p.gas.packet * len(shapes)
                gas += p.gas.tensor_byte * (products + sum(r * c for r, c in sides))
        self.balance[address] = self.balance.get(address, 0) - gas * (self.base_fee + body.tip)
        self.burned += gas * self.base_fee
        self.reward += gas * body.tip
        self.nonce[address] = self.nonce.get(address, 0) + 1
        try:
            self._payload(address, payload, h("tw/txid", self.genesis_hash + encode(body)))
            self.reasons.append("")
        except Fails as failure:
            self.reasons.append(str(failure))
        return gas

    def _payload(self, address: bytes, payload: Any, txid: bytes) -> None:
        match payload:
            case Transfer():
                self._debit(address, sum(output.amount for output in payload.outputs))
                for output in payload.outputs:
                    self._credit(output.address, output.amount)
            case RegisterWorker():
                self._register(address, payload)
            case RetireWorker():
                worker = self.workers.get(address)
                if worker is None:
                    raise Fails("unknown-worker")
                if worker.retired_at:
                    raise Fails("already-retired")
                worker.retired_at, worker.announced_for = self.tick, 0
                self._review_by(worker, self.tick + self.params.registration_delay)
            case SubmitJob():
                self._submit(address, payload, txid)
            case CancelJob():
                group = self.groups.get(payload.job)
                if group is None:
                    raise Fails("unknown-job")
                if group.owner != address:
                    raise Fails("not-owner")
                if group.ended:
                    raise Fails("already-cancelled")
                group.cancelled, group.due_at = True, self.tick

    def _debit(self, address: bytes, amount: int) -> None:
        if self.balance.get(address, 0) < amount:
            raise Fails("insufficient-balance")
        if amount:
            self.balance[address] -= amount

    def _credit(self, address: bytes, amount: int) -> None:
        if amount:
            self.balance[address] = self.balance.get(address, 0) + amount

    # ------------------------------------------------------------------ workers and places (section 9)

    def _register(self, address: bytes, payload: RegisterWorker) -> None:
        worker = self.workers.get(address)
        bond = payload.bond + (worker.bond if worker else 0)
        if bond < payload.max_packets * self.params.min_reserve:
            raise Fails("insufficient-bond")
        self._debit(address, payload.bond)
        if worker is None:
            worker = self.workers[address] = Worker(bond, self.tick)
        if worker.retired_at:
            worker.retired_at, worker.declared = 0, (0, 0, 0)
        worker.bond, worker.seen = bond, self.tick
        worker.announced = payload.min_price, payload.max_unit_bytes, payload.max_packets
        worker.announced_for = self.tick + self.params.registration_delay
        self._review_by(worker, worker.announced_for)

    def _review_by(self, worker: Worker, tick: int) -> None:
        worker.review_at = min(worker.review_at, tick) if worker.review_at else tick

    def _see(self, address: bytes) -> None:
        worker = self.workers.get(address)
        if worker is not None:
            worker.seen = self.tick
            if not worker.review_at:
                worker.review_at = self.tick + self.params.registration_delay

    def _is_live(self, worker: Worker) -> bool:
        return self.tick - worker.seen <= self.params.liveness

    def _is_active(self, worker: Worker) -> bool:
        return worker.declared[2] > 0 and not worker.retired_at and self._is_live(worker)

    def _review_all(self) -> None:
        left = self.params.max_seated
        due = sorted((w.review_at, a) for a, w in self.workers.items() if w.review_at and w.review_at <= self.tick)
        for _, address in due:
            if left <= 0:
                return
            left -= 1
            worker = self.workers[address]
            if worker.announced_for and worker.announced_for <= self.tick:
                worker.declared, worker.announced_for = worker.announced, 0
            wanted = worker.declared[2] if self._is_active(worker) else 0
            while worker.places != wanted and left > 0:
                left -= 1
                if worker.places < wanted:
                    self.array.append((address, worker.places))
                    worker.places += 1
                else:
                    worker.places -= 1
                    gap = self.array.index((address, worker.places))
                    last = self.array.pop()
                    if gap < len(self.array):
                        self.array[gap] = last
            if worker.places != wanted:
                continue
            worker.review_at = 0
            if worker.retired_at:
                over = worker.retired_at + self.params.window
                if self.tick > over and not worker.holds:
                    self._credit(address, worker.bond)
                    del self.workers[address]
                else:
                    worker.review_at = max(self.tick, over) + 1
                continue
            nexts = [worker.announced_for] if worker.announced_for else []
            if self._is_live(worker):
                nexts.append(worker.seen + self.params.liveness + 1)
            worker.review_at = min(nexts, default=0)

    # ------------------------------------------------------------------ jobs (section 9)

    def _shape(self, job: SubmitJob, pair: Any) -> tuple[int, int, int]:
        left, right = job.lefts[pair.left], job.rights[pair.right]
        return left.rows, left.cols, right.cols

    def _submit(self, owner: bytes, job: SubmitJob, txid: bytes) -> None:
        p = self.params
        if not self.tick + p.window < job.expiry <= self.tick + p.max_life:
            raise Fails("bad-expiry")
        packets = []
        for index, pair in enumerate(job.packets):
            m, k, n = shape = self._shape(job, pair)
            weight = max(2**22, m * n * (k + 128) + 64 * k * (m + n))
            packets.append(Packet(txid, index, shape, max(p.min_fee, -(-job.price * weight // 2**40))))
        escrow = sum(packet.fee for packet in packets)
        self._debit(owner, escrow)
        ids = [h("tw/packet", txid + index.to_bytes(4, "little")) for index in range(len(packets))]
        self.packets.update(zip(ids, packets, strict=True))
        kept_until = self.height + job.expiry - self.tick + p.retention
        self.groups[txid] = Group(
            owner, ids, job.threshold, job.price, job.expiry, self.sequence, kept_until, escrow, job.expiry
        )
        self.sequence += 1

    def _reserve(self, fee: int) -> int:
        return max(self.params.min_reserve, 4 * fee)

    def _release(self, packet_id: bytes, status: str) -> tuple[Packet, Group, Worker]:
        """A held packet is held no more."""
        packet = self.packets[packet_id]
        group, worker = self.groups[packet.job], self.workers[packet.worker]
        del worker.holds[packet_id]
        worker.reserved -= self._reserve(packet.fee)
        packet.status = status
        if status != "queued" and packet.index < group.swept:
            del self.packets[packet_id]
        return packet, group, worker

    def _held_of(self, group: Group) -> int:
        return sum(i in self.packets and self.packets[i].status == "held" for i in group.ids)

    def _wake(self, group: Group) -> None:
        """A closing that waited for holders is due once the last of them is done."""
        if group.due_at is None and not self._held_of(group):
            group.due_at = self.tick

    def _answer(self, packet_id: bytes) -> None:
        address = self.packets[packet_id].worker
        packet, group, worker = self._release(packet_id, "done")
        burned, share = max(1, packet.fee // 10), packet.fee // 50
        self.burned += burned
        self.reward += share
        paid = packet.fee - burned - share
        self._credit(address, paid)
        worker.paid += paid
        worker.burned += burned
        self._see(address)
        group.escrow -= packet.fee
        group.done += 1
        if group.done == group.threshold:
            if not group.ended:
                group.due_at = self.tick
            group.completed = True
        self._wake(group)

    def _end_windows(self) -> None:
        p = self.params
        over = sorted(
            (packet.dealt_at + p.window, packet_id)
            for packet_id, packet in self.packets.items()
            if packet.status == "held" and packet.dealt_at + p.window <= self.tick
        )
        for _, packet_id in over[: p.max_missed]:
            group = self.groups[self.packets[packet_id].job]
            again = not group.ended and group.expiry > self.tick
            packet, group, worker = self._release(packet_id, "queued" if again else "withdrawn")
            if not group.completed:
                fine = self._reserve(packet.fee)
                worker.bond -= fine
                worker.missed += 1
                self.burned += fine
                most = worker.bond // p.min_reserve
                worker.declared = (*worker.declared[:2], min(worker.declared[2], most))
                worker.announced = (*worker.announced[:2], min(worker.announced[2], most))
                if worker.declared[2] < worker.places:
                    self._review_by(worker, self.tick + p.registration_delay)
            self._wake(group)

    def _close(self) -> None:
        left = self.params.max_closed
        due = sorted(
            (g.due_at, job) for job, g in self.groups.items() if g.due_at is not None and g.due_at <= self.tick
        )
        for _, job in due:
            if left <= 0:
                return
            group = self.groups[job]
            some = group.ids[group.swept : group.swept + left]
            for packet_id in some:
                if self.packets[packet_id].status != "held":
                    del self.packets[packet_id]
            group.swept += len(some)
            left -= max(1, len(some))
            if group.swept < len(group.ids):
                continue
            group.due_at = None
            if not self._held_of(group):
                self._credit(group.owner, group.escrow)
                del self.groups[job]

    # ------------------------------------------------------------------ dealing (section 9)

    def queue(self) -> list[tuple[tuple[int, int, int], bytes]]:
        """Waiting packets, dearest first, then oldest."""
        waiting = [(packet_id, packet) for packet_id, packet in self.packets.items() if packet.status == "queued"]
        keyed = [((-self.groups[p.job].price, self.groups[p.job].sequence, p.index), i) for i, p in waiting]
        return sorted(keyed)

    def _deal(self, ticket: bytes) -> None:
        p, queue = self.params, self.queue()
        most = p.max_examined
        head = queue[: most - most // 2]
        behind = [one for one in queue if self.through is not None and one[0] > self.through]
        round_: list[tuple[tuple[int, int, int], bytes]] = []
        for one in [*(behind if self.through is not None else queue), *queue]:
            if one in head:
                continue
            if one in round_ or len(round_) == most // 2:
                break
            round_.append(one)
            self.through = one[0]
        examined = []
        for _, packet_id in [*head, *round_]:
            packet = self.packets[packet_id]
            group = self.groups[packet.job]
            in_time = self.tick + p.window < group.expiry and self.height + p.retention // 2 < group.kept_until
            if group.ended or not in_time:
                packet.status = "withdrawn"
            else:
                examined.append(packet_id)
        for packet_id in examined:
            packet = self.packets[packet_id]
            place = self._place_for(packet_id, packet, ticket)
            if place is None:
                continue
            held = [one for one in self.packets.values() if one.status == "held"]
            size = sum(one.product_bytes for one in held) + packet.product_bytes
            if size > p.window * 32 * MIB // 2 or len(held) >= p.window * p.max_results // 2:
                return
            address, packet.number = place
            packet.status, packet.worker, packet.dealt_at = "held", address, self.tick
            worker = self.workers[address]
            worker.holds[packet_id] = packet.number, packet.job
            worker.reserved += self._reserve(packet.fee)

    def _place_for(self, packet_id: bytes, packet: Packet, ticket: bytes) -> tuple[bytes, int] | None:
        price = self.groups[packet.job].price
        for attempt in range(self.params.max_tries if self.array else 0):
            draw = h("tw/deal", ticket + packet_id + attempt.to_bytes(4, "little"))
            address, number = self.array[int.from_bytes(draw, "big") % len(self.array)]
            worker = self.workers[address]
            least, largest, places = worker.declared
            able = least <= price and largest >= packet.unit_bytes and number < places > len(worker.holds)
            covered = worker.bond - worker.reserved >= self._reserve(packet.fee)
            free = all(taken != number for taken, _ in worker.holds.values())
            strange = attempt >= self.params.max_tries // 2 or all(
                job != packet.job for _, job in worker.holds.values()
            )
            if able and covered and free and strange and self._is_active(worker):
                return address, number
        return None
