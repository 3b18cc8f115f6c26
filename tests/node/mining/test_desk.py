"""Units for outside miners: what they are given, and what becomes of what they bring back."""

from __future__ import annotations

import pytest

from consensus.block import Answer, HeaderCore, PacketUnit
from consensus.codec import decode
from consensus.crypto import H
from consensus.errors import BadProof, Reason
from consensus.tensor import Tensor
from consensus.work import evaluate, evaluate_idle, winning_tiles
from node.mining.desk import MAX_AGE_SPACINGS, MAX_OUTSTANDING, DeskError, DeskReason, WorkDesk, WorkUnit
from tests.builders import ALICE, DAVE, MINER, operand, regtest
from tests.node.rig import Rig, asynchronous, worker_key


def desk_of(rig: Rig) -> WorkDesk:
    return WorkDesk(rig.intake, rig.producer, rig.compute, lambda: rig.now_ms)


def work_idle(unit: WorkUnit) -> tuple[int, int, bytes]:
    """What an outside miner brings: it knows nothing but the unit."""
    assert unit.seed == H("tw/work", unit.core)
    evaluation = evaluate_idle(unit.seed, unit.shape)
    assert evaluation is not None
    assert evaluation.states is not None
    i, j, _ = next(winning_tiles(unit.seed, evaluation.states, unit.target, unit.shape.k))
    return i, j, evaluation.states[i, j].astype("<u4").tobytes()


async def work_packet(rig: Rig, unit: WorkUnit) -> tuple[int, int, bytes, Answer]:
    """The same of DAVE's packet; the product goes to the node first."""
    a, b = (rig.tensors.tensor(commitment) for commitment in (unit.left, unit.right) if commitment is not None)
    assert a is not None
    assert b is not None
    assert unit.packet_id is not None
    evaluation = evaluate(unit.seed, a.matrix, b.matrix)
    assert evaluation.states is not None
    i, j, _ = next(winning_tiles(unit.seed, evaluation.states, unit.target, unit.shape.k))
    product = Tensor(evaluation.product)
    await rig.intake.tensor(product)
    answer = worker_key(DAVE).answer(unit.packet_id, product.commitment, rig.chain.genesis_hash)
    return i, j, evaluation.states[i, j].astype("<u4").tobytes(), answer


async def declined(
    code: str, desk: WorkDesk, unit_id: bytes, i: int, j: int, state: bytes, answer: Answer | None = None
) -> None:
    with pytest.raises(DeskError) as caught:
        await desk.submit(unit_id, i, j, state, answer)
    assert caught.value.code == code
    assert isinstance(caught.value.code, DeskReason)


@asynchronous
async def test_an_idle_unit_that_wins_is_a_block_of_its_worker() -> None:
    rig = Rig()
    desk = desk_of(rig)
    unit = await desk.get_unit(MINER.address)
    core = decode(HeaderCore, unit.core, 1024)
    assert (core.id, core.miner, core.target_int) == (unit.id, MINER.address, unit.target)
    assert unit.packet_id is None
    change = await desk.submit(unit.id, *work_idle(unit))
    assert change.tip_changed
    assert rig.chain.tip.id == unit.id
    await declined("unknown-unit", desk, unit.id, *work_idle(unit))


@asynchronous
async def test_held_packets_come_once_per_tip_then_idle_units() -> None:
    rig = Rig()
    await rig.with_workers(DAVE, packets=4)
    job = rig.builder.job(ALICE, operand(128, 4096, 1), operand(4096, 64, 2), rows=64)
    await rig.submit(job)
    await rig.mine()
    desk = desk_of(rig)
    first, second, third = [await desk.get_unit(DAVE.address) for _ in range(3)]
    assert {first.packet_id, second.packet_id} == set(job.packets)
    assert third.packet_id is None
    assert (await desk.get_unit(MINER.address)).packet_id is None
    assert first.packet_id is not None
    packet = rig.builder.packet(first.packet_id)
    assert (first.left, first.right) == (packet.left.commitment, packet.right.commitment)
    assert first.deadline == packet.dealt_at + rig.params.window
    # A won packet is answered by its block; the other comes again on the new tip, until it is answered.
    i, j, state, answer = await work_packet(rig, first)
    await declined("bad-answer", desk, first.id, i, j, state)
    await desk.submit(first.id, i, j, state, answer)
    assert isinstance(rig.chain.tip.core.unit, PacketUnit)
    again = await desk.get_unit(DAVE.address)
    assert again.packet_id == second.packet_id
    assert again.packet_id is not None
    await rig.answer(again.packet_id)
    await rig.mine()
    assert (await desk.get_unit(DAVE.address)).packet_id is None


