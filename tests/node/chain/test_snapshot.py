"""Joining an old chain from a snapshot: the state at a checkpoint is served, checked, adopted and built upon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.errors import NOT_FOUND, UNAVAILABLE
from consensus import state
from consensus.block import PacketUnit
from consensus.codec import decode, encode
from consensus.errors import ConsensusError, MissingTensor, Reason
from consensus.params import ChainParams
from consensus.validation import obliged_tensors
from node.chain import schema
from node.chain.chain import Chain
from node.chain.checkpoints import Checkpoints, Page
from node.chain.headers import HeaderEntry
from node.chain.snapshot import FIRST_KEY, Staging, checkpoint_height, checkpoint_spacing, clear, open_operands
from node.chain.store import LevelStore, MemoryStore, StorageError, Store
from node.chain.tensors import TensorStore
from node.p2p.join import Joiner
from node.p2p.limits import DEFAULT, MAX_STATE_BYTES
from node.p2p.messages import GetBody, GetHeaders, GetState, Message, NotFound, State, Status
from node.p2p.transport import Endpoint
from node.rpc.jsonrpc import RpcError
from node.rpc.methods import chain as chain_methods
from tests.builders import ALICE, BOB, CAROL, DAVE, ERIN, ChainBuilder, Node, operand, regtest, strips_of
from tests.node.chain.test_chain import FAR_FUTURE_MS, FailingStore, feed, flat, lineage, open_chain, records
from tests.node.p2p.net import PORT, Net, NetNode, until
from tests.node.virtual_time import virtual

RULES = regtest(retention=40, max_reorg=4)
"""Checkpoints stand at even heights, at least four blocks below the tip."""


def fresh_chain(builder: ChainBuilder, store: Store | None = None) -> Chain:
    """A chain without any tensor."""
    return Chain(builder.params, store or MemoryStore(), TensorStore(None), lambda: FAR_FUTURE_MS)


def at_height(builder: ChainBuilder, height: int) -> Node:
    return lineage(builder.tip)[height - 1]


def add_headers(chain: Chain, builder: ChainBuilder) -> None:
    for node in lineage(builder.tip):
        strips = None
        unit, proof = node.header.core.unit, node.header.proof
        if isinstance(unit, PacketUnit) and proof is not None:
            before = builder.fork()
            before.tip = node.parent or node
            strips = strips_of(*before.operands(unit.packet_id), proof.i, proof.j)
        chain.add_header(node.header, strips)


def state_at(node: Node) -> dict[bytes, bytes]:
    """All records after a builder's block."""
    return {k: v for k, v in node.state.scan(b"") if not k.startswith(state.NODE_PREFIX)}


def above(chain: Chain, builder: ChainBuilder, height: int) -> HeaderEntry:
    entry = chain.entry(at_height(builder, height + 1).block.id)
    assert entry is not None
    return entry


def join(chain: Chain, builder: ChainBuilder, height: int) -> None:
    """Adopt the state at a height as if a peer had sent it, in small pages."""
    entry = above(chain, builder, height)
    staged = chain.stage(entry)
    everything = sorted(state_at(at_height(builder, height)).items())
    for start in range(0, len(everything), 3):
        staged.add(dict(everything[start : start + 3]))
    chain.adopt(entry, staged)


def replay(chain: Chain, builder: ChainBuilder) -> None:
    """Execute everything above the tip, each tensor given when it is asked for."""
    for node in lineage(builder.tip)[chain.tip.height :]:
        while True:
            try:
                chain.add_block(node.block)
                break
            except MissingTensor as missing:
                tensor = builder.tensors.tensor(missing.commitment)
                assert tensor is not None
                chain.tensors.add(tensor)


