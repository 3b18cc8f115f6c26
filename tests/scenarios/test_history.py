"""What the field got wrong before us (docs/protocol.md, section 16): one test, or a few, named after each item.

The failures of storage engines have theirs beside the store, and the depth of a reorganisation beside the node's chain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from consensus import state, validation, work
from consensus.block import Block, Header, PacketUnit
from consensus.codec import MAX_AMOUNT, encode
from consensus.difficulty import block_work
from consensus.errors import BadProof, Reason
from consensus.events import Answered, Dealt, Dropped, Missed
from consensus.params import TILE
from consensus.proofs import freivalds, merkle
from consensus.rules import payloads
from consensus.shape import NOISED_BOUND, Shape
from consensus.state import Overlay
from consensus.tensor import COLUMNS, Tensor
from consensus.transaction import Output, Transfer
from tests.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    ERIN,
    FRANK,
    FUNDS,
    GENESIS_TIME_MS,
    Candidate,
    ChainBuilder,
    exact,
    operand,
    regtest,
    strips_of,
    worker_chain,
)

# --- random matrices passed as "useful" work, and nobody could buy the work


def test_random_matrices_that_nobody_paid_for_are_no_unit() -> None:
    """The header is flawless: real work on real operands, proved by their strips. But no job asked for it."""
    chain = worker_chain([DAVE], worked=True)
    job = chain.job(ALICE, operand(64, 4096, 7), operand(4096, 64, 8))
    elsewhere = chain.fork()
    elsewhere.mine([job.transaction])
    unpaid = elsewhere.packet_unit(job.packets[0])
    a, b = elsewhere.operands(job.packets[0])
    bare = chain.candidate(miner=DAVE).block
    for nonce in range(64):
        core = replace(bare.header.core, unit=unpaid, nonce=nonce.to_bytes(8, "little"))
        evaluation = work.evaluate(core.seed, a.matrix, b.matrix)
        assert evaluation.states is not None
        won = list(work.winning_tiles(core.seed, evaluation.states, core.target_int, 4096))
        if won:
            break
    assert evaluation.states is not None
    i, j, _ = won[0]
    product = chain.tensors.add(Tensor(evaluation.product)).commitment
    assert bare.header.proof is not None
    tile = evaluation.states[i, j].astype("<u4").tobytes()
    header = Header(
        core, replace(bare.header.proof, i=i, j=j, state=tile, answer=elsewhere.answer(job.packets[0], product, DAVE))
    )
    validation.check_header(chain.params, header, chain.tip.context())
    validation.check_tile(header, strips_of(a, b, i, j))
    candidate = Candidate(Block(header, bare.body), strips_of(a, b, i, j))
    chain.reject(Reason.UNKNOWN_PACKET, candidate=candidate)


def test_anybody_can_buy_the_work_and_it_wins_the_block() -> None:
    chain = worker_chain([DAVE], worked=True)
    a, b = operand(64, 4096), operand(4096, 64, 1)
    job = chain.job(ALICE, a, b)
    chain.mine([job.transaction])
    node = chain.mine(packet=job.packets[0])
    assert node.header.proof is not None
    assert node.header.result is not None
    bought = chain.tensors.tensor(node.header.result.body.product)
    assert bought is not None
    assert np.array_equal(bought.matrix, exact(a, b))


# --- the work function


def test_noise_rank_is_that_of_the_tile_side_in_every_chunk() -> None:
    """With a lower rank, a miner of zero matrices would multiply thin factors instead."""
    a2, b2 = work.noised(bytes(range(32)), np.zeros((128, 1024), np.int8), np.zeros((1024, 128), np.int8))
    for c in range(0, 1024, 64):
        for block in (a2[:64, c : c + 64], a2[64:, c : c + 64], b2[c : c + 64, :64], b2[c : c + 64, 64:]):
            assert np.linalg.matrix_rank(block.astype(np.float64)) == 64


def test_noise_of_different_chunks_is_differently_permuted() -> None:
    """All chunks share one uniform block; were they equal, one product would serve them all."""
    a2, _ = work.noised(bytes(32), np.zeros((64, 512), np.int8), np.zeros((512, 64), np.int8))
    chunks = {a2[:, c : c + 64].tobytes() for c in range(0, 512, 64)}
    assert len(chunks) == 8


def fold(sums: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    """X[l] = XOR over all rows and all columns s with s mod 16 = l, of a 64×64 tile."""
    lanes = sums.view(np.uint32).reshape(64, 4, 16)
    folded: npt.NDArray[np.uint32] = np.bitwise_xor.reduce(lanes, axis=(0, 1))
    return folded


def test_sum_folds_a_transcript_tells_tiles_apart_that_have_equal_row_and_column_sums() -> None:
    """A sum over the tile follows from row and column sums in O(n²); XOR is sensitive to carries."""
    seed, a, b = bytes(32), operand(64, 64), operand(64, 64, 1)
    tile = exact(*work.noised(seed, a, b))
    assert np.array_equal(work.tile_state(seed, a, b, 0, 0), fold(tile)), "one chunk: the state is the fold itself"
    moved = tile.copy()
    moved[0, 0] += 12_345
    moved[0, 16] -= 12_345
    moved[1, 0] -= 12_345
    moved[1, 16] += 12_345
    assert (moved.sum(axis=0) == tile.sum(axis=0)).all()
    assert (moved.sum(axis=1) == tile.sum(axis=1)).all()
    assert not np.array_equal(fold(moved), fold(tile))


def test_nonces_after_the_product_do_not_exist() -> None:
    """One product gives one ticket a tile: another nonce is other noise, and every entry of the product changes."""
    chain = ChainBuilder()
    core = chain.candidate().block.header.core
    again = replace(core, nonce=b"\x07" * 8)
    products = []
    for seed in (core.seed, again.seed):
        evaluation = work.evaluate_idle(seed, Shape(64, 4096, 64))
        assert evaluation is not None
        products.append(evaluation.product)
    assert (products[0] == products[1]).mean() < 0.01


def test_declared_dimensions_are_bound_to_the_strips() -> None:
    """A ticket's chance grows with k: who declares 4096 and multiplies 64 shows a strip that is too short."""
    chain = ChainBuilder()
    left, right = Tensor(operand(64, 64)), Tensor(operand(64, 64, 1), COLUMNS)
    unit = PacketUnit(bytes(32), left.spec.root, right.spec.root, 64, 4096, 64)
    block = chain.candidate(core={"unit": unit}).block
    chain.reject(Reason.WRONG_STRIPS, candidate=Candidate(block, strips_of(left, right, 0, 0)))


