"""Workers: registration, places, liveness, bonds and records."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from consensus.errors import Reason
from consensus.events import Answered, Dealt, Missed, Opened
from consensus.params import TILE
from consensus.rules import workers
from consensus.shape import MAX_UNIT_BYTES
from consensus.state import REVIEWS, WORKERS, Declaration, Worker, ledger
from tests.builders import (
    ALICE,
    DAVE,
    ERIN,
    FRANK,
    FUNDS,
    GRACE,
    ChainBuilder,
    Job,
    Key,
    operand,
    regtest,
    worker_chain,
)

RESERVE = 10 * TILE
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


def check_array(chain: ChainBuilder) -> None:
    """The array has no gaps and no strangers, and every worker knows its places in it."""
    places = chain.places()
    assert len(places) == ledger(chain.state).places
    for address, worker in WORKERS.scan(chain.state):
        assert [places[position] for position in worker.places] == [(address, n) for n in range(len(worker.places))]
    assert len(places) == sum(len(worker.places) for _, worker in WORKERS.scan(chain.state))


def test_registration_locks_the_bond(chain: ChainBuilder) -> None:
    node = chain.mine([chain.register(DAVE, packets=3, bond=35 * TILE, min_price=5, max_unit_bytes=1 << 20)])
    worker = chain.worker(DAVE)
    assert (worker.public_key, worker.bond, worker.seen) == (DAVE.public, 35 * TILE, 1)
    assert worker.declared == Declaration(), "nothing counts yet"
    assert (worker.announced, worker.announced_for) == (Declaration(5, 1 << 20, 3), 9)
    assert chain.balance(DAVE) == FUNDS - 35 * TILE - node.transition.receipts[0].fee


def test_a_bond_below_what_its_packets_need_is_refused(chain: ChainBuilder) -> None:
    assert outcome(chain, chain.register(DAVE, packets=3, bond=3 * RESERVE - 1)) == "insufficient-bond"
    assert WORKERS.get(chain.state, DAVE.address) is None
    assert outcome(chain, chain.register(DAVE, packets=3, bond=3 * RESERVE)) == ""


@pytest.mark.parametrize("packets", [0, 65])
def test_packets_at_once_are_1_to_64(chain: ChainBuilder, packets: int) -> None:
    chain.reject(Reason.BAD_PAYLOAD, [chain.register(DAVE, packets=packets, bond=1000 * TILE)])
    chain.mine([chain.register(DAVE, packets=64)])


def test_every_place_declared_costs_gas(chain: ChainBuilder) -> None:
    few, many = (chain.register(DAVE, packets=packets).body.gas_limit for packets in (1, 64))
    assert many - few == 63 * chain.params.gas.place, "and no byte more"


def test_a_bond_that_nobody_has_is_refused(chain: ChainBuilder) -> None:
    assert outcome(chain, chain.register(DAVE, bond=FUNDS)) == "insufficient-balance"
    assert WORKERS.get(chain.state, DAVE.address) is None


def test_registering_again_adds_bond_and_counts_as_seen(chain: ChainBuilder) -> None:
    chain.mine([chain.register(DAVE)])
    chain.mine([chain.register(DAVE, packets=2, bond=RESERVE + 5, min_price=9, max_unit_bytes=12)])
    worker = chain.worker(DAVE)
    assert (worker.bond, worker.seen) == (2 * RESERVE + 5, 2)
    assert (worker.announced, worker.announced_for) == (Declaration(9, 12, 2), 10), "the first one never counts"


def test_a_declaration_counts_after_the_delay_whichever_way_it_changes() -> None:
    """Dearer, cheaper, smaller, more places: for eight ticks the old word is what packets are dealt by."""
    chain = worker_chain([DAVE])
    chain.mine()
    before = chain.worker(DAVE).declared
    assert before == Declaration(0, MAX_UNIT_BYTES, 1)
    chain.mine([chain.register(DAVE, packets=4, bond=3 * RESERVE, min_price=1 << 50)])
    for _ in range(7):
        chain.mine()
        assert chain.worker(DAVE).declared == before
        assert len(chain.places()) == 1
    group = small_job(chain)
    chain.mine([group.transaction])
    assert chain.worker(DAVE).declared == Declaration(1 << 50, MAX_UNIT_BYTES, 4)
    assert len(chain.places()) == 4
    assert dealt_to(chain) == [], "too dear from this block on"


def test_a_word_given_again_and_again_puts_itself_off() -> None:
    chain = worker_chain([DAVE])
    for price in range(20):
        chain.mine([chain.register(DAVE, bond=0, min_price=price + 1)])
    assert chain.worker(DAVE).declared.min_price == 0
    chain.mine(count=8)
    assert chain.worker(DAVE).declared.min_price == 20


@pytest.mark.parametrize(
    ("tick", "active"),
    [(10, True), (310, True), (311, False)],
)
def test_activity(tick: int, active: bool) -> None:
    params = regtest()
    worker = Worker(bytes(32), bytes(32), RESERVE, seen=10, declared=Declaration(0, 0, 1))
    assert workers.is_active(params, worker, tick) == active
    assert not workers.is_active(params, replace(worker, retired_at=12), tick)
    assert not workers.is_active(params, replace(worker, declared=Declaration()), tick)


def test_nothing_is_dealt_for_eight_blocks(chain: ChainBuilder) -> None:
    chain.mine([chain.register(DAVE), small_job(chain).transaction])
    for _ in range(7):
        chain.mine()
        assert dealt_to(chain) == []
    chain.mine()
    assert chain.height == 9
    assert dealt_to(chain) == [DAVE.address]


def test_a_worker_unseen_for_too_long_loses_its_places_until_eight_ticks_after_it_is_seen() -> None:
    chain = worker_chain([DAVE], liveness=12)
    chain.mine(count=5)
    assert chain.height == 13
    assert len(chain.places()) == 1
    group = small_job(chain)
    chain.mine([group.transaction])
    assert chain.places() == [], "unseen since height 1"
    assert dealt_to(chain) == []
    chain.mine(miner=DAVE)
    assert chain.worker(DAVE).seen == 15
    chain.mine(count=7)
    assert dealt_to(chain) == [], "no draw that was known when it came back deals to it"
    chain.mine()
    assert chain.height == 23
    assert dealt_to(chain) == [DAVE.address]


def test_one_look_at_a_worker_is_scheduled_however_often_it_speaks() -> None:
    chain = worker_chain([DAVE])
    for _ in range(5):
        chain.mine([chain.register(DAVE, bond=0)], miner=DAVE)
    assert [address for key, _ in REVIEWS.scan(chain.state) for address in [key[8:]]] == [DAVE.address]


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
    assert chain.balance(DAVE) == paid - fee + RESERVE


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
        assert chain.worker(DAVE).bond == (RESERVE if answers else 0)
        before = chain.balance(DAVE)
        chain.mine(count=2)
        assert chain.balance(DAVE) == before + (RESERVE if answers else 0)


def test_coming_back_before_the_bond_returned_keeps_it_locked() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)])
    chain.mine([chain.register(DAVE, bond=0)])
    again = chain.height
    worker = chain.worker(DAVE)
    assert (worker.retired_at, worker.announced_for, worker.bond) == (0, again + 8, RESERVE)
    chain.mine(count=WINDOW)
    assert chain.worker(DAVE).bond == RESERVE, "the scheduled return was called off"
    chain.mine([small_job(chain).transaction])
    assert dealt_to(chain) == [DAVE.address]


def test_coming_back_at_the_very_block_of_the_return_keeps_the_bond_locked() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)], count=WINDOW + 1)
    chain.mine([chain.register(DAVE, bond=0)])
    assert chain.worker(DAVE).bond == RESERVE


def test_coming_back_after_the_return_starts_anew() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)], count=WINDOW + 2)
    assert outcome(chain, chain.register(DAVE, bond=RESERVE)) == ""
    assert chain.worker(DAVE).announced_for == chain.height + 8


def test_a_returning_worker_waits_eight_blocks_again() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.retire(DAVE)])
    chain.mine([chain.register(DAVE, bond=0), small_job(chain).transaction])
    chain.mine(count=7)
    assert dealt_to(chain) == []
    chain.mine()
    assert dealt_to(chain) == [DAVE.address]


def test_the_record_tells_what_was_paid_burned_and_missed() -> None:
    """A packet of the least weight at a grain each costs 2²² grains: a tenth burns, a fiftieth is the miner's."""
    chain = worker_chain([DAVE], registration_delay=5)
    job = small_job(chain, 2)
    chain.mine([job.transaction], count=2)
    chain.mine(results=chain.answers(job))
    fee = 1 << 22
    worker = chain.worker(DAVE)
    assert (worker.paid, worker.burned, worker.missed) == (fee - fee // 10 - fee // 50, fee // 10, 0)
    chain.mine(count=WINDOW)
    assert chain.worker(DAVE).missed == 1
    assert chain.worker(DAVE).paid == worker.paid


def mine_to(chain: ChainBuilder, height: int) -> None:
    chain.mine(count=height - chain.height)


def test_a_miss_burns_the_least_reserve_and_queues_the_packet_again() -> None:
    chain = worker_chain([DAVE, ERIN])
    job = small_job(chain)
    chain.mine([job.transaction])
    first = chain.holder(job.packets[0])
    assert first is not None
    mine_to(chain, 9 + WINDOW - 1)
    burned = chain.supply()[0]
    chain.mine()
    assert Missed(job.id, job.packets[0], first.address, RESERVE) in chain.tip.transition.events
    assert (chain.worker(first).bond, chain.worker(first).reserved) == (0, 0)
    assert chain.supply()[0] == burned + 50 * TILE - RESERVE
    other = ERIN if first is DAVE else DAVE
    assert chain.holder(job.packets[0]) is other, "a bond of nothing holds nothing"
    assert len(chain.places()) == 2
    chain.mine(count=8)
    assert chain.places() == [(other.address, 0)], "and loses its place with the delay"


def test_a_miss_of_a_dear_packet_burns_four_times_its_fee() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.register(DAVE, packets=3, bond=4 * RESERVE)], count=9)
    job = small_job(chain, price=10**9 << 20, max_base_fee=10**9)
    node = chain.mine([job.transaction])
    opened = next(event for event in node.transition.events if isinstance(event, Opened))
    assert opened.escrow == 4 * TILE
    chain.mine(count=WINDOW)
    assert Missed(job.id, job.packets[0], DAVE.address, 16 * TILE) in chain.tip.transition.events
    worker = chain.worker(DAVE)
    assert (worker.bond, worker.declared.places, len(worker.places)) == (34 * TILE, 3, 3)


