"""Duties on tensors: the longest counts, however the blocks that oblige them came."""

from __future__ import annotations

import pytest

from node.chain import schema
from node.chain.chain import Chain
from node.chain.store import MemoryStore
from node.chain.tensors import TensorStore
from tests.builders import ALICE, BOB, CAROL, GENESIS_TIME_MS, ChainBuilder, operand


@pytest.mark.parametrize("at_once", [False, True], ids=["block by block", "in one reorganisation"])
def test_a_later_blocks_shorter_duty_never_shortens_an_earlier_ones(at_once: bool) -> None:
    builder = ChainBuilder()
    fork = builder.mine()
    rival = builder.mine([builder.transfer(ALICE, BOB, 1)])
    builder.tip = fork
    job = builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2), expiry=900)
    first = builder.mine([job.transaction])
    second = builder.mine([builder.cancel(BOB, job)])
    # The same operands in a job that fails, since its expiry is too near: it obliges them for `retention` only.
    short = builder.job(CAROL, operand(64, 64, 1), operand(64, 64, 2), expiry=5)
    third = builder.mine([short.transaction])
    tensors, store = TensorStore(None), MemoryStore()
    for tensor in builder.tensors:
        tensors.add(tensor)
    chain = Chain(builder.params, store, tensors, lambda: GENESIS_TIME_MS + 10**9)
    chain.add_block(fork.block)
    branch = [first, second, third]
    if at_once:
        chain.add_block(rival.block)
        for node in branch:
            chain.add_header(node.header)
        branch.reverse()
    for node in branch:
        chain.add_block(node.block)
    assert chain.tip.id == third.block.id
    commitment = job.payload.operands()[0].commitment
    until = store.get(schema.tensor_until(commitment))
    assert until is not None
    expected = 900 + builder.params.retention
    assert schema.unpack_height(until) == expected
    duties = [schema.unpack_tensor_expiry(key) for key, _ in store.scan(schema.TENSOR_EXPIRY)]
    assert [height for height, kept in duties if kept == commitment] == [expected], "and no other duty is left behind"
