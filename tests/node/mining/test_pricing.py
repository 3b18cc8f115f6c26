"""A mining node declares its worker's price anew: when the right one has moved by a quarter, and not otherwise."""

from __future__ import annotations

from consensus.params import TILE
from consensus.transaction import RegisterWorker
from node.mining.pricing import Pricing
from node.mining.producer import REFRESH_MS
from tests.builders import DAVE
from tests.node.rig import Rig, asynchronous, worker_key
from worker.price import AskingPrice


def pricing_of(rig: Rig, price: str) -> Pricing:
    return Pricing(rig.intake, worker_key(DAVE), AskingPrice.parse(price), rig.compute)


def idle_pay_of(rig: Rig) -> int:
    return (50 * TILE * rig.chain.tip.core.target_int) >> 238


async def mine_fast(rig: Rig) -> None:
    """A block right after the tip: the next target is lower, and no tick is counted."""
    rig.now_ms = rig.chain.tip.core.time_ms + 1 - REFRESH_MS
    await rig.mine()


@asynchronous
async def test_the_price_follows_the_difficulty_in_steps_of_a_quarter() -> None:
    rig = Rig()
    await rig.with_workers(DAVE, packets=2)
    pricing = pricing_of(rig, "1.5x")
    assert await pricing.look() is None, "the registration itself waits for its tick"
    await rig.mine()
    wanted = -(-3 * idle_pay_of(rig) // 2)
    txid = await pricing.look()
    assert txid is not None
    tx = rig.pool.get(txid)
    assert tx is not None
    assert isinstance(tx.body.payload, RegisterWorker)
    assert (tx.body.payload.min_price, tx.body.payload.max_packets, tx.body.payload.bond) == (wanted, 2, 0)
    assert await pricing.look() is None, "one waits in the pool"
    await rig.mine()
    assert rig.builder.worker(DAVE).announced_for
    assert await pricing.look() is None, "one waits for its tick"
    await rig.mine(rig.params.registration_delay)
    worker = rig.builder.worker(DAVE)
    assert (worker.declared.min_price, worker.declared.places, worker.bond) == (wanted, 2, 2 * rig.params.min_reserve)

    looked = 0
    for _ in range(80):
        await mine_fast(rig)
        now = -(-3 * idle_pay_of(rig) // 2)
        if 4 * (wanted - now) >= wanted:
            break
        assert await pricing.look() is None
        looked += now != wanted
    assert looked, "the price moved, and by less than a quarter"
    assert await pricing.look() is not None
    await rig.mine()
    assert rig.builder.worker(DAVE).announced.min_price == now < wanted


@asynchronous
async def test_nobody_is_registered_by_the_way() -> None:
    rig = Rig()
    pricing = pricing_of(rig, "7")
    assert await pricing.look() is None
    await rig.with_workers(DAVE)
    await rig.mine()
    await rig.intake.transaction(rig.builder.retire(DAVE))
    await rig.mine()
    assert rig.builder.worker(DAVE).declared.places, "they go after the delay"
    assert await pricing.look() is None
    assert not len(rig.pool)
