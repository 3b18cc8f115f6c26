"""Candidates: what their headers say, what their bodies hold, and that every one is a valid block."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from consensus.block import PacketUnit, Zero
from consensus.codec import encode
from consensus.difficulty import median_time
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_BODY_TX_BYTES, MAX_TENSOR_BYTES, TILE, GasSchedule
from consensus.shape import Shape
from consensus.state import PACKETS, ledger
from consensus.tensor import Tensor
from consensus.transaction import CancelJob, Output, Transfer
from consensus.work import evaluate, winning_tiles
from node.mining.assembly import PinnedState, TipMoved, assemble
from node.mining.producer import REFRESH_MS, Candidate
from tests.builders import ALICE, BOB, CAROL, DAVE, ERIN, FRANK, KEYS, MINER, USERS, Key, operand, regtest
from tests.node.pool.test_results import dealt
from tests.node.rig import Rig, asynchronous


def senders(candidate: Candidate) -> list[str]:
    return [KEYS[tx.body.address].name for tx in candidate.body.transactions]


# --- headers


@asynchronous
async def test_the_header_stands_on_the_tip() -> None:
    rig = Rig()
    await rig.mine(3)
    candidate = rig.producer.candidate(rig.producer.idle_unit, MINER.address)
    core, tip = candidate.core, rig.chain.tip
    assert (core.parent, core.height, core.parent_ticket) == (tip.id, 4, tip.header.ticket)
    assert core.state_root == rig.builder.tip.transition.state_root
    assert core.miner == MINER.address
    assert (candidate.id, candidate.seed) == (core.id, core.seed)
    assert candidate.shape == Shape(64, 4096, 64)


@asynchronous
async def test_its_time_is_the_clocks_but_always_above_the_median() -> None:
    rig = Rig()
    await rig.mine(3)
    rig.now_ms += 1234
    assert rig.producer.candidate(rig.producer.idle_unit, MINER.address).core.time_ms == rig.now_ms
    rig.now_ms = rig.params.genesis_time_ms - 10**6
    core = rig.producer.candidate(rig.producer.idle_unit, MINER.address).core
    assert core.time_ms == median_time([entry.core.time_ms for entry in rig.chain.tip.ancestors()][::-1]) + 1


@asynchronous
async def test_no_two_candidates_share_a_seed() -> None:
    rig = Rig()
    assert len({rig.producer.candidate(rig.producer.idle_unit, MINER.address).seed for _ in range(100)}) == 100


@asynchronous
async def test_another_is_the_same_block_with_a_seed_of_its_own() -> None:
    rig = Rig()
    first = rig.producer.candidate(rig.producer.idle_unit, MINER.address)
    units = [first, *(first := first.another() for _ in range(99))]
    assert len({unit.seed for unit in units}) == len({unit.id for unit in units}) == 100
    for unit in units:
        assert (unit.id, unit.seed) == (unit.core.id, unit.core.seed)
        assert replace(unit.core, nonce=units[0].core.nonce) == units[0].core
        assert (unit.tip, unit.body) == (units[0].tip, units[0].body)
    last = replace(units[0].core, nonce=b"\xff" * 8)
    assert Candidate(first.tip, last, first.body, last.id, last.seed).another().core.nonce == bytes(8)
    await rig.intake.block(await rig.seal(units[50]))
    assert rig.chain.tip.id == units[50].id


# --- bodies


@asynchronous
async def test_a_body_is_chosen_once_for_a_tip_and_its_pools() -> None:
    rig = Rig()
    await rig.intake.transaction(rig.builder.transfer(ALICE, BOB, 1))
    first = rig.producer.candidate(rig.producer.idle_unit, MINER.address)
    assert rig.producer.candidate(rig.producer.idle_unit, DAVE.address).body is first.body
    await rig.intake.transaction(rig.builder.transfer(CAROL, BOB, 1))
    assert rig.producer.candidate(rig.producer.idle_unit, MINER.address).body is first.body, "not for every newcomer"
    rig.now_ms += REFRESH_MS
    second = rig.producer.candidate(rig.producer.idle_unit, MINER.address)
    assert senders(second) == ["alice", "carol"]
    rig.now_ms += 10 * REFRESH_MS
    assert rig.producer.candidate(rig.producer.idle_unit, MINER.address).body is second.body, "nothing is new"
    await rig.mine()
    assert senders(rig.producer.candidate(rig.producer.idle_unit, MINER.address)) == []


@asynchronous
async def test_the_dearest_transactions_go_first() -> None:
    rig = Rig()
    for key, tip in ((ALICE, 1), (BOB, 3), (CAROL, 2)):
        await rig.intake.transaction(rig.builder.transfer(key, DAVE, 1, tip=tip))
    assert senders(rig.producer.candidate(rig.producer.idle_unit, MINER.address)) == ["bob", "carol", "alice"]


@asynchronous
async def test_what_turned_invalid_is_left_out() -> None:
    rig = Rig()
    await rig.intake.transaction(rig.builder.transfer(ALICE, BOB, 1))
    job = rig.builder.job(CAROL, operand(64, 64, 1), operand(64, 64, 2))
    await rig.submit(job)
    rig.tensors.remove(job.payload.operands()[0].commitment)
    rig.chain.products._true._facts.clear()  # what is verified may be forgotten
    assert senders(rig.producer.candidate(rig.producer.idle_unit, MINER.address)) == ["alice"]


@asynchronous
async def test_gas_fills_a_block() -> None:
    rig = Rig(regtest(gas=GasSchedule(tensor_byte=0), gas_limit=220_000))
    for key in (ALICE, BOB, CAROL, DAVE, ERIN):
        await rig.intake.transaction(rig.builder.transfer(key, FRANK, 1))
    assert len(rig.producer.candidate(rig.producer.idle_unit, MINER.address).body.transactions) == 3
    await rig.mine(2)
    assert len(rig.pool) == 0


@asynchronous
async def test_bytes_fill_a_block() -> None:
    rig = Rig(regtest(gas_limit=1 << 32))
    outputs = tuple(Output(number.to_bytes(20, "big"), 1 << 33) for number in range(1024))
    for key in (ALICE, BOB, CAROL):
        for nonce in range(14):
            tx = rig.builder.tx(key, Transfer(outputs), max_base_fee=2, nonce=nonce)
            assert rig.pool.add(tx, tx.body.txid(rig.chain.genesis_hash))
    candidate = rig.producer.candidate(rig.producer.idle_unit, MINER.address)
    size, one = sum(len(encode(tx)) for tx in candidate.body.transactions), len(encode(tx))
    assert MAX_BODY_TX_BYTES - one < size <= MAX_BODY_TX_BYTES
    await rig.mine()
    assert len(rig.pool) == 42 - len(candidate.body.transactions)


@asynchronous
async def test_tensors_fill_a_block_and_shared_ones_count_once() -> None:
    rig = Rig()
    shared = operand(4096, 1536, 1)  # 6 MiB
    other = operand(4096, 1536, 2)
    for key, right in ((ALICE, shared), (BOB, shared), (CAROL, other), (DAVE, other)):
        await rig.submit(rig.builder.job(key, operand(64, 4096, key.public[0]), right, max_base_fee=2, price=1))
    await rig.mine()
    assert len(rig.pool) == 0
    third = operand(4096, 1536, 3)
    for key, right in ((ALICE, shared), (BOB, other), (CAROL, third)):
        await rig.submit(rig.builder.job(key, operand(64, 4096, key.public[0]), right, max_base_fee=2, price=2))
    await rig.mine()
    assert [KEYS[p.address].name for p in rig.pool.best(1, 10)] == ["carol"]


@asynchronous
async def test_the_units_own_product_has_its_room() -> None:
    rig = Rig()
    await rig.submit(rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2)))
    time_ms = rig.now_ms
    full = assemble(rig.chain, rig.pool, rig.results, time_ms, MAX_TENSOR_BYTES - 2 * 4096)
    assert len(full.body.transactions) == 1
    assert full.tensor_bytes == 2 * 4096
    less = assemble(rig.chain, rig.pool, rig.results, time_ms, MAX_TENSOR_BYTES - 2 * 4096 + 1)
    assert less.body.transactions == ()


@asynchronous
async def test_a_packet_unit_makes_its_own_answer_implicit() -> None:
    rig = Rig()
    job = await dealt(rig, 2)
    for packet in job.packets:
        await rig.answer(packet)
    idle = rig.producer.candidate(rig.producer.idle_unit, MINER.address)
    assert {r.body.packet_id for r in idle.body.results} == set(job.packets)
    mine, other = job.packets
    holder = rig.builder.holder(mine)
    assert holder is not None
    held = next(h for h in rig.producer.held(holder.address) if h.packet_id == mine)
    candidate = rig.producer.candidate(held.unit, holder.address)
    assert [r.body.packet_id for r in candidate.body.results] == [other]
    assert candidate.core.body_root == candidate.body.root()


@asynchronous
async def test_nobody_mines_a_packet_that_is_not_his() -> None:
    rig = Rig()
    job = await dealt(rig, 1)
    holder = rig.builder.holder(job.packets[0])
    assert holder is not None
    unit = rig.producer.held(holder.address)[0].unit
    with pytest.raises(ConsensusError) as caught:
        rig.producer.candidate(unit, MINER.address)
    assert caught.value.reason == Reason.NOT_ASSIGNEE


@asynchronous
async def test_held_packets_come_by_deadline_and_those_of_complete_groups_last() -> None:
    rig = Rig()
    await rig.with_workers(DAVE, packets=4)
    early = rig.builder.job(ALICE, operand(128, 64, 1), operand(64, 64, 2), rows=64, threshold=1)
    await rig.submit(early)
    await rig.mine()
    late = rig.builder.job(BOB, operand(64, 64, 3), operand(64, 64, 4))
    await rig.submit(late)
    await rig.mine()
    assert [h.packet_id for h in rig.producer.held(DAVE.address)] == [*early.packets, *late.packets]
    await rig.answer(early.packets[0])
    await rig.mine()
    held = rig.producer.held(DAVE.address)
    assert [(h.packet_id, h.complete) for h in held] == [(late.packets[0], False), (early.packets[1], True)]
    assert held[0].deadline == rig.builder.packet(late.packets[0]).dealt_at + rig.params.window
    assert held[1].deadline == rig.builder.packet(early.packets[1]).dealt_at + rig.params.window
    assert rig.producer.held(MINER.address) == []


@asynchronous
async def test_a_body_serves_only_times_on_its_side_of_the_next_tick() -> None:
    """A job whose expiry is just far enough unless the block ticks: what it leaves to others hangs on that."""
    rig = Rig()
    await rig.mine(3)
    expiry = ledger(rig.builder.state).tick + rig.params.window + 1
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2), expiry=expiry)
    await rig.submit(job)
    chosen = []
    for delay_ms in (499, 250, 500, 2000):
        rig.now_ms = rig.chain.tip.core.time_ms + delay_ms
        candidate = rig.producer.candidate(rig.producer.idle_unit, MINER.address)
        assert candidate.core.time_ms == rig.now_ms
        chosen.append(rig.producer._assembly)
    assert chosen[0] is chosen[1] is not chosen[2]
    assert chosen[2] is chosen[3]
    assert [assembly.ticks for assembly in chosen if assembly] == [False, False, True, True]
    rig.now_ms = rig.chain.tip.core.time_ms + 499
    await rig.intake.block(await rig.seal(rig.producer.candidate(rig.producer.idle_unit, MINER.address)))
    assert rig.builder.group(job) is not None, "the block did not tick, so the job was in time"


# --- reading beside imports


@asynchronous
async def test_a_pinned_state_never_mixes_two_tips() -> None:
    rig = Rig()
    pinned = PinnedState(rig.chain, rig.chain.tip)
    assert pinned.get(b"l")
    assert list(pinned.scan(b"a"))
    await rig.mine()
    with pytest.raises(TipMoved):
        pinned.get(b"l")
    with pytest.raises(TipMoved):
        pinned.scan(b"a")


@asynchronous
async def test_candidates_made_beside_imports_are_each_of_one_tip() -> None:
    rig = Rig()
    made: list[Candidate] = []
    stop = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            made.append(rig.producer.candidate(rig.producer.idle_unit, MINER.address))

    roots = {}
    with ThreadPoolExecutor(1) as pool:
        producing = pool.submit(produce)
        for _ in range(20):
            roots[rig.chain.tip.id] = rig.builder.tip.transition.state_root
            await rig.intake.transaction(rig.builder.transfer(ALICE, BOB, 1))
            await rig.mine()
        stop.set()
        producing.result()
    roots[rig.chain.tip.id] = rig.builder.tip.transition.state_root
    assert len({candidate.tip.id for candidate in made}) > 3
    for candidate in made:
        assert candidate.core.parent == candidate.tip.id
        assert candidate.core.state_root == roots[candidate.tip.id]


# --- whatever happens, a candidate is a valid block


@pytest.mark.parametrize("seed", [1, 2, 3])
@asynchronous
async def test_every_candidate_is_a_valid_block(seed: int) -> None:
    """Random stories; each block is validated by the chain and once more by the builder."""
    rig, rng = Rig(), random.Random(seed)
    workers = (DAVE, ERIN, FRANK)
    await rig.with_workers(*workers, packets=3)
    known: list[bytes] = []
    for _ in range(40):
        for _ in range(rng.randrange(4)):
            await random_transaction(rig, rng, known)
        await random_answers(rig, rng, known)
        await mine_something(rig, rng, workers)
    assert rig.chain.tip.height == 48
    units = {type(entry.core.unit) for entry in rig.chain.tip.ancestors()}
    assert units == {Zero, PacketUnit}, "the story went nowhere"
    bodies = [rig.chain.archive.body(entry.id) for entry in rig.chain.tip.ancestors()]
    assert sum(len(body.results) for body in bodies if body is not None) > 5
    assert sum(len(body.transactions) for body in bodies if body is not None) > 30


async def random_transaction(rig: Rig, rng: random.Random, known: list[bytes]) -> None:
    sender, tip = rng.choice(USERS), rng.randrange(5)
    nonce = rig.pool.next_nonce(sender.address)
    choice = rng.randrange(6)
    if choice <= 1:
        amount = rng.choice([1, TILE, 10**15])  # the last fails in its block, at its sender's cost
        tx = rig.builder.transfer(sender, rng.choice(USERS), min(amount, 10**14), tip=tip, nonce=nonce)
    elif choice == 2:
        worker = rng.choice((DAVE, ERIN, FRANK))
        tx = rig.builder.register(worker, packets=rng.randrange(1, 4), nonce=rig.pool.next_nonce(worker.address))
    elif choice == 3 and known:
        own = rng.choice(known)
        packet = PACKETS.get(rig.builder.state, own)
        job_id = packet.job if packet is not None else own
        tx = rig.builder.tx(sender, CancelJob(job_id), tip=tip, nonce=nonce)
    else:
        rows, inner, seed = 64 * rng.randrange(1, 4), rng.choice((64, 4096)), rng.randrange(10**6)
        left, right = operand(rows, inner, seed), operand(inner, 64, seed + 1)
        threshold = rng.randrange(1, rows // 64 + 1)
        job = rig.builder.job(sender, left, right, rows=64, threshold=threshold, tip=tip, nonce=nonce, max_base_fee=100)
        await rig.submit(job)
        known.extend(job.packets)
        return
    await rig.intake.transaction(tx)


async def random_answers(rig: Rig, rng: random.Random, known: list[bytes]) -> None:
    for packet in known:
        if rig.builder.holder(packet) is not None and rng.random() < 0.3 and rig.results.get(packet) is None:
            await rig.answer(packet)


async def mine_something(rig: Rig, rng: random.Random, workers: tuple[Key, ...]) -> None:
    """A block from whichever unit wins first: somebody's packet, or an idle one."""
    rig.now_ms += REFRESH_MS
    worker = rng.choice(workers)
    for held in rig.producer.held(worker.address):
        candidate = rig.producer.candidate(held.unit, worker.address)
        a, b = (rig.tensors.tensor(spec.commitment) for spec in (held.packet.left, held.packet.right))
        assert a is not None
        assert b is not None
        evaluation = evaluate(candidate.seed, a.matrix, b.matrix)
        assert evaluation.states is not None
        for i, j, _ in winning_tiles(candidate.seed, evaluation.states, candidate.core.target_int, candidate.shape.k):
            product = Tensor(evaluation.product)
            await rig.intake.tensor(product)
            answer = rig.builder.answer(held.packet_id, product.commitment, worker)
            sealed = rig.producer.seal(candidate, i, j, evaluation.states[i, j], answer)
            await rig.intake.block(sealed)
            return
    await rig.intake.block(await rig.seal(rig.producer.candidate(rig.producer.idle_unit, worker.address)))
