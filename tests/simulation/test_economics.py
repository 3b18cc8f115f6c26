"""Self-dealing, withholding and hoarding lose, for any share of the work (docs/economics.md, docs/protocol.md 12)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from consensus import work
from consensus.errors import Reason
from consensus.events import Answered, Missed
from consensus.params import MAX_TARGET
from consensus.rules import jobs
from consensus.shape import Shape
from tests.builders import ALICE, DAVE, ERIN, FRANK, operand, worker_chain
from tests.simulation.economy import MARKET_PRICE, SIDE, Economy, Strategy, advantages, compare
from tests.simulation.strategies import LIMITS, LOSING, Case, SelfDealing, Withholding

SHARES = (0.05, 0.25, 0.5, 0.9)
FEE = -(-MARKET_PRICE * Shape(SIDE, SIDE, SIDE).weight // jobs.WEIGHT_PER_PRICE)
CENSORING, *ORDERING, UNDERCUTTING = LIMITS


def gain(case: Case, share: float, blocks: int = 30, seeds: int | None = None) -> int:
    """Grains that the case's strategy gains over the honest one, on average, rounded up."""
    setting = replace(case.market, share=share, blocks=blocks)
    gains = advantages(setting, case.strategy, case.baseline, range(seeds or case.seeds))
    return -(-sum(gains) // len(gains))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", LOSING, ids=lambda case: case.name)
def test_honest_work_wins(case: Case, share: float) -> None:
    assert case.margin is not None
    assert gain(case, share) <= -case.margin


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("exclusive", [True, False])
def test_self_dealing_costs_its_gas_and_a_tenth_and_mints_nothing(exclusive: bool, share: float) -> None:
    """Exactly: same luck, same subsidy; gone are the gas, the burned tenth, and what others were paid."""
    setting = replace(LOSING[0].market, share=share)
    economy = Economy(setting, SelfDealing(exclusive))
    played, honest = economy.run(), Economy(setting, Strategy()).run()
    paid = [event for event in played.events if isinstance(event, Answered)]
    assert played.blocks_mined == honest.blocks_mined
    assert len(paid) >= 3
    assert share < 0.25 or any(event.won for event in paid)
    burned = sum(event.burned for event in paid)
    to_others = sum(event.fee - event.burned - event.share for event in paid if event.worker not in economy.owned)
    shares = sum(event.share for event in paid)
    loss = honest.grains - played.grains
    assert 0 <= loss - (played.gas_grains + burned + to_others) <= shares
    assert exclusive == (to_others == 0)


def test_every_payment_burns_a_tenth_rounded_down() -> None:
    played, _ = compare(replace(LOSING[1].market, share=0.5), SelfDealing(False), Strategy())
    for event in played.events:
        if isinstance(event, Answered):
            assert event.burned == max(1, event.fee // 10)


@pytest.mark.parametrize("target", [1, 2**200 + 12345, MAX_TARGET])
@pytest.mark.parametrize("k", [64, 1024, 4096])
def test_a_tickets_chance_is_proportional_to_its_cost(target: int, k: int) -> None:
    """⌈target·k / 1024⌉ of the 2²⁵⁶ tickets win, and a tile costs 64·64·k multiplications: no k is favoured."""
    winners = -(-target * k // 1024)
    assert work.wins((winners - 1).to_bytes(32, "big"), target, k)
    if winners < 2**256:
        assert not work.wins(winners.to_bytes(32, "big"), target, k)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(64, 64, 64),
        Shape(64, 4096, 64),
        Shape(4096, 64, 64),
        Shape(64, 64, 4096),
        Shape(1024, 64, 1024),
        Shape(256, 2048, 256),
        Shape(512, 4096, 512),
        Shape(64, 4096, 4096),
        Shape(1024, 1024, 1024),
        Shape(192, 320, 448),
    ],
    ids=str,
)
def test_a_packet_of_zeros_buys_no_ticket_that_zero_operands_of_its_shape_do_not_have(shape: Shape) -> None:
    """So nobody gains by posting jobs to himself, whatever shape is the fastest: these tickets cost no gas, no fee."""
    seed = bytes(range(32))
    packet = work.evaluate(seed, np.zeros((shape.m, shape.k), np.int8), np.zeros((shape.k, shape.n), np.int8))
    zero = work.evaluate_idle(seed, shape)
    assert zero is not None
    assert packet.states is not None
    assert np.array_equal(packet.states, zero.states)


def test_idle_and_paid_blocks_mint_and_weigh_the_same() -> None:
    """Neither the subsidy nor the fork choice looks at the unit: the fee alone pays for useful work."""
    chain = worker_chain([DAVE])
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction])
    idle = chain.check(chain.candidate(miner=DAVE))
    paid = chain.check(chain.candidate(packet=job.packets[0]))
    (answer,) = (event for event in paid.transition.events if isinstance(event, Answered))
    assert answer.won
    assert paid.transition.reward - answer.share == idle.transition.reward == chain.params.initial_subsidy
    assert paid.total_work == idle.total_work


