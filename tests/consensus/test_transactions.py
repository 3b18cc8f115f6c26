"""Transactions: who may send what, what it costs, and what a failure costs."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from consensus import state, validation
from consensus.codec import MAX_AMOUNT, encode
from consensus.crypto import H
from consensus.errors import ConsensusError, Reason
from consensus.params import TILE
from consensus.rules import payloads
from consensus.transaction import CancelJob, Output, RetireWorker, Transaction, Transfer
from tests.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    ERIN,
    FRANK,
    FUNDS,
    GRACE,
    MINER,
    ChainBuilder,
    Key,
    operand,
    regtest,
    worker_chain,
)


@pytest.fixture
def chain() -> ChainBuilder:
    return ChainBuilder(worked=False)


def refusal(chain: ChainBuilder, tx: Transaction) -> Reason:
    with pytest.raises(ConsensusError) as caught:
        validation.check_transaction(chain.params, tx)
    return caught.value.reason


def test_a_transfer_moves_grains_and_pays_for_its_gas(chain: ChainBuilder) -> None:
    payload = Transfer((Output(BOB.address, 5 * TILE), Output(CAROL.address, 7)), b"two outputs")
    node = chain.mine([chain.tx(ALICE, payload, tip=3)])
    gas = 56_000 + 16 * len(encode(payload)) + 2 * 16_000
    (receipt,) = node.transition.receipts
    assert receipt.ok
    assert (receipt.gas_used, receipt.fee) == (gas, gas * (1 + 3))
    assert chain.balance(ALICE) == FUNDS - 5 * TILE - 7 - receipt.fee
    assert chain.balance(BOB) == FUNDS + 5 * TILE
    assert chain.balance(CAROL) == FUNDS + 7


def test_the_base_fee_burns_and_the_tip_matures(chain: ChainBuilder) -> None:
    node = chain.mine([chain.transfer(ALICE, BOB, 1, tip=3)])
    gas = node.transition.receipts[0].gas_used
    assert chain.supply()[0] == 8 * FUNDS + 50 * TILE - gas
    chain.mine(count=9)
    assert chain.balance(MINER) == 0
    chain.mine()
    assert chain.height == 1 + chain.params.maturity
    assert chain.balance(MINER) == 50 * TILE + 3 * gas


def test_nothing_but_the_gas_used_is_charged(chain: ChainBuilder) -> None:
    node = chain.mine([chain.transfer(ALICE, BOB, 0, gas_limit=1_000_000)])
    assert chain.balance(ALICE) == FUNDS - node.transition.receipts[0].gas_used


def test_a_failed_payload_pays_gas_and_uses_its_nonce(chain: ChainBuilder) -> None:
    node = chain.mine([chain.transfer(ALICE, BOB, FUNDS), chain.transfer(ALICE, BOB, 1)])
    failed, good = node.transition.receipts
    assert (failed.ok, failed.reason, good.ok) == (False, "insufficient-balance", True)
    assert chain.balance(ALICE) == FUNDS - failed.fee - good.fee - 1
    assert chain.balance(BOB) == FUNDS + 1


def test_paying_oneself_creates_nothing(chain: ChainBuilder) -> None:
    node = chain.mine([chain.tx(ALICE, Transfer((Output(ALICE.address, 10),) * 3))])
    assert chain.balance(ALICE) == FUNDS - node.transition.receipts[0].fee


def test_a_transaction_of_another_network_is_refused(chain: ChainBuilder) -> None:
    other = ChainBuilder(regtest(network="other"), worked=False)
    tx = other.transfer(ALICE, BOB, 1)
    other.mine([tx])
    chain.reject(Reason.BAD_SIGNATURE, [tx])


def test_a_mined_transaction_cannot_be_mined_again(chain: ChainBuilder) -> None:
    tx = chain.transfer(ALICE, BOB, 1)
    chain.mine([tx])
    chain.reject(Reason.WRONG_NONCE, [tx])


def test_nonces_leave_no_gap_and_go_not_back(chain: ChainBuilder) -> None:
    chain.reject(Reason.WRONG_NONCE, [chain.transfer(ALICE, BOB, 1, nonce=1)])
    chain.mine([chain.transfer(ALICE, BOB, 1)])
    chain.reject(Reason.WRONG_NONCE, [chain.transfer(ALICE, BOB, 2, nonce=0)])
    first, second = chain.transfer(ALICE, BOB, 3), chain.transfer(ALICE, BOB, 4)
    chain.reject(Reason.WRONG_NONCE, [second, first])
    chain.mine([first, second])


def test_another_signature_does_not_make_another_transaction(chain: ChainBuilder) -> None:
    tx = chain.transfer(ALICE, BOB, 1)
    forged = Transaction(tx.body, bytes(64))
    assert forged.body.txid(chain.genesis_hash) == tx.body.txid(chain.genesis_hash)
    chain.reject(Reason.DUPLICATE_TRANSACTION, [tx, forged])
    chain.reject(Reason.BAD_SIGNATURE, [forged])


def test_txid_and_message_are_bound_to_the_network(chain: ChainBuilder) -> None:
    body = chain.transfer(ALICE, BOB, 1).body
    assert body.txid(chain.genesis_hash) == H("tw/txid", chain.genesis_hash + encode(body))
    assert body.signing_hash(chain.genesis_hash) == H("tw/tx", chain.genesis_hash + encode(body))
    assert body.txid(bytes(32)) != body.txid(chain.genesis_hash)


def test_nobody_signs_for_another(chain: ChainBuilder) -> None:
    body = chain.transfer(ALICE, BOB, 1).body
    chain.reject(Reason.BAD_SIGNATURE, [BOB.sign(chain.genesis_hash, body)])


@pytest.mark.parametrize("y", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18])
def test_a_senders_key_is_strict(chain: ChainBuilder, y: int) -> None:
    body = replace(chain.transfer(ALICE, BOB, 1).body, sender=y.to_bytes(32, "little"))
    chain.reject(Reason.BAD_PUBLIC_KEY, [ALICE.sign(chain.genesis_hash, body)])


def test_a_gas_limit_below_the_gas_is_refused(chain: ChainBuilder) -> None:
    used = payloads.intrinsic_gas(chain.params, chain.transfer(ALICE, BOB, 1).body)
    chain.reject(Reason.GAS_LIMIT_TOO_LOW, [chain.transfer(ALICE, BOB, 1, nonce=0, gas_limit=used - 1)])
    chain.mine([chain.transfer(ALICE, BOB, 1, gas_limit=used)])


def test_a_gas_limit_above_the_blocks_is_refused(chain: ChainBuilder) -> None:
    limit = chain.params.gas_limit
    chain.reject(Reason.BLOCK_GAS_EXCEEDED, [chain.transfer(ALICE, BOB, 1, gas_limit=limit + 1)])
    chain.mine([chain.transfer(ALICE, BOB, 1, gas_limit=limit)])


def test_a_base_fee_above_the_senders_is_refused(chain: ChainBuilder) -> None:
    chain.reject(Reason.BASE_FEE_TOO_HIGH, [chain.transfer(ALICE, BOB, 1, max_base_fee=0)])


def test_the_whole_gas_limit_must_be_affordable(chain: ChainBuilder) -> None:
    tip = FUNDS // 100_000
    chain.reject(Reason.INSUFFICIENT_BALANCE, [chain.transfer(ALICE, BOB, 1, tip=tip, gas_limit=100_001)])
    chain.reject(Reason.INSUFFICIENT_BALANCE, [chain.transfer(Key("pauper"), BOB, 0)])


def test_outputs_whose_sum_wraps_pay_nothing(chain: ChainBuilder) -> None:
    """Bitcoin's value overflow of August 2010: two outputs of 2⁶³ summed to almost nothing."""
    payload = Transfer((Output(BOB.address, MAX_AMOUNT), Output(CAROL.address, MAX_AMOUNT), Output(BOB.address, 2)))
    node = chain.mine([chain.tx(ALICE, payload)])
    assert node.transition.receipts[0].reason == "insufficient-balance"
    assert chain.balance(BOB) == chain.balance(CAROL) == FUNDS


