"""The chain service over real stores: imports, reorganisations, restarts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from consensus import events, state
from consensus.block import Block, Header
from consensus.codec import encode
from consensus.errors import BadProof, ConsensusError, MissingTensor, Reason
from consensus.params import TILE
from consensus.shape import Shape
from consensus.state import EmptyState, holdings_change
from consensus.tensor import Tensor
from consensus.transition import apply_block
from node.chain import schema
from node.chain.chain import Chain, Import
from node.chain.headers import MAX_COPIES
from node.chain.store import LevelStore, MemoryStore, StorageError, Store
from node.chain.tensors import TensorStore
from tests.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    ERIN,
    GENESIS_TIME_MS,
    ONE_TILE,
    Candidate,
    ChainBuilder,
    Node,
    operand,
    regtest,
    worker_chain,
)

FAR_FUTURE_MS = GENESIS_TIME_MS + 10**9


def open_chain(builder: ChainBuilder, store: Store | None = None, now_ms: int = FAR_FUTURE_MS) -> Chain:
    tensors = TensorStore(None)
    for tensor in builder.tensors:
        tensors.add(tensor)
    return Chain(builder.params, store or MemoryStore(), tensors, lambda: now_ms)


def lineage(node: Node) -> list[Node]:
    """The nodes from height 1 up to `node`."""
    found = []
    while node.parent is not None:
        found.append(node)
        node = node.parent
    return found[::-1]


def feed(chain: Chain, builder: ChainBuilder, tip: Node | None = None) -> list[Import]:
    """Give the chain every block up to `tip` (the builder's), with its tensors."""
    for tensor in builder.tensors:
        chain.tensors.add(tensor)
    return [chain.add_block(node.block) for node in lineage(tip or builder.tip)]


def flat(chain: Chain) -> dict[bytes, bytes]:
    """The whole state but the trie's nodes."""
    return chain.read(lambda view: {k: v for k, v in view.scan(b"") if not k.startswith(state.NODE_PREFIX)})


def records(builder: ChainBuilder) -> dict[bytes, bytes]:
    """The same, of the builder's tip."""
    return {k: v for k, v in builder.state.scan(b"") if not k.startswith(state.NODE_PREFIX)}


@pytest.fixture
def builder() -> ChainBuilder:
    return ChainBuilder()


def test_blocks_extend_the_tip_and_leave_the_builders_state(builder: ChainBuilder) -> None:
    builder.mine([builder.transfer(ALICE, BOB, 5 * TILE)])
    builder.mine(count=3)
    chain = open_chain(builder)
    imports = feed(chain, builder)
    assert [len(i.connected) for i in imports] == [1, 1, 1, 1]
    assert chain.tip.id == builder.tip.block.id
    assert chain.read(state.root_of) == builder.tip.transition.state_root
    balance = chain.read(lambda view: state.account(view, BOB.address).balance)
    assert balance == builder.balance(BOB)


def test_a_known_block_changes_nothing(builder: ChainBuilder) -> None:
    builder.mine()
    chain = open_chain(builder)
    feed(chain, builder)
    assert not chain.add_block(builder.tip.block).tip_changed


def test_more_work_reorganises_and_the_undone_transfer_is_reported(builder: ChainBuilder) -> None:
    builder.mine(count=2)
    fork = builder.tip
    paid = builder.mine([builder.transfer(ALICE, BOB, 7 * TILE)])
    chain = open_chain(builder)
    feed(chain, builder)
    txid = paid.block.body.transactions[0].body.txid(chain.genesis_hash)
    assert chain.archive.transaction(txid) is not None
    builder.tip = fork
    builder.mine([builder.transfer(ALICE, CAROL, 1 * TILE)])
    builder.mine()
    imports = feed(chain, builder)
    assert [block.id for block in imports[-1].disconnected] == [paid.block.id]
    assert len(imports[-1].connected) == 2
    assert chain.tip.id == builder.tip.block.id
    assert flat(chain) == records(builder)
    assert chain.read(state.root_of) == builder.tip.transition.state_root
    assert chain.archive.transaction(txid) is None
    assert [m.kind for m in chain.archive.movements(BOB.address)] == []
    assert [m.amount for m in chain.archive.movements(CAROL.address)] == [TILE]


def test_equal_work_keeps_the_first_seen(builder: ChainBuilder) -> None:
    root = builder.tip
    first = builder.mine()
    builder.tip = root
    builder.mine([builder.transfer(ALICE, BOB, 1)])
    chain = open_chain(builder)
    chain.add_block(first.block)
    chain.add_block(builder.tip.block)
    assert chain.tip.id == first.block.id


def test_bodies_that_come_out_of_order_connect_once_linked(builder: ChainBuilder) -> None:
    builder.mine(count=4)
    chain = open_chain(builder)
    nodes = lineage(builder.tip)
    for node in nodes:
        chain.add_header(node.header)
    assert chain.best_header.height == 4
    for node in (nodes[2], nodes[3], nodes[1]):
        assert not chain.add_block(node.block).tip_changed
    done = chain.add_block(nodes[0].block)
    assert [c.block.height for c in done.connected] == [1, 2, 3, 4]


def test_a_withheld_tensor_is_named_and_blames_nobody(builder: ChainBuilder) -> None:
    job = builder.job(ALICE, operand(64, 64), operand(64, 64, 1))
    block = builder.mine([job.transaction]).block
    withheld = builder.tensors.drop(job.payload.operands()[0].commitment)
    chain = open_chain(builder)
    assert chain.missing_tensors(block) == [withheld.commitment]
    with pytest.raises(MissingTensor) as caught:
        chain.add_block(block)
    assert caught.value.commitment == withheld.commitment
    chain.tensors.add(withheld)
    assert chain.add_block(block).tip_changed


def packet_chain(idle: Shape = ONE_TILE) -> tuple[ChainBuilder, Block]:
    """A chain whose tip DAVE has won with his packet; and the tip's other copy, for which he has signed a lie."""
    builder = worker_chain([DAVE], worked=True, idle=idle)
    job = builder.job(ALICE, operand(64, 4096), operand(4096, 64, 1))
    builder.mine([job.transaction])
    answer = builder.answer(job.packets[0], builder.tensors.add(Tensor(np.ones((64, 64), np.int32))).commitment)
    node = builder.mine(packet=job.packets[0])
    proof = node.header.proof
    assert proof is not None
    lie = Header(node.header.core, structs.replace(proof, answer=answer))
    assert (lie.id, lie.ticket) == (node.header.id, node.header.ticket)
    return builder, Block(lie, node.block.body)


def chain_below(builder: ChainBuilder, blocks: int = 1) -> Chain:
    """A chain that stands so many blocks below the builder's tip."""
    chain = open_chain(builder)
    for node in lineage(builder.tip)[:-blocks]:
        chain.add_block(node.block)
    return chain


def test_a_false_product_counts_against_the_copy_and_not_the_id() -> None:
    """Its miner alone could sign it. The true copy, which has the same ticket, is taken all the same."""
    builder, lie = packet_chain()
    chain = chain_below(builder)
    with pytest.raises(BadProof):
        chain.add_block(lie)
    assert chain.tip.height == builder.tip.height - 1
    assert chain.add_block(builder.tip.block).tip_changed


def test_both_copies_wait_and_the_one_that_can_be_completed_is_taken() -> None:
    """No header of a stranger can strand a node: all proofs are known by all of their bytes, not by their ticket."""
    builder, lie = packet_chain()
    chain = chain_below(builder)
    chain.tensors.remove(lie.header.result.body.product)  # type: ignore[union-attr]  # it has one
    entry = chain.add_header(lie.header)
    chain.add_header(builder.tip.header)
    assert len(entry.copies) == 2
    assert entry.header == lie.header, "first seen is first believed"
    with pytest.raises(MissingTensor):
        chain.add_block(lie)
    entry.set_back(lie.header.copy_id)
    assert entry.header == builder.tip.header
    assert chain.add_block(builder.tip.block).tip_changed


def test_nobody_but_its_miner_makes_another_copy_of_a_header() -> None:
    """Seen: a stranger put another product beside somebody's work, and whoever saw that copy first waited for ever."""
    builder, lie = packet_chain()
    chain = chain_below(builder)
    true, told = builder.tip.header.proof, lie.header.proof
    assert true is not None
    assert true.answer is not None
    assert told is not None
    packet = lie.header.core.unit.packet_id  # type: ignore[union-attr]  # it has one
    forgeries = [
        (structs.replace(true.answer, product=bytes(32)), Reason.BAD_SIGNATURE),
        (BOB.answer(builder.genesis_hash, packet, bytes(32)), Reason.WRONG_ANSWER),
    ]
    for answer, reason in forgeries:
        with pytest.raises(BadProof) as caught:
            chain.add_header(Header(lie.header.core, structs.replace(told, answer=answer)))
        assert caught.value.reason is reason
    assert chain.entry(lie.id) is None
    assert chain.add_block(builder.tip.block).tip_changed


def test_a_miner_who_signs_much_fills_nothing() -> None:
    builder, lie = packet_chain()
    chain = chain_below(builder)
    proof = lie.header.proof
    assert proof is not None
    for number in range(MAX_COPIES + 3):
        packet = lie.header.core.unit.packet_id  # type: ignore[union-attr]  # it has one
        answer = DAVE.answer(builder.genesis_hash, packet, bytes([number]) * 32)
        entry = chain.add_header(Header(lie.header.core, structs.replace(proof, answer=answer)))
    assert len(entry.copies) == MAX_COPIES


def test_an_invalid_block_is_remembered_across_a_restart(builder: ChainBuilder) -> None:
    unsigned = builder.transfer(ALICE, BOB, 1, nonce=9)
    bad = builder.candidate([unsigned])
    store = MemoryStore()
    chain = open_chain(builder, store)
    with pytest.raises(ConsensusError) as caught:
        chain.add_block(bad.block)
    assert caught.value.reason == Reason.WRONG_NONCE
    with pytest.raises(ConsensusError):
        chain.add_block(bad.block)
    assert chain.best_header.height == 0
    again = open_chain(builder, store)
    with pytest.raises(ConsensusError) as caught:
        again.add_block(bad.block)
    child = ChainBuilder()
    child.tip = replace(child.tip, block=bad.block)
    with pytest.raises(ConsensusError) as caught:
        chain.add_header(child.candidate().block.header)
    assert caught.value.reason == Reason.INVALID_PARENT


def test_a_branch_with_a_bad_block_is_cut_there_and_the_tip_stays(builder: ChainBuilder) -> None:
    root = builder.tip
    builder.mine()
    main = builder.tip
    builder.tip = root
    builder.mine([builder.transfer(ALICE, BOB, 1)])
    side = builder.tip
    bad = builder.candidate([builder.transfer(ALICE, BOB, 1, nonce=99)])
    chain = open_chain(builder)
    chain.add_block(main.block)
    chain.add_block(side.block)
    with pytest.raises(ConsensusError) as caught:
        chain.add_block(bad.block)
    assert caught.value.reason == Reason.WRONG_NONCE
    assert chain.tip.id == main.block.id
    assert chain.read(state.root_of) == main.transition.state_root


def test_a_reorganisation_deeper_than_the_limit_needs_the_operator() -> None:
    builder = ChainBuilder(regtest(max_reorg=3))
    root = builder.tip
    builder.mine(count=4)
    main = builder.tip
    builder.tip = root
    builder.mine([builder.transfer(ALICE, BOB, 1)])
    builder.mine(count=5)
    chain = open_chain(builder)
    feed(chain, builder, main)
    side = lineage(builder.tip)
    with pytest.raises(ConsensusError) as caught:
        chain.add_block(side[0].block)
    assert caught.value.reason == Reason.REORG_TOO_DEEP
    chain.allow_deep_reorg = True
    for node in side:
        chain.add_block(node.block)
    assert chain.tip.id == side[-1].block.id


def test_headers_below_the_limit_that_cost_no_work_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    builder = ChainBuilder(regtest(max_reorg=3))
    root = builder.tip
    builder.mine(count=4)
    main = builder.tip
    builder.tip = root
    chain = open_chain(builder)
    feed(chain, builder, main)
    header = builder.candidate([builder.transfer(ALICE, BOB, 1)]).block.header
    for number in range(1, 100):
        core = structs.replace(header.core, nonce=number.to_bytes(8, "little"))
        with pytest.raises(ConsensusError, match=Reason.WRONG_TILE_STATE.value):
            chain.add_header(Header(core, header.proof))
    assert not caplog.records
    for _ in range(100):
        with pytest.raises(ConsensusError, match="reorg-too-deep"):
            chain.add_header(header)
    assert [record.message for record in caplog.records].count("deep reorganisation refused") == 1


def test_no_operator_undoes_what_has_no_undo_data() -> None:
    rules = regtest(max_reorg=3, retention=18)
    builder = ChainBuilder(rules)
    root = builder.tip
    builder.mine(count=rules.retention + 1)
    main = builder.tip
    builder.tip = root
    builder.mine([builder.transfer(ALICE, BOB, 1)])
    chain = open_chain(builder)
    feed(chain, builder, main)
    chain.allow_deep_reorg = True
    with pytest.raises(ConsensusError) as caught:
        chain.add_block(builder.tip.block)
    assert caught.value.reason == Reason.REORG_TOO_DEEP


def test_a_block_from_the_future_is_refused_for_now(builder: ChainBuilder) -> None:
    builder.mine(time_ms=GENESIS_TIME_MS + 60_000)
    chain = open_chain(builder, now_ms=GENESIS_TIME_MS)
    with pytest.raises(ConsensusError) as caught:
        chain.add_block(builder.tip.block)
    assert caught.value.reason == Reason.TIME_TOO_NEW


def test_every_undo_gives_back_the_state_before(builder: ChainBuilder) -> None:
    job = builder.job(ALICE, operand(128, 64), operand(64, 64, 1), rows=64)
    builder.mine([builder.register(DAVE, packets=2), builder.register(ERIN)])
    builder.mine(count=8)
    builder.mine([job.transaction])
    builder.mine(results=builder.answers(job))
    builder.mine(count=3)
    store = MemoryStore()
    chain = open_chain(builder, store)
    feed(chain, builder)
    after = dict(store.scan(schema.STATE))
    for node in lineage(builder.tip)[::-1]:
        undo = store.get(schema.undo(node.block.id))
        assert undo is not None
        for key, value in schema.decode_changes(undo).items():
            if value is None:
                after.pop(schema.STATE + key, None)
            else:
                after[schema.STATE + key] = value
    founding = {schema.STATE + k: v for k, v in builder_genesis(builder).items()}
    assert after == founding


def builder_genesis(builder: ChainBuilder) -> dict[bytes, bytes]:
    from consensus.transition import genesis_transition

    _, founding = genesis_transition(builder.params)
    return {key: value for key, value in founding.writes.items() if value is not None}


def test_a_job_is_indexed_from_its_opening_to_its_closing(builder: ChainBuilder) -> None:
    job = builder.job(ALICE, operand(64, 64), operand(64, 64, 1))
    builder.mine([builder.register(DAVE)])
    builder.mine(count=8)
    builder.mine([job.transaction])
    builder.mine(packet=job.packets[0])
    chain = open_chain(builder)
    feed(chain, builder)
    kinds = [type(event) for _, event in chain.archive.job_events(job.id)]
    assert kinds == [events.Opened, events.Dealt, events.Answered, events.Completed, events.Closed]
    answered = [event for _, event in chain.archive.packet_events(job.packets[0]) if isinstance(event, events.Answered)]
    assert [event.won for event in answered] == [True]
    assert [m.kind for m in chain.archive.movements(DAVE.address)] == ["packet", "block", "sent"]
    assert {m.kind for m in chain.archive.movements(ALICE.address)} == {"sent", "escrow", "refund"}
    strips = chain.known.strips(chain.tip.id)
    assert strips is not None


def test_movements_come_in_pages(builder: ChainBuilder) -> None:
    for amount in range(1, 6):
        builder.mine([builder.transfer(ALICE, BOB, amount)])
    chain = open_chain(builder)
    feed(chain, builder)
    first = list(islice(chain.archive.movements(BOB.address), 2))
    assert [m.amount for m in first] == [5, 4]
    assert [m.amount for m in chain.archive.movements(BOB.address, before=first[-1].height)] == [3, 2, 1]


def test_headers_after_a_locator_follow_the_fork(builder: ChainBuilder) -> None:
    builder.mine(count=30)
    chain = open_chain(builder)
    feed(chain, builder)
    other = ChainBuilder()
    other.mine([other.transfer(ALICE, BOB, 3)])
    behind = open_chain(other)
    feed(behind, other)
    locator = behind.known.locator()
    assert locator[-1] == chain.genesis_hash
    headers = chain.headers_after(locator, 512)
    assert [h.core.height for h in headers] == list(range(1, 31))
    assert chain.headers_after(chain.known.locator(), 512) == []
    assert len(chain.headers_after([], 7)) == 7


def test_tensors_are_dropped_after_their_retention(builder: ChainBuilder) -> None:
    rules = regtest(retention=20, max_reorg=4, window=10)
    builder = ChainBuilder(rules)
    commitments = []
    for height in range(25):  # jobs that fail oblige their operands as long as their block
        job = builder.job(ALICE, operand(64, 64, height), operand(64, 64, 99), expiry=1)
        builder.mine([job.transaction])
        commitments.append(job.payload.operands()[0].commitment)
    chain = open_chain(builder)
    feed(chain, builder)
    held = [chain.tensors.has(commitment) for commitment in commitments]
    assert held == [False] * 5 + [True] * 20
    undo = [chain._store.get(schema.undo(node.block.id)) is not None for node in lineage(builder.tip)]
    assert undo == [False] * 5 + [True] * 20


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "chain"


def test_a_restart_finds_the_same_tip(builder: ChainBuilder, data_dir: Path) -> None:
    root = builder.tip
    builder.mine(count=3)
    side = builder.tip
    builder.tip = root
    builder.mine([builder.transfer(ALICE, BOB, 2)])
    builder.mine(count=3)
    store = LevelStore(data_dir)
    chain = open_chain(builder, store)
    feed(chain, builder, side)
    feed(chain, builder)
    tip, entries = chain.tip.id, flat(chain)
    store.close()
    store = LevelStore(data_dir)
    again = open_chain(builder, store)
    assert again.tip.id == tip
    assert flat(again) == entries
    assert again.entry(side.block.id) is not None
    builder.mine()
    assert feed(again, builder)[-1].tip_changed
    store.close()


def test_another_networks_directory_is_refused(builder: ChainBuilder, data_dir: Path) -> None:
    store = LevelStore(data_dir)
    open_chain(builder, store)
    other = ChainBuilder(regtest(genesis_time_ms=GENESIS_TIME_MS + 1))
    with pytest.raises(StorageError, match="another network"):
        open_chain(other, store)
    store.close()


@pytest.mark.parametrize("lost", ["undo", "state", "header", "body"])
def test_a_damaged_store_is_refused_at_start(builder: ChainBuilder, lost: str) -> None:
    builder.mine([builder.transfer(ALICE, BOB, 2)])
    builder.mine()
    store = MemoryStore()
    chain = open_chain(builder, store)
    feed(chain, builder)
    tip = chain.tip
    key = {
        "undo": schema.undo(tip.id),
        "state": schema.STATE + b"#",
        "header": schema.header(tip.id),
        "body": schema.body(tip.id),
    }[lost]
    store.write({key: None})
    with pytest.raises(StorageError):
        open_chain(builder, store)


def test_a_record_that_cannot_be_read_stops_the_node_and_refuses_no_block(builder: ChainBuilder) -> None:
    store = MemoryStore()
    chain = open_chain(builder, store)
    block = builder.mine([builder.transfer(ALICE, BOB, 2)]).block
    store.write({schema.STATE + state.ACCOUNTS.key(ALICE.address): b"\x92\x01"})
    with pytest.raises(StorageError, match="a stored Account cannot be read"):
        chain.add_block(block)
    assert not chain.entry(block.id).invalid  # type: ignore[union-attr]  # its header was taken in


class FailingStore(MemoryStore):
    """Refuses every write once told to."""

    broken = False

    def write(self, changes):  # type: ignore[no-untyped-def]  # as the base class
        if self.broken:
            raise StorageError("no space left on device")
        super().write(changes)


def test_a_failed_write_keeps_the_old_tip(builder: ChainBuilder) -> None:
    builder.mine(count=2)
    store = FailingStore()
    chain = open_chain(builder, store)
    nodes = lineage(builder.tip)
    chain.add_block(nodes[0].block)
    store.broken = True
    with pytest.raises(StorageError):
        chain.add_block(nodes[1].block)
    assert chain.tip.id == nodes[0].block.id
    assert chain.read(state.root_of) == nodes[0].transition.state_root


def test_the_chain_agrees_with_a_plain_replay(builder: ChainBuilder) -> None:
    """Supply of the stored state, summed over every record, is what was issued less what was burned."""
    builder.mine([builder.transfer(ALICE, BOB, 5, tip=3), builder.register(DAVE)])
    builder.mine(count=11)
    chain = open_chain(builder)
    feed(chain, builder)
    ledger = chain.read(state.ledger)
    everything = dict(flat(chain))
    assert holdings_change(EmptyState(), dict(everything)) == ledger.issued - ledger.burned
    assert ledger.burned > 0


def test_another_winning_tile_of_a_parent_is_taken_when_a_child_names_it() -> None:
    """Two copies of one core: the child names the second, and follows once that copy has come."""
    builder = ChainBuilder(idle=Shape(128, 4096, 128))
    builder.mine()
    first = builder.tip
    core = first.header.core
    copies = other_copies(builder, core)
    assert copies, "at the easiest target every tile wins"
    second = copies[0]
    chain = open_chain(builder)
    chain.add_block(first.block)
    assert first.parent is not None
    builder.tip = builder.check(Candidate(Block(second, first.block.body), None))
    builder._nodes[builder.tip.block.id] = builder.tip
    child = builder.mine()
    for tensor in builder.tensors:
        chain.tensors.add(tensor)
    with pytest.raises(ConsensusError) as caught:
        chain.add_block(child.block)
    assert caught.value.reason == Reason.WRONG_PARENT_TICKET
    chain.add_header(second)
    assert chain.add_block(child.block).tip_changed
    named = chain.headers_after([], 2)
    assert [encode(h) for h in named] == [encode(second), encode(child.header)]


def other_copies(builder: ChainBuilder, core):  # type: ignore[no-untyped-def]  # headers with other tiles
    from consensus import work
    from consensus.block import Header, Proof

    shape = core.unit.shape
    evaluation = work.evaluate_idle(core.seed, shape)
    proof = builder.tip.header.proof
    assert proof is not None
    return [
        Header(core, Proof(i, j, evaluation.states[i, j].astype("<u4").tobytes()))
        for i, j, _ in work.winning_tiles(core.seed, evaluation.states, core.target_int, shape.k)
        if (i, j) != (proof.i, proof.j)
    ]


def test_apply_block_alone_never_touches_the_store(builder: ChainBuilder) -> None:
    builder.mine()
    store = MemoryStore()
    chain = open_chain(builder, store)
    before = dict(store.scan(b""))
    chain.read(lambda view: apply_block(chain.params, chain.genesis_hash, view, builder.tip.block, chain.products))
    assert dict(store.scan(b"")) == before


def test_the_seconds_of_each_import_are_told(builder: ChainBuilder) -> None:
    seconds: list[float] = []
    builder.mine(count=2)
    tensors = TensorStore(None)
    for tensor in builder.tensors:
        tensors.add(tensor)
    chain = Chain(builder.params, MemoryStore(), tensors, lambda: FAR_FUTURE_MS, seconds.append)
    first, second = lineage(builder.tip)
    with pytest.raises(ConsensusError):  # a refused one has taken its time, too
        chain.add_block(second.block)
    chain.add_block(first.block)
    assert len(seconds) == 2
    assert all(taken > 0 for taken in seconds)


def two_tiles() -> tuple[ChainBuilder, Chain, Header, Header]:
    """A parent whose one known copy is false, and its child's other copy. The chain knows the child, too."""
    builder, lie = packet_chain(idle=Shape(128, 4096, 128))
    parent, child = builder.tip, builder.mine()
    chain = chain_below(builder, 2)
    chain.add_header(lie.header)
    chain.add_header(child.header)
    with pytest.raises(BadProof):
        chain.add_block(lie)
    copies = other_copies(builder, child.header.core)
    return builder, chain, parent.header, next(copy for copy in copies if copy.ticket != child.header.ticket)


def test_a_copy_above_a_parent_without_any_is_refused_like_any_other() -> None:
    _, chain, parent, other = two_tiles()
    assert chain.entry(parent.id).copies == {}  # type: ignore[union-attr]
    with pytest.raises(ConsensusError) as refused:
        chain.add_header(other)
    assert refused.value.reason is Reason.INVALID_PARENT
    chain.add_header(parent)  # the good copy of the parent comes: now there is something to check against
    assert chain.add_header(other).id == other.id
    assert len(chain.entry(other.id).copies) == 2  # type: ignore[union-attr]


def test_a_good_copy_readmits_only_those_that_were_refused_for_the_false_one() -> None:
    _, chain, parent, other = two_tiles()
    child = chain.entry(other.id)
    assert child is not None
    assert child.invalid
    chain.known.tree.refuse(child, "for its own sake")
    chain.add_header(parent)
    entry = chain.entry(parent.id)
    assert entry is not None
    assert not entry.invalid
    assert child.invalid == "for its own sake"
    assert chain.best_header is entry
