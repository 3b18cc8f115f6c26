"""Random trees of blocks in random order: tip, state, tensors and index are those of the heaviest branch alone."""

from __future__ import annotations

import random

import pytest

from consensus import state
from consensus.errors import ConsensusError, Reason
from consensus.validation import obliged_tensors
from node.chain import schema
from node.chain.chain import Chain
from node.chain.store import MemoryStore
from tests.builders import ALICE, BOB, CAROL, ChainBuilder, Node, operand
from tests.node.chain.test_chain import feed, lineage, open_chain

BLOCKS = 14
_OF_BRANCHES = (schema.HEADER, schema.BODY, schema.STRIPS, schema.TENSOR_UNTIL, schema.TENSOR_EXPIRY)


def random_tree(builder: ChainBuilder, rng: random.Random) -> list[Node]:
    """Blocks above genesis, each on any block before it, with a transfer, a job or nothing inside."""
    nodes = [builder.tip]
    for number in range(BLOCKS):
        builder.tip = rng.choice(nodes[-4:])
        builder._nonces.clear()  # other branches' transactions were never sent on this one
        transactions = []
        match rng.randrange(3):
            case 0:
                transactions = [builder.transfer(ALICE, rng.choice((BOB, CAROL)), 1 + number)]
            case 1:
                transactions = [builder.job(ALICE, operand(64, 64, number), operand(64, 64, 1000 + number)).transaction]
        nodes.append(builder.mine(transactions, miner=rng.choice((BOB, CAROL))))
    return nodes[1:]


def lasting(store: MemoryStore) -> dict[bytes, bytes]:
    """All that is stored but blocks and tensors' duties: those of side branches stay."""
    return {key: value for key, value in store.scan(b"") if not key.startswith(_OF_BRANCHES)}


def heaviest_linked(arrived: list[Node], genesis: Node) -> Node:
    """The block with the most work among those whose ancestors have all arrived; first seen on ties."""
    best, here = genesis, {genesis.block.id}
    for node in arrived:
        here.add(node.block.id)
        if node.total_work > best.total_work:
            best = node
    return best


@pytest.mark.parametrize("seed", range(6))
def test_whatever_order_a_tree_comes_in_the_chain_is_that_of_its_heaviest_branch(seed: int) -> None:
    rng = random.Random(seed)
    builder = ChainBuilder()
    genesis = builder.tip
    nodes = random_tree(builder, rng)
    store = MemoryStore()
    chain = open_chain(builder, store)
    waiting, arrived = nodes[:], list[Node]()
    rng.shuffle(waiting)
    while waiting:
        node = waiting.pop(0)
        if chain.entry(node.block.header.core.parent) is None:
            with pytest.raises(ConsensusError) as refused:
                chain.add_block(node.block)
            assert refused.value.reason is Reason.UNKNOWN_PARENT
            waiting.append(node)
            continue
        chain.add_block(node.block)
        arrived.append(node)
        best = heaviest_linked(arrived, genesis)
        assert chain.tip.id == best.block.id, f"seed {seed}"
        alone = MemoryStore()
        check_like_one_branch(chain, store, open_chain(builder, alone), alone, builder, best, seed)


def check_like_one_branch(
    chain: Chain, store: MemoryStore, other: Chain, alone: MemoryStore, builder: ChainBuilder, best: Node, seed: int
) -> None:
    """State, undo, index and heights equal those of `other`, which connects the branch of `best` and nothing else."""
    feed(other, builder, best)
    assert chain.read(state.root_of) == other.read(state.root_of) == best.transition.state_root
    assert lasting(store) == lasting(alone), f"seed {seed}"
    for node in lineage(best):
        for commitment in obliged_tensors(node.block):
            assert chain.tensors.has(commitment)
            duty = schema.tensor_until(commitment)
            assert until(store, duty) >= until(alone, duty), f"seed {seed}"


def until(store: MemoryStore, duty: bytes) -> int:
    """The height through which a tensor is kept."""
    data = store.get(duty)
    assert data is not None, "nobody keeps it"
    return schema.unpack_height(data)
