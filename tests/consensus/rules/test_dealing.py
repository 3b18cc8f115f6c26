"""Dealing: which packets go to whom, computed anew from the words of the protocol."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from consensus import state
from consensus.events import Dealt
from tests.builders import (
    ALICE,
    BOB,
    DAVE,
    ERIN,
    FRANK,
    GRACE,
    HEIDI,
    WORKERS,
    ChainBuilder,
    Job,
    Key,
    operand,
    regtest,
    worker_chain,
)

WINDOW = 10


def draw(ticket: bytes, worker: Key, slot: int = 0) -> bytes:
    """H("tw/deal", r ‖ worker ‖ u32 slot)."""
    data = ticket + worker.address + slot.to_bytes(4, "little")
    return hashlib.blake2b(data, digest_size=32, person=b"tw/deal").digest()


def ticket_of(chain: ChainBuilder, height: int) -> bytes:
    """The winning ticket of the block at `height`, as its child names it."""
    node = chain.tip
    while node.height > height + 1:
        assert node.parent is not None
        node = node.parent
    return node.header.core.parent_ticket


def order(chain: ChainBuilder, workers: Any = WORKERS) -> list[Key]:
    """Workers of one slot each in the order of the draw that the tip's block made."""
    ticket = ticket_of(chain, max(0, chain.height - 4))
    return sorted(workers, key=lambda worker: draw(ticket, worker))


def deals(chain: ChainBuilder) -> list[tuple[bytes, bytes]]:
    """(packet, worker) dealt by the tip's block, in order."""
    return [(e.packet_id, e.worker) for e in chain.tip.transition.events if isinstance(e, Dealt)]


def job(chain: ChainBuilder, packets: int = 1, seed: int = 0, **options: Any) -> Job:
    return chain.job(ALICE, operand(64 * packets, 64, seed), operand(64, 64, 99), rows=64, **options)


def test_slots_are_drawn_by_the_ticket_of_four_blocks_ago() -> None:
    chain = worker_chain(WORKERS)
    group = job(chain, 3)
    chain.mine([group.transaction])
    assert deals(chain) == [(p, w.address) for p, w in zip(group.packets, order(chain)[:3], strict=True)]


def test_the_draw_changes_with_every_block() -> None:
    chain = worker_chain(WORKERS)
    orders = []
    for _ in range(6):
        chain.mine()
        orders.append(tuple(worker.name for worker in order(chain)))
    assert len(set(orders)) > 3


def test_the_first_draws_use_the_genesis_ticket() -> None:
    """r commits the ticket of block max(0, h − 4), which the ledger keeps as the oldest of four."""
    chain = ChainBuilder(worked=False)
    for height in range(1, 8):
        chain.mine()
        oldest = state.ledger(chain.state).tickets[0]
        assert oldest == ticket_of(chain, max(0, height - 4))
        assert (oldest == bytes(32)) == (height <= 4)


def test_dearest_first_then_oldest() -> None:
    chain = worker_chain(WORKERS)
    cheap, first, second, dear = (job(chain, seed=n, price=price) for n, price in enumerate((10, 50, 50, 90)))
    chain.mine([offer.transaction for offer in (cheap, first, second, dear)])
    expected = [dear.packets[0], first.packets[0], second.packets[0], cheap.packets[0]]
    assert deals(chain) == [(p, w.address) for p, w in zip(expected, order(chain), strict=False)]


def test_a_missed_packet_keeps_its_age() -> None:
    chain = worker_chain([DAVE, ERIN])
    old = job(chain, seed=1)
    chain.mine([old.transaction])
    ((_, loser),) = deals(chain)
    while chain.held(old) and chain.height < 9 + WINDOW - 1:
        chain.mine()
    young = job(chain, seed=2)
    chain.mine([young.transaction])
    assert [packet for packet, _ in deals(chain)] == [old.packets[0]], "the only able worker takes the older packet"
    assert deals(chain)[0][1] != loser


def with_record(workers: Any = (DAVE, ERIN)) -> ChainBuilder:
    """A chain on which DAVE has five slots, for his record allows more, and the others of `workers` one each."""
    chain = worker_chain(workers)
    chain.mine([chain.register(DAVE, packets=5, bond=400 * 10**9)])
    while chain.worker(DAVE).score < 32:
        warm_up = job(chain, seed=5)
        chain.mine([warm_up.transaction])
        chain.mine(results=chain.answers(warm_up))
    return chain


def next_draw(chain: ChainBuilder, slots: list[tuple[Key, int]]) -> list[tuple[Key, int]]:
    """The order of `slots` in the draw of the block after the tip."""
    ticket = ticket_of(chain, chain.height + 1 - 4)
    return sorted(slots, key=lambda slot: draw(ticket, *slot))