def busy_builder(blocks: int, rules: ChainParams = RULES) -> ChainBuilder:
    """Transfers, workers, and a job that is open from early on until after the end."""
    builder = ChainBuilder(rules)
    builder.mine([builder.register(DAVE, packets=2), builder.register(ERIN)])
    builder.mine(count=builder.params.registration_delay)
    job = builder.job(ALICE, operand(128, 64), operand(64, 256, 1), rows=64, cols=64)
    builder.mine([job.transaction])
    builder.mine(packet=builder.held(job)[0])
    while builder.height < blocks:
        held = builder.held(job)
        answers = [builder.result(held[0])] if builder.height % 20 == 19 and held else []
        builder.mine([builder.transfer(ALICE, BOB, builder.height)], answers)
    assert builder.group(job) is not None
    return builder


@pytest.fixture(scope="module")
def built() -> ChainBuilder:
    return busy_builder(60)


@pytest.fixture
def builder(built: ChainBuilder) -> ChainBuilder:
    return built.fork()


# ---------------------------------------------------------------------- the rules


@pytest.mark.parametrize(("height", "expected"), [(0, 0), (4, 0), (5, 0), (6, 2), (7, 2), (60, 56), (61, 56)])
def test_checkpoints_stand_below_every_reorganisation(height: int, expected: int) -> None:
    assert checkpoint_spacing(RULES) == 2
    assert checkpoint_height(RULES, height) == expected


# ---------------------------------------------------------------------- adoption


def test_a_fetched_state_is_built_upon_and_an_open_job_goes_on(builder: ChainBuilder) -> None:
    chain = fresh_chain(builder)
    add_headers(chain, builder)
    obliging = next(node for node in lineage(builder.tip) if obliged_tensors(node.block))
    assert chain.missing_tensors(obliging.block), "a replay would need what nobody has"
    join(chain, builder, 50)
    assert chain.tip is chain.base is chain.entry(at_height(builder, 50).block.id)
    assert flat(chain) == state_at(at_height(builder, 50))
    assert chain.missing_operands()
    replay(chain, builder)
    assert chain.tip.id == builder.tip.block.id
    assert flat(chain) == records(builder)
    assert chain.read(state.root_of) == builder.tip.transition.state_root
    # What lies below the base is known by its header alone.
    below = at_height(builder, 10).block.id
    assert chain.archive.id_at(10) == below
    assert chain.known.header(below) is not None
    assert chain.block(below) is None


def test_it_serves_the_headers_below_its_base_with_their_proofs(builder: ChainBuilder) -> None:
    store = MemoryStore()
    chain = fresh_chain(builder, store)
    add_headers(chain, builder)
    join(chain, builder, 50)
    again = fresh_chain(builder, store)
    for opened in (chain, again):
        assert [header.core.height for header in opened.headers_after([], 512)] == list(range(1, 51))
        won = at_height(builder, 11)
        assert opened.known.strips(won.block.id, won.header.ticket) is not None


def test_operands_of_open_groups_are_kept_as_long_as_everywhere(builder: ChainBuilder) -> None:
    store = MemoryStore()
    chain = fresh_chain(builder, store)
    add_headers(chain, builder)
    join(chain, builder, 50)
    duties = chain.read(lambda reader: open_operands(chain.params, reader, 50))
    assert set(chain.missing_operands()) == set(duties)
    for commitment, height in duties.items():
        chain.keep_tensor(commitment, 1)
        assert store.get(schema.tensor_until(commitment)) == schema.pack_height(height)
        tensor = builder.tensors.tensor(commitment)
        assert tensor is not None
        chain.tensors.add(tensor)
    assert chain.missing_operands() == []


@pytest.mark.parametrize("change", ["altered", "missing", "additional"])
def test_a_false_state_is_refused_and_leaves_the_old_one(builder: ChainBuilder, change: str) -> None:
    store = MemoryStore()
    chain = fresh_chain(builder, store)
    add_headers(chain, builder)
    before = flat(chain)
    false = state_at(at_height(builder, 50))
    key = state.ACCOUNTS.key(CAROL.address)
    if change == "missing":
        del false[key]
    else:
        false[key if change == "altered" else state.ACCOUNTS.key(bytes(20))] = encode(state.Account(5))
    entry = above(chain, builder, 50)
    staged = chain.stage(entry)
    staged.add(false)
    with pytest.raises(ConsensusError) as caught:
        chain.adopt(entry, staged)
    assert caught.value.reason is Reason.WRONG_STATE_ROOT
    assert chain.tip.height == chain.base.height == 0
    assert flat(chain) == before
    join(chain, builder, 50)  # and the next one is not spoilt by its remains
    assert flat(chain) == state_at(at_height(builder, 50))


