"""Headers: every reason for which one is refused, and whether it counts against the id or the copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from consensus import crypto, validation, work
from consensus.block import Answer, Block, Header, HeaderCore, PacketUnit, Zero
from consensus.codec import encode
from consensus.difficulty import next_target
from consensus.errors import BadProof, ConsensusError, Reason
from consensus.params import MAX_TARGET
from consensus.shape import Shape
from consensus.tensor import COLUMNS, Tensor
from consensus.validation import Strips
from tests.builders import (
    ALICE,
    BOB,
    DAVE,
    GENESIS_TIME_MS,
    MINER,
    Candidate,
    ChainBuilder,
    operand,
    regtest,
    strips_of,
    worker_chain,
)


@pytest.fixture(scope="module")
def started() -> ChainBuilder:
    chain = ChainBuilder()
    chain.mine(count=2)
    return chain


@pytest.fixture
def chain(started: ChainBuilder) -> ChainBuilder:
    return started.fork()


@pytest.fixture(scope="module")
def prepared() -> tuple[ChainBuilder, bytes]:
    """A mined chain on which DAVE holds a packet of 128×4096×192: two by three tiles, all of which win."""
    chain = worker_chain([DAVE], worked=True)
    job = chain.job(ALICE, operand(128, 4096), operand(4096, 192, 1))
    chain.mine([job.transaction])
    return chain, job.packets[0]


@pytest.fixture
def held(prepared: tuple[ChainBuilder, bytes]) -> tuple[ChainBuilder, bytes]:
    chain, packet = prepared
    return chain.fork(), packet


def unit(**changes: Any) -> PacketUnit:
    return replace(PacketUnit(bytes(32), bytes(32), bytes(32), 64, 4096, 64), **changes)


# --- by itself and against its parent


@pytest.mark.parametrize(
    ("core", "reason"),
    [
        ({"version": 1}, Reason.BAD_VERSION),
        ({"chain_id": 1}, Reason.WRONG_CHAIN),
        ({"height": 2}, Reason.BAD_HEIGHT),
        ({"height": 4}, Reason.BAD_HEIGHT),
        ({"parent": bytes(32)}, Reason.UNKNOWN_PARENT),
        ({"parent_ticket": bytes(32)}, Reason.WRONG_PARENT_TICKET),
        ({"target": (MAX_TARGET - 1).to_bytes(32, "big")}, Reason.WRONG_TARGET),
        ({"target": (MAX_TARGET + 1).to_bytes(32, "big")}, Reason.WRONG_TARGET),
        ({"target": b"\xff" * 32}, Reason.WRONG_TARGET),
        ({"unit": unit(m=65)}, Reason.BAD_UNIT),
        ({"unit": unit(n=0)}, Reason.BAD_UNIT),
        ({"unit": unit(k=4160)}, Reason.BAD_UNIT),
        ({"unit": unit(m=2**32 - 64)}, Reason.BAD_UNIT),
        ({"unit": unit(m=4096, n=4096)}, Reason.UNIT_TOO_LARGE),
    ],
    ids=lambda part: part.value if isinstance(part, Reason) else "",
)
def test_a_core_that_breaks_a_rule_counts_against_its_id(
    chain: ChainBuilder, core: dict[str, Any], reason: Reason
) -> None:
    error = chain.reject(reason, core=core)
    assert not isinstance(error, BadProof)


def test_a_target_of_nothing_is_never_won(chain: ChainBuilder) -> None:
    good = chain.candidate()
    header = Header(replace(good.block.header.core, target=bytes(32)), good.block.header.proof)
    chain.reject(Reason.TICKET_ABOVE_TARGET, candidate=Candidate(Block(header, good.block.body), None))


def test_a_header_without_a_proof(chain: ChainBuilder) -> None:
    block = chain.candidate().block
    bare = Candidate(Block(Header(block.header.core, None), block.body), None)
    assert isinstance(chain.reject(Reason.MISSING_PROOF, candidate=bare), BadProof)


def test_genesis_comes_once(chain: ChainBuilder) -> None:
    node = chain.tip
    while node.parent is not None:
        node = node.parent
    chain.reject(Reason.MISSING_PROOF, candidate=Candidate(node.block, None))


def test_time_is_strictly_above_the_median_of_eleven() -> None:
    """Eleven blocks at +2 s … +22 s: the median is the sixth's, +12 s."""
    chain = ChainBuilder()
    chain.mine(count=11)
    median = GENESIS_TIME_MS + 6 * 2_000
    chain.reject(Reason.TIME_TOO_OLD, time_ms=median)
    chain.reject(Reason.TIME_TOO_OLD, time_ms=0)
    chain.mine(time_ms=median + 1)


