"""Jobs: fees, escrow, who is paid what, and how a group ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from consensus.codec import MAX_AMOUNT
from consensus.errors import ConsensusError, MissingTensor, Reason
from consensus.events import Answered, Closed, Dropped, Ending, Missed
from consensus.params import TILE
from consensus.rules import jobs
from consensus.shape import Shape
from consensus.state import CLOSINGS, DEADLINES, GROUPS, PACKETS, QUEUE
from consensus.tensor import COLUMNS, Tensor
from consensus.transaction import DIRECT, SEALED, Operand, Pair, SubmitJob
from tests.builders import (
    ALICE,
    BOB,
    DAVE,
    ERIN,
    FRANK,
    FUNDS,
    GRACE,
    HEIDI,
    MINER,
    ChainBuilder,
    Job,
    exact,
    operand,
    regtest,
    worker_chain,
)

FEE = 1 << 22
"""Grains for a packet of 64×64×64, of the least weight, at a grain each."""
WINDOW = 10
HELD_BY = (DAVE, ERIN, FRANK, GRACE, HEIDI)


def four_packets(chain: ChainBuilder, **options: Any) -> Job:
    """256×64 times 64×64 as four packets of 64 rows."""
    return chain.job(ALICE, operand(256, 64), operand(64, 64, 1), rows=64, **options)


def opened(
    threshold: int | None = None, workers: Any = (DAVE, ERIN, FRANK, GRACE), **options: Any
) -> tuple[ChainBuilder, Job]:
    """A chain whose last block opened a job of four packets, all of which are held if there are four workers."""
    chain = worker_chain(workers)
    job = four_packets(chain, threshold=threshold, **options)
    chain.mine([job.transaction])
    return chain, job


def events(chain: ChainBuilder, kind: type) -> list[Any]:
    return [event for event in chain.tip.transition.events if isinstance(event, kind)]


def leftovers(chain: ChainBuilder) -> int:
    """Records about jobs in the state."""
    tables = (GROUPS, PACKETS, QUEUE, CLOSINGS, DEADLINES)
    return sum(1 for table in tables for _ in table.scan(chain.state))


# --- prices


@pytest.mark.parametrize(
    ("price", "shape", "fee"),
    [
        (1, (64, 64, 64), 100),  # the least fee
        (100 << 18, (64, 64, 64), 100),  # the least weight is 2²²
        ((100 << 18) + 1, (64, 64, 64), 101),  # rounded up
        (1 << 40, (64, 64, 64), 1 << 22),
        (1 << 40, (128, 64, 256), 128 * 64 * (256 + 128) + 64 * 256 * (128 + 64)),
        (1 << 40, (64, 4096, 64), 64 * 4096 * 192 + 64 * 64 * (64 + 4096)),
        (3 << 20, (4096, 64, 4096), -(-3 * (4096 * 64 * 4224 + 64 * 4096 * 4160) // 2**20)),
    ],
)
def test_a_fee_is_by_weight_rounded_up(price: int, shape: tuple[int, int, int], fee: int) -> None:
    m, n, k = shape
    assert jobs.packet_fee(regtest(), price, Shape(m, k, n)) == fee


def test_submitting_locks_the_sum_of_the_fees_whatever_the_threshold() -> None:
    chain = ChainBuilder(worked=False)
    job = four_packets(chain, threshold=3)
    node = chain.mine([job.transaction])
    group = chain.group(job)
    assert group is not None
    assert group.escrow == 4 * FEE
    assert chain.balance(ALICE) == FUNDS - group.escrow - node.transition.receipts[0].fee
    assert (group.packets, group.threshold, group.done, group.held) == (4, 3, 0, 0)


# --- what a job may be

A64, B64 = Operand(bytes(32), 64, 64), Operand(bytes(31) + b"1", 64, 64)
WHOLE = SubmitJob((A64,), (B64,), (Pair(0, 0),), 1, 1, 50)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (replace(WHOLE, packets=()), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(), packets=()), Reason.BAD_PAYLOAD),
        (replace(WHOLE, threshold=0), Reason.BAD_PAYLOAD),
        (replace(WHOLE, threshold=2), Reason.BAD_PAYLOAD),
        (replace(WHOLE, price=0), Reason.PRICE_TOO_LOW),
        (replace(WHOLE, mode=DIRECT), Reason.UNSUPPORTED_MODE),
        (replace(WHOLE, mode=SEALED), Reason.UNSUPPORTED_MODE),
        (replace(WHOLE, packets=(Pair(0, 1),)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, packets=(Pair(65535, 0),)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, packets=(Pair(0, 0), Pair(0, 0))), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(A64, B64)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, rights=(B64, A64)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(A64, A64), packets=(Pair(0, 0), Pair(1, 0))), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(Operand(bytes(32), 64, 128),)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(Operand(bytes(32), 0, 64),)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(Operand(bytes(32), 65, 64),)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(Operand(bytes(32), 4160, 64),)), Reason.BAD_PAYLOAD),
        (replace(WHOLE, lefts=(Operand(bytes(32), 2**32 - 64, 64),)), Reason.BAD_PAYLOAD),
        (
            replace(WHOLE, lefts=(Operand(bytes(32), 4096, 64),), rights=(Operand(bytes(32), 64, 2048),)),
            Reason.UNIT_TOO_LARGE,
        ),
        (
            replace(
                WHOLE,
                price=MAX_AMOUNT,
                lefts=tuple(Operand(bytes([n]) * 32, 4096, 64) for n in range(32)),
                rights=tuple(Operand(bytes([n]) * 32, 64, 1984) for n in range(32)),
                packets=tuple(Pair(i, j) for i in range(32) for j in range(32)),
            ),
            Reason.AMOUNT_OVERFLOW,
        ),
    ],
    ids=lambda part: part.value if isinstance(part, Reason) else "",
)
def test_a_job_that_nobody_may_submit(job: SubmitJob, reason: Reason) -> None:
    with pytest.raises(ConsensusError) as caught:
        jobs.check(regtest(), job)
    assert caught.value.reason == reason


def test_at_most_1024_packets() -> None:
    lefts = tuple(Operand(n.to_bytes(32, "big"), 64, 64) for n in range(1025))
    pairs = tuple(Pair(n, 0) for n in range(1025))
    jobs.check(regtest(), replace(WHOLE, lefts=lefts[:1024], packets=pairs[:1024]))
    with pytest.raises(ConsensusError, match="1025 packets"):
        jobs.check(regtest(), replace(WHOLE, lefts=lefts, packets=pairs))


def test_a_unit_of_exactly_32_mib_passes() -> None:
    """mk + kn + 4mn = 32 MiB at m = n = 2048, k = 4096."""
    a, b = Operand(bytes(32), 2048, 4096), Operand(bytes(32), 4096, 2048)
    jobs.check(regtest(), replace(WHOLE, lefts=(a,), rights=(b,)))


@pytest.mark.parametrize(("expiry", "good"), [(11, False), (12, True), (1001, True), (1002, False)])
def test_expiry_lies_beyond_a_window_and_within_max_life(expiry: int, good: bool) -> None:
    """Submitted at height 1: 1 + 10 < expiry ≤ 1 + 1000."""
    chain = ChainBuilder(worked=False)
    node = chain.mine([four_packets(chain, expiry=expiry).transaction])
    assert node.transition.receipts[0].reason == ("" if good else "bad-expiry")
    assert chain.supply()[0] == chain.supply()[1]


def test_an_escrow_that_nobody_has_opens_nothing() -> None:
    chain = ChainBuilder(worked=False)
    dear = chain.job(ALICE, operand(1024, 1024), operand(1024, 1024, 1), price=1 << 62)
    node = chain.mine([dear.transaction])
    assert node.transition.receipts[0].reason == "insufficient-balance"
    assert leftovers(chain) == 0


def test_operands_out_of_range_make_the_block_invalid() -> None:
    for entry, side in ((64, 0), (-64, 0), (-128, 1)):
        chain = ChainBuilder(worked=False)
        a, b = operand(64, 64), operand(64, 64, 1)
        (a, b)[side][5, 7] = entry
        chain.reject(Reason.OPERAND_OUT_OF_RANGE, [chain.job(ALICE, a, b).transaction])


def test_a_block_waits_for_the_operands_that_it_obliges() -> None:
    chain = ChainBuilder(worked=False)
    a = operand(64, 64)
    job = chain.job(ALICE, a, operand(64, 64, 1))
    candidate = chain.candidate([job.transaction])
    lost = chain.tensors.drop(Tensor(a).commitment)
    with pytest.raises(MissingTensor) as caught:
        chain.accept(candidate)
    assert caught.value.commitment == lost.commitment
    chain.tensors.add(lost)
    chain.accept(candidate)


# --- results


def test_the_answer_is_the_product() -> None:
    chain = worker_chain(HELD_BY)
    a, b = operand(128, 128), operand(128, 64, 1)
    job = chain.job(ALICE, a, b, rows=64, inner=64)
    chain.mine([job.transaction])
    assert len(job.packets) == len(chain.held(job)) == 4
    products = {packet_id: chain.product(packet_id).matrix for packet_id in job.packets}
    chain.mine(results=chain.answers(job))
    assert chain.group(job) is None
    assert np.array_equal(job.assemble(products), exact(a, b))


def test_a_results_fee_is_split_exactly() -> None:
    """4 194 304 grains: a tenth burns (419 430), a fiftieth goes to the includer (83 886), the rest to the worker."""
    chain, job = opened()
    packet_id = job.packets[0]
    worker = chain.holder(packet_id)
    assert worker is not None
    before, supply = chain.balance(worker), chain.supply()[0]
    chain.mine(results=[chain.result(packet_id)])
    (answer,) = events(chain, Answered)
    assert (answer.fee, answer.burned, answer.share, answer.won) == (4_194_304, 419_430, 83_886, False)
    assert chain.balance(worker) == before + 4_194_304 - 419_430 - 83_886
    assert chain.supply()[0] == supply + 50 * TILE - 419_430
    included = chain.height
    before = chain.balance(MINER)
    chain.mine(count=9)
    before = chain.balance(MINER)
    chain.mine()
    assert chain.height == included + 10
    assert chain.balance(MINER) == before + 50 * TILE + 83_886


def test_the_least_fees_burn() -> None:
    chain, job = opened(threshold=1, price=1)
    chain.mine(results=[chain.result(job.packets[0]), chain.result(job.packets[1])])
    for answer in events(chain, Answered):
        assert (answer.fee, answer.burned, answer.share) == (100, 10, 2)


def test_every_answer_is_paid_in_full_in_any_order() -> None:
    """Nobody gains by ordering Results: those beyond the threshold are worth as much as those before it."""
    chain, job = opened(threshold=2)
    chain.mine(results=[chain.result(job.packets[i]) for i in (3, 1, 0, 2)])
    fees = [(answer.packet_id, answer.fee) for answer in events(chain, Answered)]
    assert fees == [
        (job.packets[3], FEE),
        (job.packets[1], FEE),
        (job.packets[0], FEE),
        (job.packets[2], FEE),
    ]
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, 0, 4, Ending.COMPLETED)]
    assert leftovers(chain) == 0


def test_what_is_held_at_completion_keeps_its_window_and_is_not_fined() -> None:
    chain, job = opened(threshold=2)
    chain.mine(results=[chain.result(job.packets[i]) for i in (0, 1)])
    completed = chain.height
    assert chain.group(job) is not None
    chain.mine(count=WINDOW - 2)
    chain.mine(results=[chain.result(job.packets[2])])
    assert chain.height == 9 + WINDOW
    assert events(chain, Answered)[0].fee == FEE
    worker = next(w for w in (DAVE, ERIN, FRANK, GRACE) if chain.worker(w).seen < completed)
    assert events(chain, Dropped) == [Dropped(job.id, job.packets[3], worker.address)]
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, FEE, 3, Ending.COMPLETED)]
    record = chain.worker(worker)
    assert (record.bond, record.holds, record.missed) == (10 * TILE, (), 0), "dropped is not missed"
    assert leftovers(chain) == 0


def test_a_group_closes_as_soon_as_nothing_is_held() -> None:
    chain, job = opened(threshold=2)
    chain.mine(results=[chain.result(job.packets[i]) for i in (0, 1)])
    chain.mine(results=[chain.result(job.packets[i]) for i in (2, 3)])
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, 0, 4, Ending.COMPLETED)]


def test_completion_withdraws_what_is_queued_and_returns_its_escrow() -> None:
    chain, job = opened(threshold=2, workers=(DAVE, ERIN))
    assert len(chain.held(job)) == 2
    balance = chain.balance(ALICE)
    chain.mine(results=chain.answers(job))
    assert chain.group(job) is None
    assert chain.balance(ALICE) == balance + 2 * FEE
    assert leftovers(chain) == 0


def test_a_result_after_the_closing_is_refused() -> None:
    chain, job = opened(threshold=2)
    late = chain.result(job.packets[3])
    chain.mine(results=[chain.result(job.packets[i]) for i in (0, 1)])
    chain.mine(count=WINDOW - 1)
    chain.reject(Reason.UNKNOWN_PACKET, results=[late])


def test_a_window_that_ends_as_the_group_completes_is_no_miss() -> None:
    chain, job = opened(threshold=2)
    chain.mine(count=WINDOW - 1)
    chain.mine(results=[chain.result(job.packets[i]) for i in (0, 1)])
    assert chain.height == 9 + WINDOW, "the last block of everybody's window"
    assert events(chain, Missed) == []
    assert len(events(chain, Dropped)) == 2
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, 2 * FEE, 2, Ending.COMPLETED)]


def test_the_window_is_as_long_as_it_says() -> None:
    chain, job = opened()
    last = chain.result(job.packets[0])
    chain.mine(count=WINDOW - 1)
    fork = chain.fork()
    fork.mine(results=[last])
    assert fork.height == 9 + WINDOW
    chain.mine()
    assert len(events(chain, Missed)) == 4


def test_a_result_after_the_window_is_refused() -> None:
    chain, job = opened(workers=(DAVE,))
    late = chain.result(chain.held(job)[0])
    chain.mine(count=WINDOW)
    chain.reject(Reason.NOT_ASSIGNEE, results=[late])


def test_only_the_assignees_result_counts() -> None:
    """A product seen in gossip is worth nothing to anybody else, registered or not."""
    chain, job = opened()
    packet_id = job.packets[0]
    product = chain.product(packet_id).commitment
    for thief in (BOB, *(w for w in (DAVE, ERIN, FRANK, GRACE) if w is not chain.holder(packet_id))):
        chain.reject(Reason.NOT_ASSIGNEE, results=[chain.result(packet_id, thief, product)])


def test_nobody_signs_a_result_for_another() -> None:
    chain, job = opened()
    good = chain.result(job.packets[0])
    forged = BOB.claim(chain.genesis_hash, job.packets[0], good.body.product)
    chain.reject(Reason.BAD_SIGNATURE, results=[replace(good, signature=forged.signature)])


def test_a_result_of_another_network_is_refused() -> None:
    chain, job = opened()
    worker = chain.holder(job.packets[0])
    assert worker is not None
    foreign = worker.claim(bytes(32), job.packets[0], chain.product(job.packets[0]).commitment)
    chain.reject(Reason.BAD_SIGNATURE, results=[foreign])


def test_a_wrong_product_makes_the_block_invalid_for_good() -> None:
    chain, job = opened()
    false = chain.product(job.packets[0]).matrix.copy()
    false[63, 63] += 1
    commitment = chain.tensors.add(Tensor(false)).commitment
    error = chain.reject(Reason.WRONG_PRODUCT, results=[chain.result(job.packets[0], product=commitment)])
    assert type(error) is ConsensusError


@pytest.mark.parametrize("shape", ["columns", "int8", "other shape"])
def test_a_product_of_another_form_is_wrong(shape: str) -> None:
    chain = worker_chain()
    job = chain.job(ALICE, np.zeros((64, 64), np.int8), operand(64, 64))
    chain.mine([job.transaction])
    zeros = {
        "columns": Tensor(np.zeros((64, 64), np.int32), COLUMNS),
        "int8": Tensor(np.zeros((64, 64), np.int8)),
        "other shape": Tensor(np.zeros((128, 64), np.int32)),
    }
    commitment = chain.tensors.add(zeros[shape]).commitment
    chain.reject(Reason.WRONG_PRODUCT, results=[chain.result(job.packets[0], product=commitment)])


def test_a_missing_product_is_transient() -> None:
    chain, job = opened()
    candidate = chain.candidate(results=[chain.result(job.packets[0])])
    lost = chain.tensors.drop(candidate.block.body.results[0].body.product)
    with pytest.raises(MissingTensor):
        chain.accept(candidate)
    chain.tensors.add(lost)
    chain.accept(candidate)


def test_the_same_packet_twice_in_a_block() -> None:
    chain, job = opened()
    result = chain.result(job.packets[0])
    chain.reject(Reason.DUPLICATE_RESULT, results=[result, result])


def test_the_same_packet_again_in_a_later_block() -> None:
    chain, job = opened()
    result = chain.result(job.packets[0])
    chain.mine(results=[result])
    chain.reject(Reason.DUPLICATE_RESULT, results=[result])


def test_an_explicit_result_beside_the_blocks_own_unit() -> None:
    chain, job = opened()
    chain.reject(Reason.DUPLICATE_RESULT, results=[chain.result(job.packets[0])], packet=job.packets[0])
    chain.mine(results=[chain.result(job.packets[1])], packet=job.packets[0])
    first, second = events(chain, Answered)
    assert (first.packet_id, first.won) == (job.packets[0], True), "the block's own unit comes first"
    assert (second.packet_id, second.won) == (job.packets[1], False)


def test_a_packet_is_not_answered_in_the_block_that_deals_it() -> None:
    chain = worker_chain((DAVE,))
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    probe = chain.fork()
    probe.mine([job.transaction])
    early = probe.result(job.packets[0])
    chain.reject(Reason.UNKNOWN_PACKET, [job.transaction], results=[early])


# --- how a group ends without completing


def test_expiry_returns_the_escrow() -> None:
    chain = ChainBuilder(worked=False)
    job = four_packets(chain, expiry=30)
    node = chain.mine([job.transaction])
    chain.mine(count=28)
    assert chain.group(job) is not None
    chain.mine()
    assert chain.height == 30
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, 4 * FEE, 0, Ending.EXPIRED)]
    assert chain.balance(ALICE) == FUNDS - node.transition.receipts[0].fee
    assert leftovers(chain) == 0


def test_expiry_after_some_results_returns_the_rest() -> None:
    chain, job = opened(workers=(DAVE,), expiry=40)
    chain.mine(results=chain.answers(job))
    before = chain.balance(ALICE)
    while chain.group(job):
        chain.mine()
    assert chain.height == 40
    assert chain.balance(ALICE) == before + 3 * FEE


def test_cancelling_withdraws_what_nobody_holds_at_once() -> None:
    chain = ChainBuilder(worked=False)
    job = four_packets(chain)
    chain.mine([job.transaction])
    before = chain.balance(ALICE)
    node = chain.mine([chain.cancel(ALICE, job)])
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, 4 * FEE, 0, Ending.CANCELLED)]
    assert chain.balance(ALICE) == before + 4 * FEE - node.transition.receipts[0].fee
    assert leftovers(chain) == 0


def test_cancelling_leaves_held_packets_their_window_and_their_pay() -> None:
    """An owner who saw the product in gossip cannot cancel and keep it for nothing."""
    chain, job = opened(workers=(DAVE, ERIN))
    held = chain.held(job)
    chain.mine([chain.cancel(ALICE, job)])
    assert chain.held(job) == held
    chain.mine(results=[chain.result(held[0])])
    assert events(chain, Answered)[0].fee == FEE
    assert chain.group(job) is not None
    chain.mine(results=[chain.result(held[1])])
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, 2 * FEE, 2, Ending.CANCELLED)]
    assert leftovers(chain) == 0


def test_a_cancelled_groups_missed_packets_are_fined_but_not_queued_again() -> None:
    chain, job = opened(workers=(DAVE, ERIN))
    chain.mine([chain.cancel(ALICE, job)], count=WINDOW)
    assert len(events(chain, Missed)) == 2
    assert events(chain, Closed) == [Closed(job.id, ALICE.address, 4 * FEE, 0, Ending.CANCELLED)]
    assert chain.worker(DAVE).bond == 0
    assert leftovers(chain) == 0


def test_a_cancelled_group_still_completes_at_its_threshold() -> None:
    chain, job = opened(threshold=1, workers=(DAVE, ERIN))
    held = chain.held(job)
    chain.mine([chain.cancel(ALICE, job)])
    chain.mine(results=[chain.result(held[0])])
    chain.mine(results=[chain.result(held[1])])
    assert events(chain, Answered)[0].fee == FEE
    assert events(chain, Closed)[0].why == Ending.COMPLETED


def test_who_may_cancel_what() -> None:
    chain, job = opened(workers=(DAVE,))

    def outcome(tx: Any) -> str:
        return chain.mine([tx]).transition.receipts[0].reason

    assert outcome(chain.cancel(BOB, job)) == "not-owner"
    assert outcome(chain.cancel(ALICE, replace_id(job))) == "unknown-job"
    assert outcome(chain.cancel(ALICE, job)) == ""
    assert outcome(chain.cancel(ALICE, job)) == "already-cancelled"


def replace_id(job: Job) -> Job:
    return Job(job.transaction, bytes(32), job.payload, job.packets, job.places, job.shape)


def test_cancelling_a_complete_job_fails() -> None:
    chain, job = opened(threshold=1)
    chain.mine(results=[chain.result(job.packets[0])])
    assert chain.mine([chain.cancel(ALICE, job)]).transition.receipts[0].reason == "already-cancelled"
