"""Dealing: which packets go to whom, computed anew from the words of the protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest

from consensus import state
from consensus.events import Dealt
from consensus.rules import assignment
from consensus.rules.execution import Execution
from consensus.state import StateReader
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


def draw(ticket: bytes, packet_id: bytes, number: int, count: int) -> int:
    """H("tw/deal", r ‖ packet ‖ u32 try) mod N."""
    data = ticket + packet_id + number.to_bytes(4, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=32, person=b"tw/deal").digest(), "big") % count


def ticket_of(chain: ChainBuilder, height: int) -> bytes:
    """The winning ticket of the block at `height`, as its child names it."""
    node = chain.tip
    while node.height > height + 1:
        assert node.parent is not None
        node = node.parent
    return node.header.core.parent_ticket


def tried(chain: ChainBuilder, packet_id: bytes, tries: int = 64) -> list[tuple[bytes, int]]:
    """The places that a packet tries in the block after the tip, in order."""
    ticket, places = ticket_of(chain, max(0, chain.height + 1 - 4)), chain.places()
    return [places[draw(ticket, packet_id, number, len(places))] for number in range(tries)]


def expected_deals(chain: ChainBuilder, packets: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Who is dealt what in the block after the tip, if workers have a place each and the packets are of one group."""
    dealt: list[tuple[bytes, bytes]] = []
    for packet_id in packets:
        free = (worker for worker, _ in tried(chain, packet_id) if worker not in {holder for _, holder in dealt})
        dealt += [(packet_id, worker) for worker in islice(free, 1)]
    return dealt


def deals(chain: ChainBuilder) -> list[tuple[bytes, bytes]]:
    """(packet, worker) dealt by the tip's block, in order."""
    return [(e.packet_id, e.worker) for e in chain.tip.transition.events if isinstance(e, Dealt)]


def job(chain: ChainBuilder, packets: int = 1, seed: int = 0, **options: Any) -> Job:
    return chain.job(ALICE, operand(64 * packets, 64, seed), operand(64, 64, 99), rows=64, **options)


def test_places_are_drawn_by_the_ticket_of_four_blocks_ago() -> None:
    chain = worker_chain(WORKERS)
    chain.mine()
    group = job(chain, 3)
    expected = expected_deals(chain, group.packets)
    chain.mine([group.transaction])
    assert deals(chain) == expected
    assert len(expected) == 3


def test_the_draw_changes_with_every_block() -> None:
    chain = worker_chain(WORKERS)
    draws = []
    for _ in range(6):
        chain.mine()
        draws.append(tuple(tried(chain, bytes(32))))
    assert len(set(draws)) == 6


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
    assert [packet for packet, _ in deals(chain)] == expected


def test_a_missed_packet_keeps_its_age() -> None:
    chain = worker_chain([DAVE, ERIN])
    old = job(chain, seed=1)
    chain.mine([old.transaction])
    ((_, loser),) = deals(chain)
    while chain.held(old) and chain.height < 9 + WINDOW - 1:
        chain.mine()
    young = job(chain, seed=2)
    chain.mine([young.transaction])
    assert [packet for packet, _ in deals(chain)] == [old.packets[0]], "whoever has a bond left takes the older"
    assert deals(chain)[0][1] != loser


def with_five(**changes: Any) -> ChainBuilder:
    """A chain on which DAVE has five places and ERIN one; `changes` as for `regtest`."""
    chain = ChainBuilder(regtest(**changes), worked=False)
    chain.mine([chain.register(DAVE, packets=5), chain.register(ERIN)], count=8)
    return chain


def test_the_first_half_of_the_tries_spreads_a_group_over_workers_that_hold_none_of_it() -> None:
    """One packet goes to each of both workers, wherever the tries lead first; what is left goes to any free place."""
    chain = with_five()
    group = job(chain, 4, seed=6)
    chain.mine([group.transaction])
    holders = [worker for _, worker in deals(chain)]
    assert set(holders[:2]) == {DAVE.address, ERIN.address}
    assert holders[2:] == [DAVE.address] * 2, "and those came from the second half of the tries"


def test_a_group_is_given_to_one_worker_twice_by_the_second_half_of_the_tries_only() -> None:
    chain = ChainBuilder(worked=False)
    chain.mine([chain.register(DAVE, packets=5)], count=9)
    group = job(chain, 2, seed=6)
    tries = [tried(chain, packet_id) for packet_id in group.packets]
    first = tries[0][0]
    second = next(place for place in tries[1][32:] if place != first)
    chain.mine([group.transaction])
    found = [(e.worker, e.place) for e in chain.tip.transition.events if isinstance(e, Dealt)]
    assert found == [first, second]


def test_what_was_dealt_in_earlier_blocks_counts() -> None:
    """DAVE holds the group's first packet, so in the first half of the tries the second goes to ERIN alone."""
    chain = with_five()
    blocker = job(chain, 6, seed=7, price=2)
    chain.mine([blocker.transaction])
    assert len(chain.held(blocker)) == 6
    of_erin = next(packet_id for packet_id in blocker.packets if chain.holder(packet_id) is ERIN)
    group = job(chain, 2, seed=8, price=1)
    of_dave = next(packet_id for packet_id in blocker.packets if chain.holder(packet_id) is DAVE)
    chain.mine([group.transaction], [chain.result(of_dave)])
    assert [chain.holder(packet_id) for packet_id in group.packets] == [DAVE, None]
    another = next(packet_id for packet_id in blocker.packets if chain.holder(packet_id) is DAVE)
    chain.mine(results=[chain.result(of_erin), chain.result(another)])
    assert chain.holder(group.packets[1]) is ERIN


