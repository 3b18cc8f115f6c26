"""Executing blocks: the unit, the order, the supply, the root, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus import state, work
from consensus.block import Block, Body, Header, PairUnit, Proof
from consensus.codec import encode
from consensus.errors import BadProof, ConsensusError, MissingTensor, Reason
from consensus.events import Answered, Closed, Completed, Dealt, Missed, Opened
from consensus.params import TILE
from consensus.rules.execution import Execution
from consensus.shape import Shape
from consensus.state import EmptyState, Overlay
from consensus.tensor import COLUMNS, Tensor
from consensus.transition import apply_block, genesis_transition
from tests.builders import (
    ALICE,
    BOB,
    DAVE,
    ERIN,
    FRANK,
    FUNDED,
    FUNDS,
    MINER,
    USERS,
    WORKERS,
    Candidate,
    ChainBuilder,
    Job,
    Key,
    Node,
    operand,
    regtest,
    strips_of,
    worker_chain,
)
from tests.fakes import Snapshot

# --- the roots


def test_genesis_commits_to_the_state_that_it_starts_from() -> None:
    params = regtest()
    block, transition = genesis_transition(params)
    core = block.header.core
    assert core.state_root == transition.state_root
    assert (core.parent, core.parent_ticket, core.height) == (bytes(32), bytes(32), 0)
    assert (core.nonce, block.header.proof, block.body.transactions) == (params.hash[:8], None, ())
    assert set(transition.undo.values()) == {None}


def test_the_state_root_is_the_one_after_the_parent() -> None:
    chain = ChainBuilder(worked=False)
    genesis = chain.tip
    first = chain.mine([chain.transfer(ALICE, BOB, 1)])
    assert first.header.core.state_root == genesis.header.core.state_root, "block 1 repeats genesis's"
    assert first.transition.state_root != genesis.transition.state_root
    assert chain.mine().header.core.state_root == first.transition.state_root


def test_a_wrong_state_root() -> None:
    chain = ChainBuilder(worked=False)
    chain.mine([chain.transfer(ALICE, BOB, 1)])
    genesis = chain.tip.header.core.state_root
    chain.reject(Reason.WRONG_STATE_ROOT, core={"state_root": genesis})
    chain.reject(Reason.WRONG_STATE_ROOT, core={"state_root": bytes(32)})


def test_an_empty_state_has_the_zero_root() -> None:
    assert state.root_of(EmptyState()) == bytes(32)


# --- the block's own unit


def test_a_false_packet_product_counts_against_the_copy() -> None:
    chain, job = held_job()
    false = chain.product(job.packets[0]).matrix.copy()
    false[5, 5] -= 2
    commitment = chain.tensors.add(Tensor(false)).commitment
    error = chain.reject(
        Reason.WRONG_PRODUCT, packet=job.packets[0], proof={"answer": chain.answer(job.packets[0], commitment)}
    )
    assert isinstance(error, BadProof)


def test_a_missing_unit_product_is_transient() -> None:
    chain, job = held_job()
    candidate = chain.candidate(packet=job.packets[0])
    lost = chain.tensors.drop(chain.product(job.packets[0]).commitment)
    with pytest.raises(MissingTensor):
        chain.accept(candidate)
    chain.tensors.add(lost)
    chain.accept(candidate)


def test_of_zeros_and_of_own_matrices_nobody_needs_the_product() -> None:
    chain = ChainBuilder()
    left, right = Tensor(operand(64, 4096)), Tensor(operand(4096, 64, 1), COLUMNS)
    assert list(chain.tensors) == []
    chain.mine()
    own = PairUnit(left.spec.root, right.spec.root, 64, 4096, 64)
    node = chain.accept(mined_pair(chain, own, left, right))
    assert node.header.result is None
    assert node.transition.reward == chain.params.initial_subsidy
    assert list(chain.tensors) == []


def mined_pair(chain: ChainBuilder, unit: PairUnit, left: Tensor, right: Tensor) -> Candidate:
    """A block whose unit is two matrices of the miner's own."""
    core = chain.candidate(core={"unit": unit}).block.header.core
    evaluation = work.evaluate(core.seed, left.matrix, right.matrix)
    assert evaluation.states is not None
    tile = evaluation.states[0, 0].astype("<u4").tobytes()
    return Candidate(Block(Header(core, Proof(0, 0, tile)), Body()), strips_of(left, right, 0, 0))


