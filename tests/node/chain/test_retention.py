"""Duties on tensors: the longest counts, however the blocks that oblige them came."""

from __future__ import annotations

import pytest

from node.chain import schema
from node.chain.chain import Chain
from node.chain.store import MemoryStore
from node.chain.tensors import TensorStore
from tests.builders import ALICE, BOB, CAROL, DAVE, GENESIS_TIME_MS, ChainBuilder, operand, worker_chain


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


def test_operands_outlast_every_deal_of_their_packets() -> None:
    """Kept for the job's life and `retention` at first, and for twice `retention` after a deal, late as it may be."""
    builder = worker_chain([], worked=True, retention=130, window=5, max_life=20)
    job = builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2), expiry=builder.height + 21)
    nodes = [builder.tip]
    while nodes[0].parent is not None and nodes[0].height > 1:
        nodes.insert(0, nodes[0].parent)
    nodes.append(builder.mine([job.transaction]))
    nodes.append(builder.mine([builder.register(DAVE)]))
    opened = nodes[-2].height
    while not builder.held(job):
        nodes.append(builder.mine())
    tensors, store = TensorStore(None), MemoryStore()
    for tensor in builder.tensors:
        tensors.add(tensor)
    chain = Chain(builder.params, store, tensors, lambda: GENESIS_TIME_MS + 10**9)

    def kept_until() -> list[int]:
        found = [store.get(schema.tensor_until(operand.commitment)) for operand in job.payload.operands()]
        return [schema.unpack_height(data) for data in found if data is not None]

    for node in nodes:
        chain.add_block(node.block)
        if node.height == opened:
            assert kept_until() == [opened + 20 + 130] * 2
    assert chain.tip.id == builder.tip.block.id
    assert kept_until() == [builder.height + 260] * 2