def test_ids_that_cover_a_malleable_proof_a_bad_copy_leaves_the_block_good() -> None:
    chain = ChainBuilder()
    good = chain.candidate()
    forged = chain.candidate(proof={"state": b"\xff" * 64})
    assert forged.block.id == good.block.id
    assert isinstance(chain.reject(Reason.WRONG_TILE_STATE, candidate=forged), BadProof)
    chain.accept(good)


def test_work_is_not_known_before_the_header_is() -> None:
    """Who the miner is, what the block holds, what it stands on: whatever changes, the noise does."""
    chain = ChainBuilder()
    seeds = {
        chain.candidate().block.header.core.seed,
        chain.candidate(miner=BOB).block.header.core.seed,
        chain.candidate([chain.transfer(ALICE, BOB, 1)]).block.header.core.seed,
    }
    chain.mine()
    seeds.add(chain.candidate().block.header.core.seed)
    assert len(seeds) == 4


# --- the product check


@pytest.mark.parametrize("error", [1, -1, 2**16, 2**31 - 1, -(2**31 - 1), 2**24])
def test_freivalds_integer_wrap_leaves_no_hole(error: int) -> None:
    """A modulus of 2³¹ − 1 lets an entry pass that is wrong by exactly that."""
    a, b = operand(64, 4096), operand(4096, 64, 1)
    c = exact(a, b)
    assert freivalds.verify(a, b, c)
    wrong = c.astype(np.int64)
    wrong[3, 4] += error
    assert not freivalds.verify(a, b, wrong.astype(np.int32))


