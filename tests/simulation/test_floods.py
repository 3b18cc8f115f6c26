"""What floods of one's own jobs do to others: their answers still fit, their packets are dealt, their draws stand."""

from __future__ import annotations

import math
import statistics

import pytest

from consensus.codec import MAX_AMOUNT
from consensus.events import Answered, Dealt, Missed
from consensus.params import MAX_TENSOR_BYTES, TILE
from consensus.state import ledger
from consensus.transaction import Result
from tests.builders import ALICE, BOB, CAROL, DAVE, ERIN, FRANK, GRACE, HEIDI, ChainBuilder, Job, Key, operand, regtest

WORKERS = (DAVE, ERIN, FRANK, GRACE, HEIDI)


def small(chain: ChainBuilder, seed: int, packets: int = 1) -> Job:
    """An honest user's job of the least packets, at a price that everybody takes."""
    return chain.job(ALICE, operand(64 * packets, 64, seed), operand(64, 64, 99), rows=64, price=1 << 20)


def that_fit(chain: ChainBuilder, results: list[Result], operand_bytes: int) -> list[Result]:
    """As many of the Results, in their order, as a block's tensors have room for beside new operands."""
    room, chosen = MAX_TENSOR_BYTES - operand_bytes, []
    for result in results:
        room -= chain.packet(result.body.packet_id).shape.product_bytes
        if room < 0:
            break
        chosen.append(result)
    return chosen


@pytest.mark.long
def test_crowding_out_others_answers_makes_nobody_miss() -> None:
    """A flood of jobs with wide products, in every block what its gas and tensors bear; workers answer at once.

    Before dealing left room, such a flood made eighty honest packets miss in 34 blocks, for 21 TILE.
    """
    chain = ChainBuilder(regtest(), worked=False)
    chain.mine([chain.register(worker, packets=16) for worker in WORKERS], count=9)
    fines, answered, seed = 0, 0, 0
    spent = chain.balance(BOB)
    for block in range(34):
        offers = [small(chain, 10_000 + block).transaction]
        if block < 24:
            for _ in range(3):
                seed += 1
                wide = chain.job(
                    BOB, operand(4096, 64, seed), operand(64, 1024, seed), rows=1024, price=1 << 21, max_base_fee=10**6
                )
                offers.append(wide.transaction)
        operand_bytes = sum(spec.size for tx in offers for spec in tx.body.payload.operands())  # type: ignore[union-attr]
        held = [h.packet_id for worker in WORKERS for h in chain.worker(worker).holds]
        held.sort(key=lambda packet_id: chain.packet(packet_id).dealt_at)
        results = that_fit(chain, [chain.result(packet_id) for packet_id in held], operand_bytes)
        node = chain.mine(offers, results)
        fines += sum(isinstance(event, Missed) for event in node.transition.events)
        answered += sum(isinstance(event, Answered) for event in node.transition.events)
    assert fines == 0
    assert answered > 150
    assert spent - chain.balance(BOB) > 0


