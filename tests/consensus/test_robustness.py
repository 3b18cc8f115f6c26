"""Whatever decodes is accepted or refused with a reason: validation raises nothing else on a stranger's bytes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus import validation
from consensus.block import Block, Body, Header, PacketUnit, PairUnit, Proof, Zero
from consensus.errors import ConsensusError, MissingTensor
from consensus.params import MAX_TARGET
from consensus.transaction import CancelJob, Payload, Result, SubmitJob, Transaction
from consensus.validation import Strips
from tests.builders import ALICE, DAVE, Candidate, ChainBuilder, operand, worker_chain
from tests.consensus.strategies import values

CHAIN = ChainBuilder()
GOOD = CHAIN.candidate().block

WORKING = worker_chain([DAVE])
JOB = WORKING.job(ALICE, operand(64, 64), operand(64, 64, 1))
WORKING.mine([JOB.transaction])

sides = st.sampled_from([0, 1, 63, 64, 128, 4096, 4160, 2**31, 2**32 - 64, 2**32 - 1])
hashes = st.binary(min_size=32, max_size=32)
units = (
    st.builds(Zero, sides, sides, sides)
    | st.builds(PacketUnit, hashes, hashes, hashes, sides, sides, sides)
    | st.builds(PairUnit, hashes, hashes, sides, sides, sides)
)
targets = st.sampled_from([0, 1, MAX_TARGET, MAX_TARGET + 1, 2**256 - 1]).map(lambda target: target.to_bytes(32, "big"))


@given(values(Header))
def test_any_header(header: Any) -> None:
    with suppress(ConsensusError):
        validation.check_header(CHAIN.params, header, CHAIN.tip.context(), 0)


@given(units, targets, st.integers(0, 2**63 - 1), values(Proof), st.none() | values(Strips))
def test_headers_that_are_almost_good(unit: Any, target: bytes, time_ms: int, proof: Any, strips: Any) -> None:
    core = replace(GOOD.header.core, unit=unit, target=target, time_ms=time_ms)
    for tile in (proof, replace(proof, i=0, j=0)):
        header = Header(core, tile)
        with suppress(ConsensusError):
            validation.check_header(CHAIN.params, header, CHAIN.tip.context(), 2**62)
            validation.check_tile(header, strips)


@given(values(Transaction))
def test_any_transaction(tx: Any) -> None:
    with suppress(ConsensusError):
        validation.check_transaction(CHAIN.params, tx)


@settings(max_examples=50)
@given(values(Payload), st.integers(0, 2**63 - 1))
def test_any_signed_payload(payload: Any, tip: int) -> None:
    chain = WORKING.fork()
    for gas in (1_000_000, chain.params.gas_limit):
        if isinstance(payload, CancelJob):
            payload = replace(payload, job=JOB.id)
        tx = chain.tx(ALICE, payload, nonce=1, gas_limit=gas, tip=tip % 3)
        with suppress(ConsensusError, MissingTensor):
            chain.check(chain.candidate([tx]))


@settings(max_examples=50)
@given(values(SubmitJob), st.integers(0, 2), st.integers(1, 3), st.integers(0, 2**63 - 1))
def test_jobs_that_are_almost_good(job: Any, tweak: int, threshold: int, price: int) -> None:
    """A good job with some fields of a random one."""
    chain = WORKING.fork()
    good = chain.job(ALICE, operand(128, 64, 3), operand(64, 64, 4), rows=64)
    changes = [{"expiry": job.expiry}, {"price": price}, {"packets": job.packets, "mode": job.mode}][tweak]
    payload = replace(good.payload, threshold=threshold, **changes)
    with suppress(ConsensusError):
        chain.check(chain.candidate([chain.tx(ALICE, payload, nonce=1, gas_limit=1_000_000)]))


@given(values(Result), st.booleans(), st.booleans())
def test_any_result(result: Any, own_packet: bool, own_worker: bool) -> None:
    chain = WORKING.fork()
    body = result.body
    if own_packet:
        body = replace(body, packet_id=JOB.packets[0])
    if own_worker:
        body = replace(body, worker=DAVE.address)
    signature = DAVE.private.sign(body.signing_hash(chain.genesis_hash))
    for claim in (replace(result, body=body), Result(body, signature)):
        with suppress(ConsensusError, MissingTensor):
            chain.check(chain.candidate(results=[claim]))


@settings(max_examples=30)
@given(values(Body))
def test_any_body(body: Any) -> None:
    block = Block(Header(replace(GOOD.header.core, body_root=body.root()), GOOD.header.proof), body)
    with suppress(ConsensusError, MissingTensor):
        ChainBuilder(CHAIN.params, worked=False).check(Candidate(block, None))
