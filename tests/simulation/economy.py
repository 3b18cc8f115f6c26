"""An economy in miniature: honest workers and miners, one adversary with a share of everything, and the real rules.

Blocks are executed by consensus on a `ChainBuilder`; only luck is simulated. Who mines a block is drawn from a seed,
height by height, so two runs with one seed see the same luck and what differs between them is the strategy alone.

A run's outcome is what the adversary owns at its end more than at its beginning: balances, immature rewards, bonds and
escrow of all accounts that are his, in grains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from consensus import state
from consensus.events import Event
from consensus.params import TILE, Allocation
from consensus.rules import jobs, workers
from consensus.shape import Shape
from consensus.state import Packet, PacketStatus
from consensus.transaction import Result, Transaction
from tests.builders import GENESIS_TIME_MS, ChainBuilder, Int8, Job, Key, operand, regtest

IDENTITIES = 20
"""Workers with a place each; the adversary has his share of them."""
SPARE = 20
"""Further identities that a hoarder may register."""
MARKET_PRICE = 75_000_000 << 18
"""Grains per 2⁴⁰ of weight for which the honest work: 0.075 TILE for the packets here."""
SIDE = 64
CUBE = Shape(SIDE, SIDE, SIDE)
_FUNDS = 100_000 * TILE

USER, OWNER = Key("economy/user"), Key("economy/adversary")
HONEST_MINER = Key("economy/miner")
WORKERS = tuple(Key(f"economy/worker {number}") for number in range(IDENTITIES))
SPARES = tuple(Key(f"economy/spare {number}") for number in range(SPARE))
_KEYS = {key.address: key for key in (USER, OWNER, HONEST_MINER, *WORKERS, *SPARES)}


@dataclass(frozen=True)
class Setting:
    """What both runs of a comparison share.

    Attributes:
        share: the adversary's part of the mining power and of the places, 0 … 1.
        blocks: how many are mined after the workers' registrations are in force.
        packets, threshold: of the honest user's jobs, one every `interval` blocks; 0 packets for a quiet market.
        works: whether the adversary has his share of the workers too. Without, no luck in the dealing blurs a result.
        price: of the user's jobs, and the least for which the honest work, in grains per 2⁴⁰ of weight.
    """

    share: float
    seed: int = 0
    blocks: int = 40
    packets: int = 4
    threshold: int = 4
    interval: int = 2
    works: bool = True
    price: int = MARKET_PRICE

    @property
    def places(self) -> int:
        """How many of the workers are the adversary's."""
        return max(1, round(self.share * IDENTITIES)) if self.works else 0


class Strategy:
    """The honest one: answer whatever is dealt at the first chance, include all Results as they come."""

    def transactions(self, economy: Economy) -> list[Transaction]:
        """What the adversary sends in the next block."""
        return []

    def answers_now(self, economy: Economy, packet_id: bytes, packet: Packet) -> bool:
        """Whether a packet that he holds is answered in the next block."""
        return True

    def admitted(self, economy: Economy, results: list[Result]) -> list[Result]:
        """The Results that he includes when he mines, in his order."""
        return results

    def unit(self, economy: Economy) -> bytes | None:
        """The packet that his lottery runs on; None for idle units. Its holder is the block's miner."""
        return None


@dataclass(frozen=True)
class Outcome:
    """Grains that the adversary gained, the blocks that he mined, what happened, and what gas he burned."""

    grains: int
    blocks_mined: int
    events: list[Event]
    gas_grains: int