def test_a_bond_that_bears_fewer_places_takes_them_away_until_the_word_is_given_anew() -> None:
    chain = worker_chain([DAVE, ERIN])
    chain.mine([chain.register(DAVE, packets=3, bond=2 * RESERVE)], count=9)
    job = small_job(chain, 4, price=1)
    chain.mine([job.transaction])
    held = len(chain.worker(DAVE).holds)
    assert held >= 2
    chain.mine(count=WINDOW)
    assert chain.worker(DAVE).declared.places == 3 - held, "at once"
    assert len(chain.worker(DAVE).places) == 3, "nobody moves the array for a draw that is known"
    chain.mine(count=8)
    assert len(chain.worker(DAVE).places) == 3 - held
    check_array(chain)
    chain.mine([chain.register(DAVE, packets=3, bond=held * RESERVE)], count=9)
    assert chain.worker(DAVE).declared.places == 3
    check_array(chain)


def test_places_change_a_few_at_a_time_whatever_falls_due_together() -> None:
    """Four workers of five places, seven steps a block, one of them to begin with a worker: 5, 10, 15, 20."""
    chain = ChainBuilder(regtest(max_seated=7), worked=False)
    crowd = (DAVE, ERIN, FRANK, GRACE)
    chain.mine([chain.register(key, packets=5) for key in crowd], count=8)
    lengths = []
    for _ in range(5):
        chain.mine()
        check_places(chain)
        lengths.append(len(chain.places()))
    assert lengths == [5, 10, 15, 20, 20]
    chain.mine([chain.retire(key) for key in crowd], count=8)
    assert len(chain.places()) == 20
    chain.mine()
    lengths = [len(chain.places())]
    while lengths[-1]:
        chain.mine()
        check_places(chain)
        lengths.append(len(chain.places()))
    assert lengths == [15, 10, 5, 0]
    chain.mine(count=WINDOW + 2)
    assert list(WORKERS.scan(chain.state)) == list(REVIEWS.scan(chain.state)) == []