def test_trie_nodes_are_never_taken() -> None:
    with pytest.raises(AssertionError):
        Staging(MemoryStore(), schema.STATE_TOO).add({state.NODE_PREFIX: b"x"})
    assert FIRST_KEY > state.NODE_PREFIX + b"\x0f" * 64


def test_no_reorganisation_goes_below_the_base(builder: ChainBuilder) -> None:
    """Not even a short one, and not even where the operator allows deep ones: there is nothing to undo with."""
    side = builder.fork()
    side.tip = at_height(builder, 48)
    side.mine([side.transfer(CAROL, BOB, 1)])
    branch = [side.mine() for _ in range(15)]
    chain = fresh_chain(builder)
    add_headers(chain, builder)
    known = chain.add_header(side.node(branch[0].block.header.core.parent).header)  # before the adoption
    join(chain, builder, 50)
    chain.allow_deep_reorg = True
    with pytest.raises(ConsensusError) as caught:
        chain.add_header(branch[0].header)
    assert caught.value.reason is Reason.REORG_TOO_DEEP
    with pytest.raises(ConsensusError) as caught:
        chain.add_block(side.node(known.id).block)
    assert caught.value.reason is Reason.REORG_TOO_DEEP
    # Down to the base, and from its very block, it does.
    replay(chain, builder)
    fork = builder.fork()
    fork.tip = at_height(builder, 50)
    fork.mine([fork.transfer(CAROL, BOB, 1)])
    fork.mine(count=11)
    for tensor in fork.tensors:
        chain.tensors.add(tensor)
    for node in lineage(fork.tip)[50:]:
        chain.add_block(node.block)
    assert chain.tip.id == fork.tip.block.id
    assert flat(chain) == records(fork)


def test_a_node_that_was_away_for_long_drops_its_own_branch_and_adopts(builder: ChainBuilder) -> None:
    away = builder.fork()
    away.tip = at_height(builder, 8)
    lost = away.mine([away.transfer(CAROL, BOB, 7)]).block
    store = MemoryStore()
    chain = open_chain(builder, store)
    feed(chain, away)
    txid = lost.body.transactions[0].body.txid(chain.genesis_hash)
    assert chain.archive.transaction(txid) is not None
    add_headers(chain, builder)
    entry = above(chain, builder, 50)
    staged = chain.stage(entry)
    staged.add(state_at(at_height(builder, 50)))
    assert chain.adopt(entry, staged).disconnected == (lost,)
    assert chain.archive.transaction(txid) is None
    assert chain.block(at_height(builder, 5).block.id) is not None  # what it had executed itself, it still has
    replay(chain, builder)
    again = open_chain(builder, store)
    assert flat(again) == flat(chain) == records(builder)
    assert not list(store.scan(schema.STATE))


def test_what_was_pruned_is_told_from_what_never_was(builder: ChainBuilder) -> None:
    chain = fresh_chain(builder)
    add_headers(chain, builder)
    join(chain, builder, 50)
    assert chain_methods._info(chain).snapshot_height == 50
    for height in (1, 50):
        entry = chain.entry(chain.archive.id_at(height) or b"")
        assert entry is not None
        assert chain_methods.header_of(chain, entry).confirmations == 51 - height
        with pytest.raises(RpcError, match="pruned: this node joined from a snapshot at height 50") as caught:
            chain_methods._block(chain, entry)
        assert caught.value.kind is NOT_FOUND
    with pytest.raises(RpcError) as caught:
        chain_methods._block(chain, above(chain, builder, 50))
    assert caught.value.kind is UNAVAILABLE


# ---------------------------------------------------------------------- crashes