def held_job(workers: Any = (DAVE,), **options: Any) -> tuple[ChainBuilder, Job]:
    chain = worker_chain(workers)
    job = chain.job(ALICE, operand(128, 128), operand(128, 192, 1), **options)
    chain.mine([job.transaction])
    return chain, job


def test_the_units_packet_is_paid_to_the_miner_who_holds_it() -> None:
    chain, job = held_job()
    before = chain.balance(DAVE)
    node = chain.mine(packet=job.packets[0])
    (answer,) = (event for event in node.transition.events if isinstance(event, Answered))
    assert answer.won
    assert answer.worker == node.header.core.miner == DAVE.address
    assert chain.balance(DAVE) == before + answer.fee - answer.burned - answer.share
    reward = state.REWARDS.get(chain.state, chain.height + chain.params.maturity)
    assert reward is not None
    assert (reward.miner, reward.amount) == (DAVE.address, 50 * TILE + answer.share)


def test_only_the_assignee_mines_a_packet() -> None:
    chain, job = held_job()
    error = chain.reject(Reason.NOT_ASSIGNEE, packet=job.packets[0], miner=BOB)
    assert not isinstance(error, BadProof), "the miner stands in the core"


def test_a_unit_is_a_packet_of_the_parents_state() -> None:
    chain, job = held_job()
    unit = chain.packet_unit(job.packets[0])
    chain.reject(Reason.UNKNOWN_PACKET, packet=job.packets[0], core={"unit": replace(unit, packet_id=bytes(32))})
    chain.mine(packet=job.packets[0])
    fresh = worker_chain([DAVE])
    offer = fresh.job(ALICE, operand(64, 64), operand(64, 64, 1))
    peek = fresh.fork()
    peek.mine([offer.transaction])
    unit = peek.packet_unit(offer.packets[0])
    fresh.reject(Reason.UNKNOWN_PACKET, [offer.transaction], core={"unit": unit, "miner": DAVE.address})


@pytest.mark.parametrize(
    "change",
    [{"m": 64}, {"k": 64}, {"n": 64}, {"a_root": bytes(32)}, {"b_root": bytes(32)}, {"m": 192, "n": 128}],
    ids=str,
)
def test_a_unit_has_the_packets_own_operands(change: dict[str, Any]) -> None:
    chain, job = held_job()
    unit = replace(chain.packet_unit(job.packets[0]), **change)
    chain.reject(Reason.BAD_UNIT, packet=job.packets[0], core={"unit": unit})


def test_two_winning_tiles_are_two_copies_of_one_block() -> None:
    """128×128 has four tiles. The child says by `parent_ticket` which copy it stands on."""
    chain = ChainBuilder(idle=Shape(128, 4096, 128))
    first = chain.candidate()
    header = first.block.header
    assert header.proof is not None
    evaluation = work.evaluate_idle(header.core.seed, Shape(128, 4096, 128))
    assert evaluation is not None
    assert evaluation.states is not None
    tiles = list(work.winning_tiles(header.core.seed, evaluation.states, header.core.target_int, 4096))
    assert len(tiles) == 4
    i, j, ticket = tiles[3]
    proof = replace(header.proof, i=i, j=j, state=evaluation.states[i, j].astype("<u4").tobytes())
    other = Candidate(Block(Header(header.core, proof), first.block.body), None)
    assert other.block.id == first.block.id
    assert other.block.header.ticket == ticket != header.ticket
    fork = chain.fork()
    chain.accept(first)
    fork.accept(other)
    child = fork.candidate()
    chain.reject(Reason.WRONG_PARENT_TICKET, candidate=child)
    fork.accept(child)


# --- the order


