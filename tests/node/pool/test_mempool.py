"""The pool's rules: nonces, fees, balances, room, order, and what blocks do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus import state
from consensus.block import HeaderCore, Zero
from consensus.codec import encode
from consensus.params import TILE
from consensus.state import Account, Overlay, StateReader
from consensus.transaction import Output, Payload, RegisterWorker, Transaction, Transfer, TxBody
from consensus.transition import genesis_transition
from node.chain.headers import HeaderEntry
from node.pool.mempool import EXPIRY_BLOCKS, MAX_PENDING_PER_ACCOUNT, MAX_POOL_BYTES, Mempool, NonceError, PoolError
from tests.builders import ALICE, BOB, CAROL, DAVE, FUNDS, KEYS, ChainBuilder, Key, operand, regtest
from tests.fakes import Snapshot

T = TypeVar("T")

GENESIS = bytes(32)
GAS = 10_000


class World:
    """A tip whose accounts and base fee are set by hand, and a pool that looks at it."""

    def __init__(self, max_bytes: int = MAX_POOL_BYTES) -> None:
        self.params = regtest()
        _, founding = genesis_transition(self.params)
        self.state = Overlay(Snapshot({}).changed(founding.writes))
        self.height = 0
        self.pool = Mempool(self, max_bytes)

    @property
    def tip(self) -> HeaderEntry:
        zero = bytes(32)
        core = HeaderCore(1, 3, self.height, zero, zero, 0, zero, bytes(20), zero, zero, Zero(64, 64, 64), bytes(8))
        return HeaderEntry(zero, core, None, 0)

    def read(self, function: Callable[[StateReader], T]) -> T:
        return function(self.state)

    def set_account(self, key: Key, balance: int = FUNDS, nonce: int = 0) -> None:
        state.ACCOUNTS.put(self.state, Account(balance, nonce), key.address)

    def set_base_fee(self, base_fee: int) -> None:
        state.LEDGER.put(self.state, replace(state.ledger(self.state), base_fee=base_fee))

    def add(self, *txs: Transaction) -> None:
        for tx in txs:
            assert self.pool.add(tx, tx.body.txid(GENESIS))

    def refuse(self, code: str, tx: Transaction) -> PoolError:
        """The pool refuses `tx` for this reason, and is as it was."""
        before = (self.pool.total_bytes, len(self.pool), self.order())
        with pytest.raises(PoolError) as caught:
            self.pool.add(tx, tx.body.txid(GENESIS))
        assert caught.value.code == code
        assert caught.value.fix
        assert before == (self.pool.total_bytes, len(self.pool), self.order())
        return caught.value

    def order(self, base_fee: int = 1, limit: int = 1000) -> list[tuple[str, int]]:
        """(sender, nonce) in the order in which a block would take them."""
        return [(KEYS[p.address].name, p.nonce) for p in self.pool.best(base_fee, limit)]


def tx(
    sender: Key, nonce: int = 0, tip: int = 1, max_base_fee: int = 100, payload: Payload | None = None
) -> Transaction:
    """Unsigned: the pool is behind the signature check."""
    payload = payload or Transfer((Output(BOB.address, 1),))
    return Transaction(TxBody(sender.public, nonce, tip, GAS, max_base_fee, payload), bytes(64))


def paying(amount: int) -> Transfer:
    return Transfer((Output(BOB.address, amount),))


# --- nonces


def test_nonces_in_a_row_are_taken_in_their_order() -> None:
    world = World()
    world.add(tx(ALICE, 1), tx(ALICE, 0), tx(ALICE, 2))
    assert world.order() == [("alice", 0), ("alice", 1), ("alice", 2)]
    assert world.pool.next_nonce(ALICE.address) == 3


def test_what_stands_behind_a_gap_waits() -> None:
    world = World()
    world.add(tx(ALICE, 0), tx(ALICE, 2, tip=50))
    assert world.order() == [("alice", 0)]
    assert world.pool.next_nonce(ALICE.address) == 1
    world.add(tx(ALICE, 1))
    assert world.order() == [("alice", 0), ("alice", 1), ("alice", 2)]


def test_a_used_nonce_is_refused() -> None:
    world = World()
    world.set_account(ALICE, nonce=5)
    world.refuse("nonce-too-low", tx(ALICE, 4))
    world.add(tx(ALICE, 5))
    assert "use 6, or one from 5 on" in world.refuse("nonce-too-low", tx(ALICE, 4)).fix


def test_an_account_may_have_64_pending() -> None:
    world = World()
    world.set_account(ALICE, nonce=10)
    world.add(*(tx(ALICE, 10 + i) for i in range(MAX_PENDING_PER_ACCOUNT)))
    error = world.refuse("too-many-pending", tx(ALICE, 10 + MAX_PENDING_PER_ACCOUNT))
    assert "have taken 1 of" in error.fix
    assert isinstance(error, NonceError)
    assert (error.account_nonce, error.next_nonce) == (10, 74)
    assert "have taken 7 of" in world.refuse("too-many-pending", tx(ALICE, 80)).fix
    world.add(tx(CAROL, 63))
    world.refuse("too-many-pending", tx(CAROL, 64))


def test_the_same_transaction_twice_is_one() -> None:
    world = World()
    world.add(tx(ALICE))
    assert not world.pool.add(tx(ALICE), tx(ALICE).body.txid(GENESIS))
    assert len(world.pool) == 1


# --- replacement


@pytest.mark.parametrize(
    ("tip", "max_base_fee", "accepted"),
    [
        (110, 990, True),  # the fee, tip and base fee together, rises from 1000 to 1100
        (109, 2000, False),
        (110, 989, False),
        (100, 5000, False),
        (500, 600, True),
    ],
)
def test_a_replacement_pays_a_tenth_more_on_tip_and_fee(tip: int, max_base_fee: int, accepted: bool) -> None:
    world = World()
    old = tx(ALICE, tip=100, max_base_fee=900)
    world.add(old)
    new = tx(ALICE, tip=tip, max_base_fee=max_base_fee)
    if not accepted:
        world.refuse("replacement-underpriced", new)
        return
    world.add(new)
    assert len(world.pool) == 1
    assert world.pool.get(new.body.txid(GENESIS)) == new
    assert world.pool.get(old.body.txid(GENESIS)) is None


def test_a_replacement_of_nothing_must_still_pay_more() -> None:
    world = World()
    world.add(tx(ALICE, tip=0, max_base_fee=1))
    world.refuse("replacement-underpriced", tx(ALICE, tip=0, max_base_fee=1, payload=paying(2)))
    world.refuse("replacement-underpriced", tx(ALICE, tip=0, max_base_fee=100, payload=paying(2)))
    world.add(tx(ALICE, tip=1, max_base_fee=1, payload=paying(2)))


# --- fees and balances


def test_a_transaction_that_cannot_pay_the_base_fee_is_refused() -> None:
    world = World()
    world.set_base_fee(101)
    error = world.refuse("fee-too-low", tx(ALICE, max_base_fee=100))
    assert "101" in error.fix


def test_one_that_allowed_too_little_waits_until_the_base_fee_falls() -> None:
    world = World()
    world.add(tx(ALICE, tip=9, max_base_fee=100), tx(CAROL, tip=1, max_base_fee=500))
    assert world.order(base_fee=101) == [("carol", 0)]
    assert world.order(base_fee=100) == [("alice", 0), ("carol", 0)]


def test_the_balance_covers_all_that_is_pending() -> None:
    world = World()
    fee = GAS * 101
    world.set_account(ALICE, 2 * fee + 10)
    world.add(tx(ALICE, 0, payload=paying(4)))
    world.refuse("insufficient-balance", tx(ALICE, 1, payload=paying(7)))
    world.add(tx(ALICE, 1, payload=paying(6)))
    world.refuse("insufficient-balance", tx(ALICE, 2))


def test_a_replacement_counts_in_place_of_what_it_replaces() -> None:
    world = World()
    world.set_account(ALICE, GAS * 1400)
    world.add(tx(ALICE, tip=100, max_base_fee=900))
    world.add(tx(ALICE, tip=200, max_base_fee=1000))


def test_bonds_and_escrows_count() -> None:
    world = World()
    fee = GAS * 101
    world.set_account(DAVE, 100 * TILE + fee - 1)
    world.refuse("insufficient-balance", tx(DAVE, payload=RegisterWorker(bytes(32), 0, 1, 1, 100 * TILE)))
    job = ChainBuilder(world.params).job(DAVE, operand(64, 64), operand(64, 64))
    world.set_account(DAVE, job.transaction.body.gas_limit * 10**9)
    escrow = 1 << 22
    world.refuse("insufficient-balance", job.transaction)
    world.set_account(DAVE, job.transaction.body.gas_limit * 10**9 + escrow)
    world.add(job.transaction)


# --- order


def test_the_dearest_goes_first_and_equal_ones_by_arrival() -> None:
    world = World()
    world.add(tx(ALICE, tip=5), tx(BOB, tip=7), tx(CAROL, tip=5), tx(DAVE, tip=6))
    assert [name for name, _ in world.order()] == ["bob", "dave", "alice", "carol"]
    assert len(world.order(limit=2)) == 2


def test_a_high_tip_behind_a_low_one_gains_nothing() -> None:
    world = World()
    world.add(tx(ALICE, 0, tip=1), tx(ALICE, 1, tip=99), tx(BOB, tip=5))
    assert world.order() == [("bob", 0), ("alice", 0), ("alice", 1)]


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB, CAROL]), st.integers(0, 5), st.integers(0, 9)), max_size=30))
def test_every_prefix_of_the_order_could_be_a_block(wishes: list[tuple[Key, int, int]]) -> None:
    world = World()
    for key, nonce, tip in wishes:
        wish = tx(key, nonce, tip)
        try:
            world.pool.add(wish, wish.body.txid(GENESIS))
        except PoolError as error:
            assert error.code == "replacement-underpriced"  # noqa: PT017  (any refusal but this one is a fault)
    expected: dict[str, int] = {}
    worth: dict[str, int] = {}
    last = 10
    for pending in world.pool.best(1, 1000):
        name = KEYS[pending.address].name
        assert pending.nonce == expected.get(name, 0)
        expected[name] = pending.nonce + 1
        worth[name] = min(worth.get(name, 10), pending.tx.body.tip)
        assert worth[name] <= last
        last = worth[name]
    for key in (ALICE, BOB, CAROL):
        assert world.pool.next_nonce(key.address) == expected.get(key.name, 0)
    assert world.pool.total_bytes == sum(p.size for p in world.pool._entries.values())


# --- room


def full_world(tips: dict[Key, int]) -> World:
    """A pool that holds exactly one transaction of each sender."""
    size = len(encode(tx(ALICE))) + 1024
    world = World(max_bytes=len(tips) * size)
    world.add(*(tx(key, tip=tip) for key, tip in tips.items()))
    return world


def test_a_full_pool_drops_the_one_that_pays_least() -> None:
    world = full_world({ALICE: 3, BOB: 1, CAROL: 2})
    world.add(tx(DAVE, tip=2))
    assert [name for name, _ in world.order()] == ["alice", "carol", "dave"]


def test_a_full_pool_refuses_what_pays_no_more() -> None:
    world = full_world({ALICE: 3, BOB: 1, CAROL: 2})
    error = world.refuse("pool-full", tx(DAVE, tip=1))
    assert "more than 1" in error.message


def test_what_no_block_can_take_makes_room_first() -> None:
    world = full_world({ALICE: 3, BOB: 2})
    world.pool._max_bytes *= 2
    world.add(tx(CAROL, 1, tip=90), tx(CAROL, 2, tip=90))
    world.add(tx(DAVE, tip=1))
    assert world.order() == [("alice", 0), ("bob", 0), ("dave", 0)]
    assert [t.body.nonce for _, t in world.pool.pending_of(CAROL.address)] == [1]
    world.refuse("pool-full", tx(DAVE, 2, tip=90))


def test_a_chain_of_nonces_loses_its_end_first() -> None:
    world = full_world({ALICE: 3})
    world.pool._max_bytes *= 3
    world.add(tx(ALICE, 1, tip=9), tx(ALICE, 2, tip=9))
    world.add(tx(BOB, tip=4))
    assert world.order() == [("bob", 0), ("alice", 0), ("alice", 1)]


def test_its_bytes_are_bounded_by_default() -> None:
    assert World().pool._max_bytes == 64 << 20


# --- blocks


def test_confirmed_transactions_leave_and_what_follows_stays() -> None:
    world = World()
    world.add(tx(ALICE, 0), tx(ALICE, 1), tx(BOB, 0))
    world.set_account(ALICE, nonce=1)
    world.pool.on_import([tx(ALICE, 0)], [])
    assert world.order() == [("alice", 1), ("bob", 0)]


def test_a_confirmed_rival_with_the_same_nonce_takes_its_place() -> None:
    world = World()
    world.add(tx(ALICE, 0), tx(ALICE, 1))
    world.set_account(ALICE, nonce=1)
    world.pool.on_import([tx(ALICE, 0, payload=paying(77))], [])
    assert world.order() == [("alice", 1)]


def test_what_the_account_can_no_longer_afford_leaves_from_the_end() -> None:
    world = World()
    world.add(tx(ALICE, 1), tx(ALICE, 2), tx(ALICE, 3))
    world.set_account(ALICE, 2 * GAS * 101 + 5, nonce=1)
    world.pool.on_import([tx(ALICE, 0)], [])
    assert world.order() == [("alice", 1), ("alice", 2)]


def test_transactions_of_undone_blocks_come_back() -> None:
    world = World()
    undone = [tx(ALICE, 0), tx(ALICE, 1)]
    world.set_account(ALICE, nonce=2)
    world.add(tx(ALICE, 2))
    assert world.order() == [("alice", 2)]
    world.set_account(ALICE, nonce=0)
    world.pool.on_import([], [(t, t.body.txid(GENESIS)) for t in undone])
    assert world.order() == [("alice", 0), ("alice", 1), ("alice", 2)]


def test_one_that_the_new_branch_made_impossible_does_not() -> None:
    world = World()
    undone = tx(ALICE, 0)
    world.set_account(ALICE, nonce=1)
    world.pool.on_import([tx(ALICE, 0, payload=paying(9))], [(undone, undone.body.txid(GENESIS))])
    assert len(world.pool) == 0


def test_what_waits_too_long_is_forgotten() -> None:
    world = World()
    world.add(tx(ALICE, 0))
    world.height = 10
    world.add(tx(ALICE, 1), tx(BOB, 0))
    world.height = EXPIRY_BLOCKS - 1
    world.pool.on_import([], [])
    assert len(world.pool) == 3
    world.height = EXPIRY_BLOCKS
    world.pool.on_import([], [])
    assert world.order() == [("bob", 0)], "alice's second transaction now stands behind a gap"
    world.height = EXPIRY_BLOCKS + 10
    world.pool.on_import([], [])
    assert len(world.pool) == 0
    assert world.pool.total_bytes == 0


def test_its_version_changes_with_its_content() -> None:
    world = World()
    seen = {world.pool.version}
    world.add(tx(ALICE, 0))
    seen.add(world.pool.version)
    world.set_account(ALICE, nonce=1)
    world.pool.on_import([tx(ALICE, 0)], [])
    seen.add(world.pool.version)
    assert len(seen) == 3
