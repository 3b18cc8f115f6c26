"""What is announced and not handed over."""

from __future__ import annotations

import asyncio

from node.p2p.messages import Announce, GetItems, Kind
from tests.builders import ALICE, BOB
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
