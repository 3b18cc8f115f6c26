"""The pool of verified Results, and the room where early claims wait."""

from __future__ import annotations

from consensus.transaction import Result
from node.pool.results import MAX_WAITING_PER_WORKER, WAITING_BLOCKS, ResultPool, WaitingRoom
from tests.builders import ALICE, DAVE, ERIN, Job, Key, operand
from tests.node.rig import Rig, asynchronous


def claim(worker: Key, number: int, product: int = 0) -> Result:
    """A claim for an imaginary packet."""
    return worker.claim(bytes(32), number.to_bytes(32, "big"), product.to_bytes(32, "big"))


async def dealt(rig: Rig, count: int = 2) -> Job:
    """A job of `count` packets, all of them held by Dave and Erin."""
    await rig.with_workers(DAVE, ERIN, packets=count)
    job = rig.builder.job(ALICE, operand(64 * count, 64, 1), operand(64, 64, 2), rows=64)
    await rig.submit(job)
    await rig.mine()
    assert len(rig.builder.held(job)) == count
    return job


def test_the_first_of_a_packet_stays() -> None:
    pool = ResultPool(Rig().chain)
    first = claim(DAVE, 1)
    assert pool.add(first)
    assert not pool.add(claim(ERIN, 1))
    assert pool.get(first.body.packet_id) == first
    assert len(pool) == 1


def test_it_is_bounded_and_the_oldest_makes_room() -> None:
    pool = ResultPool(Rig().chain, limit=3)
    for number in range(5):
        pool.add(claim(DAVE, number))
    assert pool.pending() == [claim(DAVE, number) for number in (2, 3, 4)]


@asynchronous
async def test_answers_leave_with_their_block_and_come_back_with_it() -> None:
    rig = Rig()
    job = await dealt(rig)
    before = rig.builder.tip
    first, second = [await rig.answer(packet) for packet in job.packets]
    branch = rig.branch()
    await rig.mine()
    assert len(rig.results) == 0
    # A longer branch without them: the packets are held again, and the answers wait again.
    branch.tip = before
    await rig.receive(branch.mine())
    await rig.receive(branch.mine())
    assert rig.chain.tip.id == branch.tip.block.id
    assert rig.results.pending() == [first, second]


@asynchronous
async def test_answers_to_what_the_new_branch_never_dealt_are_forgotten() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    before = rig.builder.tip
    branch = rig.branch()
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2))
    await rig.submit(job)
    await rig.mine()
    await rig.answer(job.packets[0])
    branch.tip = before
    await rig.receive(branch.mine())
    await rig.receive(branch.mine())
    assert len(rig.results) == 0
    assert len(rig.pool) == 1, "the job itself is pending again"


@asynchronous
async def test_an_answer_that_missed_its_window_is_forgotten() -> None:
    rig = Rig()
    job = await dealt(rig, 1)
    branch = rig.branch()
    await rig.answer(job.packets[0])
    for _ in range(rig.params.window):
        await rig.receive(branch.mine())  # a miner that takes no results
    assert len(rig.results) == 0


def test_early_claims_wait_for_some_tips() -> None:
    room = WaitingRoom()
    early = claim(DAVE, 1)
    assert room.add(early, height=10)
    assert room.add(early, height=12), "the same again changes nothing"
    assert room.due(10 + WAITING_BLOCKS) == [early]
    assert room.due(11 + WAITING_BLOCKS) == []
    assert len(room) == 0


def test_one_worker_cannot_fill_the_room() -> None:
    room = WaitingRoom()
    assert all(room.add(claim(DAVE, number), 0) for number in range(MAX_WAITING_PER_WORKER))
    assert not room.add(claim(DAVE, 1000), 0)
    assert room.add(claim(ERIN, 1000), 0)
    room.remove(claim(DAVE, 0))
    assert room.add(claim(DAVE, 1000), 0)


def test_the_room_is_bounded() -> None:
    room = WaitingRoom(limit=2)
    assert room.add(claim(DAVE, 0), 0)
    assert room.add(claim(ERIN, 1), 0)
    assert not room.add(claim(ALICE, 2), 0)
