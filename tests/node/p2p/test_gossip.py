"""What is announced and not handed over."""

from __future__ import annotations

import asyncio
from typing import Any

from consensus.codec import encode
from node.compute import Asker
from node.p2p.messages import Announce, GetItems, Items, Kind, Message
from tests.builders import ALICE, BOB, DAVE, Key, operand
from tests.node.p2p.net import Net, until
from tests.node.p2p.test_sync import never, tell
from tests.node.virtual_time import virtual


@virtual
async def test_ids_that_eight_peers_announce_and_never_hand_over_come_from_the_ninth_within_seconds() -> None:
    net = Net()
    a = net.add("a")
    evil = [net.add(f"evil{number}", "a") for number in range(8)]
    good = net.add("good", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 9)
        loop = asyncio.get_running_loop()
        for nonce in range(3):
            tx = a.builder.transfer(ALICE, BOB, 1 + nonce, nonce=nonce)
            txid = tx.body.txid(a.chain.genesis_hash)
            for node in evil:
                node.serve(GetItems, never)
                tell(node, Announce(Kind.TRANSACTION, (txid,)))
            await asyncio.sleep(0.5)
            sent = loop.time()
            await good.intake.transaction(tx)
            await until(lambda txid=txid: a.pool.get(txid) is not None, 10)  # type: ignore[misc]
            assert loop.time() - sent < 5
        assert a.score_of(good) == 0


@virtual
async def test_an_id_is_asked_of_one_peer_while_it_answers_in_time() -> None:
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "a")
    asked: list[str] = []
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        tx = a.builder.transfer(ALICE, BOB, 1)
        for node in (b, c):

            async def items(peer: object, request: GetItems, node=node):  # type: ignore[no-untyped-def]
                asked.append(node.name)
                await asyncio.sleep(1)
                return node.network._gossip.items(request)

            node.serve(GetItems, items)
            await node.intake.transaction(tx)
        await until(lambda: a.pool.get(tx.body.txid(a.chain.genesis_hash)) is not None, 10)
        await asyncio.sleep(5)
    assert len(asked) == 1


@virtual
async def test_one_known_id_announced_without_end_expels_whoever_announces_it() -> None:
    """256 times in each of fifty messages a second: within the rate of messages, and never a new word."""
    net = Net()
    a, good, evil = net.add("a"), net.add("good", "a"), net.add("evil", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        tx = a.builder.transfer(ALICE, BOB, 1)
        txid = await a.intake.transaction(tx)
        await until(lambda: good.pool.get(txid) is not None, 10)
        until_s = asyncio.get_running_loop().time() + 5
        while not a.has_expelled(evil) and asyncio.get_running_loop().time() < until_s:
            tell(evil, Announce(Kind.TRANSACTION, (txid,) * 256))
            await asyncio.sleep(0.02)
        assert a.has_expelled(evil)
        assert a.score_of(good) == 0


@virtual
async def test_announcements_that_cross_are_no_offence() -> None:
    """Two nodes tell each other of the same four thousand ids at once."""
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 1)
        ids = [number.to_bytes(32, "big") for number in range(2_000)]
        for one in (a, b):
            for item in ids:
                one.network._gossip._refused[item] = None
            for start in range(0, len(ids), 250):
                tell(one, Announce(Kind.TRANSACTION, tuple(ids[start : start + 250])))
            await asyncio.sleep(1)
        assert (a.score_of(b), b.score_of(a)) == (0, 0)


@virtual
async def test_what_one_peer_asks_to_have_checked_waits_for_itself_and_not_for_others() -> None:
    """A flood of items that nobody can pay for takes the share of whoever sends it; a payment passes it."""
    net = Net()
    a, good, evil = net.add("a"), net.add("good", "a"), net.add("evil", "a")
    a.shares._share = 0.01
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        poor = [a.builder.transfer(Key(f"poor {n}"), BOB, 1, nonce=0) for n in range(400)]
        stock = {tx.body.txid(a.chain.genesis_hash): encode(tx) for tx in poor}

        async def items(peer: object, request: GetItems) -> Message:
            return Items(tuple(stock[item] for item in request.ids))

        evil.serve(GetItems, items)
        for start in range(0, 400, 200):
            tell(evil, Announce(Kind.TRANSACTION, tuple(list(stock)[start : start + 200])))
        a.shares._left_s = -1.0
        await asyncio.sleep(0.5)
        sent = asyncio.get_running_loop().time()
        tx = a.builder.transfer(ALICE, BOB, 1)
        await good.intake.transaction(tx)
        await until(lambda: a.pool.get(tx.body.txid(a.chain.genesis_hash)) is not None, 300)
        left = sum(len(queue.ids) for queue in a.network._gossip._queues.values())
        assert left > 200, "the flood still waits"
        assert asyncio.get_running_loop().time() - sent < 105


@virtual
async def test_a_job_behind_a_gap_is_fetched_once_the_gap_is_closed() -> None:
    """The job reaches the node before the payment with the nonce below it, which another peer brings."""
    net = Net()
    a, b, c = net.add("a"), net.add("b", "a"), net.add("c", "a")
    async with net:
        await until(lambda: len(a.network.peers()) == 2)
        job = b.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2), nonce=1)
        await b.submit(job)
        await asyncio.sleep(0.5)
        assert a.pool.get(job.id) is None
        assert not any(a.chain.tensors.has(spec.commitment) for spec in job.payload.operands())
        await c.intake.transaction(c.builder.transfer(ALICE, BOB, 1, nonce=0))
        await until(lambda: a.pool.get(job.id) is not None, 3)


@virtual
async def test_items_of_a_peer_are_decoded_and_checked_on_its_share() -> None:
    """Signatures and products are the dear part: of a transaction, and of a Result of nobody."""
    net = Net()
    a, b = net.add("a"), net.add("b", "a")
    ran: list[tuple[str, bytes]] = []
    run = a.shares.run

    async def noted(asker: Asker, function: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append((function.__name__, asker.key))
        return await run(asker, function, *args, **kwargs)

    a.shares.run = noted  # type: ignore[method-assign]
    async with net:
        await until(lambda: len(a.network.peers()) == 1)
        tx = b.builder.transfer(ALICE, BOB, 1)
        await b.intake.transaction(tx)
        await until(lambda: a.pool.get(tx.body.txid(a.chain.genesis_hash)) is not None, 10)
        result = DAVE.claim(a.chain.genesis_hash, bytes(32), bytes(32))
        name = result.id(a.chain.genesis_hash)

        async def items(peer: object, request: GetItems) -> Message:
            return Items((encode(result),))

        b.serve(GetItems, items)
        tell(b, Announce(Kind.RESULT, (name,)))
        await until(lambda: any(function == "_check_result" for function, _ in ran), 10)
    functions = {function for function, key in ran if key == b.identity.key}
    assert {"decode_transaction", "_check_transaction", "_check_result"} <= functions