def test_the_first_blocks_use_the_times_there_are(chain: ChainBuilder) -> None:
    fresh = ChainBuilder()
    fresh.reject(Reason.TIME_TOO_OLD, time_ms=GENESIS_TIME_MS)
    fresh.mine(time_ms=GENESIS_TIME_MS + 1)
    fresh.reject(Reason.TIME_TOO_OLD, time_ms=GENESIS_TIME_MS + 1)


def test_time_is_at_most_ten_seconds_ahead_of_the_clock(chain: ChainBuilder) -> None:
    early = chain.candidate()
    time_ms = early.block.header.core.time_ms
    chain.reject(Reason.TIME_TOO_NEW, candidate=early, now_ms=time_ms - 10_001)
    chain.accept(early, now_ms=time_ms - 10_000)


def test_a_slow_chains_time_is_at_most_two_spacings_ahead() -> None:
    assert validation.max_time_ms(regtest(spacing_ms=30_000), 5) == 60_005
    assert validation.max_time_ms(regtest(), 5) == 10_005


def test_only_a_header_that_is_otherwise_good_is_called_early(chain: ChainBuilder) -> None:
    bad = chain.candidate(core={"height": 9})
    chain.reject(Reason.BAD_HEIGHT, candidate=bad, now_ms=0)


def test_the_target_follows_asert_from_genesis() -> None:
    chain = ChainBuilder()
    for step in (500, 100, 3_000, 1):
        chain.mine(time_ms=chain.tip.header.core.time_ms + step)
        parent = chain.tip.header.core
        elapsed = parent.time_ms - GENESIS_TIME_MS + 2_000
        expected = next_target(MAX_TARGET, elapsed, parent.height, 2_000, 60_000, MAX_TARGET)
        assert validation.expected_target(chain.params, chain.tip.header) == expected
    assert expected < MAX_TARGET
    chain.mine()


# --- the proof


def test_a_tile_outside_of_the_unit(chain: ChainBuilder) -> None:
    for proof in ({"i": 1}, {"j": 1}, {"i": 2**32 - 1}):
        assert isinstance(chain.reject(Reason.TILE_OUT_OF_RANGE, proof=proof), BadProof)


def test_a_ticket_above_the_target() -> None:
    """At k = 64 one ticket in 64 wins. The ticket is hashed from the claimed state, so a false one costs work too."""
    chain = ChainBuilder(idle=Shape(64, 64, 64))
    good = chain.candidate()
    core = good.block.header.core
    losing = next(
        bytes([n]) * 64
        for n in range(256)
        if not work.wins(crypto.H("tw/ticket", core.seed + bytes(8) + bytes([n]) * 64), core.target_int, 64)
    )
    assert isinstance(chain.reject(Reason.TICKET_ABOVE_TARGET, proof={"state": losing}), BadProof)
    chain.accept(good)


def test_a_claimed_state_that_is_not_the_tiles(chain: ChainBuilder) -> None:
    error = chain.reject(Reason.WRONG_TILE_STATE, proof={"state": bytes(64)})
    assert isinstance(error, BadProof)


