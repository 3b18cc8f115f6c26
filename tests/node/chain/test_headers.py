"""The tree of headers: what is kept of those whose blocks never come."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from consensus.block import Header
from node.chain import schema
from node.chain.headers import HeaderEntry, HeaderTree
from node.chain.store import MemoryStore
from tests.builders import ALICE, DAVE, ChainBuilder, operand, worker_chain
from tests.node.chain.test_chain import feed, open_chain

MOST = 40


def grow(
    tree: HeaderTree, parent: HeaderEntry, count: int, name: int = 0, held: Iterable[HeaderEntry] = ()
) -> HeaderEntry:
    """`count` headers of equal work, one above the other; the last one's entry."""
    for _ in range(count):
        core = replace(parent.core, height=parent.height + 1, parent=parent.id, nonce=name.to_bytes(8))
        parent, _ = tree.add_loose(Header(core, None), parent, lambda: held)
    return parent


def new_tree() -> HeaderTree:
    return HeaderTree(ChainBuilder().tip.header, MOST)


def check(tree: HeaderTree) -> None:
    """What must hold of every tree."""
    entries = set(tree.descendants(tree.genesis))
    assert entries == set(tree._entries.values())
    assert all(entry.parent is None or tree.get(entry.parent.id) is entry.parent for entry in entries)
    assert tree.best in entries


def test_headers_that_nobody_completes_are_few_and_those_with_the_least_work_go() -> None:
    tree = new_tree()
    best = grow(tree, tree.genesis, 30)
    long = grow(tree, tree.genesis, 25, 1)
    for name in range(2, 200):
        grow(tree, tree.genesis, 1 + name % 5, name)
        assert len(tree._entries) <= 1 + 30 + MOST + MOST // 4
    check(tree)
    assert tree.best is best
    assert tree.get(long.id) is long, "the heaviest of the others is the last to go"


def test_what_is_held_or_stored_stays_however_little_work_it_has() -> None:
    tree = new_tree()
    grow(tree, tree.genesis, 30)
    held, stored, adopted = (grow(tree, tree.genesis, 3, name) for name in (1, 2, 0xADD))
    stored.has_body = True
    tree.settle(adopted.ancestors())
    for name in range(3, 100):
        grow(tree, tree.genesis, 5, name, held=[held])
    check(tree)
    assert tree.get(held.id) is held
    assert tree.get(adopted.id) is adopted
    assert tree.get(stored.id) is stored
    for name in range(100, 200):
        grow(tree, tree.genesis, 5, name)
    check(tree)
    assert tree.get(held.id) is None, "nobody holds it any more"
    assert tree.get(stored.id) is stored


def test_a_chain_that_overtakes_is_kept_whole_and_the_one_before_may_go() -> None:
    tree = new_tree()
    first = grow(tree, tree.genesis, 200)
    second = grow(tree, tree.genesis, 201, 1)
    for name in range(2, 60):
        grow(tree, tree.genesis, 5, name)
    check(tree)
    assert tree.best is second
    assert len(tree._entries) <= 1 + 201 + MOST + (201 + MOST) // 8
    assert tree.get(first.id) is None


@pytest.mark.parametrize("seed", range(5))
def test_random_trees_stay_whole_and_bounded(seed: int) -> None:
    rng, tree = random.Random(seed), new_tree()
    for name in range(1, 400):
        parent = rng.choice(list(tree._entries.values()))
        top = grow(tree, parent, rng.randint(1, 4), name)
        if rng.random() < 0.02:
            top.has_body = True
    check(tree)
    firm = {entry.id for top in tree._entries.values() if top.has_body or top is tree.best for entry in top.ancestors()}
    assert len(tree._entries) <= len(firm) + MOST + max(MOST // 4, len(tree._entries) // 8)


def test_the_strips_of_a_header_go_with_it() -> None:
    builder = worker_chain([DAVE], worked=True)
    job = builder.job(ALICE, operand(64, 64), operand(64, 64, 1))
    builder.mine([job.transaction])
    store = MemoryStore()
    chain = open_chain(builder, store)
    chain.known.tree.max_loose = 0
    feed(chain, builder)
    packet = builder.candidate(packet=job.packets[0])
    chain.add_header(builder.candidate().block.header)  # of equal work, and so the best
    chain.add_header(packet.block.header, packet.strips)
    kept = schema.strips(packet.block.id, packet.block.header.ticket)
    assert store.get(kept) is not None
    chain.add_header(builder.candidate(core={"body_root": bytes(32)}).block.header)
    assert chain.entry(packet.block.id) is None
    assert store.get(kept) is None