def test_the_order_within_a_block() -> None:
    """The unit, Results, transactions, windows that end, closings, dealing: the events tell."""
    chain = worker_chain(WORKERS)
    expiring = chain.job(BOB, operand(64, 64, 9), operand(64, 64, 8), price=1, expiry=20)
    finished = chain.job(ALICE, operand(128, 64), operand(64, 64, 1), rows=64)
    missing = chain.job(ALICE, operand(192, 64, 3), operand(64, 64, 4), rows=64, price=1 << 41)
    chain.mine([expiring.transaction, finished.transaction, missing.transaction], count=10)
    assert chain.height == 18
    held = chain.held(finished)
    assert len(held) == 2
    opened = chain.job(ALICE, operand(64, 64, 5), operand(64, 64, 6), price=1 << 42)
    node = chain.mine([opened.transaction], [chain.result(held[1])], packet=held[0])
    kinds = [type(event) for event in node.transition.events]
    assert kinds == [Answered, Answered, Completed, Opened, Missed, Missed, Missed, Closed, *[Dealt] * 2]
    assert [e.won for e in node.transition.events if isinstance(e, Answered)] == [True, False]
    node = chain.mine()
    assert [e.job for e in node.transition.events if isinstance(e, Closed)] == [expiring.id]


def test_a_subsidy_is_spent_when_it_has_matured_and_not_before() -> None:
    chain = ChainBuilder(worked=False)
    chain.mine(miner=Key("newcomer"))
    chain.mine(count=9)
    spend = chain.transfer(Key("newcomer"), ALICE, 1)
    chain.reject(Reason.INSUFFICIENT_BALANCE, [spend])
    chain.mine()
    assert chain.height == 11
    assert chain.balance(Key("newcomer")) == 50 * TILE
    chain.mine([chain.transfer(Key("newcomer"), ALICE, 1)])


# --- the supply


def test_the_supply_starts_with_what_genesis_gave() -> None:
    chain = ChainBuilder(worked=False)
    assert chain.supply() == (len(FUNDED) * FUNDS, len(FUNDED) * FUNDS)


@pytest.mark.parametrize("leak", [-1, 1])
def test_a_rule_that_loses_or_makes_a_grain_is_caught(monkeypatch: pytest.MonkeyPatch, leak: int) -> None:
    """With an accounting that is off by one grain a burn, no block that burns anything passes."""
    chain = ChainBuilder(worked=False)
    honest = Execution.burn
    monkeypatch.setattr(Execution, "burn", lambda self, amount: honest(self, amount + leak))
    error = chain.reject(Reason.SUPPLY_MISMATCH, [chain.transfer(ALICE, BOB, 1)])
    assert isinstance(error.got, int)
    assert isinstance(error.expected, int)
    assert error.got - error.expected == leak
    chain.mine()


def test_a_state_that_changes_under_the_block_is_caught() -> None:
    """A damaged store: while the block executes, an account reads one grain richer than the trie's record of it."""
    chain = ChainBuilder(worked=False)
    key = state.ACCOUNTS.key(ALICE.address)
    readings = 0

    class Damaged:
        def get(self, wanted: bytes) -> bytes | None:
            nonlocal readings
            readings += wanted == key
            damaged = wanted == key and readings <= 2
            return encode(state.Account(FUNDS + 1, 0)) if damaged else chain.state.get(wanted)

        def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
            return chain.state.scan(prefix)

    block = chain.candidate([chain.transfer(ALICE, BOB, 1)]).block
    with pytest.raises(ConsensusError, match="supply-mismatch"):
        apply_block(chain.params, chain.genesis_hash, Damaged(), block, chain.products)


# --- and back


def flat(node: Node) -> dict[bytes, bytes]:
    """Everything after a block, trie nodes included."""
    return dict(node.base.changed(node.state.writes).records)


def undone(node: Node) -> dict[bytes, bytes]:
    return dict(Snapshot(flat(node)).changed(node.transition.undo).records)