@asynchronous
async def test_a_packet_whose_block_was_undone_comes_again() -> None:
    """From this an outside miner learns that it must send its answer again."""
    rig = Rig()
    await rig.with_workers(DAVE)
    job = rig.builder.job(ALICE, operand(64, 4096, 1), operand(4096, 64, 2))
    await rig.submit(job)
    await rig.mine()
    branch = rig.branch()
    rival = [branch.mine(), branch.mine()]
    desk = desk_of(rig)
    unit = await desk.get_unit(DAVE.address)
    assert unit.packet_id == job.packets[0]
    await desk.submit(unit.id, *await work_packet(rig, unit))
    assert (await desk.get_unit(DAVE.address)).packet_id is None
    for node in rival:
        await rig.receive(node)
    assert rig.chain.tip.id == rival[-1].block.id
    assert (await desk.get_unit(DAVE.address)).packet_id == job.packets[0]
    await rig.answer(job.packets[0])
    await rig.mine()
    assert (await desk.get_unit(DAVE.address)).packet_id is None


@asynchronous
async def test_a_packet_comes_once_its_operands_are_here() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2))
    await rig.submit(job)
    await rig.mine()
    missing = job.payload.operands()[1].commitment
    rig.tensors.remove(missing)
    desk = desk_of(rig)
    assert (await desk.get_unit(DAVE.address)).packet_id is None
    await rig.upload(missing)
    assert (await desk.get_unit(DAVE.address)).packet_id == job.packets[0]


@asynchronous
async def test_a_unit_is_stale_once_a_block_has_come() -> None:
    rig = Rig()
    desk = desk_of(rig)
    unit = await desk.get_unit(MINER.address)
    await rig.mine()
    await declined("stale-unit", desk, unit.id, *work_idle(unit))
    assert rig.chain.tip.height == 1


@asynchronous
async def test_what_does_not_win_is_declined_before_anything_is_stored() -> None:
    rig = Rig(regtest(anchor_target=bytes(8) + b"\xff" * 24))
    desk = desk_of(rig)
    unit = await desk.get_unit(MINER.address)
    await declined("no-win", desk, unit.id, 0, 0, bytes(64))
    await declined("bad-tile", desk, unit.id, 1, 0, bytes(64))
    await declined("bad-tile", desk, unit.id, 0, -1, bytes(64))
    await declined("bad-tile", desk, unit.id, 0, 0, bytes(63))
    await declined("bad-answer", desk, unit.id, 0, 0, bytes(64), Answer(bytes(32), DAVE.public, bytes(64)))
    assert rig.chain.tip.height == 0


@asynchronous
async def test_a_false_proof_counts_against_itself_and_the_true_one_still_counts() -> None:
    rig = Rig()
    desk = desk_of(rig)
    unit = await desk.get_unit(MINER.address)
    i, j, state = work_idle(unit)
    with pytest.raises((BadProof, DeskError)) as caught:
        await desk.submit(unit.id, i, j, bytes([state[0] ^ 1]) + state[1:])
    assert isinstance(caught.value, DeskError) or caught.value.reason == Reason.WRONG_TILE_STATE
    change = await desk.submit(unit.id, i, j, state)
    assert change.tip_changed


@asynchronous
async def test_its_memory_is_bounded_in_number_and_age() -> None:
    rig = Rig()
    desk = desk_of(rig)
    first, second = [await desk.get_unit(MINER.address) for _ in range(2)]
    for _ in range(MAX_OUTSTANDING - 1):
        last = await desk.get_unit(MINER.address)
    assert len(desk._outstanding) == MAX_OUTSTANDING
    await declined("unknown-unit", desk, first.id, *work_idle(first))
    rig.now_ms += MAX_AGE_SPACINGS * rig.params.spacing_ms + 1
    fresh = await desk.get_unit(MINER.address)
    await declined("unknown-unit", desk, second.id, *work_idle(second))
    await declined("unknown-unit", desk, last.id, *work_idle(last))
    assert (await desk.submit(fresh.id, *work_idle(fresh))).tip_changed


@asynchronous
async def test_units_of_one_miner_push_out_its_own_and_nobody_elses() -> None:
    rig = Rig()
    desk = desk_of(rig)
    honest = await desk.get_unit(MINER.address)
    greedy = [await desk.get_unit(DAVE.address) for _ in range(MAX_OUTSTANDING + 10)]
    assert len(desk._outstanding) == MAX_OUTSTANDING
    await declined("unknown-unit", desk, greedy[10].id, *work_idle(greedy[10]))
    assert (await desk.submit(honest.id, *work_idle(honest))).tip_changed