@pytest.mark.parametrize("more", [0, 1, 10])
def test_a_restart_goes_on_from_the_base(builder: ChainBuilder, tmp_path: Path, more: int) -> None:
    store = LevelStore(tmp_path / "chain")
    chain = fresh_chain(builder, store)
    add_headers(chain, builder)
    join(chain, builder, 50)
    end, builder.tip = builder.tip, at_height(builder, 50 + more)
    replay(chain, builder)
    store.close()
    store = LevelStore(tmp_path / "chain")
    again = fresh_chain(builder, store)
    again.tensors = again.products._checked._source = chain.tensors  # which are kept too
    assert (again.tip.height, again.base.height) == (50 + more, 50)
    assert flat(again) == records(builder)
    builder.tip = end
    add_headers(again, builder)
    replay(again, builder)
    assert flat(again) == records(builder)
    store.close()


class DyingStore(MemoryStore):
    """Refuses the n-th write and all that follow; what was written before stays."""

    left = 1 << 30

    def write(self, changes):  # type: ignore[no-untyped-def]  # as the base class
        if not self.left:
            raise StorageError("killed")
        self.left -= 1
        super().write(changes)


def test_a_crash_at_any_write_leaves_the_old_chain_or_the_new(builder: ChainBuilder) -> None:
    ends = set()
    for writes in range(100):
        store = DyingStore()
        chain = fresh_chain(builder, store)
        add_headers(chain, builder)
        store.left = writes
        try:
            join(chain, builder, 50)
            survived = True
        except StorageError:
            survived = False
        store.left = 1 << 30
        again = fresh_chain(builder, store)
        ends.add(again.tip.height)
        assert again.tip.height == again.base.height
        if again.tip.height == 0:
            assert again.read(lambda reader: state.account(reader, ALICE.address).nonce) == 0
            add_headers(again, builder)
            join(again, builder, 50)
        assert flat(again) == state_at(at_height(builder, 50))
        assert not list(store.scan(schema.STATE))
        if survived:
            break
    assert ends == {0, 50}
    assert survived


def test_a_failed_adoption_keeps_the_old_tip_in_memory_too(builder: ChainBuilder) -> None:
    store = FailingStore()
    chain = fresh_chain(builder, store)
    add_headers(chain, builder)
    entry = above(chain, builder, 50)
    staged = chain.stage(entry)
    staged.add(state_at(at_height(builder, 50)))
    store.broken = True
    with pytest.raises(StorageError):
        chain.adopt(entry, staged)
    assert chain.tip.height == chain.base.height == 0


@pytest.mark.parametrize("lost", ["header", "main", "state"])
def test_a_damaged_base_is_refused_at_start(builder: ChainBuilder, lost: str) -> None:
    store = MemoryStore()
    chain = fresh_chain(builder, store)
    add_headers(chain, builder)
    join(chain, builder, 50)
    key = {
        "header": schema.header(chain.base.id),
        "main": schema.main(50),
        "state": schema.STATE_TOO + state.NODE_PREFIX,
    }[lost]
    store.write({key: None})
    with pytest.raises(StorageError):
        fresh_chain(builder, store)


def test_clearing_removes_everything_under_a_prefix_and_nothing_else() -> None:
    store = MemoryStore()
    store.write({schema.STATE_TOO + i.to_bytes(4, "big"): b"x" for i in range(10_000)})
    store.write({schema.STATE + b"a": b"x"})
    clear(store, schema.STATE_TOO)
    assert dict(store.scan(b"")) == {schema.STATE + b"a": b"x"}


# ---------------------------------------------------------------------- serving


def pages(checkpoints: Checkpoints, block_id: bytes) -> Iterator[dict[bytes, bytes]]:
    start, more = b"", True
    while more:
        answer = checkpoints.page(block_id, start)
        assert answer is not None
        data, more = answer
        page = dict(decode(Page, data, MAX_STATE_BYTES).records)
        start = max(page) + b"\x00"
        yield page


@pytest.mark.parametrize("page_bytes", [1, 300, MAX_STATE_BYTES])
def test_pages_hold_the_state_of_the_checkpoint_whatever_has_changed_since(
    builder: ChainBuilder, page_bytes: int
) -> None:
    chain = open_chain(builder)
    feed(chain, builder)
    checkpoints = Checkpoints(chain, page_bytes)
    for height in (56, 54):
        node = at_height(builder, height)
        served = list(pages(checkpoints, node.block.id))
        assert {k: v for page in served for k, v in page.items()} == state_at(node)
        assert (len(served) == 1) == (page_bytes == MAX_STATE_BYTES)