def test_a_worker_takes_no_more_than_it_declares_whichever_place_is_tried() -> None:
    """A declaration of a single place: what is held beyond it counts, and nothing is dealt until it is answered."""
    chain = with_five(window=40)
    first = job(chain, 3, seed=9, price=3)
    chain.mine([first.transaction])
    chain.mine([chain.register(DAVE, bond=0), chain.register(ERIN, bond=0, min_price=1 << 50)], count=9)
    assert set(chain.places()) == {(DAVE.address, 0), (ERIN.address, 0)}
    assert len(chain.worker(DAVE).holds) == 2
    second = job(chain, seed=10)
    chain.mine([second.transaction])
    assert chain.held(second) == []
    chain.mine(results=[chain.result(holding.packet_id) for holding in chain.worker(DAVE).holds])
    assert chain.holder(second.packets[0]) is DAVE


def test_a_packet_is_dealt_only_where_the_free_bond_bears_four_fees() -> None:
    """Four TILE ask for 16 of the bond: one of 30 for three places bears one such packet, and a small one."""
    chain = ChainBuilder(worked=False)
    chain.mine([chain.register(DAVE, packets=3)], count=8)
    dear = chain.job(ALICE, operand(128, 64, 1), operand(64, 64, 2), rows=64, price=10**9 << 20, max_base_fee=10**9)
    fee = state.PACKETS.get(chain.mine([dear.transaction]).state, dear.packets[0]).fee  # type: ignore[union-attr]
    assert fee == 4 * 10**9
    assert len(chain.held(dear)) == 1
    assert chain.worker(DAVE).reserved == 4 * fee
    small = job(chain, 3, seed=3)
    chain.mine([small.transaction])
    assert len(chain.held(small)) == 1, "16 and 10 TILE are reserved"
    assert chain.worker(DAVE).reserved == 4 * fee + 10 * 10**9
    chain.mine(results=chain.answers(dear, small))
    assert chain.worker(DAVE).reserved == 4 * fee + 10 * 10**9, "the next two are dealt in the same block"


def test_the_cost_of_dealing_does_not_grow_with_the_places() -> None:
    """Counted in reads of the state, while nobody is able to make what waits."""
    reads = []
    for workers in (4, 60):
        chain = ChainBuilder(worked=False)
        keys = [Key(f"crowd {number}") for number in range(workers)]
        chain.mine([chain.transfer(ALICE, key, 70 * 10**9) for key in keys])
        chain.mine([chain.register(key, packets=6, min_price=1 << 50) for key in keys], count=9)
        assert len(chain.places()) == 6 * workers
        group = job(chain, 4)
        chain.mine([group.transaction])
        counted = Counting(chain.state)
        block = Execution(chain.params, counted, chain.height + 1, 10**13, bytes(20))
        counted.reads = 0
        assignment.deal(block, bytes(32))
        reads.append(counted.reads)
    assert reads[1] <= 4 * 2 * 64 + 4 * 8
    assert reads[1] < 15 * reads[0]


class Counting:
    """A state that counts what is read of it."""

    def __init__(self, below: StateReader) -> None:
        self._below = below
        self.reads = 0

    def get(self, key: bytes) -> bytes | None:
        self.reads += 1
        return self._below.get(key)

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for pair in self._below.scan(prefix, after):
            self.reads += 1
            yield pair


def test_a_place_is_dealt_once() -> None:
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
    assert chain.worker(DAVE).holds == ()
    assert chain.worker(ERIN).holds != ()


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
    """Two packets of two jobs go to one worker within the tries that spread a group."""
    chain = ChainBuilder(regtest(max_tries=12), worked=False)
    chain.mine([chain.register(DAVE, packets=5)], count=8)
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
    chain.mine([chain.register(worker, bond=0, max_unit_bytes=1 << 20) for worker in WORKERS], count=9)
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


def test_nothing_is_dealt_whose_operands_are_not_kept_for_long() -> None:
    """Blocks that do not tick outrun a job's expiry; nodes keep its operands by height, so it leaves the queue in time.

    Opened at height 9 for 100 ticks, kept through 9 + 100 + 120: dealt while the height is below 169.
    """
    for waits, dealt in ((168 - 9, 1), (169 - 9, 0)):
        chain = ChainBuilder(regtest(retention=120, max_reorg=100), worked=False)
        chain.mine(count=8)
        group = job(chain, expiry=109, price=1)
        chain.mine([group.transaction])
        assert chain.group(group).kept_until == 9 + 100 + 120  # type: ignore[union-attr]
        chain.mine([chain.register(DAVE)], count=8)
        quick = chain.tip.header.core.time_ms
        for step in range(waits - 8 - 1):
            chain.mine(time_ms=quick + step + 1)
        assert chain.held(group) == []
        chain.mine()
        assert chain.height == 9 + waits
        assert len(deals(chain)) == dealt