def test_a_tip_that_wraps_is_not_affordable(chain: ChainBuilder) -> None:
    chain.reject(Reason.INSUFFICIENT_BALANCE, [chain.transfer(ALICE, BOB, 1, tip=MAX_AMOUNT)])


@pytest.mark.parametrize(
    "payload",
    [Transfer(()), Transfer((Output(BOB.address, 0),) * 1025), Transfer((Output(BOB.address, 0),), bytes(257))],
    ids=["no output", "1025 outputs", "a memo of 257 bytes"],
)
def test_a_transfers_bounds(chain: ChainBuilder, payload: Transfer) -> None:
    chain.reject(Reason.BAD_PAYLOAD, [chain.tx(ALICE, payload)])


def test_a_transfer_at_its_bounds_passes(chain: ChainBuilder) -> None:
    chain.mine([chain.tx(ALICE, Transfer((Output(BOB.address, 0),) * 1024, bytes(256)))])


def test_a_transaction_of_more_than_128_kib_is_refused(chain: ChainBuilder) -> None:
    tx = chain.tx(ALICE, Transfer((Output(BOB.address, MAX_AMOUNT),) * 4200))
    assert len(encode(tx)) > 131_072
    assert refusal(chain, tx) == Reason.OVERSIZE


def test_gas_by_the_schedule(chain: ChainBuilder) -> None:
    """Restated by hand: 56000 a transaction, 16 a byte of payload, 40000 a worker's message and 16000 a place, 64000 a
    job, 22000 a packet, and 1 a byte of operands and products (4mn each)."""

    def gas(payload: Any) -> int:
        return payloads.intrinsic_gas(chain.params, chain.tx(ALICE, payload).body)

    assert gas(RetireWorker()) == 56_000 + 16 * 2 + 40_000
    assert gas(CancelJob(bytes(32))) == 56_000 + 16 * (2 + 34) + 40_000
    joining = chain.register(DAVE, packets=3).body.payload
    assert gas(joining) == 56_000 + 16 * len(encode(joining)) + 40_000 + 3 * 16_000
    job = chain.job(ALICE, operand(128, 192), operand(192, 64), rows=64)
    tensor_bytes = 128 * 192 + 192 * 64 + 2 * 4 * 64 * 64
    assert gas(job.payload) == 56_000 + 16 * len(encode(job.payload)) + 64_000 + 2 * 22_000 + tensor_bytes