def test_freivalds_challenges_are_not_predictable() -> None:
    """An error that is orthogonal to one guess of the challenge, (1, 1, …), is found: nobody knows the challenge."""
    a, b = operand(64, 64), operand(64, 64, 1)
    c = exact(a, b)
    c[0, 0] += 1
    c[0, 1] -= 1
    assert (c.sum(axis=1) == exact(a, b).sum(axis=1)).all()
    assert not any(freivalds.verify(a, b, c) for _ in range(20))


def test_freivalds_refuses_an_operand_of_minus_128() -> None:
    a, b = operand(64, 64), operand(64, 64, 1)
    a[0, 0] = -128
    assert not freivalds.verify(a, b, exact(a, b))
    assert not freivalds.verify(a, b, exact(a, b), bound=NOISED_BOUND)


# --- subsidies that pay for looking useful


def test_subsidy_is_the_same_for_idle_and_paid_units() -> None:
    idle, paid = worker_chain([DAVE]), worker_chain([DAVE])
    job = paid.job(ALICE, operand(64, 64), operand(64, 64, 1))
    paid.mine([job.transaction])
    idle.mine(count=2)
    before = state.ledger(paid.state).issued
    paid.mine(packet=job.packets[0])
    assert state.ledger(paid.state).issued - before == 50 * TILE
    assert state.ledger(paid.state).issued == state.ledger(idle.state).issued


def test_degenerate_zero_operands_gain_nothing() -> None:
    """A miner who posts zero matrices as jobs wins no more often than by idling (a ticket's chance is by k alone),
    and pays a tenth of the fee to nobody."""
    target = regtest().anchor_target
    for k in (64, 1024, 4096):
        threshold = int.from_bytes(target, "big") * k // 1024
        assert work.wins(max(0, threshold - 1).to_bytes(32, "big"), int.from_bytes(target, "big"), k)
        assert not work.wins((threshold + 1).to_bytes(32, "big"), int.from_bytes(target, "big"), k)
    chain = worker_chain([DAVE], worked=True)
    job = chain.job(DAVE, np.zeros((64, 4096), np.int8), np.zeros((4096, 64), np.int8))
    wealth = chain.balance(DAVE)
    chain.mine([job.transaction])
    node = chain.mine(packet=job.packets[0])
    (answer,) = (event for event in node.transition.events if isinstance(event, Answered))
    inclusion = answer.share
    gas = payloads.intrinsic_gas(chain.params, job.transaction.body)
    assert chain.balance(DAVE) + inclusion == wealth - gas - answer.burned
    assert answer.burned == answer.fee // 10 > 0


def test_withholding_a_result_loses() -> None:
    """Who keeps a product back for a better moment loses its fee, and what was reserved for it."""
    chain = worker_chain([DAVE])
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction])
    kept = chain.result(job.packets[0])
    chain.mine(count=chain.params.window)
    assert chain.worker(DAVE).bond == 0
    chain.reject(Reason.NOT_ASSIGNEE, results=[kept])


# --- late honest workers; "why was I not paid?"; free identities


def test_late_honest_workers_are_paid_in_full() -> None:
    chain = worker_chain([DAVE, ERIN])
    job = chain.job(ALICE, operand(128, 64), operand(64, 64, 1), rows=64, threshold=1)
    chain.mine([job.transaction])
    chain.mine(results=[chain.result(job.packets[1])])
    node = chain.mine(results=[chain.result(job.packets[0])])
    (late,) = (event for event in node.transition.events if isinstance(event, Answered))
    assert late.fee == 1 << 22