def test_all_pages_are_of_one_state_while_the_tip_moves_and_branches(builder: ChainBuilder) -> None:
    end = builder.tip
    chain = open_chain(builder)
    feed(chain, builder, at_height(builder, 58))
    checkpoints = Checkpoints(chain, 200)
    node = at_height(builder, 54)
    served: dict[bytes, bytes] = {}
    builder.tip = at_height(builder, 57)
    builder.mine([builder.transfer(CAROL, BOB, 1)])
    builder.mine()
    branch = builder.tip
    for number, page in enumerate(pages(checkpoints, node.block.id)):
        served |= page
        if number == 2:
            feed(chain, builder, branch)
            assert chain.tip.id == branch.block.id
        if number == 4:
            feed(chain, builder, end)
            assert chain.tip.id == end.block.id
    assert number > 6
    assert served == state_at(node)


def test_only_the_newest_checkpoints_are_served(builder: ChainBuilder) -> None:
    chain = open_chain(builder)
    feed(chain, builder)
    checkpoints = Checkpoints(chain, MAX_STATE_BYTES)
    served = [node.height for node in lineage(builder.tip) if checkpoints.page(node.block.id, b"") is not None]
    assert served == [54, 56]
    assert checkpoints.page(bytes(32), b"") is None
    assert checkpoints.page(chain.genesis_hash, b"") is None
    assert checkpoints.page(at_height(builder, 56).block.id, b"\xff" * 8) is None
    builder.mine(count=3)
    feed(chain, builder)
    assert checkpoints.page(at_height(builder, 58).block.id, b"") is not None
    assert checkpoints.page(at_height(builder, 54).block.id, b"") is None
    assert {kept.entry.height for kept in checkpoints._kept.values()} == {56, 58}


def test_a_node_serves_from_its_own_base_on(builder: ChainBuilder) -> None:
    chain = fresh_chain(builder)
    add_headers(chain, builder)
    join(chain, builder, 56)
    replay(chain, builder)
    checkpoints = Checkpoints(chain, MAX_STATE_BYTES)
    assert checkpoints.page(at_height(builder, 54).block.id, b"") is None
    assert list(pages(checkpoints, at_height(builder, 56).block.id)) == [state_at(at_height(builder, 56))]


# ---------------------------------------------------------------------- whole nodes


def now(builder: ChainBuilder) -> int:
    return builder.tip.header.core.time_ms + builder.params.spacing_ms


def old_node(net: Net, name: str, builder: ChainBuilder) -> NetNode:
    """A node at the builder's tip that has dropped what it need not keep."""
    node = net.add(name, rules=RULES)
    for tensor in builder.tensors:
        node.tensors.add(tensor)
    node.now_ms = now(builder)
    feed(node.chain, builder)
    for commitment in obliged_tensors(at_height(builder, 1).block):
        node.tensors.remove(commitment)
    return node


def newcomer(net: Net, *dial: str, now_ms: int, **rig: Any) -> NetNode:
    node = net.add("new", *dial, rules=RULES, **rig)
    node.now_ms = now_ms
    return node


def test_headers_below_an_adopted_state_are_never_dropped(builder: ChainBuilder) -> None:
    """Whatever is the best header later on, and however many there are that nobody completes."""
    chain = fresh_chain(builder)
    add_headers(chain, builder)
    join(chain, builder, 50)
    assert chain.known.tree._loose.keys() == {node.block.id for node in lineage(builder.tip)[50:]}


