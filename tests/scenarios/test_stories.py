"""Stories: several actors over many blocks, with what is accepted, what is refused, and where the tip stands."""

from __future__ import annotations

import numpy as np

from consensus.errors import Reason
from consensus.events import Answered, Closed, Missed
from consensus.params import TILE
from consensus.tensor import Tensor
from consensus.transaction import RegisterWorker
from tests.builders import (
    ALICE,
    BOB,
    DAVE,
    ERIN,
    FRANK,
    WORKERS,
    ChainBuilder,
    Key,
    exact,
    operand,
    worker_chain,
)


def test_a_newcomer_earns_the_first_bond_by_idling_and_then_a_fee() -> None:
    """Nobody lends, nothing is premined: a block's subsidy, once matured, is the bond of five places."""
    chain = ChainBuilder(worked=False)
    newcomer = Key("newcomer")
    chain.mine(miner=newcomer, count=3)
    too_early = chain.register(newcomer)
    chain.reject(Reason.INSUFFICIENT_BALANCE, [too_early])
    chain.mine(count=10)
    assert chain.balance(newcomer) == 150 * TILE

    chain.mine([chain.register(newcomer)])
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction], count=7)
    assert chain.packet(job.packets[0]).worker == bytes(20), "not for eight ticks"
    chain.mine()
    assert chain.packet(job.packets[0]).worker == newcomer.address

    before = chain.balance(newcomer)
    chain.mine(results=[chain.result(job.packets[0], newcomer)])
    assert chain.group(job) is None
    assert chain.balance(newcomer) > before


def test_a_job_in_slices_comes_back_exact_though_one_worker_sleeps() -> None:
    """Eight packets over five workers of one place; ERIN never answers, is fined, and her packets go to others."""
    chain = worker_chain(WORKERS)
    a, b = operand(128, 256), operand(256, 128, 1)
    job = chain.job(ALICE, a, b, rows=64, cols=64, inner=128)
    assert len(job.packets) == 8
    chain.mine([job.transaction])
    products = {packet_id: chain.product(packet_id).matrix for packet_id in job.packets}
    misses = 0
    while chain.group(job):
        chain.mine(results=[r for r in chain.answers(job) if r.body.worker != ERIN.address])
        misses += sum(isinstance(event, Missed) for event in chain.tip.transition.events)
        assert chain.supply()[0] == chain.supply()[1]
        assert chain.height < 40
    assert np.array_equal(job.assemble(products), exact(a, b))
    assert misses == 1, "after one miss her bond bears no place"
    assert chain.worker(ERIN).bond == 0


def test_a_fork_deals_the_same_packet_to_somebody_else() -> None:
    """The draw hangs on tickets, so two branches have two assignees; each branch takes its own one's Result only."""
    chain = worker_chain(WORKERS)
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    fork_point = chain.tip
    holders = {}
    for miner in (ALICE, BOB, DAVE, ERIN, FRANK):
        chain.tip = fork_point
        chain.mine(miner=miner, count=5)
        chain.mine([job.transaction])
        holders[chain.holder(job.packets[0])] = chain.tip
    (first, here), (second, there) = list(holders.items())[:2]
    assert first is not second

    chain.tip = here
    mine, yours = chain.result(job.packets[0], first), chain.result(job.packets[0], second)
    chain.reject(Reason.NOT_ASSIGNEE, results=[yours])
    chain.mine(results=[mine])
    assert chain.group(job) is None

    chain.tip = there
    chain.reject(Reason.NOT_ASSIGNEE, results=[mine])
    chain.mine(results=[yours])
    assert chain.group(job) is None
    assert chain.tip.height == here.height + 1


def test_a_reorganisation_returns_a_transfer_that_can_be_mined_again() -> None:
    chain = ChainBuilder()
    start = chain.mine()
    tx = chain.transfer(ALICE, BOB, 5 * TILE)
    lost = chain.mine([tx])
    chain.tip = start
    chain.mine(count=2)
    assert chain.heaviest() is chain.tip is not lost
    chain.mine([tx])
    chain.reject(Reason.WRONG_NONCE, [tx])


def test_what_stands_on_an_invalid_block_is_nowhere() -> None:
    """The bad block is not stored, so its child names a parent that nobody knows."""
    chain = ChainBuilder()
    good = chain.mine()
    liar = chain.fork()
    bad = liar.candidate(core={"state_root": bytes(32)})
    chain.reject(Reason.WRONG_STATE_ROOT, candidate=bad)
    child = chain.candidate(core={"parent": bad.block.id, "height": 3})
    chain.reject(Reason.UNKNOWN_PARENT, candidate=child)
    assert chain.heaviest() is good


def test_blocks_won_by_packets_carry_a_layer_of_real_work() -> None:
    """Three workers, a job of three packets that all win; idle blocks in between. All of it is mined and checked."""
    chain = worker_chain([DAVE, ERIN, FRANK], worked=True)
    a, b = operand(192, 4096), operand(4096, 64, 1)
    job = chain.job(ALICE, a, b, rows=64)
    chain.mine([job.transaction])
    assert len(chain.held(job)) == 3
    products = {}
    for packet_id in job.packets:
        node = chain.mine(packet=packet_id)
        (answer,) = (event for event in node.transition.events if isinstance(event, Answered))
        assert answer.won
        product = chain.tensors.tensor(answer.product)
        assert product is not None
        products[packet_id] = product.matrix
        chain.mine()
    assert np.array_equal(job.assemble(products), exact(a, b))
    assert chain.group(job) is None


def test_a_cheat_is_refused_and_the_honest_answer_still_counts() -> None:
    chain = worker_chain([DAVE])
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction])
    false = chain.product(job.packets[0]).matrix.copy()
    false[0, 0] ^= 1
    cheat = chain.tensors.add(Tensor(false)).commitment
    chain.reject(Reason.WRONG_PRODUCT, results=[chain.result(job.packets[0], product=cheat)])
    chain.mine(results=chain.answers(job))
    assert chain.group(job) is None


def test_an_owner_cannot_cancel_away_work_that_is_under_way() -> None:
    """ALICE sees the products in gossip and cancels before they are mined: they are paid all the same."""
    chain = worker_chain([DAVE, ERIN])
    job = chain.job(ALICE, operand(256, 64), operand(64, 64, 1), rows=64)
    chain.mine([job.transaction])
    gossip = chain.answers(job)
    assert len(gossip) == 2
    chain.mine([chain.cancel(ALICE, job)], gossip[:1])
    node = chain.mine(results=gossip[1:])
    (closed,) = (event for event in node.transition.events if isinstance(event, Closed))
    fee = 1 << 22
    assert (closed.done, closed.refund) == (2, 2 * fee)


def test_registering_takes_any_encryption_key_but_only_ones_own_account() -> None:
    chain = ChainBuilder(worked=False)
    tx = chain.tx(DAVE, RegisterWorker(bytes(32), 0, 1 << 25, 1, 100 * TILE))
    chain.mine([tx])
    assert chain.worker(DAVE).public_key == DAVE.public