def test_why_was_i_not_paid_has_an_answer_for_every_packet() -> None:
    """Dealt, then answered, missed or dropped: no packet that somebody held goes without a word."""
    chain = worker_chain([DAVE, ERIN, FRANK])
    start = chain.tip
    job = chain.job(ALICE, operand(192, 64), operand(64, 64, 1), rows=64, threshold=1)
    chain.mine([job.transaction])
    chain.mine(results=[chain.result(job.packets[0])])
    chain.mine(count=6)
    other = chain.job(ALICE, operand(64, 64, 2), operand(64, 64, 3), expiry=chain.height + 13)
    chain.mine([other.transaction], count=20)
    ends: dict[tuple[bytes, bytes], list[str]] = {}
    node = chain.tip
    while node is not start:
        for event in node.transition.events:
            if isinstance(event, Dealt | Answered | Missed | Dropped):
                ends.setdefault((event.packet_id, event.worker), []).append(type(event).__name__)
        assert node.parent is not None
        node = node.parent
    stories = sorted(tuple(reversed(words)) for words in ends.values())
    assert stories == [("Dealt", "Answered"), ("Dealt", "Dropped"), ("Dealt", "Dropped"), ("Dealt", "Missed")]


def test_free_identities_that_hoard_work_have_no_place() -> None:
    """No bond, no place: each packet that may be held is paid for beforehand, and a miss costs what stood for it."""
    chain = ChainBuilder(worked=False)
    least = chain.params.min_reserve
    node = chain.mine(
        [chain.register(worker, packets=64, bond=bond) for worker, bond in ((DAVE, 0), (ERIN, 64 * least - 1))]
    )
    assert [receipt.reason for receipt in node.transition.receipts] == ["insufficient-bond"] * 2
    chain.mine([chain.register(DAVE, packets=3)], count=8)
    job = chain.job(ALICE, operand(512, 64), operand(64, 64, 1), rows=64)
    chain.mine([job.transaction])
    assert len(chain.held(job)) == 3
    chain.mine(count=chain.params.window)
    assert chain.worker(DAVE).bond == 0
    assert chain.held(job) == []


# --- duplicates, overflow, time, replay, reorganisations


def test_duplicate_leaves_make_another_root() -> None:
    """CVE-2012-2459: a block whose last transaction was doubled had the id of the good one, and poisoned it."""
    chain = ChainBuilder()
    transactions = tuple(chain.transfer(key, BOB, 1) for key in (ALICE, BOB, CAROL))
    good = chain.candidate(transactions)
    doubled = replace(good.block.body, transactions=(*transactions, transactions[-1]))
    assert doubled.root() != good.block.body.root()
    chain.reject(Reason.WRONG_BODY_ROOT, candidate=Candidate(Block(good.block.header, doubled), None))
    leaves = [merkle.leaf_hash(encode(tx)) for tx in transactions]
    assert merkle.root(leaves) != merkle.root([*leaves, leaves[-1]])
    chain.accept(good)


def test_value_overflow_creates_nothing() -> None:
    """CVE-2010-5139: two outputs whose sum wrapped made 184 billion coins."""
    chain = ChainBuilder()
    outputs = (Output(BOB.address, MAX_AMOUNT), Output(BOB.address, MAX_AMOUNT), Output(BOB.address, 2))
    node = chain.mine([chain.tx(ALICE, Transfer(outputs))])
    assert not node.transition.receipts[0].ok
    assert chain.balance(BOB) == FUNDS


def test_duplicate_inputs_on_the_block_path_spend_once() -> None:
    """CVE-2018-17144: the mempool refused a double spend that the block path took for checked already."""
    chain = ChainBuilder()
    everything = FUNDS - 100_000
    first = chain.transfer(ALICE, BOB, everything, nonce=0)
    second = chain.transfer(ALICE, CAROL, everything, nonce=0)
    chain.reject(Reason.DUPLICATE_TRANSACTION, [first, first])
    chain.reject(Reason.WRONG_NONCE, [first, second])
    assert chain.mine([first]).transition.receipts[0].ok
    chain.reject(Reason.INSUFFICIENT_BALANCE, [chain.transfer(ALICE, CAROL, everything)])


