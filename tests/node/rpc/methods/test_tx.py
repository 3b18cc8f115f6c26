"""`tx_*`: sending, following, fees and history."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from consensus.codec import encode
from consensus.transaction import Output, Transfer
from node.pool.mempool import MAX_PENDING_PER_ACCOUNT
from tests.builders import ALICE, BOB, CAROL, DAVE, MINER, operand
from tests.node.rpc.world import World, small_job, with_workers


def test_a_transaction_from_sending_to_confirmations() -> None:
    world = World()
    tx = world.builder.transfer(ALICE, BOB, 5)
    txid = tx.body.txid(world.builder.genesis_hash).hex()
    for _ in range(2):  # a pending one is welcome again
        assert world.call("tx_send", transaction=encode(tx).hex()) == {"txid": txid}
    pending = world.call("tx_get", txid=txid)
    assert (pending["status"], pending["block"], pending["confirmations"], pending["ok"]) == ("pending", None, 0, None)
    assert pending["outputs"] == [{"address": world.text(BOB), "amount": 5}]
    assert (pending["sender"], pending["kind"], pending["raw"]) == (world.text(ALICE), "transfer", encode(tx).hex())
    node = world.mine([tx])
    world.mine()
    done = world.call("tx_get", txid=txid)
    assert (done["status"], done["block"], done["height"]) == ("confirmed", node.block.id.hex(), 1)
    assert (done["confirmations"], done["ok"], done["reason"]) == (2, True, "")
    receipt = node.transition.receipts[0]
    assert (done["gas_used"], done["fee"]) == (receipt.gas_used, receipt.fee)


def test_a_failed_payload_says_why() -> None:
    world = World()
    tx = world.builder.retire(ALICE)
    world.mine([tx])
    view = world.call("tx_get", txid=tx.body.txid(world.builder.genesis_hash).hex())
    assert (view["ok"], view["reason"], view["kind"]) == (False, "unknown-worker", "retire_worker")
    assert view["detail"]


def test_refusals_carry_the_reason_and_what_to_do() -> None:
    world = World()
    good = world.builder.transfer(ALICE, BOB, 5)
    forged = replace(good, signature=bytes(64))
    error = world.refused("tx_send", transaction=encode(forged).hex())
    assert (error.kind.name, error.object.data.reason) == ("REJECTED", "bad-signature")
    world.mine([good])
    error = world.refused("tx_send", transaction=encode(good).hex())
    assert (error.kind.name, error.object.data.reason) == ("REJECTED", "nonce-too-low")
    assert (error.object.data.account_nonce, error.object.data.next_nonce) == (1, 1)
    world.call("tx_send", transaction=encode(world.builder.transfer(ALICE, BOB, 5)).hex())
    early = world.builder.transfer(ALICE, BOB, 5, nonce=1 + MAX_PENDING_PER_ACCOUNT + 4)
    data = world.refused("tx_send", transaction=encode(early).hex()).object.data
    assert (data.reason, data.account_nonce, data.next_nonce) == ("too-many-pending", 1, 2)
    assert "have taken 5 of" in data.fix
    poor = world.builder.transfer(MINER, BOB, 5)
    assert world.refused("tx_send", transaction=encode(poor).hex()).object.data.reason == "insufficient-balance"


@pytest.mark.parametrize(
    ("text", "reason"), [("zz", None), ("abc", None), ("c0", "malformed"), ("", "malformed"), ("00" * 200_000, None)]
)
def test_bytes_that_are_no_transaction(text: str, reason: str | None) -> None:
    error = World().refused("tx_send", transaction=text)
    assert error.kind.name == "INVALID_PARAMS"
    assert reason is None or error.object.data.reason == reason


def test_a_job_whose_operands_were_not_uploaded() -> None:
    world = World()
    job = world.builder.job(ALICE, operand(64, 64), operand(64, 64, 1))
    error = world.refused("tx_send", transaction=encode(job.transaction).hex())
    assert (error.kind.name, error.object.data.reason) == ("UNAVAILABLE", "missing-tensor")
    world.share_tensors()
    world.call("tx_send", transaction=encode(job.transaction).hex())


def test_an_unknown_transaction_is_not_found() -> None:
    assert World().refused("tx_get", txid="00" * 32).kind.name == "NOT_FOUND"


def test_fees_follow_the_pool() -> None:
    world = World()
    quiet = world.call("tx_fees")
    assert (quiet["base_fee"], quiet["suggested_tip"]) == (1, 1)
    assert quiet["suggested_max_base_fee"] > quiet["base_fee"]
    assert quiet["gas"]["tensor_byte"] == world.builder.params.gas.tensor_byte
    limit = world.builder.params.gas_limit
    for sender in (ALICE, BOB, CAROL):
        tx = world.builder.transfer(sender, DAVE, 1, gas_limit=limit // 2, max_base_fee=10, tip=8)
        asyncio.run(world.intake.transaction(tx))
    assert world.call("tx_fees")["suggested_tip"] == 9


def test_history_pages_end_with_whole_heights() -> None:
    world = with_workers()
    for amount in (1, 2, 3):
        world.mine([world.builder.transfer(ALICE, BOB, amount), world.builder.transfer(CAROL, BOB, 10 * amount)])
    page = world.call("tx_history", address=world.text(BOB), limit=3)
    assert [entry["amount"] for entry in page] == [30, 3]
    older = world.call("tx_history", address=world.text(BOB), limit=50, before=page[-1]["height"])
    assert [entry["amount"] for entry in older][:4] == [20, 2, 10, 1]
    assert {entry["kind"] for entry in page + older[:4]} == {"received"}
    given = next(a.amount for a in world.builder.params.allocations if a.address == BOB.address)
    assert [(entry["kind"], entry["amount"], entry["height"]) for entry in older[4:]] == [("genesis", given, 0)]
    assert world.call("tx_history", address=world.text(BOB), before=0) == []
    assert page[0]["time_ms"] == world.chain.tip.core.time_ms
    whole = world.call("tx_history", address=world.text(BOB), limit=1)
    assert [entry["height"] for entry in whole] == [world.chain.tip.height] * 2


def test_history_tells_escrow_pay_and_rewards() -> None:
    world = with_workers(DAVE)
    job = small_job(world, ALICE, packets=1)
    world.mine([job.transaction])
    world.mine(results=world.builder.answers(job))
    world.mine()
    kinds = {
        key.name: [entry["kind"] for entry in world.call("tx_history", address=world.text(key))]
        for key in (ALICE, DAVE, MINER)
    }
    assert kinds["alice"] == ["refund", "fee", "escrow", "genesis"]
    assert kinds["dave"] == ["packet", "bond", "genesis"]
    assert set(kinds["miner"]) == {"block"}
    escrow = world.call("tx_history", address=world.text(ALICE))[2]
    assert escrow["reference"] == job.id.hex()
    packet = world.call("tx_history", address=world.text(DAVE))[0]
    assert (packet["counterparty"], packet["job"]) == (world.text(ALICE), job.id.hex())
    block = world.call("tx_history", address=world.text(MINER))[0]
    assert block["matures_at"] == block["height"] + world.chain.params.maturity


def test_a_payment_is_told_to_both_with_who_why_and_for_what() -> None:
    world = World()
    tx = world.builder.tx(ALICE, Transfer((Output(BOB.address, 7),), b"for tea"))
    world.mine([tx])
    sent, received = (world.call("tx_history", address=world.text(key))[0] for key in (ALICE, BOB))
    assert (sent["kind"], sent["amount"], sent["counterparty"]) == ("sent", -7 - sent["fee"], world.text(BOB))
    assert (received["kind"], received["amount"], received["counterparty"]) == ("received", 7, world.text(ALICE))
    assert sent["memo"] == received["memo"] == b"for tea".hex()
    assert sent["reference"] == received["reference"] == tx.body.txid(world.chain.genesis_hash).hex()


def test_a_failed_transaction_is_its_fee() -> None:
    world = World()
    world.mine([world.builder.retire(ALICE)])
    entry = world.call("tx_history", address=world.text(ALICE))[0]
    assert (entry["kind"], entry["ok"], entry["amount"]) == ("fee", False, -entry["fee"])


def test_movements_add_up_to_what_an_account_and_its_bond_hold() -> None:
    """Through a registration, a packet answered and one missed, blocks mined, and the bond's return."""
    world = with_workers(DAVE)
    first = small_job(world, ALICE, packets=1)
    world.mine([first.transaction])
    world.mine(results=world.builder.answers(first))
    missed = small_job(world, CAROL, packets=1)
    world.mine([missed.transaction])
    world.mine(count=world.chain.params.window + 3)
    worker = world.call("worker_get", address=world.text(DAVE))
    assert worker["lost"] > 0
    assert worker["missed"] >= 1
    _check_sums(world)
    world.mine([world.builder.retire(DAVE)])
    world.mine(count=2 * world.chain.params.window + world.chain.params.registration_delay)
    kinds = [entry["kind"] for entry in world.call("tx_history", address=world.text(DAVE))]
    assert {"miss", "packet", "bond", "bond-back"} <= set(kinds)
    _check_sums(world)
    assert world.call("worker_get", address=world.text(DAVE))["lost"] >= worker["lost"]


def _check_sums(world: World) -> None:
    tip = world.chain.tip.height
    for key in (ALICE, BOB, CAROL, DAVE, MINER):
        entries = world.call("tx_history", address=world.text(key), limit=1000)
        held = sum(entry["amount"] for entry in entries if (entry["matures_at"] or 0) <= tip)
        assert held == world.call("state_getAccount", address=world.text(key))["balance"]
        assert sum(entry["bond"] for entry in entries) == world.call("worker_get", address=world.text(key))["bond"]
