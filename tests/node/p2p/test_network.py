"""Nodes among their peers: connecting, relaying, falling apart and finding together again."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from consensus.codec import encode
from node.compute import BYTE_S, OVERHEAD_S, Asker, ThreadCompute
from node.p2p.handshake import Introduction, Refused, greet_listener
from node.p2p.limits import DEFAULT
from node.p2p.messages import Announce, GetItems, Items, Kind, Leave, Message, Status
from node.p2p.transport import ConnectionLost, Endpoint, TlsTransport
from tests.builders import ALICE, BOB, CAROL, DAVE, operand
from tests.node.p2p.net import PORT, Net, NetNode, identity, until
from tests.node.rig import asynchronous
from tests.node.virtual_time import virtual

# ---------------------------------------------------------------------- relaying


@virtual
async def test_a_block_reaches_everybody() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "b")
    async with net:
        await until(lambda: len(b.network.peers()) == 2)
        for _ in range(3):
            await a.mine()
            await asyncio.sleep(2)
        assert net.agree()
        assert c.chain.tip.height == 3
        assert all(not info.score for node in net.nodes.values() for info in node.network.peers())


@virtual
async def test_transactions_reach_everybody_once() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "a", "b")
    served: list[GetItems] = []
    async with net:
        await until(lambda: all(len(node.network.peers()) == 2 for node in net.nodes.values()))

        async def count(peer: object, request: GetItems) -> Message:
            served.append(request)
            return await a.network._serve_items(peer, request)  # type: ignore[arg-type]

        a.serve(GetItems, count)
        transactions = [a.builder.transfer(ALICE, BOB, n + 1, max_base_fee=10) for n in range(20)]
        for tx in transactions:
            await a.intake.transaction(tx)
        await until(lambda: len(b.pool) == len(c.pool) == 20)
        await asyncio.sleep(1)
        assert sum(len(request.ids) for request in served) <= 40
        assert [item for item in c.announced if item in transactions] == transactions


@virtual
async def test_the_bytes_of_every_answer_are_counted_against_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    asked = b.identity.key
    counted: list[float] = []

    def charge(asker: Asker, seconds: float) -> None:
        assert asker.key == asked
        counted.append(seconds)

    monkeypatch.setattr(a.shares, "charge", charge)
    await a.mine(3)
    async with net:
        await until(lambda: b.chain.tip.height == 3)
        (peer,) = a.network.peers()
        answers = [seconds for seconds in counted if seconds != OVERHEAD_S]  # which is for the work, in no time here
        assert 800 < sum(answers) / BYTE_S < peer.bytes_out, "three headers, and not what it was told unasked"


@virtual
async def test_a_peer_who_comes_later_is_told_what_is_pending() -> None:
    net = Net()
    a = net.add("a")
    await a.network.start()
    await a.intake.transaction(a.builder.transfer(ALICE, BOB, 1))
    b = net.add("b", "a")
    await b.network.start()
    await until(lambda: len(b.pool) == 1)
    await net.stop()


@virtual
async def test_a_job_brings_its_operands_and_a_result_its_product() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "b")
    async with net:
        await until(lambda: len(b.network.peers()) == 2)
        await a.with_workers(DAVE, CAROL, packets=4)
        job = a.builder.job(ALICE, operand(128, 2048), operand(2048, 128, 1), rows=64)
        await a.submit(job)
        await until(lambda: len(c.pool) == 1)
        assert all(c.tensors.has(spec.commitment) for spec in job.payload.operands())
        await a.mine()
        await until(net.agree)
        result = await a.answer(job.packets[0])
        await until(lambda: c.results.get(job.packets[0]) == result)
        assert c.tensors.has(result.body.product)
        await a.mine(2)
        await until(net.agree)
        assert not c.results.pending()


@virtual
async def test_a_forged_transaction_expels_its_sender_and_leaves_the_true_one_welcome() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        tx = a.builder.transfer(ALICE, BOB, 1)
        txid = tx.body.txid(a.chain.genesis_hash)
        forged = encode(replace(tx, signature=bytes(64)))

        async def forge(peer: object, request: GetItems) -> Message:
            return Items((forged,))

        b.serve(GetItems, forge)
        next(iter(b.network._admission._peers.values())).send(Announce(Kind.TRANSACTION, (txid,)))
        await until(lambda: a.has_expelled(b))
        assert len(a.pool) == 0
        await c.intake.transaction(tx)
        await until(lambda: txid in a.pool)


@virtual
async def test_other_items_than_were_asked_for_are_an_offence() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    async with net:
        await until(lambda: a.network.peers())
        tx = a.builder.transfer(ALICE, BOB, 1)

        async def other(peer: object, request: GetItems) -> Message:
            return Items((encode(tx),))

        b.serve(GetItems, other)
        next(iter(b.network._admission._peers.values())).send(Announce(Kind.TRANSACTION, (bytes(32),)))
        await until(lambda: (a.score_of(b) or 0) > 0)


# ---------------------------------------------------------------------- who is connected


@virtual
async def test_two_nodes_that_dial_each_other_keep_one_connection() -> None:
    net = Net()
    a, b = net.add("a", "b"), net.add("b", "a")
    async with net:
        await asyncio.sleep(30)
        assert len(a.network.peers()) == len(b.network.peers()) == 1
        assert {a.network.peers()[0].direction, b.network.peers()[0].direction} == {"inbound", "outbound"}
        await a.mine()
        await until(net.agree)


@virtual
async def test_a_node_does_not_stay_connected_to_itself() -> None:
    net = Net()
    a = net.add("a", "a")
    async with net:
        await asyncio.sleep(30)
        assert a.network.peers() == []
        assert net.world.connections == set()


async def knock(net: Net, name: str, target: str, genesis: bytes | None = None) -> object:
    """Dial as a stranger: the acquaintance, or the refusal."""
    transport = net.world.transport(identity(name), net.host(name))
    connection = await transport.dial(Endpoint(net.host(target), PORT))
    chain = net.nodes[target].chain
    status = Status(0, chain.genesis_hash, chain.tip.total_work.to_bytes(32))
    introduction = Introduction(identity(name), genesis or chain.genesis_hash, name, 0, lambda: status)
    try:
        return await greet_listener(connection, introduction)
    except Refused as refusal:
        await connection.close()
        return refusal.reason


@virtual
async def test_inbound_places_are_bounded_and_idle_peers_keep_nobody_out() -> None:
    net = Net(max_inbound=3)
    a = net.add("a")
    async with net:
        for name in "bcdef":
            assert not isinstance(await knock(net, name, "a"), Leave)
            await asyncio.sleep(1)
            assert identity(name).key.hex() in {peer.id for peer in a.network.peers()}
        assert len(a.network.peers()) == 3


@virtual
async def test_a_second_connection_of_the_same_key_is_refused() -> None:
    net = Net()
    net.add("a")
    async with net:
        await knock(net, "b", "a")
        assert await knock(net, "b", "a") is Leave.DUPLICATE


@virtual
async def test_another_network_is_refused() -> None:
    net = Net()
    net.add("a")
    async with net:
        assert await knock(net, "b", "a", genesis=bytes(32)) is Leave.WRONG_GENESIS


@virtual
async def test_connections_that_say_nothing_end() -> None:
    net = Net()
    net.add("a")
    async with net:
        silent = await net.world.transport(identity("b"), net.host("b")).dial(Endpoint(net.host("a"), PORT))
        await silent.receive()  # the welcome
        async with asyncio.timeout(2 * DEFAULT.handshake_s):
            with pytest.raises(ConnectionLost):
                await silent.receive()


@virtual
async def test_an_expelled_peer_cools_down_and_may_come_back() -> None:
    net = Net(cool_down_s=100.0)
    a, b = net.add("a"), net.add("b", "a")
    async with net:
        await until(lambda: a.network.peers())
        next(iter(b.network._admission._peers.values()))._queue(b"\x21garbage")
        await until(lambda: a.has_expelled(b))
        await asyncio.sleep(50)
        assert a.network.peers() == []
        await until(lambda: len(a.network.peers()) == 1, 200)


@virtual
async def test_configured_peers_are_dialled_until_they_answer() -> None:
    net = Net()
    b = net.add("b", "a")
    await b.network.start()
    await asyncio.sleep(500)
    a = net.add("a")
    await a.network.start()
    await until(lambda: a.network.peers(), DEFAULT.backoff_most_s + 1)
    await net.stop()


@virtual
async def test_a_stranger_that_claims_the_address_of_a_configured_peer_does_not_take_its_place() -> None:
    net = Net()
    a = net.add("a", "b")
    host = net.host("b")
    stranger = NetNode(
        "stranger", net.world.transport(identity("stranger"), host), listen=None, dial=[Endpoint(net.host("a"), PORT)]
    )
    stranger.network._listening = Endpoint(host, PORT)  # a lie
    await a.network.start()
    await stranger.network.start()
    await until(lambda: a.score_of(stranger) is not None)
    b = net.add("b")
    await b.network.start()
    await until(lambda: a.score_of(b) is not None, DEFAULT.backoff_most_s + 1)
    await stranger.network.stop()
    await net.stop()


@virtual
async def test_addresses_spread_and_are_dialled() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "a")
    async with net:
        await until(lambda: len(b.network.peers()) == len(c.network.peers()) == 2, 60)
        assert len(a.network.book) == len(b.network.book) == len(c.network.book) == 2


@virtual
async def test_anchors_are_dialled_after_a_restart() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    async with net:
        await until(lambda: b.network.peers())
        await b.network.stop()
        saved = b.network.book.dump()
    again = net.add("b")
    again.network.book.load(saved)
    a2 = net.add("a")
    await a2.network.start()
    await again.network.start()
    await until(lambda: again.network.peers(), 5)
    assert again.network.peers()[0].direction == "outbound"
    assert a.identity.key == a2.identity.key
    await net.stop()


@virtual
async def test_a_stopped_network_leaves_nothing_behind() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    before = len(asyncio.all_tasks())
    await net.start()
    await until(lambda: a.network.peers())
    loop = asyncio.get_running_loop()
    began = loop.time()
    await b.network.stop()
    await a.network.stop()
    assert loop.time() - began < 2 * DEFAULT.stop_s
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before
    assert a.intake.observers == [a]


@virtual
async def test_a_failing_service_is_reported_as_fatal() -> None:
    net = Net()
    a = net.add("a")
    error = RuntimeError("broken")

    def fail() -> None:
        raise error

    a.network._downloader._target = fail  # type: ignore[method-assign]
    await a.network.start()
    await until(lambda: a.errors)
    assert a.errors == [error]
    a.errors.clear()
    await net.stop()


# ---------------------------------------------------------------------- faults


@virtual
async def test_a_partition_heals() -> None:
    net = Net()
    names = ("a", "b", "c", "d")
    a, _, c, _ = (net.add(name, *names[:i]) for i, name in enumerate(names))
    async with net:
        await until(lambda: all(len(node.network.peers()) == 3 for node in net.nodes.values()))
        await a.mine(2)
        await until(net.agree)
        net.world.partition({net.host("a"), net.host("b")}, {net.host("c"), net.host("d")})
        for _ in range(3):
            await a.mine()
            await asyncio.sleep(30)
        for _ in range(5):
            await c.mine(miner=BOB)
            await asyncio.sleep(30)
        assert net.agree("a", "b")
        assert net.agree("c", "d")
        assert not net.agree()
        net.world.heal()
        await until(net.agree, 300)
        assert a.chain.tip.id == c.chain.tip.id
        assert a.chain.tip.height == 7
        assert not any(node.network._admission._cooling for node in net.nodes.values())


@pytest.mark.parametrize("seed", range(3))
def test_nodes_agree_whatever_is_lost_on_the_way(seed: int) -> None:
    @virtual
    async def story() -> None:
        net = Net(seed)
        names = ("a", "b", "c", "d", "e")
        nodes = [net.add(name, *names[:i]) for i, name in enumerate(names)]
        async with net:
            rng = net.world.rng
            for _ in range(25):
                node = rng.choice(nodes)
                await node.mine(miner=rng.choice((ALICE, BOB, CAROL)))
                await asyncio.sleep(rng.uniform(0, 4))
                match rng.randrange(6):
                    case 0:
                        net.world.lose(3)
                    case 1:
                        hosts = [net.host(name) for name in names]
                        rng.shuffle(hosts)
                        net.world.partition(set(hosts[:2]), set(hosts[2:]))
                        await asyncio.sleep(rng.uniform(1, 60))
                    case 2:
                        net.world.heal()
            net.world.heal()
            await asyncio.sleep(100)
            await rng.choice(nodes).mine()  # what comes after a tie decides it
            await until(net.agree, 300)
            assert not any(node.network._admission._cooling for node in nodes), f"seed {seed}"

    story()


# ---------------------------------------------------------------------- real sockets


@asynchronous
async def test_two_nodes_over_tls() -> None:
    compute = ThreadCompute(2)
    here = Endpoint("127.0.0.1", 0)
    a = NetNode("a", TlsTransport(identity("a"), DEFAULT), listen=here, compute=compute)
    await a.mine(30)
    await a.network.start()
    assert a.network.address is not None
    dial = [a.network.address]
    b = NetNode("b", TlsTransport(identity("b"), DEFAULT), listen=here, dial=dial, compute=compute)
    b.now_ms = a.now_ms
    await b.network.start()
    await until(lambda: b.chain.tip.height == 30, 10)
    await b.mine()
    await until(lambda: a.chain.tip.id == b.chain.tip.id, 10)
    await b.intake.transaction(b.builder.transfer(ALICE, BOB, 1))
    await until(lambda: len(a.pool) == 1, 10)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await a.network.stop()
    await b.network.stop()
    assert loop.time() - began < DEFAULT.stop_s
    assert not a.errors
    assert not b.errors
    compute.close()


@asynchronous
async def test_a_port_in_use_is_an_error_at_the_start() -> None:
    here = Endpoint("127.0.0.1", 0)
    a = NetNode("a", TlsTransport(identity("a"), DEFAULT), listen=here)
    await a.network.start()
    b = NetNode("b", TlsTransport(identity("b"), DEFAULT), listen=a.network.address)
    with pytest.raises(OSError, match="in use"):
        await b.network.start()
    await b.network.stop()
    await a.network.stop()