def test_another_nonce_makes_the_proof_worthless(chain: ChainBuilder) -> None:
    good = chain.candidate()
    core = replace(good.block.header.core, nonce=b"\x01" + bytes(7))
    moved = Candidate(Block(Header(core, good.block.header.proof), good.block.body), None)
    assert isinstance(chain.reject(Reason.WRONG_TILE_STATE, candidate=moved), BadProof)


@pytest.mark.parametrize("field", sorted(set(HeaderCore.__struct_fields__) - {"unit"}))
def test_every_field_of_the_core_is_under_the_seed_and_the_id(chain: ChainBuilder, field: str) -> None:
    core = chain.tip.header.core
    value = getattr(core, field)
    changed = replace(core, **{field: value + 1 if isinstance(value, int) else b"\x01" + value[:-1]})
    assert changed.id != core.id
    assert changed.seed != core.seed


def test_id_seed_and_ticket_by_hand(chain: ChainBuilder) -> None:
    header = chain.tip.header
    assert header.proof is not None
    assert header.id == crypto.H("tw/block", encode(header.core))
    assert header.core.seed == crypto.H("tw/work", encode(header.core))
    tile = header.proof.i.to_bytes(4, "little") + header.proof.j.to_bytes(4, "little")
    assert header.ticket == crypto.H("tw/ticket", header.core.seed + tile + header.proof.state)


def test_the_proof_is_no_part_of_the_id(chain: ChainBuilder) -> None:
    good = chain.candidate()
    bad = chain.candidate(proof={"state": bytes(64)})
    assert good.block.id == bad.block.id
    chain.reject(Reason.WRONG_TILE_STATE, candidate=bad)
    chain.accept(good)


# --- packets' strips


def test_a_packet_header_is_proved_by_two_strips(held: tuple[ChainBuilder, bytes]) -> None:
    chain, packet = held
    good = chain.candidate(packet=packet)
    assert good.block.header.core.miner == DAVE.address
    validation.check_tile(good.block.header, good.strips)
    chain.accept(good)


def test_forged_strips(held: tuple[ChainBuilder, bytes]) -> None:
    chain, packet = held
    good = chain.candidate(packet=packet)
    a, b = chain.operands(packet)
    s = good.strips
    proof = good.block.header.proof
    assert s is not None
    assert proof is not None
    flipped = s.a[:-1] + bytes([s.a[-1] ^ 1])
    i, j = proof.i, proof.j
    forged: list[Strips | None] = [
        None,
        Strips(flipped, s.a_path, s.b, s.b_path),
        Strips(s.a[:-64], s.a_path, s.b, s.b_path),
        Strips(s.a, (), s.b, s.b_path),
        Strips(s.a, s.a_path, s.b, (*s.b_path, bytes(32))),
        Strips(s.b, s.b_path, s.a, s.a_path),
        strips_of(a, b, 1 - i, j),
        strips_of(a, b, i, (j + 1) % 3),
    ]
    for strips in forged:
        reason = Reason.MISSING_STRIPS if strips is None else Reason.WRONG_STRIPS
        assert isinstance(chain.reject(reason, candidate=Candidate(good.block, strips)), BadProof)


def test_swapped_operand_roots(held: tuple[ChainBuilder, bytes]) -> None:
    chain, packet = held
    honest = chain.packet_unit(packet)
    swapped = replace(honest, a_root=honest.b_root, b_root=honest.a_root)
    assert isinstance(chain.reject(Reason.WRONG_STRIPS, packet=packet, core={"unit": swapped}), BadProof)


@pytest.mark.parametrize("dimensions", [{"k": 2048}, {"m": 64}, {"m": 192}, {"m": 256}, {"n": 64}, {"n": 256}], ids=str)
def test_declared_dimensions_are_bound_to_the_operands(
    held: tuple[ChainBuilder, bytes], dimensions: dict[str, int]
) -> None:
    """Above all k: a larger one would raise the chance of a ticket without its cost."""
    chain, packet = held
    declared = replace(chain.packet_unit(packet), **dimensions)
    header = chain.candidate(packet=packet, core={"unit": declared}, proof={"i": 0, "j": 0}).block.header
    with pytest.raises(BadProof) as caught:
        validation.check_tile(header, strips_of(*chain.operands(packet), 0, 0))
    assert caught.value.reason == Reason.WRONG_STRIPS