@virtual
async def test_a_fresh_node_joins_an_old_chain_and_follows_it(builder: ChainBuilder) -> None:
    net = Net(operands_retry_s=1.0, state_page_bytes=600)
    old = old_node(net, "old", builder)
    new = newcomer(net, "old", now_ms=old.now_ms)
    async with net:
        await until(net.agree)
        assert new.chain.base.height == 56
        assert flat(new.chain) == records(builder)
        await until(lambda: not new.chain.missing_operands())
        await old.mine(3)
        await until(net.agree)
        assert old.score_of(new) == new.score_of(old) == 0
        assert next(peer for peer in old.network._admission.present()).status.base == 56


@virtual
async def test_no_block_is_asked_for_while_the_headers_are_still_coming(builder: ChainBuilder) -> None:
    """The first headers alone would look like a chain to replay, whose tensors the peers have dropped."""
    net = Net(max_headers=10)
    old = old_node(net, "old", builder)
    asked: list[int] = []

    async def headers(peer: Any, request: GetHeaders) -> Message:
        await asyncio.sleep(3)
        return await old.network._server.headers(peer, request)

    async def body(peer: Any, request: GetBody) -> Message:
        asked.append(chain_height(old, request.id))
        return await old.network._server.body(peer, request)

    old.serve(GetHeaders, headers)
    old.serve(GetBody, body)
    new = newcomer(net, "old", now_ms=old.now_ms)
    async with net:
        await until(net.agree)
        assert new.chain.base.height == 56
        assert min(asked) > 56
        assert new.score_of(old) == 0


@virtual
async def test_a_claim_of_a_higher_chain_holds_nobody_up_who_follows_his_own(builder: ChainBuilder) -> None:
    net = Net()
    old = old_node(net, "old", builder)
    new = newcomer(net, "old", now_ms=old.now_ms)
    async with net:
        await until(net.agree)
        new.network._admission.present()[0].status = Status(10**6, bytes(32), b"\xff" * 32)
        assert not new.network._downloader._joiner.awaits_headers()
        # Who has nothing to follow yet waits for what is claimed, but not for ever.
        network, chain = new.network, fresh_chain(ChainBuilder(RULES))
        joiner = Joiner(chain, new.intake, network._headers, lambda *_: [], new.compute, network._limits)
        assert joiner.awaits_headers()
        new.network._admission.present()[0].status = Status(35, bytes(32), b"\xff" * 32)
        assert not joiner.awaits_headers()
        new.network._admission.present()[0].status = Status(10**6, bytes(32), b"\xff" * 32)
        await asyncio.sleep(DEFAULT.header_patience_s - 1)
        assert joiner.awaits_headers()
        await asyncio.sleep(2)
        assert not joiner.awaits_headers()


@virtual
async def test_the_next_one_joins_from_a_node_that_joined_itself(builder: ChainBuilder) -> None:
    """It has no body below its base and says so: nobody asks it for one, and nobody is punished."""
    net = Net(operands_retry_s=1.0)
    old = old_node(net, "old", builder)
    second = net.add("second", "old", rules=RULES)
    second.now_ms = old.now_ms
    async with net:
        await until(net.agree)
        await until(lambda: not second.chain.missing_operands())
        await old.network.stop()
        await second.mine(4)
        third = newcomer(net, "second", now_ms=second.now_ms)
        asked: list[GetBody] = []

        async def body(peer: Any, request: GetBody) -> Message:
            asked.append(request)
            return await second.network._server.body(peer, request)

        second.serve(GetBody, body)
        await third.network.start()
        await until(lambda: third.chain.tip.id == second.chain.tip.id)
        assert third.chain.base.height == 60
        assert all(chain_height(second, request.id) > 60 for request in asked)
        assert second.score_of(third) == third.score_of(second) == 0


def chain_height(node: NetNode, block_id: bytes) -> int:
    entry = node.chain.entry(block_id)
    assert entry is not None
    return entry.height


@virtual
async def test_a_node_that_is_a_little_behind_joins_where_nobody_has_the_bodies(builder: ChainBuilder) -> None:
    net = Net()
    second = net.add("second", rules=RULES)
    second.now_ms = now(builder)
    add_headers(second.chain, builder)
    join(second.chain, builder, 50)
    replay(second.chain, builder)
    third = newcomer(net, "second", now_ms=second.now_ms)
    early = builder.fork()
    early.tip = at_height(builder, 45)
    feed(third.chain, early)
    for tensor in builder.tensors:
        second.tensors.add(tensor)
    async with net:
        await until(net.agree)
        assert third.chain.base.height == 56
        assert second.score_of(third) == third.score_of(second) == 0


