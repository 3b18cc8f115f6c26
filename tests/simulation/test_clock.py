"""The public network's clock under jumps of hash rate, pauses and lying miners: nobody honest is fined.

Real rules for targets, times and ticks; the lottery alone is drawn: a block comes after an exponential time whose mean
follows from the target and the hash rate, and never sooner than `QUICKEST_S`, which is what it takes to make and pass
one on. Workers answer some time after they were dealt a packet, by the real clock.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from consensus import params, state, validation
from consensus.events import Answered, Dealt, Missed
from consensus.params import TILE, Allocation
from consensus.transaction import Transaction
from tests.builders import ALICE, DAVE, ERIN, FRANK, GRACE, ChainBuilder, operand

WORKERS = (DAVE, ERIN, FRANK, GRACE)
MAINNET = params.mainnet()
QUICKEST_S = 0.02
HOUR = 3_600.0


class Clockwork:
    """One mainnet chain, with honest workers who take `answer_s` for a packet.

    Attributes:
        now_s: the real time since genesis.
        lead_s, liars: by how much the times of that share of the blocks are ahead.
        missed, answered: packets.
        intervals: real seconds between blocks, oldest first.
    """

    def __init__(self, seed: int, answer_s: float = 20.0, lead_s: float = 0.0, liars: float = 0.0) -> None:
        """`liars` is the share of blocks whose times are `lead_s` ahead of the real time, as far as rules allow."""
        funded = tuple(Allocation(key.address, 10_000 * TILE) for key in (ALICE, *WORKERS))
        rules = replace(MAINNET, allocations=funded)
        self.chain = ChainBuilder(rules, worked=False)
        self.now_s = 0.0
        self.missed = self.answered = 0
        self.intervals: list[float] = []
        self.windows: list[float] = []
        self._luck = random.Random(seed)
        self._answer_s = answer_s
        self.lead_s = lead_s
        self.liars = liars
        self._held: dict[bytes, float] = {}
        self._jobs = 0
        self.mine([self.chain.register(worker, packets=2) for worker in WORKERS])
        while state.ledger(self.chain.state).places < 2 * len(WORKERS):
            self.mine()

    def pause(self, seconds: float) -> None:
        """Nobody mines."""
        self.now_s += seconds

    def work(self, blocks: int, rate: float = 1.0) -> None:
        """Mine so many blocks at `rate` times the hash rate for which the anchor's target gives the spacing."""
        for number in range(blocks):
            offers = []
            if number % 4 == 0 and len(self._held) < len(WORKERS):
                self._jobs += 1
                left, right = operand(64, 64, self._jobs), operand(64, 64, 99)
                offers = [self.chain.job(ALICE, left, right, price=1, max_base_fee=10).transaction]
            self.mine(offers, rate)

    def mine(self, transactions: Sequence[Transaction] = (), rate: float = 1.0) -> None:
        """One block."""
        chain, parent = self.chain, self.chain.tip.header
        ease = validation.expected_target(chain.params, parent) / int.from_bytes(MAINNET.anchor_target, "big")
        mean_s = MAINNET.spacing_ms / 1000 / ease / rate
        took_s = max(QUICKEST_S, self._luck.expovariate(1 / mean_s))
        self.now_s += took_s
        self.intervals.append(took_s)
        lead_s = self.lead_s if self._luck.random() < self.liars else 0.0
        earliest_ms = sorted(chain.tip.context().times_ms)[len(chain.tip.context().times_ms) // 2] + 1
        time_ms = max(earliest_ms, MAINNET.genesis_time_ms + round((self.now_s + lead_s) * 1000))
        ready = [packet for packet, dealt_s in self._held.items() if self.now_s - dealt_s >= self._answer_s]
        results = [chain.result(packet_id) for packet_id in ready]
        node = chain.mine(transactions, results, time_ms=time_ms)
        for event in node.transition.events:
            match event:
                case Dealt():
                    self._held[event.packet_id] = self.now_s
                case Answered():
                    del self._held[event.packet_id]
                    self.answered += 1
                case Missed():
                    self.windows.append(self.now_s - self._held.pop(event.packet_id))
                    self.missed += 1


def shortest_window(lead_s: float, blocks: int, rate: float) -> float:
    """Real seconds, where half of the blocks lie by `lead_s` and workers never answer, so that each window shows."""
    clock = Clockwork(1, answer_s=1e9, lead_s=lead_s, liars=0.5)
    clock.work(40)
    clock.work(blocks, rate=rate)
    while clock.missed < 4:
        clock.work(20)
    return min(clock.windows)


@pytest.mark.parametrize("seed", range(3))
def test_a_thousandfold_of_hash_rate_fines_nobody_honest(seed: int) -> None:
    """It joins, makes hundreds of blocks in seconds, goes again, and comes back: every answer is in time."""
    clock = Clockwork(seed)
    clock.work(60)
    clock.work(400, rate=1_000.0)
    quick = sorted(clock.intervals[-400:])[:200]
    assert statistics.median(quick) < 1.0, "a jump it was"
    clock.work(10, rate=1.0)
    clock.work(60, rate=1_000.0)
    assert clock.missed == 0
    assert clock.answered > 15


@pytest.mark.parametrize("seed", range(3))
def test_after_a_pause_of_hours_nobody_honest_is_fined_and_the_spacing_is_back_soon(seed: int) -> None:
    """Six hours are 720 spacings: five hundred blocks come in a minute, the rest within the hour, then all is usual."""
    clock = Clockwork(seed)
    clock.work(60)
    clock.pause(6 * HOUR)
    resumed_s, resumed_at = clock.now_s, clock.chain.height
    clock.work(500)
    assert clock.now_s - resumed_s < 60, "hundreds of quick blocks"
    while clock.now_s - resumed_s < HOUR:
        clock.work(20)
    assert clock.chain.height - resumed_at < 720 + 3 * 120
    clock.work(200)
    assert 0.6 < statistics.mean(clock.intervals[-200:]) / 30 < 1.6
    assert clock.missed == 0
    assert clock.answered > 40


@pytest.mark.parametrize("rate", [1.0, 1_000.0])
@pytest.mark.parametrize("lead_s", [-60.0, -HOUR])
def test_half_of_the_blocks_with_times_held_back_only_lengthen_windows(lead_s: float, rate: float) -> None:
    assert shortest_window(lead_s, blocks=300, rate=rate) >= 150


@pytest.mark.parametrize("held_s", [0.0, 30.0, 60.0])
def test_who_makes_every_block_and_holds_times_back_shortens_a_window_by_as_much(held_s: float) -> None:
    """The limit that docs/economics.md states: all blocks are the liar's, who deals at an old time and then hurries."""
    clock = Clockwork(2, answer_s=1e9)
    clock.mine(rate=1_000.0)
    clock.liars = 1.0
    clock.pause(held_s)
    clock.lead_s = -held_s
    offer = clock.chain.job(ALICE, operand(64, 64, 7), operand(64, 64, 99), price=1, max_base_fee=10)
    clock.mine([offer.transaction], rate=1_000.0)
    assert clock.chain.held(offer)
    while not clock.missed:
        stamped_s = (clock.chain.tip.header.core.time_ms - MAINNET.genesis_time_ms) / 1000
        clock.lead_s = min(60.0, stamped_s + MAINNET.spacing_ms / 4000 - clock.now_s)  # a tick with every block
        clock.mine(rate=1_000.0)
    assert clock.windows[0] == pytest.approx(90 - held_s, abs=15)


@pytest.mark.parametrize("rate", [1.0, 1_000.0])
def test_a_window_lasts_ninety_seconds_whatever_the_clocks_say(rate: float) -> None:
    """Half of the blocks are a minute ahead, as far as anybody accepts; workers never answer, so each window shows."""
    lead_s = (validation.max_time_ms(MAINNET, 0)) / 1000
    assert lead_s == 60
    assert shortest_window(lead_s, blocks=500, rate=rate) >= 90


def test_heights_would_have_fined_everybody() -> None:
    """Why windows are counted in ticks: twenty blocks of the jump pass in less than ten seconds."""
    clock = Clockwork(2)
    clock.work(60)
    clock.work(40, rate=1_000.0)
    assert sum(clock.intervals[-40:-20]) < 10