def test_a_product_copied_from_gossip_is_worth_nothing() -> None:
    """Neither as a Result, nor as a block's unit, nor for a packet of the same job that the thief holds himself."""
    chain = worker_chain([DAVE, ERIN, FRANK])
    job = chain.job(ALICE, operand(128, 64), operand(64, 64, 1), rows=64)
    chain.mine([job.transaction])
    seen, own = job.packets
    thief = chain.holder(own)
    assert thief is not None
    copied = chain.product(seen).commitment
    chain.reject(Reason.NOT_ASSIGNEE, results=[chain.result(seen, thief, copied)])
    chain.reject(Reason.NOT_ASSIGNEE, packet=seen, miner=thief)
    chain.reject(Reason.WRONG_PRODUCT, results=[chain.result(own, thief, copied)])


@pytest.mark.parametrize("share", SHARES)
def test_each_packet_withheld_burns_what_stood_for_it(share: float) -> None:
    """More than any saved work: even if honest work cost all that it is paid, withholding would lose the fines."""
    setting = replace(LOSING[2].market, share=share, seed=1)
    economy = Economy(setting, Withholding(True))
    played, honest = economy.run(), Economy(setting, Strategy()).run()
    misses = [event for event in played.events if isinstance(event, Missed)]
    fines = len(misses) * economy.chain.params.min_reserve
    assert misses
    assert fines == sum(event.burned for event in misses)
    pay = sum(e.fee - e.burned for e in honest.events if isinstance(e, Answered))
    assert played.grains - honest.grains <= -fines
    assert fines >= 4 * pay * len(misses) // max(1, sum(isinstance(e, Answered) for e in honest.events))


# --- limits: what a strategy can gain, and no more (docs/economics.md)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_censoring_ones_own_jobs_loses_without_a_majority(share: float) -> None:
    assert gain(CENSORING, share, blocks=40) < 0


def test_censoring_pays_only_with_all_blocks_of_a_window() -> None:
    """share¹⁰ is the chance that nobody else mines for a window; 2 % of the fee is lost where somebody does."""
    share, window = 0.64, 10
    assert share**window * (1 - share**window) < 0.02 * share < 0.7**window
    assert gain(CENSORING, 0.9, blocks=40, seeds=2) < 4 * 10 * FEE, "never more than the fees of the jobs"


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("case", [*ORDERING, UNDERCUTTING], ids=lambda case: case.name)
def test_what_moves_others_answers_or_draws_gains_no_more_than_luck(case: Case, share: float) -> None:
    """Every answer is paid in full, in any order. Whatever moves Results, places or the queue is another draw of the
    dealing, which moves a few fees to either side: less than six here, of some 80 that are paid."""
    assert gain(case, share, seeds=6) < 6 * FEE