class Player:
    """Random blocks: whatever a list of small integers says, as far as it is possible."""

    def __init__(self) -> None:
        self.chain = worker_chain(WORKERS[:3])
        self.jobs: list[Job] = []

    def block(self, moves: list[tuple[int, int, int]], won: int) -> None:
        chain = self.chain
        held = chain.held(*self.jobs)
        own = held[won % len(held)] if held and won else None
        open_packets = [packet_id for packet_id in held if packet_id != own]
        transactions, results = [], []
        for kind, who, size in moves:
            user, worker = USERS[who % 3], WORKERS[who % 5]
            if kind == 0:
                transactions.append(chain.transfer(user, FUNDED[size % 8], size * FUNDS // 5, tip=who))
            elif kind == 1:
                transactions.append(chain.register(worker, packets=1 + size % 4))
            elif kind == 2 and size == 0:
                transactions.append(chain.retire(worker))
            elif kind == 3:
                rows = 1 + size % 4
                job = chain.job(
                    user,
                    operand(64 * rows, 64, who),
                    operand(64, 64, size),
                    rows=64,
                    threshold=1 + who % rows,
                    price=1 << (20 + 4 * size),
                    expiry=chain.height + 12 + 3 * who,
                )
                self.jobs.append(job)
                transactions.append(job.transaction)
            elif kind == 4 and self.jobs:
                transactions.append(chain.cancel(user, self.jobs[size % len(self.jobs)]))
            elif open_packets:
                results.append(chain.result(open_packets.pop(size % len(open_packets))))
        chain.mine(transactions, results, packet=own)


moves = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 7), st.integers(0, 5)), max_size=5)


@settings(max_examples=25)
@given(st.lists(st.tuples(moves, st.integers(0, 3)), min_size=1, max_size=30))
def test_any_blocks_keep_the_supply_and_can_be_undone(story: list[tuple[list[tuple[int, int, int]], int]]) -> None:
    player = Player()
    for step, won in story:
        before = flat(player.chain.tip)
        player.block(step, won)
        node = player.chain.tip
        issued, held = player.chain.supply()
        assert issued == held
        assert undone(node) == before
        assert node.transition.state_root == state.root_of(node.state)
    # Whatever was begun ends: every job closes by its expiry, and leaves nothing behind.
    player.chain.mine(count=60)
    tables = (state.GROUPS, state.PACKETS, state.QUEUE, state.CLOSINGS, state.DEADLINES)
    assert [key for table in tables for key, _ in table.scan(player.chain.state)] == []
    for key in WORKERS:
        worker = state.WORKERS.get(player.chain.state, key.address)
        assert worker is None or worker.holds == ()
    issued, held = player.chain.supply()
    assert issued == held


def test_a_side_branch_executes_on_the_tip_with_its_undo_merged() -> None:
    """What a node does in a reorganisation: undo of the tip's branch over the tip's state, then the other branch."""
    chain = worker_chain((DAVE, ERIN, FRANK))
    fork_point = chain.tip
    job = chain.job(ALICE, operand(128, 64), operand(64, 64, 1), rows=64)
    chain.mine([job.transaction])
    chain.mine(results=chain.answers(job))
    second = chain.tip
    first = second.parent
    assert first is not None
    chain.tip = fork_point
    chain.mine([chain.transfer(BOB, ALICE, 7)])
    branch = [chain.tip, chain.mine([chain.transfer(BOB, ALICE, 8)])]

    view = Overlay(Snapshot(flat(second)))
    for node in (second, first):
        view.writes.update(node.transition.undo)
    for node in branch:
        transition = apply_block(chain.params, chain.genesis_hash, view, node.block, chain.products)
        assert transition == node.transition
        view = Overlay(view, transition.writes)


def test_execution_changes_nothing_but_its_answer() -> None:
    chain = ChainBuilder(worked=False)
    block = chain.candidate([chain.transfer(ALICE, BOB, 1)], miner=MINER).block
    before = flat(chain.tip)
    first = apply_block(chain.params, chain.genesis_hash, chain.state, block, chain.products)
    second = apply_block(chain.params, chain.genesis_hash, chain.state, block, chain.products)
    assert first == second
    assert flat(chain.tip) == before