def test_operands_of_eight_bits_count_against_the_id(chain: ChainBuilder) -> None:
    a, b = operand(64, 4096), operand(4096, 64)
    a[0, 0] = -64
    left, right = Tensor(a), Tensor(b, COLUMNS)
    wide = PacketUnit(bytes(32), left.spec.root, right.spec.root, 64, 4096, 64)
    block = chain.candidate(core={"unit": wide}).block
    error = chain.reject(Reason.OPERAND_OUT_OF_RANGE, candidate=Candidate(block, strips_of(left, right, 0, 0)))
    assert not isinstance(error, BadProof)


def test_a_small_packet_wins_now_and_then() -> None:
    """64×64×64 has one ticket, which wins one time in 64: the builder searches nonces, the checks agree."""
    chain = worker_chain([DAVE], worked=True)
    job = chain.job(ALICE, operand(64, 64), operand(64, 64, 1))
    chain.mine([job.transaction])
    node = chain.mine(packet=job.packets[0])
    assert node.header.core.nonce != bytes(8)
    assert chain.group(job) is None


def test_zero_operands_are_a_unit_like_any_other() -> None:
    chain = worker_chain([DAVE], worked=True)
    job = chain.job(ALICE, np.zeros((64, 4096), np.int8), np.zeros((4096, 64), np.int8))
    chain.mine([job.transaction])
    chain.mine(packet=job.packets[0])
    assert chain.group(job) is None


def test_errors_say_what_was_got_and_expected(chain: ChainBuilder) -> None:
    error = chain.reject(Reason.BAD_HEIGHT, core={"height": 9}, miner=MINER)
    assert (error.got, error.expected) == (9, 3)
    assert str(error) == "bad-height: got 9, expected 3"
    assert isinstance(error, ConsensusError)


# --- a packet's answer: nobody but its miner makes another copy


def test_a_packet_headers_answer_is_the_miners_own(held: tuple[ChainBuilder, bytes]) -> None:
    """Else a stranger could put another product beside the same work, and strand whoever saw that copy first."""
    chain, packet = held
    good = chain.answer(packet)
    other = chain.answer(packet, bytes(32), BOB)
    forged = {
        Reason.WRONG_ANSWER: [None, other, replace(good, key=BOB.public)],
        Reason.BAD_SIGNATURE: [
            replace(good, product=bytes(32)),
            replace(good, signature=bytes(64)),
            replace(good, signature=other.signature),
        ],
    }
    for reason, answers in forged.items():
        for answer in answers:
            assert isinstance(chain.reject(reason, packet=packet, proof={"answer": answer}), BadProof)


def test_zero_operands_have_no_answer(chain: ChainBuilder) -> None:
    answer = Answer(bytes(32), MINER.public, bytes(64))
    assert isinstance(chain.reject(Reason.WRONG_ANSWER, proof={"answer": answer}), BadProof)


@pytest.mark.parametrize("shape", [Shape(64, 4096, 64), Shape(128, 4096, 192), Shape(64, 4096, 4096)], ids=str)
def test_zero_operands_may_have_any_shape_of_a_packet(shape: Shape) -> None:
    chain = ChainBuilder(idle=shape)
    assert chain.mine().header.core.unit == Zero(*shape)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(64, 65, 64), Reason.BAD_UNIT),
        (Shape(0, 64, 64), Reason.BAD_UNIT),
        (Shape(64, 8192, 64), Reason.BAD_UNIT),
        (Shape(4096, 64, 4096), Reason.UNIT_TOO_LARGE),
    ],
    ids=str,
)
def test_zero_operands_of_no_packets_shape(chain: ChainBuilder, shape: Shape, reason: Reason) -> None:
    chain.reject(reason, core={"unit": Zero(*shape)})
