"""The table of payload kinds is whole, and says of each kind what its parts did when they stood apart."""

from __future__ import annotations

from typing import get_args

import pytest

from api.chain import TxKind
from consensus.block import Body
from consensus.rules import jobs, payloads
from consensus.transaction import (
    CancelJob,
    Operand,
    Output,
    Pair,
    Payload,
    RegisterWorker,
    RetireWorker,
    SubmitJob,
    Transfer,
)
from consensus.validation import obliged_operands
from node.rpc.views import kind_name
from tests.builders import ALICE, ChainBuilder, regtest

RULES = regtest()
TRANSFER = Transfer((Output(bytes(20), 3), Output(bytes(20), 4)), b"memo")
REGISTRATION = RegisterWorker(bytes(32), 1, 1 << 20, 1, 700)
JOB = SubmitJob((Operand(bytes(32), 64, 128),), (Operand(b"r" * 32, 128, 192),), (Pair(0, 0),), 1, 50, 100)
EXAMPLES: tuple[Payload, ...] = (TRANSFER, REGISTRATION, RetireWorker(), JOB, CancelJob(bytes(32)))


def test_every_kind_of_payload_has_one_row_and_a_name_that_rpc_knows() -> None:
    assert set(payloads.KINDS) == set(get_args(Payload)) == {type(example) for example in EXAMPLES}
    names = [kind.name for kind in payloads.KINDS.values()]
    assert len(set(names)) == len(names)
    assert set(names) == set(get_args(TxKind))


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: type(payload).__name__)
def test_a_row_answers_for_its_kind(payload: Payload) -> None:
    kind = payloads.kind_of(payload)
    assert kind_name(payload) == kind.name
    assert payloads.outlay(RULES, payload) == kind.spends(payload) + kind.escrows(RULES, payload)
    assert kind.gas(RULES.gas, payload) > 0


def test_what_leaves_the_sender() -> None:
    expected = [7, 700, 0, sum(jobs.job_fees(RULES, JOB)), 0]
    assert [payloads.outlay(RULES, payload) for payload in EXAMPLES] == expected
    assert payloads.kind_of(JOB).spends(JOB) == 0, "an escrow is told by its event, not by the payment"


def test_only_jobs_oblige_operands() -> None:
    chain = ChainBuilder(worked=False)
    transactions = tuple(chain.tx(ALICE, payload) for payload in EXAMPLES)
    assert [bool(payloads.operands(tx)) for tx in transactions] == [False, False, False, True, False]
    assert obliged_operands(Body((), transactions)) == JOB.operands()


def test_what_is_shown_of_a_payload() -> None:
    shown = [(kind.view.outputs(p), kind.view.memo(p)) for p in EXAMPLES for kind in [payloads.kind_of(p)]]
    assert shown == [(TRANSFER.outputs, b"memo"), *[((), b"")] * 4]