def test_pass_one_spreads_a_group_over_workers_that_hold_none_of_it() -> None:
    """DAVE's slots come first and second in the draw, ERIN's later: the second packet is hers all the same. Pass two
    then gives the rest of an open group to any able slot, in the order of the draw."""
    chain = with_record()
    slots = [(DAVE, index) for index in range(5)] + [(ERIN, 0)]
    while {worker for worker, _ in next_draw(chain, slots)[:2]} != {DAVE}:
        chain.mine()
    drawn = next_draw(chain, slots)
    group = job(chain, 4, seed=6)
    chain.mine([group.transaction])
    expected = [drawn[0], (ERIN, 0), drawn[1], [slot for slot in drawn if slot[0] is DAVE][2]]
    found = [(e.worker, e.slot) for e in chain.tip.transition.events if isinstance(e, Dealt)]
    assert found == [(worker.address, slot) for worker, slot in expected]


def test_pass_one_counts_what_was_dealt_in_earlier_blocks() -> None:
    """DAVE holds the group's first packet when slots become free, his first in the draw: the second goes to ERIN."""
    chain = with_record()
    blocker = job(chain, 2, seed=7)
    chain.mine([blocker.transaction])
    hers = next(packet_id for packet_id in blocker.packets if chain.holder(packet_id) is ERIN)
    chain.mine([chain.register(DAVE, packets=2, bond=0)])
    group = job(chain, 2, seed=8, price=1)
    chain.mine([group.transaction])
    assert [chain.holder(packet_id) for packet_id in group.packets] == [DAVE, None], "two of DAVE's two slots are taken"
    taken = {slot.index for slot in chain.worker(DAVE).slots}
    free = [(DAVE, index) for index in range(5) if index not in taken] + [(ERIN, 0)]
    while next_draw(chain, free)[0][0] is not DAVE:
        chain.mine()
    chain.mine([chain.register(DAVE, packets=5, bond=0)], [chain.result(hers)])
    assert chain.holder(group.packets[1]) is ERIN


def test_slots_held_beyond_a_shrunken_word_count() -> None:
    """DAVE holds a packet in a slot other than his first, then declares a single one: it is taken."""
    chain = with_record((DAVE,))
    slots = [(DAVE, index) for index in range(5)]
    while next_draw(chain, slots)[0][1] == 0:
        chain.mine()
    first = job(chain, seed=9)
    chain.mine([first.transaction])
    assert chain.worker(DAVE).slots[0].index > 0
    chain.mine([chain.register(DAVE, bond=0), job(chain, seed=10).transaction])
    assert deals(chain) == []
    chain.mine(results=chain.answers(first))
    assert len(deals(chain)) == 1


def test_a_slot_is_dealt_once() -> None:
    chain = worker_chain([DAVE])
    group = job(chain, 3)
    chain.mine([group.transaction])
    assert [packet for packet, _ in deals(chain)] == [group.packets[0]]
    chain.mine()
    assert deals(chain) == []
    chain.mine(results=chain.answers(group))
    assert [packet for packet, _ in deals(chain)] == [group.packets[1]], "freed and dealt in one block"


def test_a_unit_beyond_a_workers_word_is_not_dealt_to_it() -> None:
    chain = ChainBuilder(worked=False)
    size = 64 * 64 + 64 * 64 + 4 * 64 * 64
    chain.mine([chain.register(DAVE, max_unit_bytes=size - 1), chain.register(ERIN, max_unit_bytes=size)], count=8)
    for _ in range(3):
        group = job(chain)
        chain.mine([group.transaction])
        assert chain.holder(group.packets[0]) in (ERIN, None)
    assert chain.worker(DAVE).slots == ()
    assert chain.worker(ERIN).slots != ()


@pytest.mark.parametrize(("min_price", "dealt"), [(100, 4), (101, 0)])
def test_a_minimum_price_is_held_against_the_price(min_price: int, dealt: int) -> None:
    chain = ChainBuilder(worked=False)
    chain.mine([chain.register(worker, min_price=min_price) for worker in WORKERS], count=8)
    chain.mine([job(chain, 4, threshold=1, price=100).transaction])
    assert len(deals(chain)) == dealt


@pytest.mark.parametrize(("in_force", "dealt"), [(10, 1), (11, 0)])
def test_no_deal_whose_window_would_reach_the_expiry(in_force: int, dealt: int) -> None:
    """Dealt in h while h + 10 < 21: at 11 no more, and what is queued then waits for its refund."""
    chain = ChainBuilder(worked=False)
    group = job(chain, expiry=21)
    chain.mine([group.transaction], count=in_force - 8 - 1)
    chain.mine([chain.register(DAVE)], count=9)
    assert chain.height == in_force
    assert len(deals(chain)) == dealt
    before = chain.balance(ALICE)
    while chain.group(group):
        chain.mine()
    assert chain.height == 21
    assert chain.balance(ALICE) == before + (1 << 22)


def test_no_more_packets_are_examined_than_the_params_say() -> None:
    """Two dear packets that nobody takes stand before a cheap one; where two are examined, it is not reached."""
    for examined, dealt in ((2, 0), (3, 1)):
        chain = ChainBuilder(regtest(max_examined=examined), worked=False)
        chain.mine([chain.register(DAVE, max_unit_bytes=24_576)], count=8)
        big = chain.job(ALICE, operand(128, 128), operand(128, 64), rows=64, price=1 << 41)
        chain.mine([big.transaction, job(chain).transaction])
        assert len(deals(chain)) == dealt