@pytest.mark.parametrize("dear", [64, 256])
def test_jamming_the_head_of_the_queue_delays_others_by_one_round_of_it(dear: int) -> None:
    """`dear` packets that nobody can make, dearer than all others: a cheap one waits for Q / (examined / 2) blocks."""
    chain = ChainBuilder(regtest(max_examined=16), worked=False)
    chain.mine([chain.register(worker, max_unit_bytes=24_576) for worker in WORKERS], count=9)
    before = chain.balance(BOB)
    jam = chain.job(BOB, operand(64 * dear // 2, 128), operand(128, 128), rows=64, cols=64, price=1 << 30)
    assert len(jam.packets) == dear
    chain.mine([jam.transaction])
    cost, waits = before - chain.balance(BOB), []
    for seed in range(12):
        group = small(chain, seed)
        node = chain.mine([group.transaction])
        waited = 0
        while not any(isinstance(event, Dealt) for event in node.transition.events):
            node = chain.mine()
            waited += 1
        waits.append(waited)
        chain.mine(results=chain.answers(group))
    assert max(waits) <= math.ceil(dear / 8) + 1
    assert chain.held(jam) == []
    assert cost > dear * 1_000, "gas for each packet and its bytes, and the escrow until it expires"


def test_withholding_delays_a_packet_by_a_window_and_a_fine_for_each_time_it_draws_a_withholder() -> None:
    """Half of the places withhold: a packet draws one of them once on average before it draws somebody honest."""
    chain = ChainBuilder(regtest(), worked=False)
    honest, withholders, fine = (DAVE, ERIN), (FRANK, GRACE), chain.params.min_reserve
    chain.mine([chain.register(worker) for worker in honest], count=2)
    chain.mine([chain.register(worker, bond=60 * fine) for worker in withholders], count=9)
    bonds = sum(chain.worker(worker).bond for worker in withholders)
    misses = []
    for seed in range(30):
        group = small(chain, seed)
        seen = [chain.register(worker, bond=0) for worker in withholders]
        node, waited, missed = chain.mine([group.transaction, *seen]), 0, 0
        while not any(isinstance(event, Answered) for event in node.transition.events):
            holder = chain.holder(group.packets[0])
            node = chain.mine(results=chain.answers(group) if holder in honest else [])
            missed += sum(isinstance(event, Missed) for event in node.transition.events)
            waited += 1
        assert waited <= missed * (chain.params.window + 2) + 2, "and nothing else delays it"
        misses.append(missed)
    assert 0.4 < statistics.mean(misses) < 2.5
    assert bonds - sum(chain.worker(worker).bond for worker in withholders) == sum(misses) * fine


def test_places_that_are_never_able_delay_others_as_the_share_of_able_ones_says() -> None:
    """One able place in 257: a packet finds it in a block with chance 1 − (1 − 1/257)⁶⁴, which is 22 %."""
    chain = ChainBuilder(regtest(), worked=False)
    idle = [Key(f"idle {number}") for number in range(4)]
    chain.mine([chain.transfer(CAROL, key, 700 * TILE) for key in idle])
    locks = [chain.register(key, packets=64, min_price=MAX_AMOUNT) for key in idle]
    chain.mine([chain.register(DAVE), *locks], count=9)
    assert ledger(chain.state).places == 4 * 64 + 1
    assert sum(chain.worker(key).bond for key in idle) == 4 * 64 * chain.params.min_reserve, "what it takes to do that"
    waits = []
    for seed in range(40):
        group = small(chain, seed)
        chain.mine([group.transaction])
        waited = 1
        while not chain.held(group):
            chain.mine()
            waited += 1
        waits.append(waited)
        chain.mine(results=chain.answers(group))
    expected = 1 / (1 - (1 - 1 / 257) ** 64)
    assert expected / 2 < statistics.mean(waits) < 2 * expected


def test_nothing_that_anybody_sends_moves_the_array_for_a_draw_that_is_known() -> None:
    """Joining, a dearer word, fewer places, retiring, coming back: eight ticks pass, and draws are known for four."""
    chain = ChainBuilder(worked=False)
    chain.mine([chain.register(worker, packets=3) for worker in WORKERS], count=9)
    chain.mine([chain.retire(HEIDI)])

    stands = chain.places()
    chain.mine(
        [
            chain.retire(ERIN),
            chain.register(CAROL),
            chain.register(DAVE, packets=1, bond=0, min_price=7),
            chain.register(FRANK, packets=6, bond=3 * chain.params.min_reserve),
            chain.register(HEIDI, packets=1, bond=0),
        ]
    )
    known = chain.params.deal_lag
    for _ in range(known):
        assert chain.places() == stands
        chain.mine()
    chain.mine(count=chain.params.registration_delay)
    assert sorted(chain.places()) != sorted(stands)