def test_timewarp_does_not_ease_the_target() -> None:
    """Bitcoin's retargeting forgets the step between periods; ASERT knows only the parent's time and height. However
    a majority zigzags, after the same time and height the target is the same."""
    honest, zigzag = ChainBuilder(worked=False), ChainBuilder(worked=False)
    for step in range(1, 13):
        honest.mine(time_ms=GENESIS_TIME_MS + 1_000 * step)
        # As early as the median allows, but each third block as late as the clock does.
        late = GENESIS_TIME_MS + 1_000 * step + 10_000
        early = sorted(zigzag.tip.context().times_ms)[len(zigzag.tip.context().times_ms) // 2] + 1
        last = GENESIS_TIME_MS + 1_000 * step
        zigzag.mine(time_ms=last if step == 12 else late if step % 3 == 0 else early)
    assert honest.tip.header.core.time_ms == zigzag.tip.header.core.time_ms
    expected = validation.expected_target(honest.params, honest.tip.header)
    assert validation.expected_target(zigzag.params, zigzag.tip.header) == expected


def test_timewarp_the_clock_gives_ten_seconds_and_the_median_gives_nothing() -> None:
    chain = ChainBuilder()
    chain.mine(count=11)
    now = chain.tip.header.core.time_ms
    chain.reject(Reason.TIME_TOO_NEW, time_ms=now + 10_001, now_ms=now)
    chain.reject(Reason.TIME_TOO_OLD, time_ms=now - 5 * chain.params.spacing_ms, now_ms=now)


def test_replay_on_another_network_is_refused() -> None:
    devnet, fork = ChainBuilder(), ChainBuilder(regtest(network="fork"))
    tx = devnet.transfer(ALICE, BOB, 1)
    devnet.mine([tx])
    fork.reject(Reason.BAD_SIGNATURE, [tx])
    fork.reject(Reason.UNKNOWN_PARENT, candidate=Candidate(devnet.tip.block, None))


def test_replay_on_the_same_network_is_refused() -> None:
    chain = ChainBuilder()
    tx = chain.transfer(ALICE, BOB, 1)
    chain.mine([tx])
    chain.reject(Reason.WRONG_NONCE, [tx])


def test_deep_reorgs_undo_to_the_very_byte() -> None:
    """A hundred blocks with a job among them, taken back one by one."""
    chain = worker_chain([DAVE, ERIN])
    fork_point = chain.tip
    job = chain.job(ALICE, operand(128, 64), operand(64, 64, 1), rows=64)
    chain.mine([job.transaction])
    chain.mine(results=[chain.result(job.packets[0])], count=chain.params.max_reorg - 1)
    view = Overlay(chain.tip.base.changed(chain.tip.state.writes))
    node = chain.tip
    assert node.height - fork_point.height == 100
    while node is not fork_point:
        view.writes.update(node.transition.undo)
        assert node.parent is not None
        node = node.parent
    assert dict(view.scan(b"")) == dict(fork_point.base.changed(fork_point.state.writes).scan(b"")) | dict(
        view.scan(state.NODE_PREFIX)
    )
    assert state.root_of(view) == fork_point.transition.state_root


def test_longer_but_lighter_chain_loses() -> None:
    """Five blocks at the easiest target weigh 4 each; three in as many milliseconds, at targets that all but halve
    (the half-life is one spacing), weigh 4, 7 and 15. Genesis weighs 4."""
    chain = ChainBuilder(regtest(halflife_ms=2_000))
    genesis = chain.tip
    chain.mine(count=5)
    longer = chain.tip
    chain.tip = genesis
    for _ in range(3):
        chain.mine(time_ms=chain.tip.header.core.time_ms + 1)
    heavier = chain.tip
    assert (longer.height, heavier.height) == (5, 3)
    assert (longer.total_work, heavier.total_work) == (4 + 5 * 4, 4 + 4 + 7 + 15)
    assert chain.heaviest() is heavier


def test_a_tie_stays_with_the_first_seen() -> None:
    chain = ChainBuilder()
    genesis = chain.tip
    first = chain.mine()
    chain.tip = genesis
    second = chain.mine(miner=BOB)
    assert first.total_work == second.total_work
    assert chain.heaviest() is first
    chain.mine()
    assert chain.heaviest() is chain.tip


def test_work_counts_targets_not_tickets() -> None:
    assert block_work(2**254 - 1) == 4
    assert block_work(0) == 2**256
    assert block_work(2**256 - 1) == 1
