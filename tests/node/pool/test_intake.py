"""The one door: what it lets in, what it refuses and why, and what it does with two at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from msgspec.structs import replace

from consensus.errors import ConsensusError, MissingTensor, Reason
from consensus.tensor import Tensor
from consensus.validation import obliged_tensors
from node.chain.store import StorageError
from node.compute import ThreadCompute
from node.pool.intake import UNCLAIMED_BLOCKS, NotYet
from node.pool.mempool import EXPIRY_BLOCKS, PoolError, PoolReason
from tests.builders import ALICE, BOB, DAVE, ERIN, operand
from tests.node.pool.test_results import claim, dealt
from tests.node.rig import Rig, asynchronous


async def refused(reason: Reason, work: Any) -> ConsensusError:
    with pytest.raises(ConsensusError) as caught:
        await work
    assert caught.value.reason == reason
    return caught.value


async def declined(code: str, work: Any) -> PoolError:
    with pytest.raises(PoolError) as caught:
        await work
    assert caught.value.code == code
    assert isinstance(caught.value.code, PoolReason)
    return caught.value


# --- transactions


@asynchronous
async def test_a_transaction_is_announced_once_and_mined() -> None:
    rig = Rig()
    tx = rig.builder.transfer(ALICE, BOB, 5)
    txid = await rig.intake.transaction(tx)
    assert await rig.intake.transaction(tx) == txid
    assert rig.announced == [tx]
    await rig.mine()
    assert rig.chain.archive.locate(txid)
    await declined("nonce-too-low", rig.intake.transaction(tx))


@asynchronous
async def test_a_forged_signature_is_refused() -> None:
    rig = Rig()
    tx = rig.builder.transfer(ALICE, BOB, 5)
    await refused(Reason.BAD_SIGNATURE, rig.intake.transaction(replace(tx, signature=bytes(64))))
    assert len(rig.pool) == 0
    assert rig.announced == []
    await rig.intake.transaction(tx)


@asynchronous
async def test_the_pools_rules_come_before_the_signature() -> None:
    rig = Rig()
    tx = rig.builder.transfer(ALICE, BOB, 5, nonce=99)
    await declined("too-many-pending", rig.intake.transaction(replace(tx, signature=bytes(64))))


@asynchronous
async def test_a_payload_that_no_block_takes_is_refused_before_the_pool_looks_at_it() -> None:
    rig = Rig()
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2)).payload
    hostile = replace(job, packets=(replace(job.packets[0], left=7),))
    tx = rig.builder.tx(ALICE, job)
    tx = replace(tx, body=replace(tx.body, payload=hostile))
    await refused(Reason.BAD_PAYLOAD, rig.intake.transaction(tx))


@asynchronous
async def test_a_job_needs_its_operands_here_and_in_range() -> None:
    rig = Rig()
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2))
    with pytest.raises(MissingTensor) as missing:
        await rig.intake.transaction(job.transaction)
    assert missing.value.commitment == job.payload.operands()[0].commitment
    await rig.submit(job)
    wide = operand(64, 64, 3)
    wide[5, 5] = 64
    bad = rig.builder.job(BOB, wide, operand(64, 64, 2))
    await rig.upload(*(spec.commitment for spec in bad.payload.operands()))
    await refused(Reason.OPERAND_OUT_OF_RANGE, rig.intake.transaction(bad.transaction))


class Gate(ThreadCompute):
    """Counts what runs, and holds it until it is opened."""

    def __init__(self) -> None:
        super().__init__(4)
        self.open = threading.Event()
        self.runs = 0

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def held() -> Any:
            self.runs += 1
            assert self.open.wait(30)
            return function(*args, **kwargs)

        return await super().run(held)


@asynchronous
async def test_two_at_once_are_verified_once() -> None:
    gate = Gate()
    rig = Rig(compute=gate)
    tx = rig.builder.transfer(ALICE, BOB, 5)
    waiting = [asyncio.ensure_future(rig.intake.transaction(tx)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.open.set()
    assert len(set(await asyncio.gather(*waiting))) == 1
    assert gate.runs == 1
    assert rig.announced == [tx]
    gate.close()


@asynchronous
async def test_a_forged_copy_in_flight_does_not_answer_for_the_true_one() -> None:
    gate = Gate()
    rig = Rig(compute=gate)
    tx = rig.builder.transfer(ALICE, BOB, 5)
    forged = asyncio.ensure_future(rig.intake.transaction(replace(tx, signature=bytes(64))))
    true = asyncio.ensure_future(rig.intake.transaction(tx))
    await asyncio.sleep(0)
    gate.open.set()
    await true
    await asyncio.wait([forged])  # refused, unless the true one came first and made it known
    assert rig.announced == [tx]
    gate.close()


@asynchronous
async def test_those_who_wait_get_the_refusal_too() -> None:
    gate = Gate()
    rig = Rig(compute=gate)
    tx = replace(rig.builder.transfer(ALICE, BOB, 5), signature=bytes(64))
    waiting = [asyncio.ensure_future(rig.intake.transaction(tx)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.open.set()
    for each in waiting:
        await refused(Reason.BAD_SIGNATURE, each)
    assert gate.runs == 1
    gate.close()


@asynchronous
async def test_a_caller_who_goes_away_leaves_the_work_to_the_next() -> None:
    gate = Gate()
    rig = Rig(compute=gate)
    tx = rig.builder.transfer(ALICE, BOB, 5)
    first = asyncio.ensure_future(rig.intake.transaction(tx))
    second = asyncio.ensure_future(rig.intake.transaction(tx))
    await asyncio.sleep(0.01)
    first.cancel()
    gate.open.set()
    assert await second == tx.body.txid(rig.chain.genesis_hash)
    assert first.cancelled()
    gate.close()


# --- Results


@asynchronous
async def test_a_result_waits_for_its_product_then_for_its_block() -> None:
    rig = Rig()
    job = await dealt(rig, 1)
    result = rig.builder.result(job.packets[0])
    with pytest.raises(MissingTensor):
        await rig.intake.result(result)
    await rig.upload(result.body.product)
    identity = await rig.intake.result(result)
    assert identity == result.id(rig.chain.genesis_hash)
    assert rig.announced[-1] == result
    told = len(rig.announced)
    await rig.intake.result(result)
    assert len(rig.announced) == told


@asynchronous
async def test_a_packet_is_answered_once() -> None:
    rig = Rig()
    job = await dealt(rig, 2)
    first = await rig.answer(job.packets[0])
    await rig.mine()
    assert rig.builder.group(job) is not None
    await refused(Reason.DUPLICATE_RESULT, rig.intake.result(first))


@asynchronous
async def test_false_results_are_refused() -> None:
    rig = Rig()
    job = await dealt(rig, 1)
    packet = job.packets[0]
    holder = rig.builder.holder(packet)
    assert holder is not None
    other = ERIN if holder == DAVE else DAVE
    true = rig.builder.product(packet)
    await refused(Reason.NOT_ASSIGNEE, rig.intake.result(rig.builder.result(packet, worker=other)))
    await refused(Reason.UNKNOWN_WORKER, rig.intake.result(rig.builder.result(packet, worker=BOB)))
    good = rig.builder.result(packet)
    await refused(Reason.BAD_SIGNATURE, rig.intake.result(replace(good, signature=bytes(64))))
    off_by_one = true.matrix.copy()
    off_by_one[3, 4] += 1
    for matrix in (off_by_one, true.matrix[:, :64].astype("int8"), Tensor(operand(64, 128)).matrix):
        false = Tensor(matrix)
        await rig.intake.tensor(false)
        wrong = rig.builder.result(packet, product=false.commitment)
        await refused(Reason.WRONG_PRODUCT, rig.intake.result(wrong))
    assert len(rig.results) == 0
    await rig.answer(packet)


@asynchronous
async def test_an_early_result_is_kept_and_taken_when_its_deal_arrives() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    branch = rig.branch()
    job = branch.job(ALICE, operand(64, 64, 1), operand(64, 64, 2))
    deal = branch.mine([job.transaction])
    result = branch.result(job.packets[0])
    await rig.upload(result.body.product)
    with pytest.raises(NotYet):
        await rig.intake.result(result)
    assert result not in rig.announced
    await rig.receive(deal)
    await rig.intake.close()
    assert rig.results.pending() == [result]
    assert rig.announced[-1] == result


@asynchronous
async def test_only_registered_workers_can_send_early() -> None:
    rig = Rig()
    await rig.with_workers(DAVE)
    stranger = claim(ERIN, 1)
    await refused(Reason.UNKNOWN_WORKER, rig.intake.result(stranger))
    await refused(Reason.BAD_SIGNATURE, rig.intake.result(claim(DAVE, 1)))  # signed for another network
    for number in range(64):
        early = DAVE.claim(rig.chain.genesis_hash, number.to_bytes(32, "big"), bytes(32))
        with pytest.raises(NotYet):
            await rig.intake.result(early)
    one_more = DAVE.claim(rig.chain.genesis_hash, bytes([1] * 32), bytes(32))
    await declined("too-many-early-results", rig.intake.result(one_more))


# --- blocks


@asynchronous
async def test_blocks_move_the_tip_the_pools_and_the_observers() -> None:
    rig = Rig()
    tx = rig.builder.transfer(ALICE, BOB, 5)
    await rig.intake.transaction(tx)
    branch = rig.branch()
    change = await rig.receive(branch.mine([tx]))
    assert change.tip_changed
    assert rig.announced == [tx, change]
    assert len(rig.pool) == 0
    again = await rig.intake.block(branch.tip.block)
    assert not again.tip_changed
    assert rig.announced == [tx, change]


@asynchronous
async def test_a_reorganisation_gives_back_what_the_new_branch_lacks() -> None:
    rig = Rig()
    here, there = rig.branch(), rig.branch()
    kept, lost = here.transfer(ALICE, BOB, 5), here.transfer(BOB, ALICE, 6)
    await rig.receive(here.mine([kept, lost]))
    await rig.receive(there.mine([kept]))
    change = await rig.receive(there.mine())
    assert len(change.disconnected) == 1
    assert rig.pool.get(lost.body.txid(rig.chain.genesis_hash)) == lost
    assert len(rig.pool) == 1


@asynchronous
async def test_a_block_without_its_tensors_comes_back_with_them() -> None:
    rig = Rig()
    branch = rig.branch()
    node = branch.mine([branch.job(ALICE, operand(64, 64, 1), operand(64, 64, 2)).transaction])
    with pytest.raises(MissingTensor):
        await rig.intake.block(node.block)
    assert rig.announced == []
    assert (await rig.receive(node)).tip_changed


@asynchronous
async def test_a_bad_block_changes_nothing() -> None:
    rig = Rig()
    bad = rig.builder.candidate(core={"state_root": bytes(32)})
    await refused(Reason.WRONG_STATE_ROOT, rig.intake.block(bad.block))
    assert rig.chain.tip.height == 0
    assert rig.announced == []


@asynchronous
async def test_an_import_that_has_begun_is_finished_when_its_caller_goes() -> None:
    gate = Gate()
    rig = Rig(compute=gate)
    gate.open.set()
    tx = rig.builder.transfer(ALICE, BOB, 5)
    await rig.intake.transaction(tx)
    node = rig.branch().mine([tx])
    await rig.upload(*obliged_tensors(node.block))
    gate.open.clear()
    importing = asyncio.ensure_future(rig.intake.block(node.block))
    await asyncio.sleep(0.01)
    importing.cancel()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await importing
    await rig.intake.close()
    assert rig.chain.tip.id == node.block.id
    assert len(rig.pool) == 0
    gate.close()


# --- tensors and storage


@asynchronous
async def test_uploads_are_bounded_until_blocks_claim_them() -> None:
    a, b = operand(64, 64, 1), operand(64, 64, 2)
    rig = Rig(upload_quota_bytes=2 * 4096 + 1)
    job = rig.builder.job(ALICE, a, b)
    await rig.submit(job)
    spare = Tensor(operand(64, 64, 3))
    error = await declined("upload-quota", rig.intake.tensor(spare))
    assert "8193" in error.message
    await rig.submit(job)  # the same tensors again count once
    await rig.intake.tensor(spare, obliged=True)
    await rig.mine()
    await rig.intake.tensor(Tensor(operand(64, 64, 4)))
    await rig.intake.tensor(Tensor(operand(64, 64, 5)))
    await declined("upload-quota", rig.intake.tensor(Tensor(operand(64, 64, 6))))


@asynchronous
async def test_unclaimed_uploads_are_dropped() -> None:
    assert UNCLAIMED_BLOCKS > EXPIRY_BLOCKS, "a pending job keeps its operands"
    rig = Rig(upload_quota_bytes=4096, unclaimed_blocks=5)
    tensor = Tensor(operand(64, 64, 1))
    await rig.intake.tensor(tensor)
    await rig.mine(4)
    assert rig.tensors.has(tensor.commitment)
    await rig.mine()
    assert not rig.tensors.has(tensor.commitment)
    await rig.intake.tensor(Tensor(operand(64, 64, 2)))


@asynchronous
async def test_a_storage_error_stops_the_node() -> None:
    rig = Rig()
    node = rig.branch().mine()
    rig.store.close()
    with pytest.raises(StorageError):
        await rig.intake.block(node.block)
    assert len(rig.failures) == 1


@asynchronous
async def test_nothing_is_kept_for_a_job_behind_a_gap_of_nonces() -> None:
    rig = Rig()
    job = rig.builder.job(ALICE, operand(64, 64, 1), operand(64, 64, 2), nonce=1)
    error = await declined("nonce-gap", rig.intake.transaction(job.transaction))
    assert "its nonce, 1" in str(error)
    await rig.intake.transaction(rig.builder.transfer(ALICE, BOB, 1, nonce=0))
    with pytest.raises(MissingTensor):
        await rig.intake.transaction(job.transaction)


@asynchronous
async def test_one_accounts_jobs_fill_a_sixteenth_of_the_quota_and_peers_half_of_it() -> None:
    """Tensors of 4 KiB in a quota of 32: two for an account's jobs, sixteen from all peers, the rest for own users."""
    rig, numbers = Rig(upload_quota_bytes=32 * 4096), count()

    async def bring(account: bytes | None) -> None:
        tensor = Tensor(operand(64, 64, next(numbers)))
        if account is not None:
            rig.intake._uploads.expect([tensor.commitment], account)
        await rig.intake.tensor(tensor)

    for account in range(8):
        await bring(bytes([account]))
        await bring(bytes([account]))
        error = await declined("upload-quota", bring(bytes([account])))
        assert "of its account" in str(error)
    assert "from peers" in str(await declined("upload-quota", bring(b"another")))
    for _ in range(16):
        await bring(None)
    assert "in all" in str(await declined("upload-quota", bring(None)))
