"""Bodies: roots, bounds, and what a block obliges."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from msgspec.structs import replace

from consensus import validation
from consensus.block import Block, Body
from consensus.codec import encode
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_TENSOR_BYTES
from consensus.rules.execution import Execution
from consensus.state import ledger
from consensus.transaction import Operand, Output, Pair, SubmitJob, Transfer
from tests.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    ERIN,
    FRANK,
    GENESIS_TIME_MS,
    WORKERS,
    Candidate,
    ChainBuilder,
    Key,
    operand,
    regtest,
    worker_chain,
)


@pytest.fixture
def chain() -> ChainBuilder:
    return ChainBuilder(worked=False)


def h(tag: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32, person=tag).digest()


def test_a_body_root_by_hand() -> None:
    """Transactions before results, each with its count; leaves are full bytes with signatures."""
    chain = worker_chain([DAVE])
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction])
    t1, t2 = chain.transfer(ALICE, BOB, 1), chain.transfer(ALICE, BOB, 2)
    result = chain.result(job.packets[0])
    txs = h(b"tw/root", b"\x02\0\0\0" + h(b"tw/node", h(b"tw/leaf", encode(t1)) + h(b"tw/leaf", encode(t2))))
    results = h(b"tw/root", b"\x01\0\0\0" + h(b"tw/leaf", encode(result)))
    expected = h(b"tw/body", txs + b"\x02\0\0\0" + results + b"\x01\0\0\0")
    assert Body((result,), (t1, t2)).root() == expected
    assert Body().root() == h(b"tw/body", bytes(32) + bytes(4) + bytes(32) + bytes(4))


def test_order_and_signatures_are_under_the_root(chain: ChainBuilder) -> None:
    first, second = chain.transfer(ALICE, BOB, 1), chain.transfer(CAROL, BOB, 1)
    good = chain.candidate([first, second])
    for transactions in ((second, first), (first,), (first, second, second), ()):
        other = Candidate(Block(good.block.header, Body((), transactions)), None)
        chain.reject(Reason.WRONG_BODY_ROOT, candidate=other)
    chain.accept(good)


def test_a_wrong_body_root(chain: ChainBuilder) -> None:
    chain.reject(Reason.WRONG_BODY_ROOT, core={"body_root": bytes(32)})


def test_a_body_is_at_most_one_mib(chain: ChainBuilder) -> None:
    """Of it, transactions take three quarters: six of 127 KiB fit, seven do not. The rest is there for Results."""
    keys = [Key(f"sender {n}") for n in range(9)]
    big = [chain.tx(key, Transfer((Output(BOB.address, 2**40),) * 4061)) for key in keys]
    assert 8 * len(encode(big[0])) < 2**20 < 9 * len(encode(big[0]))
    chain.reject(Reason.BODY_TOO_LARGE, big)
    chain.reject(Reason.BODY_TOO_LARGE, big[:7])
    chain.reject(Reason.BAD_PAYLOAD, big[:6])


def test_a_transaction_stands_once(chain: ChainBuilder) -> None:
    tx = chain.transfer(ALICE, BOB, 1)
    chain.reject(Reason.DUPLICATE_TRANSACTION, [tx, tx])


def huge(n: int, rows: int = 4096) -> SubmitJob:
    """A job with a left operand of 4096 columns (the tensors are made up: it is refused before it needs them)."""
    return SubmitJob((Operand(bytes([n]) * 32, rows, 4096),), (Operand(bytes(32), 4096, 64),), (Pair(0, 0),), 1, 1, 100)


def test_operands_of_more_than_16_mib_are_refused_before_anything_is_fetched(chain: ChainBuilder) -> None:
    block = chain.candidate([chain.tx(ALICE, huge(1, 2048)), chain.tx(BOB, huge(2, 2048))]).block
    with pytest.raises(ConsensusError) as caught:
        validation.check_body(chain.params, chain.genesis_hash, block)
    assert caught.value.reason == Reason.TOO_MANY_TENSOR_BYTES
    assert (caught.value.got, caught.value.expected) == (2**24 + 2**18, 16_777_216)


def test_a_job_that_no_block_could_hold_is_refused_by_itself() -> None:
    """Else it would lie in pools for ever, or spoil the blocks of those who take it. 8 + 7.75 MiB
    and 256 KiB of a right operand fit, 64 rows more do not."""
    chain = ChainBuilder(worked=False)

    def job(rows: int) -> SubmitJob:
        first, second = huge(1, 2048), huge(2, rows)
        return replace(first, lefts=first.lefts + second.lefts, packets=(Pair(0, 0), Pair(1, 0)))

    validation.check_transaction(chain.params, chain.tx(ALICE, job(1984)))
    with pytest.raises(ConsensusError, match="too-many-tensor-bytes: got 17039360, expected 16777216"):
        validation.check_transaction(chain.params, chain.tx(ALICE, job(2048)))


def test_a_tensor_counts_once_however_many_jobs_name_it(chain: ChainBuilder) -> None:
    a, b = np.zeros((2048, 4096), np.int8), operand(4096, 64)
    offers = [chain.job(key, a, b, price=1) for key in (ALICE, BOB, CAROL, DAVE, ERIN, FRANK)]
    assert sum(spec.size for job in offers for spec in job.payload.operands()) > MAX_TENSOR_BYTES
    node = chain.mine([job.transaction for job in offers])
    assert all(receipt.ok for receipt in node.transition.receipts)
    names = validation.obliged_tensors(node.block)
    assert len(names) == len(set(names)) == 2, "both operands"


def test_operands_and_products_share_the_32_mib(chain: ChainBuilder) -> None:
    execution = Execution(chain.params, chain.state, 1, GENESIS_TIME_MS, bytes(20))
    execution.oblige({b"a": 2**24, b"b": 2**23})
    execution.oblige({b"a": 2**24, b"c": 2**23})
    with pytest.raises(ConsensusError, match="too-many-tensor-bytes: got 33554433, expected 33554432"):
        execution.oblige({b"d": 1})


def test_what_a_block_obliges() -> None:
    chain = worker_chain([DAVE, ERIN])
    job = chain.job(ALICE, operand(128, 64), operand(64, 64, 1), rows=64)
    chain.mine([job.transaction])
    own, other = job.packets
    fresh = chain.job(BOB, operand(64, 64, 5), operand(64, 64, 6))
    block = chain.mine([fresh.transaction], [chain.result(other)], packet=own).block
    expected = {
        *(spec.commitment for spec in fresh.payload.operands()),
        block.body.results[0].body.product,
        block.header.result.body.product if block.header.result else b"",
    }
    assert set(validation.obliged_tensors(block)) == expected


def test_a_body_holds_so_many_results_and_no_more() -> None:
    chain = worker_chain(WORKERS[:4], max_results=3, max_examined=3)
    jobs_ = [chain.job(ALICE, operand(64, 64, n), operand(64, 64, 99), price=1) for n in range(4)]
    chain.mine([job.transaction for job in jobs_], count=2)
    answers = chain.answers(*jobs_)
    assert len(answers) == 4
    chain.reject(Reason.TOO_MANY_RESULTS, results=answers)
    chain.mine(results=answers[:3])


def test_packets_held_leave_room_for_as_many_answers_again() -> None:
    """Two blocks of three Results each carry the answers of a window of two: three packets are held, no more."""
    chain = ChainBuilder(regtest(window=2, max_results=3, max_examined=3, retention=200), worked=False)
    chain.mine([chain.register(DAVE, packets=10)], count=9)
    job = chain.job(ALICE, operand(64 * 9, 64), operand(64, 64, 1), rows=64, price=1)
    chain.mine([job.transaction])
    assert len(chain.held(job)) == ledger(chain.state).held == 3
    chain.mine(results=chain.answers(job)[:1])
    assert len(chain.held(job)) == 3
