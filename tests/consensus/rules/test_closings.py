"""Closing groups: paid for when they were opened, and bounded in every block, whatever falls due together."""

from __future__ import annotations

from typing import Any

import pytest

from consensus.events import Answered, Closed, Dealt, Ending
from consensus.state import CLOSINGS, DEADLINES, GROUPS, PACKETS, QUEUE, ledger
from tests.builders import ALICE, BOB, CAROL, DAVE, ERIN, ChainBuilder, Job, operand, regtest, worker_chain

FEE = 1 << 22


def job_of(chain: ChainBuilder, packets: int, seed: int = 0, owner: Any = ALICE, **options: Any) -> Job:
    return chain.job(owner, operand(64 * packets, 64, seed), operand(64, 64, 99), rows=64, **options)


def closed(chain: ChainBuilder) -> list[Closed]:
    return [event for event in chain.tip.transition.events if isinstance(event, Closed)]


def records(chain: ChainBuilder) -> int:
    tables = (GROUPS, PACKETS, QUEUE, CLOSINGS, DEADLINES)
    return sum(1 for table in tables for _ in table.scan(chain.state))


def packets_left(chain: ChainBuilder) -> int:
    return sum(1 for _ in PACKETS.scan(chain.state))


def test_what_expires_together_closes_a_few_packets_a_block() -> None:
    """Twelve packets of three jobs with one expiry, five a block: 12, 7, 2, 0 are left, and every escrow returns."""
    chain = ChainBuilder(regtest(max_closed=5), worked=False)
    offers = [job_of(chain, 4, seed, owner, expiry=20) for seed, owner in enumerate((ALICE, BOB, CAROL))]
    before = {owner: chain.balance(owner) for owner in (ALICE, BOB, CAROL)}
    node = chain.mine([offer.transaction for offer in offers])
    chain.mine(count=18)
    left, endings = [packets_left(chain)], []
    for _ in range(3):
        chain.mine()
        left.append(packets_left(chain))
        endings += [(event.job, event.refund, event.why) for event in closed(chain)]
    assert chain.height == 22
    assert left == [12, 7, 2, 0]
    assert sorted(endings) == sorted((offer.id, 4 * FEE, Ending.EXPIRED) for offer in offers)
    assert records(chain) == 0
    for (owner, balance), receipt in zip(before.items(), node.transition.receipts, strict=True):
        assert chain.balance(owner) == balance - receipt.fee
    assert chain.supply()[0] == chain.supply()[1]


@pytest.mark.parametrize("packets", [64, 512])
def test_a_cancellation_writes_as_little_for_a_large_job_as_for_a_small_one(packets: int) -> None:
    """Its flat price pays for itself; the closing that follows was paid for by the packets' gas, and is bounded."""
    chain = ChainBuilder(regtest(max_closed=1, max_examined=1), worked=False)
    offer = job_of(chain, packets)
    chain.mine([offer.transaction])
    node = chain.mine([chain.cancel(ALICE, offer)])
    assert node.transition.receipts[0].ok
    assert len([key for key in node.transition.undo if not key.startswith(b"#")]) < 12


def test_an_answer_that_completes_a_large_group_writes_no_more_than_another() -> None:
    chain = worker_chain([DAVE], max_closed=1, max_examined=1)
    offer = job_of(chain, 256, threshold=1)
    chain.mine([offer.transaction])
    node = chain.mine(results=chain.answers(offer))
    assert len([key for key in node.transition.undo if not key.startswith(b"#")]) < 16


def test_packets_of_a_group_that_has_ended_are_dealt_to_nobody() -> None:
    """They may wait for their turn to be forgotten, but not in anybody's way."""
    chain = worker_chain([DAVE], max_closed=1)
    dear, cheap = job_of(chain, 6, threshold=1, price=1 << 41), job_of(chain, 1, 1, BOB)
    chain.mine([dear.transaction, cheap.transaction])
    chain.mine(results=chain.answers(dear))
    assert [event.packet_id for event in chain.tip.transition.events if isinstance(event, Dealt)] == [*cheap.packets]
    assert packets_left(chain) == 6
    chain.mine(count=5)
    assert [event.why for event in closed(chain)] == [Ending.COMPLETED]
    assert chain.group(dear) is None


def test_a_held_packet_outlives_the_sweep_of_its_group_and_is_paid() -> None:
    chain = worker_chain([DAVE, ERIN])
    offer = job_of(chain, 8, threshold=1)
    chain.mine([offer.transaction])
    first, second = chain.held(offer)
    chain.mine(results=[chain.result(first)])
    assert packets_left(chain) == 1, "all but the one that is held are forgotten"
    group = chain.group(offer)
    assert group is not None
    assert (group.swept, group.closes_at, group.held) == (8, 0, 1)
    chain.mine(results=[chain.result(second)])
    (answer,) = (event for event in chain.tip.transition.events if isinstance(event, Answered))
    assert answer.fee == FEE
    assert closed(chain) == [Closed(offer.id, ALICE.address, 6 * FEE, 2, Ending.COMPLETED)]
    assert records(chain) == 0


def test_a_window_that_ends_in_the_middle_of_the_sweep() -> None:
    """DAVE's packet ends before the sweep comes to it or after, and the group closes either way."""
    for packets in (3, 40):
        chain = worker_chain([DAVE, ERIN], max_closed=2)
        offer = job_of(chain, packets, threshold=1)
        chain.mine([offer.transaction])
        chain.mine(results=[chain.result(chain.held(offer)[0])])
        chain.mine(count=25)
        assert chain.group(offer) is None
        assert records(chain) == 0
        assert chain.supply()[0] == chain.supply()[1]
        assert chain.worker(DAVE).holds == chain.worker(ERIN).holds == ()


def test_a_job_that_expires_while_its_windows_wait_for_their_turn_closes_all_the_same() -> None:
    """Six windows end with one tick, two a block; the job expires a tick later, and its closing meets packets held."""
    chain = ChainBuilder(regtest(max_missed=2, max_examined=2), worked=False)
    chain.mine([chain.register(DAVE, packets=6)], count=9)
    start = chain.tip.header.core.time_ms + 2_000
    tick = ledger(chain.state).tick + 1
    offer = job_of(chain, 6, expiry=tick + chain.params.window + 1)
    chain.mine([offer.transaction], time_ms=start)
    for step in range(1, 7):
        chain.mine(time_ms=start + step)
    held = chain.held(offer)
    assert len(held) == 6
    assert {chain.packet(packet_id).dealt_at for packet_id in held} == {tick}
    while ledger(chain.state).tick < tick + chain.params.window + 1:
        chain.mine()
    assert len(chain.held(offer)) == 2, "of the six, four had their turn, and the job has expired"
    chain.mine(results=[chain.result(chain.held(offer)[0])])
    chain.mine()
    assert chain.group(offer) is None
    assert records(chain) == 0
    assert chain.supply()[0] == chain.supply()[1]
