"""Random blocks through the code and through the model: the same state after each, to the grain and the place."""

from __future__ import annotations

import random
from typing import Any

import pytest

from consensus import state
from consensus.codec import MAX_AMOUNT
from consensus.params import TILE
from consensus.state import PacketStatus
from consensus.transaction import Transaction
from tests.builders import DAVE, ERIN, FRANK, GRACE, HEIDI, MINER, USERS, ChainBuilder, Job, Key, operand, regtest
from tests.model.ledger import Model

WORKERS = (DAVE, ERIN, FRANK, GRACE, HEIDI)
SMALL: dict[str, Any] = {
    "window": 4,
    "liveness": 6,
    "max_life": 40,
    "maturity": 5,
    "registration_delay": 5,
    "retention": 60,
    "max_reorg": 20,
    "max_examined": 4,
    "max_tries": 8,
    "max_results": 5,
    "max_missed": 4,
    "max_seated": 6,
    "max_closed": 5,
    "initial_base_fee": 1_000,
}


class Story:
    """Random blocks from one seed."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.chain = ChainBuilder(regtest(**SMALL), worked=False)
        self.model = Model(self.chain.params, self.chain.genesis_hash)
        self.jobs: list[Job] = []
        self.seen: dict[str, int] = {}

    def block(self) -> None:
        """One more, compared."""
        luck, chain = self.luck, self.chain
        sent = [tx for tx in (self._transaction() for _ in range(luck.choice((0, 0, 1, 1, 2, 4)))) if tx is not None]
        held = [h.packet_id for _, worker in state.WORKERS.scan(chain.state) for h in worker.holds]
        luck.shuffle(held)
        keen = luck.choice((0.0, 0.3, 0.9))
        pace = luck.choice(((20,), (499, 500, 501), (2_000, 2_000, 9_000)))
        answered = [packet_id for packet_id in held if luck.random() < keen][: chain.params.max_results]
        unit = answered.pop() if answered and luck.random() < 0.3 else None
        step_ms = luck.choice(pace)
        miner = None if unit is not None else luck.choice((*WORKERS, MINER))
        node = chain.mine(
            sent,
            [chain.result(packet_id) for packet_id in answered],
            packet=unit,
            miner=miner,
            time_ms=chain.tip.header.core.time_ms + step_ms,
        )
        self.model.apply(node.block)
        assert [receipt.reason for receipt in node.transition.receipts] == self.model.reasons
        for event in node.transition.events:
            self.seen[type(event).__name__] = self.seen.get(type(event).__name__, 0) + 1
        compare(chain, self.model)

    def _transaction(self) -> Transaction | None:
        luck, chain = self.luck, self.chain
        tick = state.ledger(chain.state).tick
        terms: dict[str, Any] = {"tip": luck.choice((0, 1, 5)), "max_base_fee": 10**4}
        kind = luck.random()
        if kind < 0.15:
            amount = luck.choice((0, 1, TILE, 10**18))
            return chain.transfer(luck.choice(USERS), luck.choice((*USERS, Key("nobody"))), amount, **terms)
        if kind < 0.4:
            worker, packets = luck.choice(WORKERS), luck.choice((1, 2, 3, 5))
            bond = luck.choice((0, 10 * TILE, 40 * TILE, 60 * TILE, packets * 10 * TILE))
            price, most = luck.choice((0, 0, 0, 3 << 20, MAX_AMOUNT)), luck.choice((1 << 25, 1 << 25, 24_576, 24_575))
            return chain.register(worker, packets, bond, price, most, **terms)
        if kind < 0.42:
            return chain.retire(luck.choice(WORKERS), **terms)
        if kind < 0.48 and self.jobs:
            return chain.cancel(luck.choice(USERS), luck.choice(self.jobs[-6:]), **terms)
        rows, price = luck.choice((1, 2, 4, 7)), luck.choice((1, 1 << 20, 3 << 20, 2 << 30, 10**9 << 20))
        life = luck.choice((4, 5, 6, 9, 20, 30, 40, 41))
        job = chain.job(
            luck.choice(USERS),
            operand(64 * rows, 64, luck.randrange(50)),
            operand(64, luck.choice((64, 64, 128)), luck.randrange(50)),
            rows=64,
            threshold=luck.randint(1, rows),
            price=price,
            expiry=tick + life,
            **terms,
        )
        self.jobs.append(job)
        return job.transaction


def compare(chain: ChainBuilder, model: Model) -> None:
    """Everything that the state holds, against everything that the model holds."""
    view, known = chain.state, state.ledger(chain.state)
    assert (known.issued, known.burned, known.base_fee) == (model.issued, model.burned, model.base_fee)
    assert (known.sequence, known.tick, known.ticked_ms) == (model.sequence, model.tick, model.ticked_ms)
    assert list(known.tickets) == model.tickets
    accounts = {address: (account.balance, account.nonce) for address, account in state.ACCOUNTS.scan(view)}
    addresses = {*accounts, *model.balance, *model.nonce}
    for address in addresses:
        expected = model.balance.get(address, 0), model.nonce.get(address, 0)
        assert accounts.get(address, (0, 0)) == expected
    rewards = {int.from_bytes(key, "big"): (r.miner, r.amount) for key, r in state.REWARDS.scan(view)}
    assert rewards == model.rewards
    compare_workers(chain, model)
    compare_jobs(chain, model)


def compare_workers(chain: ChainBuilder, model: Model) -> None:
    view = chain.state
    places = chain.places()
    assert places == model.array
    assert state.ledger(view).places == len(places)
    found = {}
    for address, w in state.WORKERS.scan(view):
        assert [places[position] for position in w.places] == [(address, number) for number in range(len(w.places))]
        declared, announced = ((one.min_price, one.max_unit_bytes, one.places) for one in (w.declared, w.announced))
        holds = {holding.packet_id: (holding.number, holding.job) for holding in w.holds}
        record = (w.bond, w.seen, w.announced_for, w.review_at, w.retired_at, w.reserved, w.paid, w.burned, w.missed)
        found[address] = (record, declared, announced, len(w.places), holds)
    assert found == {
        address: (
            (w.bond, w.seen, w.announced_for, w.review_at, w.retired_at, w.reserved, w.paid, w.burned, w.missed),
            w.declared,
            w.announced,
            w.places,
            w.holds,
        )
        for address, w in model.workers.items()
    }
    reviews = {(int.from_bytes(key[:8], "big"), key[8:]) for key, _ in state.REVIEWS.scan(view)}
    assert reviews == {(w.review_at, address) for address, w in model.workers.items() if w.review_at}


def compare_jobs(chain: ChainBuilder, model: Model) -> None:
    view, names = chain.state, {status: status.name.lower() for status in PacketStatus}
    packets = {}
    for packet_id, p in state.PACKETS.scan(view):
        held = p.status == PacketStatus.HELD
        packets[packet_id] = (names[p.status], p.fee, (p.worker, p.place, p.dealt_at) if held else None)
    assert packets == {
        packet_id: (p.status, p.fee, (p.worker, p.number, p.dealt_at) if p.status == "held" else None)
        for packet_id, p in model.packets.items()
    }
    groups = {
        job: (g.escrow, g.done, g.held, bool(g.completed_at), g.cancelled, g.swept, g.closes_at or None, g.kept_until)
        for job, g in state.GROUPS.scan(view)
    }
    assert groups == {
        job: (g.escrow, g.done, model._held_of(g), g.completed, g.cancelled, g.swept, g.due_at, g.kept_until)
        for job, g in model.groups.items()
    }
    assert [entry.packet_id for _, entry in state.QUEUE.scan(view)] == [packet_id for _, packet_id in model.queue()]
    held = [p for p in model.packets.values() if p.status == "held"]
    known = state.ledger(view)
    assert (known.held, known.held_bytes) == (len(held), sum(p.product_bytes for p in held))
    if model.through is not None:
        price, sequence, index = model.through
        key = b"q" + (MAX_AMOUNT + price).to_bytes(8, "big") + sequence.to_bytes(8, "big") + index.to_bytes(4, "big")
        assert known.dealt_through == key


def tell(seed: int, blocks: int) -> dict[str, int]:
    story = Story(seed)
    for _ in range(blocks):
        story.block()
    issued, held = story.chain.supply()
    assert issued == held
    return story.seen


@pytest.mark.parametrize("seed", range(6))
def test_code_and_model_agree_after_every_random_block(seed: int) -> None:
    tell(seed, 120)


def test_the_stories_tell_of_everything() -> None:
    """Otherwise the agreement would say little."""
    seen: dict[str, int] = {}
    for seed in range(100, 104):
        for name, times in tell(seed, 150).items():
            seen[name] = seen.get(name, 0) + times
    wanted = ("Opened", "Dealt", "Answered", "Missed", "Dropped", "Completed", "Cancelled", "Closed")
    assert all(seen.get(name, 0) >= 3 for name in wanted), seen


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1_000, 1_020))
def test_code_and_model_agree_over_long_stories(seed: int) -> None:
    tell(seed, 400)