def alter(node: NetNode, change: str) -> None:
    """Make a node give a false state."""

    async def lie(peer: Any, request: GetState) -> Message:
        answer = await node.network._server.state(peer, request)
        assert isinstance(answer, State)
        page = list(decode(Page, answer.records, MAX_STATE_BYTES).records)
        match change:
            case "altered":
                page[0] = (page[0][0], encode(state.Account(1)))
            case "unordered":
                page.reverse()
            case "trie":
                page[0] = (state.NODE_PREFIX, page[0][1])
            case "drops":
                return State(encode(Page((page[0],))), True)
            case "garbage":
                return State(b"\xc1", False)
            case "endless":
                return State(encode(Page(tuple((request.start + bytes([i]), bytes(8)) for i in range(100)))), True)
        return State(encode(Page(tuple(page))), answer.more)

    node.serve(GetState, lie)


@pytest.mark.parametrize("change", ["altered", "unordered", "trie", "drops", "garbage", "endless"])
@virtual
async def test_who_gives_a_false_state_is_expelled_and_another_is_asked(builder: ChainBuilder, change: str) -> None:
    net = Net(state_page_bytes=4000, max_state_bytes=100_000)
    liar, honest = old_node(net, "liar", builder), old_node(net, "old", builder)
    alter(liar, change)
    new = newcomer(net, "liar", now_ms=honest.now_ms)
    async with net:
        await until(lambda: new.has_expelled(liar))
        assert new.chain.tip.height == 0
        new.network.add_peer(Endpoint(net.host("old"), PORT))
        await until(net.agree)
        assert flat(new.chain) == records(builder)
        assert new.score_of(honest) == 0


@virtual
async def test_who_has_no_checkpoint_or_falls_silent_is_passed_over(builder: ChainBuilder) -> None:
    net = Net()
    silent, poor, good = [old_node(net, name, builder) for name in ("silent", "poor", "good")]

    async def never(peer: Any, request: Any) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def missing(peer: Any, request: Any) -> Message:
        return NotFound()

    silent.serve(GetState, never)
    poor.serve(GetState, missing)
    new = newcomer(net, "silent", "poor", "good", now_ms=good.now_ms)
    async with net:
        await until(lambda: new.chain.tip.id == good.chain.tip.id, 300)
        assert new.score_of(poor) == new.score_of(good) == 0


@virtual
async def test_a_state_without_end_that_comes_slowly_holds_up_nobody(builder: ChainBuilder) -> None:
    """Its pages are full, and each comes in time: only at its end could it be known to be false."""
    net = Net(state_page_bytes=4000)
    names = [f"drip{number}" for number in range(4)]
    good, *drips = [old_node(net, name, builder) for name in ("good", *names)]

    async def drip(peer: Any, request: GetState) -> Message:
        await asyncio.sleep(0.9 * DEFAULT.request_s)
        return State(encode(Page(tuple((request.start + bytes([i]), bytes(8)) for i in range(100)))), True)

    for node in drips:
        node.serve(GetState, drip)
    new = newcomer(net, *names, now_ms=good.now_ms)
    async with net:
        await asyncio.sleep(20)
        new.network.add_peer(Endpoint(net.host("good"), PORT))
        await until(lambda: new.chain.tip.id == good.chain.tip.id, 5 * DEFAULT.state_patience_s)
        assert flat(new.chain) == records(builder)
        assert new.score_of(good) == 0


@virtual
async def test_a_chain_within_its_retention_is_replayed_from_genesis() -> None:
    net = Net()
    old = net.add("old", rules=RULES)
    await old.mine(30)
    new = newcomer(net, "old", now_ms=old.now_ms)
    async with net:
        await until(net.agree)
        assert new.chain.base.height == 0
        assert new.chain.block(new.chain.archive.id_at(1) or b"") is not None
