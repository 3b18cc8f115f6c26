"""A mining node sends its worker's earnings on: all above a sum but a reserve, one payment at a time, never twice."""

from __future__ import annotations

from consensus import state
from consensus.params import TILE
from consensus.transaction import Transfer
from node.mining.payout import KEPT_GRAINS, Payout
from tests.builders import ALICE, DAVE, FUNDS, Key
from tests.node.rig import Rig, asynchronous, worker_key

SAVINGS = bytes(range(20))


def payout_of(rig: Rig, above_grains: int, key: Key = DAVE) -> Payout:
    return Payout(rig.intake, worker_key(key), SAVINGS, above_grains, rig.compute)


def balance(rig: Rig, address: bytes) -> int:
    return rig.chain.read(lambda reader: state.account(reader, address).balance)


@asynchronous
async def test_what_is_above_the_sum_is_paid_out_once() -> None:
    rig = Rig()
    payout = payout_of(rig, 100 * TILE)
    txid = await payout.look()
    assert txid is not None
    assert await payout.look() is None, "one waits in the pool"
    tx = rig.pool.get(txid)
    assert tx is not None
    assert isinstance(tx.body.payload, Transfer)
    await rig.mine()
    assert balance(rig, SAVINGS) == tx.body.payload.outputs[0].amount
    assert KEPT_GRAINS <= balance(rig, DAVE.address) < KEPT_GRAINS + TILE // 1000
    assert balance(rig, SAVINGS) > FUNDS - KEPT_GRAINS - TILE // 1000
    assert await payout.look() is None, "the reserve stays"


@asynchronous
async def test_too_little_stays() -> None:
    rig = Rig()
    assert await payout_of(rig, FUNDS).look() is None
    assert await payout_of(rig, FUNDS - 1).look() is not None
    poor = Key("poor")
    assert await payout_of(rig, 0, poor).look() is None
    await rig.intake.transaction(rig.builder.transfer(ALICE, poor, KEPT_GRAINS + 1))
    await rig.mine()
    assert await payout_of(rig, 0, poor).look() is None, "less than the fee above the reserve"


@asynchronous
async def test_nothing_is_sent_beside_another_transaction_of_the_account() -> None:
    rig = Rig()
    await rig.intake.transaction(rig.builder.transfer(DAVE, ALICE, 5))
    payout = payout_of(rig, TILE)
    assert await payout.look() is None
    await rig.mine()
    assert await payout.look() is not None


@asynchronous
async def test_a_payment_that_the_pool_has_lost_gives_its_nonce_to_the_next() -> None:
    rig = Rig()
    payout = payout_of(rig, TILE)
    first = await payout.look()
    assert first is not None
    lost = rig.pool.get(first)
    rig.pool._remove(rig.pool._entries[first])
    await rig.intake.transaction(rig.builder.transfer(ALICE, DAVE, TILE))
    await rig.mine()
    second = await payout.look()
    assert second is not None
    assert second != first
    again = rig.pool.get(second)
    assert lost is not None
    assert again is not None
    assert lost.body.nonce == again.body.nonce, "only one of the two can ever be in the chain"
