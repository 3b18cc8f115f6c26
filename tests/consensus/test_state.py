"""Overlays against a dict, the tables' keys, and the grains that records hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consensus import state
from consensus.crypto import H
from consensus.proofs import trie
from consensus.state import ACCOUNTS, DEADLINES, QUEUE, REWARDS, Account, Entry, Mark, Overlay, Reward
from tests.builders import ALICE, BOB, DAVE, ChainBuilder, operand, worker_chain
from tests.fakes import Snapshot

keys = st.binary(min_size=1, max_size=3).filter(lambda key: not key.startswith(state.NODE_PREFIX))
layers = st.lists(st.dictionaries(keys, st.none() | st.binary(max_size=2), max_size=8), max_size=4)


@given(st.dictionaries(keys, st.binary(max_size=2)), layers, st.binary(max_size=2))
def test_layers_of_overlays_read_like_one_dict(
    base: dict[bytes, bytes], writes: list[dict[bytes, bytes | None]], prefix: bytes
) -> None:
    model = dict(base)
    reader: state.StateReader = Snapshot(base)
    for layer in writes:
        overlay = Overlay(reader)
        for key, value in layer.items():
            if value is None:
                overlay.delete(key)
                model.pop(key, None)
            else:
                overlay.put(key, value)
                model[key] = value
        reader = overlay
    assert list(reader.scan(prefix)) == sorted((k, v) for k, v in model.items() if k.startswith(prefix))
    for key in {*base, *(k for layer in writes for k in layer), b"absent"}:
        assert reader.get(key) == model.get(key)


def test_an_overlay_leaves_what_is_below_alone() -> None:
    base = Snapshot({b"a": b"1", b"b": b"2"})
    overlay = Overlay(base)
    overlay.put(b"a", b"3")
    overlay.delete(b"b")
    assert dict(base.scan(b"")) == {b"a": b"1", b"b": b"2"}
    assert dict(overlay.scan(b"")) == {b"a": b"3"}


def test_writes_during_a_scan_do_not_show_in_it() -> None:
    overlay = Overlay(Snapshot({bytes([n]): b"" for n in range(5)}))
    overlay.put(b"\x07", b"")
    seen = []
    for key, _ in overlay.scan(b""):
        seen.append(key)
        overlay.delete(key)
        overlay.put(key + b"\xff", b"")
    assert seen == [bytes([n]) for n in (0, 1, 2, 3, 4, 7)]


def test_prefixes_of_tables_differ() -> None:
    tables = [value for value in vars(state).values() if isinstance(value, state.Table)]
    assert len(tables) == 11
    prefixes = [table.prefix for table in tables] + [state.NODE_PREFIX]
    assert len(set(prefixes)) == len(prefixes)
    assert {len(prefix) for prefix in prefixes} == {1}


def test_keys_sort_by_their_integers() -> None:
    overlay = Overlay(Snapshot({}))
    for height in (256, 1, 2**40, 255):
        DEADLINES.put(overlay, Mark(), height, bytes(32))
    heights = [int.from_bytes(rest[:8], "big") for rest, _ in DEADLINES.scan(overlay)]
    assert heights == [1, 255, 256, 2**40]
    assert [rest for rest, _ in DEADLINES.scan(overlay, 255)] == [bytes(32)]


def test_the_queue_is_walked_dearest_first_then_oldest() -> None:
    chain = ChainBuilder(worked=False)
    prices = (5, 9, 5, 1)
    offers = [chain.job(ALICE, operand(128, 64, n), operand(64, 64), rows=64, price=p) for n, p in enumerate(prices)]
    chain.mine([job.transaction for job in offers])
    order = [entry.packet_id for _, entry in QUEUE.scan(chain.state)]
    assert order == [identity for n in (1, 0, 2, 3) for identity in offers[n].packets]


def test_holdings_change_counts_every_record_that_holds_grains() -> None:
    before = Overlay(Snapshot({}))
    ACCOUNTS.put(before, Account(10), b"x" * 20)
    ACCOUNTS.put(before, Account(5), b"y" * 20)
    after = Overlay(before)
    ACCOUNTS.put(after, Account(7), b"x" * 20)
    ACCOUNTS.delete(after, b"y" * 20)
    REWARDS.put(after, Reward(bytes(20), 4), 3)
    QUEUE.put(after, Entry(bytes(32)), 1)
    assert state.holdings_change(before, after.writes) == (7 - 10) - 5 + 4


def test_the_root_authenticates_every_record_and_no_other() -> None:
    chain = worker_chain()
    chain.mine([chain.transfer(ALICE, BOB, 3)])
    root = chain.tip.transition.state_root
    assert root == state.root_of(chain.state)

    def prove(key: bytes) -> trie.Proof:
        return trie.prove(lambda path: chain.state.get(state.NODE_PREFIX + path), key)

    records = {k: v for k, v in chain.state.scan(b"") if not k.startswith(state.NODE_PREFIX)}
    assert len(records) > 10
    for key, value in records.items():
        assert trie.verify(root, key, value, prove(key))
        assert not trie.verify(root, key, None, prove(key))
    absent = ACCOUNTS.key(H("tw/addr", b"nobody")[:20])
    assert trie.verify(root, absent, None, prove(absent))
    assert state.WORKERS.key(DAVE.address) in records


def test_the_root_depends_on_the_records_alone() -> None:
    """The trie built at once from the flat map equals the one that grew block by block."""
    chain = worker_chain()
    job = chain.job(ALICE, operand(128, 64), operand(64, 64), rows=64)
    chain.mine([job.transaction])
    chain.mine(results=chain.answers(job))
    records = {k: v for k, v in chain.state.scan(b"") if not k.startswith(state.NODE_PREFIX)}
    root, nodes = trie.update(lambda path: None, records)
    assert root == chain.tip.transition.state_root
    stored = {k[1:]: v for k, v in chain.state.scan(state.NODE_PREFIX)}
    snapshot = {**chain.tip.base.records, **chain.tip.state.writes}
    stored |= {k[1:]: v for k, v in snapshot.items() if k.startswith(state.NODE_PREFIX) and v is not None}
    assert stored == nodes