def check_places(chain: ChainBuilder) -> None:
    """As `check_array`, and nobody has more places than the reviews have come to."""
    check_array(chain)
    assert all(len(worker.places) <= 5 for _, worker in WORKERS.scan(chain.state))


def test_windows_that_end_together_are_gone_through_a_few_at_a_time_and_can_be_answered_meanwhile() -> None:
    """Twelve windows end with one tick, five a block; what has not had its turn is still held."""
    chain = ChainBuilder(regtest(max_missed=5, max_examined=12 // 3), worked=False)
    chain.mine([chain.register(DAVE, packets=12)], count=9)
    job = small_job(chain, 12)
    quick = chain.tip.header.core.time_ms
    chain.mine([job.transaction])
    for step in range(2):  # in the same tick
        chain.mine(time_ms=quick + 2001 + step)
    assert len(chain.held(job)) == 12
    tick = ledger(chain.state).tick
    chain.mine(count=WINDOW)
    assert ledger(chain.state).tick == tick + WINDOW
    assert sum(isinstance(event, Missed) for event in chain.tip.transition.events) == 5
    late = [packet_id for packet_id in job.packets if chain.packet(packet_id).dealt_at == tick]
    assert len(late) >= 7
    chain.mine(results=[chain.result(packet_id) for packet_id in late[:2]])
    assert sum(isinstance(event, Answered) for event in chain.tip.transition.events) == 2
    assert sum(isinstance(event, Missed) for event in chain.tip.transition.events) == 5


def test_a_burst_of_blocks_fines_nobody() -> None:
    """Forty blocks within half a spacing are one or two ticks: the window is not over, and the answer is paid."""
    chain = worker_chain([DAVE])
    job = small_job(chain)
    chain.mine([job.transaction])
    start = chain.tip.header.core.time_ms
    for step in range(40):
        chain.mine(time_ms=start + 20 * (step + 1))
    assert ledger(chain.state).tick == 9 + 1
    assert chain.held(job) == [*job.packets]
    chain.mine(results=chain.answers(job))
    assert chain.worker(DAVE).missed == 0


@pytest.mark.parametrize(("after_ms", "ticks"), [(499, 0), (500, 1), (10**6, 1)])
def test_a_block_ticks_a_quarter_of_the_spacing_after_the_last_that_did(after_ms: int, ticks: int) -> None:
    chain = ChainBuilder(worked=False)
    chain.mine(count=3)
    before = ledger(chain.state)
    assert (before.tick, before.ticked_ms) == (3, chain.tip.header.core.time_ms)
    chain.mine(time_ms=before.ticked_ms + after_ms)
    after = ledger(chain.state)
    assert (after.tick - before.tick, after.ticked_ms - before.ticked_ms) == (ticks, after_ms * ticks)


def test_the_first_block_ticks_whatever_its_time() -> None:
    chain = ChainBuilder(worked=False)
    chain.mine(time_ms=chain.params.genesis_time_ms + 1)
    assert ledger(chain.state).tick == 1


def test_a_stranger_may_mine() -> None:
    chain = ChainBuilder(worked=False)
    chain.mine(miner=Key("stranger"))
    assert WORKERS.get(chain.state, Key("stranger").address) is None