class Economy:
    """One run. See the module's docstring."""

    def __init__(self, setting: Setting, strategy: Strategy) -> None:
        self.setting = setting
        self.strategy = strategy
        funded = (USER, OWNER, *WORKERS, *SPARES)
        allocations = tuple(Allocation(key.address, _FUNDS) for key in funded)
        # Another genesis for each seed, or the first packets would be dealt alike in all of them.
        rules = regtest(genesis_time_ms=GENESIS_TIME_MS + 1000 * setting.seed, allocations=allocations)
        self.chain = ChainBuilder(rules, worked=False)
        self.mine = WORKERS[: setting.places]
        self.owned = {key.address for key in (OWNER, *self.mine, *SPARES)}
        self.events: list[Event] = []
        self.pending: list[bytes] = []
        self.gas_grains = 0
        self._luck = random.Random(f"luck/{setting.seed}")
        self._order = random.Random(f"order/{setting.seed}")
        honest = [w for w in WORKERS if w not in self.mine]
        self.bond = workers.reserve(self.chain.params, jobs.packet_fee(self.chain.params, setting.price, CUBE))
        registrations = [self.chain.register(worker, bond=self.bond) for worker in self.mine]
        registrations += [self.chain.register(w, bond=self.bond, min_price=setting.price) for w in honest]
        self.chain.mine(registrations, miner=HONEST_MINER, count=self.chain.params.registration_delay + 1)

    def run(self) -> Outcome:
        """Mine all blocks."""
        before, mined = self.wealth(), 0
        for number in range(self.setting.blocks):
            mined += self._step(number)
        return Outcome(self.wealth() - before, mined, self.events, self.gas_grains)

    def wealth(self) -> int:
        """All grains that are the adversary's, whatever record holds them."""
        view = self.chain.state
        total = 0
        for address in self.owned:
            worker = state.WORKERS.get(view, address)
            total += state.account(view, address).balance + (worker.bond if worker else 0)
        total += sum(group.escrow for _, group in state.GROUPS.scan(view) if group.owner in self.owned)
        return total + sum(reward.amount for _, reward in state.REWARDS.scan(view) if reward.miner in self.owned)

    def held(self) -> list[tuple[bytes, Packet]]:
        """All packets that anybody holds."""
        return [(packet_id, packet) for packet_id, packet in _packets(self.chain) if packet.status == PacketStatus.HELD]

    def is_owners(self, packet: Packet) -> bool:
        """Whether the packet belongs to a job of the adversary."""
        group = state.GROUPS.get(self.chain.state, packet.job)
        return group is not None and group.owner == OWNER.address

    def job(self, owner: Key, packets: int, threshold: int, price: int, zero: bool = False, **changes: Any) -> Job:
        """A job of so many 64×64×64 packets; zero ones if asked (their left operands zero)."""
        left, right = _operands(packets, zero)
        terms = {"threshold": threshold, "price": price, "max_base_fee": 10**6, **changes}
        return self.chain.job(owner, left, right, rows=SIDE, **terms)

    def _step(self, number: int) -> bool:
        setting, chain, strategy = self.setting, self.chain, self.strategy
        transactions, self.pending = [], []
        if setting.packets and number % setting.interval == 0:
            offer = self.job(USER, setting.packets, setting.threshold, setting.price)
            transactions.append(offer.transaction)
            self.pending += offer.packets
        his = strategy.transactions(self)
        transactions += his
        unit = strategy.unit(self)
        lucky = self._luck.random() < setting.share
        results = []
        for packet_id, packet in self.held():
            adversarial = packet.worker in self.owned
            if not adversarial or strategy.answers_now(self, packet_id, packet):
                results.append(chain.result(packet_id, _KEYS[packet.worker]))
        self._order.shuffle(results)
        if lucky:
            results = strategy.admitted(self, results)
        if lucky and unit is not None:
            holder = _KEYS[chain.packet(unit).worker]
            results = [result for result in results if result.body.packet_id != unit]
            node = chain.mine(transactions, results, miner=holder, packet=unit)
        else:
            node = chain.mine(transactions, results, miner=OWNER if lucky else HONEST_MINER)
        self.events += node.transition.events
        if his:
            self.gas_grains += sum(receipt.fee for receipt in node.transition.receipts[-len(his) :])
        return lucky


def compare(setting: Setting, strategy: Strategy, baseline: Strategy) -> tuple[Outcome, Outcome]:
    """(the strategy's outcome, the honest one's) with the same share, luck and blocks."""
    return Economy(setting, strategy).run(), Economy(setting, baseline).run()


def advantages(
    setting: Setting, strategy: Callable[[], Strategy], baseline: Callable[[], Strategy], seeds: Iterable[int]
) -> list[int]:
    """Grains that the strategy gains more than the honest one, with each seed."""
    pairs = [compare(replace(setting, seed=seed), strategy(), baseline()) for seed in seeds]
    return [played.grains - honest.grains for played, honest in pairs]


@lru_cache
def _operands(packets: int, zero: bool) -> tuple[Int8, Int8]:
    left, right = operand(SIDE * packets, SIDE, packets), operand(SIDE, SIDE, 99)
    if zero:  # operands must be distinct, so one entry tells them apart: as good as zero
        left = np.zeros_like(left)
        left[::SIDE, 0] = np.arange(packets)
    return left, right


def _packets(chain: ChainBuilder) -> list[tuple[bytes, Packet]]:
    workers = [worker for _, worker in state.WORKERS.scan(chain.state)]
    return [(held.packet_id, chain.packet(held.packet_id)) for worker in workers for held in worker.holds]
