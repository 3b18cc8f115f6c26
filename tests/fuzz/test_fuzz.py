"""Whatever bytes come: a value that means exactly them, or the error that is documented; in little time and memory."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from node.p2p import messages
from tests.fuzz.decoders import Decoder, answers, own_values, state_tables, table
from tests.fuzz.mutations import mutated

ROUNDS = 25
MANY_ROUNDS = 3000

CPU_SECONDS = 2.0
"""Of one input; the dearest takes some hundredths."""
MOST_BYTES = 4 << 20
"""Held at once while one input is decoded, beside a multiple of its own length."""
BYTES_PER_BYTE = 150
"""An empty MessagePack array of one byte becomes an object."""


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> list[Decoder]:
    return table(tmp_path_factory.mktemp("fuzz"))


def test_the_table_holds_every_decoder_once(decoders: list[Decoder]) -> None:
    kinds = [decoder.kind for decoder in decoders if decoder.kind is not None]
    assert kinds == [*own_values(), *state_tables(), *messages.DECLARATIONS, *answers()]
    assert len({decoder.name for decoder in decoders}) == len(decoders)


def test_valid_samples_are_taken(decoders: list[Decoder]) -> None:
    def is_taken(decoder: Decoder, sample: bytes) -> bool:
        try:
            return decoder.decode(sample) in (sample, None)
        except decoder.errors:
            return False

    lost = [one.name for one in decoders if not any(is_taken(one, sample) for sample in one.samples)]
    assert lost == []


def attack(decoder: Decoder, seed: int, rounds: int) -> None:
    rng = random.Random(f"{seed} {decoder.name}")
    tracemalloc.start()
    try:
        for number in range(rounds):
            data = mutated(rng, rng.choice(decoder.samples), rng.choice(decoder.samples))
            tracemalloc.reset_peak()
            before, begun = tracemalloc.get_traced_memory()[0], time.thread_time()
            try:
                meant = decoder.decode(data)
            except decoder.errors:
                meant = None
            except BaseException as error:
                raise AssertionError(f"{decoder.name}, seed {seed}, round {number}: {data[:300]!r}") from error
            took, held = time.thread_time() - begun, tracemalloc.get_traced_memory()[1] - before
            what = f"{decoder.name}, seed {seed}, round {number}, {len(data)} bytes: {data[:300]!r}"
            assert meant in (data, None), what
            assert took < CPU_SECONDS, f"{took:.1f} s: {what}"
            assert held < MOST_BYTES + BYTES_PER_BYTE * len(data), f"{held} bytes: {what}"
    finally:
        tracemalloc.stop()


def test_no_mutation_gives_more_than_a_value_or_a_documented_error(decoders: list[Decoder]) -> None:
    for decoder in decoders:
        attack(decoder, 1, ROUNDS)


@pytest.mark.long
def test_many_mutations_of_another_seed(decoders: list[Decoder]) -> None:
    seed = random.SystemRandom().randrange(10**9)
    for decoder in decoders:
        attack(decoder, seed, MANY_ROUNDS)