def test_gas_pays_for_the_records_that_a_full_block_writes() -> None:
    """Counted, not timed: each record that a transaction writes, now or later, costs 7,000 gas or more.

    A block's limit is then below ten thousand records, of some 0.05 ms each.
    """
    chain = worker_chain([DAVE, ERIN])
    fresh = Transfer(tuple(Output(bytes([1, number]) + bytes(18), 1) for number in range(200)))
    job = chain.job(BOB, operand(64 * 32, 64), operand(64, 64 * 32), rows=64, cols=64, price=1)
    chain.mine([job.transaction])
    big = chain.job(CAROL, operand(64 * 32, 64, 2), operand(64, 64 * 32, 3), rows=64, cols=64, price=1)
    delay = chain.params.registration_delay
    offers = (
        (chain.transfer(ALICE, Key("new"), 1), 0, 1),
        (chain.tx(ALICE, fresh), 0, 1),
        (chain.transfer(ALICE, BOB, FUNDS), 0, 1),
        (chain.register(FRANK, min_price=1 << 50), delay, 1),
        (chain.register(GRACE, packets=64, min_price=1 << 50), delay, 1),
        (chain.retire(DAVE), delay, 1),
        (chain.cancel(BOB, job), -1, 1),  # what it ends was paid for when the job was opened: see below
        (big.transaction, 0, 2),  # its end writes as much as its beginning
    )
    for tx, blocks, times in offers:
        fork = chain.fork()
        fork._nonces.clear()
        quiet = records_of(fork.fork(), [], blocks)
        again = fork.tx(by_key(tx), tx.body.payload)
        written = records_of(fork, [again], blocks) - quiet
        assert again.body.gas_limit >= 7_000 * written * times


def by_key(tx: Transaction) -> Key:
    return next(key for key in (ALICE, BOB, CAROL, DAVE, FRANK, GRACE) if key.public == tx.body.sender)


def records_of(chain: ChainBuilder, transactions: list[Transaction], blocks: int) -> int:
    """Records written by a block with the transactions, before its sweep if `blocks` is −1, and by so many after it."""
    nodes = [chain.mine(transactions)]
    nodes += [chain.mine() for _ in range(max(0, blocks))]
    swept = (b"p", b"q") if blocks < 0 else ()
    keys = [key for node in nodes for key in node.transition.writes if not key.startswith((state.NODE_PREFIX, *swept))]
    return len(keys)


def test_gas_does_not_depend_on_how_the_gas_limit_is_written(chain: ChainBuilder) -> None:
    body = chain.transfer(ALICE, BOB, 1).body
    used = {payloads.intrinsic_gas(chain.params, replace(body, gas_limit=limit)) for limit in (0, 2**7, 2**40)}
    assert len(used) == 1


def test_a_blocks_transactions_share_its_gas_limit() -> None:
    """Regtest's limit is 64 Mi gas; sixteen jobs of 4 MiB operands and products fill it, one more does not fit."""
    chain = ChainBuilder(worked=False)
    a, b = operand(1024, 64), operand(64, 1024)
    one = payloads.intrinsic_gas(chain.params, chain.job(DAVE, a, b).transaction.body)
    fit = chain.params.gas_limit // one
    chain = ChainBuilder(worked=False)
    transactions = [chain.job(DAVE, a, b, price=1).transaction for _ in range(fit + 1)]
    chain.reject(Reason.BLOCK_GAS_EXCEEDED, transactions)
    chain.mine(transactions[:fit])
