"""Workers: registration, slots, liveness, bonds and scores."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from consensus.events import Dealt, Missed
from consensus.params import TILE
from consensus.rules import workers
from consensus.rules.execution import Execution
from consensus.state import WORKERS, Worker
from tests.builders import ALICE, DAVE, ERIN, FUNDS, ChainBuilder, Job, Key, operand, regtest, worker_chain

BOND = 100 * TILE
WINDOW = 10


def outcome(chain: ChainBuilder, tx: Any) -> str:
    """Mine the transaction; how it ended."""
    return chain.mine([tx]).transition.receipts[0].reason


def small_job(chain: ChainBuilder, count: int = 1, seed: int = 0, **options: Any) -> Job:
    """A job of `count` packets of 64×64×64."""
    return chain.job(ALICE, operand(64 * count, 64, seed), operand(64, 64, 99), rows=64, **options)


def dealt_to(chain: ChainBuilder) -> list[bytes]:
    return [event.worker for event in chain.tip.transition.events if isinstance(event, Dealt)]


@pytest.fixture
def chain() -> ChainBuilder:
    return ChainBuilder(worked=False)


def test_registration_locks_the_bond(chain: ChainBuilder) -> None:
    node = chain.mine([chain.register(DAVE, packets=3, bond=250 * TILE, min_price=5, max_unit_bytes=1 << 20)])
    worker = chain.worker(DAVE)
    assert worker.public_key == DAVE.public
    assert (worker.max_packets, worker.bond, worker.min_price, worker.max_unit_bytes) == (3, 250 * TILE, 5, 1 << 20)
    assert (worker.since, worker.seen, worker.score) == (1, 1, 0)
    assert chain.balance(DAVE) == FUNDS - 250 * TILE - node.transition.receipts[0].fee


def test_a_bond_below_one_slot_is_refused(chain: ChainBuilder) -> None:
    assert outcome(chain, chain.register(DAVE, bond=BOND - 1)) == "insufficient-bond"
    assert WORKERS.get(chain.state, DAVE.address) is None
    assert outcome(chain, chain.register(DAVE, bond=BOND)) == ""


def test_a_bond_that_nobody_has_is_refused(chain: ChainBuilder) -> None:
    assert outcome(chain, chain.register(DAVE, bond=FUNDS)) == "insufficient-balance"
    assert WORKERS.get(chain.state, DAVE.address) is None


def test_registering_again_adds_bond_replaces_the_word_and_refreshes(chain: ChainBuilder) -> None:
    chain.mine([chain.register(DAVE)])
    chain.mine([chain.register(DAVE, packets=7, bond=5, min_price=9, max_unit_bytes=12)])
    worker = chain.worker(DAVE)
    assert (worker.max_packets, worker.bond, worker.min_price, worker.max_unit_bytes) == (7, BOND + 5, 9, 12)
    assert (worker.since, worker.seen) == (1, 2)


@pytest.mark.parametrize(
    ("declared", "bond", "score", "slots"),
    [
        (5, 10 * BOND, 1000, 5),
        (50, 3 * BOND + BOND - 1, 1000, 3),
        (50, 10 * BOND, 0, 1),
        (50, 10 * BOND, 7, 1),
        (50, 10 * BOND, 8, 2),
        (50, BOND - 1, 100, 0),
        (0, 10 * BOND, 100, 0),
    ],
)
def test_slots_are_the_least_of_word_bond_and_record(declared: int, bond: int, score: int, slots: int) -> None:
    worker = Worker(bytes(32), bytes(32), 0, 0, declared, bond, since=0, seen=0, score=score)
    assert workers.slot_count(regtest(), worker) == slots


def test_activity() -> None:
    params = regtest()
    worker = Worker(bytes(32), bytes(32), 0, 0, 1, BOND, since=10, seen=10)
    assert not workers.is_active(params, worker, 17)
    assert workers.is_active(params, worker, 18)
    assert workers.is_active(params, worker, 10 + params.liveness)
    assert not workers.is_active(params, worker, 11 + params.liveness)
    assert not workers.is_active(params, replace(worker, retired_at=12), 20)
    assert workers.is_active(params, replace(worker, since=0), 1), "a registration in genesis is in force at once"


def test_nothing_is_dealt_for_eight_blocks(chain: ChainBuilder) -> None:
    chain.mine([chain.register(DAVE), small_job(chain).transaction])
    for _ in range(7):
        chain.mine()
        assert dealt_to(chain) == []
    chain.mine()
    assert chain.height == 9
    assert dealt_to(chain) == [DAVE.address]


def test_a_worker_unseen_for_too_long_is_dealt_nothing_until_it_is_seen() -> None:
    chain = worker_chain([DAVE], liveness=12)
    chain.mine(count=5)
    assert chain.height == 13
    chain.mine([small_job(chain).transaction])
    assert dealt_to(chain) == [], "unseen since height 1"
    chain.mine(miner=DAVE)
    assert chain.worker(DAVE).seen == 15
    assert dealt_to(chain) == [DAVE.address]


def test_results_and_refreshes_count_as_seen() -> None:
    chain = worker_chain([DAVE])
    job = small_job(chain)
    chain.mine([job.transaction])
    chain.mine(results=chain.answers(job))
    assert chain.worker(DAVE).seen == chain.height
    chain.mine([chain.register(DAVE, bond=0)])
    assert chain.worker(DAVE).seen == chain.height


def test_retirement_stops_dealing_and_returns_the_bond_after_the_window() -> None:
    chain = worker_chain([DAVE])
    paid = chain.balance(DAVE)
    chain.mine([chain.retire(DAVE), small_job(chain).transaction])
    retired_at = chain.height
    fee = chain.tip.transition.receipts[0].fee
    chain.mine(count=WINDOW)
    assert chain.worker(DAVE).retired_at == retired_at
    assert chain.balance(DAVE) == paid - fee
    chain.mine()
    assert chain.height == retired_at + WINDOW + 1
    assert WORKERS.get(chain.state, DAVE.address) is None
    assert chain.balance(DAVE) == paid - fee + BOND


def test_retiring_twice_or_unregistered_fails(chain: ChainBuilder) -> None:
    assert outcome(chain, chain.retire(DAVE)) == "unknown-worker"
    chain.mine([chain.register(DAVE)])
    assert outcome(chain, chain.retire(DAVE)) == ""
    assert outcome(chain, chain.retire(DAVE)) == "already-retired"


def test_a_retired_workers_last_packet_can_be_answered_or_missed() -> None:
    for answers in (True, False):
        chain = worker_chain([DAVE])
        job = small_job(chain)
        chain.mine([job.transaction])
        chain.mine([chain.retire(DAVE)], count=WINDOW - 1)
        chain.mine(results=chain.answers(job) if answers else [])
        assert chain.height == 9 + WINDOW
        assert chain.worker(DAVE).bond == (BOND if answers else BOND - BOND // 4)
        before = chain.balance(DAVE)
        chain.mine(count=2)
        assert chain.balance(DAVE) == before + (BOND if answers else BOND - BOND // 4)


def test_coming_back_before_the_bond_returned_keeps_it_locked() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)])
    chain.mine([chain.register(DAVE, bond=0)])
    again = chain.height
    worker = chain.worker(DAVE)
    assert (worker.retired_at, worker.since, worker.bond) == (0, again, BOND)
    chain.mine(count=WINDOW)
    assert chain.worker(DAVE).bond == BOND, "the scheduled return was called off"
    chain.mine([small_job(chain).transaction])
    assert dealt_to(chain) == [DAVE.address]


def test_coming_back_at_the_very_block_of_the_return_keeps_the_bond_locked() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)], count=WINDOW + 1)
    chain.mine([chain.register(DAVE, bond=0)])
    assert chain.worker(DAVE).bond == BOND


def test_coming_back_after_the_return_starts_anew() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)], count=WINDOW + 2)
    assert outcome(chain, chain.register(DAVE, bond=BOND)) == ""
    assert chain.worker(DAVE).since == chain.height


def test_a_returning_worker_waits_eight_blocks_again() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)])
    chain.mine([chain.register(DAVE, bond=0), small_job(chain).transaction])
    chain.mine(count=7)
    assert dealt_to(chain) == []
    chain.mine()
    assert dealt_to(chain) == [DAVE.address]


def test_the_score_rises_by_what_was_burned() -> None:
    """A packet of the least weight at a grain each costs 2²² grains; a tenth burns; 10 burned are a point."""
    chain = worker_chain([DAVE], score_cap=10**9)
    job = small_job(chain)
    chain.mine([job.transaction])
    chain.mine(results=chain.answers(job))
    burned = (1 << 22) // 10
    assert chain.worker(DAVE).score == burned // 10


def test_the_score_is_capped() -> None:
    chain = worker_chain([DAVE])
    job = small_job(chain)
    chain.mine([job.transaction])
    chain.mine(results=chain.answers(job))
    assert chain.worker(DAVE).score == chain.params.score_cap == 8 * 63


def mine_to(chain: ChainBuilder, height: int) -> None:
    chain.mine(count=height - chain.height)


@pytest.mark.parametrize(
    ("answered", "missed", "loss"),
    [(3, 1, 1), (1, 0, 0), (0, 1, 3), (1, 1, 2), (1, 2, 2)],
    ids=str,
)
def test_decay_rounds_up(answered: int, missed: int, loss: int) -> None:
    """Of a score of 8, one third of the missed share is lost, rounded up: ceil(8 · missed / held / 3)."""
    chain = ChainBuilder(worked=False)
    block = Execution(chain.params, chain.state, WINDOW, bytes(20))
    held = answered + missed
    worker = Worker(bytes(32), bytes(32), 0, 0, 1, BOND, 0, 0, score=8, ended=held, missed=missed)
    WORKERS.put(block.state, worker, DAVE.address)
    workers.decay_scores(block)
    after = WORKERS.get(block.state, DAVE.address)
    assert after == replace(worker, score=8 - loss, ended=0, missed=0)


def test_scores_decay_at_heights_divisible_by_the_window_only() -> None:
    chain = worker_chain([DAVE])
    job = small_job(chain, 2, threshold=2)
    chain.mine([job.transaction])
    chain.mine(results=[chain.result(chain.held(job)[0])])
    assert chain.height == 10
    score = chain.worker(DAVE).score
    assert chain.worker(DAVE).ended == 0, "the period of heights 1 … 10 is over"
    second = chain.held(job)
    assert len(second) == 1
    mine_to(chain, 20)
    worker = chain.worker(DAVE)
    assert (worker.ended, worker.missed) == (0, 0)
    assert worker.score == score - -(-score // 3), "one held, one missed"


def test_a_miss_burns_a_quarter_of_a_slots_bond_and_queues_the_packet_again() -> None:
    chain = worker_chain([DAVE, ERIN])
    job = small_job(chain)
    chain.mine([job.transaction])
    first = chain.holder(job.packets[0])
    assert first is not None
    mine_to(chain, 9 + WINDOW - 1)
    burned = chain.supply()[0]
    chain.mine()
    assert Missed(job.id, job.packets[0], first.address, BOND // 4) in chain.tip.transition.events
    assert chain.worker(first).bond == BOND - BOND // 4
    assert chain.supply()[0] == burned + 50 * TILE - BOND // 4
    other = ERIN if first is DAVE else DAVE
    assert chain.holder(job.packets[0]) is other, "a bond below one slot's holds nothing"


def test_a_bond_of_nothing_is_fined_nothing() -> None:
    chain = ChainBuilder(worked=False)
    block = Execution(chain.params, chain.state, 5, bytes(20))
    WORKERS.put(block.state, Worker(bytes(32), bytes(32), 0, 0, 1, 7, 0, 0), DAVE.address)
    assert workers.missed(block, DAVE.address, bytes(32)) == 7
    assert workers.missed(block, DAVE.address, bytes(32)) == 0


def test_a_stranger_may_mine() -> None:
    chain = ChainBuilder(worked=False)
    chain.mine(miner=Key("stranger"))
    assert WORKERS.get(chain.state, Key("stranger").address) is None