def test_two_groups_do_not_count_as_one() -> None:
    chain = worker_chain([DAVE])
    chain.mine([chain.register(DAVE, packets=5, bond=400 * 10**9)])
    warm_up = job(chain, seed=5)
    chain.mine([warm_up.transaction])
    chain.mine(results=chain.answers(warm_up))
    first, second = job(chain, seed=6), chain.job(BOB, operand(64, 64, 7), operand(64, 64, 8))
    chain.mine([first.transaction, second.transaction])
    assert len(deals(chain)) == 2


def test_nothing_waits_nothing_is_dealt() -> None:
    chain = worker_chain([DAVE, ERIN, FRANK, GRACE, HEIDI])
    chain.mine()
    assert chain.tip.transition.events == ()


def wide_jobs(chain: ChainBuilder, count: int) -> list[Job]:
    """Jobs of one packet with a product of 16 MiB, the dearest first; what they ask of one block's gas has room."""
    return [
        chain.job(ALICE, operand(2048, 64, n), operand(64, 2048, n), price=100 - n, expiry=chain.height + 50)
        for n in range(count)
    ]


def test_products_held_leave_room_for_their_answers() -> None:
    """Two blocks of 32 MiB carry the answers of a window of two; products of half of that are dealt, in order."""
    chain = worker_chain(WORKERS, window=2, retention=200)
    wide = wide_jobs(chain, 3)
    small = job(chain, price=1)
    chain.mine([*(one.transaction for one in wide), small.transaction])
    assert [len(chain.held(one)) for one in wide] == [1, 1, 0]
    assert chain.held(small) == [], "a small packet does not pass a large one that has a worker"
    chain.mine(results=[chain.result(chain.held(wide[0])[0])])
    assert [len(chain.held(one)) for one in wide] == [0, 1, 1]


def test_a_packet_that_nobody_is_able_to_make_takes_no_room() -> None:
    chain = worker_chain(WORKERS, window=2, retention=200)
    chain.mine([chain.register(worker, bond=0, max_unit_bytes=1 << 20) for worker in WORKERS])
    wide = wide_jobs(chain, 3)
    small = job(chain, price=1)
    chain.mine([*(one.transaction for one in wide), small.transaction])
    assert [len(chain.held(one)) for one in (*wide, small)] == [0, 0, 0, 1]


def test_packets_too_close_to_their_expiry_leave_the_queue_to_others() -> None:
    """Decision 0001: two dear packets that can never be dealt again hide a cheap one for one block only."""
    chain = ChainBuilder(regtest(max_examined=2), worked=False)
    dear = job(chain, 2, price=100, expiry=12)
    chain.mine([dear.transaction, chain.register(DAVE)])
    chain.mine(count=7)
    cheap = job(chain, seed=5, price=1)
    chain.mine([cheap.transaction])
    assert chain.height == 9
    assert chain.held(cheap, dear) == [*cheap.packets]


def test_dear_packets_that_nobody_can_make_jam_nobody() -> None:
    """Sixteen of them fill what is looked at in two blocks, for ever; the round passes them, four a block."""
    chain = ChainBuilder(regtest(max_examined=8), worked=False)
    chain.mine([chain.register(worker, max_unit_bytes=24_576) for worker in (DAVE, ERIN)], count=8)
    big = chain.job(ALICE, operand(512, 128), operand(128, 128), rows=64, cols=64, price=1 << 41)
    assert len(big.packets) == 16
    chain.mine([big.transaction])
    cheap = job(chain, seed=5, price=1)
    chain.mine([cheap.transaction])
    waited = 0
    while not chain.held(cheap):
        chain.mine()
        waited += 1
        assert waited <= 4
    later = job(chain, seed=6, price=1)
    chain.mine([later.transaction])
    while not chain.held(later):
        chain.mine()
        waited += 1
        assert waited <= 8, "and again, for the next one"
    assert chain.held(big) == []


def test_the_round_looks_at_each_waiting_packet_once_before_it_begins_anew() -> None:
    chain = ChainBuilder(regtest(max_examined=6), worked=False)
    group = job(chain, 10)
    chain.mine([group.transaction])
    seen = [state.ledger(chain.state).dealt_through]
    for _ in range(9):
        chain.mine()
        seen.append(state.ledger(chain.state).dealt_through)
    indices = [int.from_bytes(key[-4:], "big") for key in seen]
    assert indices == [5, 8, 4, 7, 3, 6, 9, 5, 8, 4], "three a block, beside the three at the head"


def test_a_short_queue_is_looked_at_once() -> None:
    chain = ChainBuilder(worked=False)
    group = job(chain, 3)
    chain.mine([group.transaction])
    chain.mine([chain.register(worker) for worker in (DAVE, ERIN, FRANK)], count=9)
    assert sorted(packet for packet, _ in deals(chain)) == sorted(group.packets)
