"""The published vectors of the work function."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consensus import work
from consensus.crypto import stream
from consensus.work.unit import Int8

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "pouw.json").read_text())


def operand(seed: bytes, label: str, rows: int, columns: int) -> Int8:
    keystream = np.frombuffer(stream(seed, label, rows * columns), np.uint8)
    return ((keystream % 127).astype(np.int16) - 63).astype(np.int8).reshape(rows, columns)


def sha256(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['m']}x{v['k']}x{v['n']}")
def test_vector(vector: dict[str, Any]) -> None:
    seed = bytes.fromhex(vector["seed"])
    m, k, n = vector["m"], vector["k"], vector["n"]
    a, b = operand(seed, "a", m, k), operand(seed, "b", k, n)
    assert (sha256(a), sha256(b)) == (vector["sha256_a"], vector["sha256_b"])

    a2, b2 = work.noised(seed, a, b)
    assert (sha256(a2), sha256(b2)) == (vector["sha256_a_noised"], vector["sha256_b_noised"])
    noised_product = a2.astype(np.int32) @ b2.astype(np.int32)
    assert sha256(noised_product.astype("<i4")) == vector["sha256_product_noised_i32le"]

    evaluation = work.evaluate(seed, a, b)
    assert evaluation.states is not None
    assert sha256(evaluation.product.astype("<i4")) == vector["sha256_product_i32le"]
    assert sha256(evaluation.states.astype("<u4")) == vector["sha256_states_u32le"]

    i, j = vector["last_tile"]
    state = work.tile_state(seed, a, b, i, j)
    assert state.tolist() == vector["last_tile_state"] == evaluation.states[i, j].tolist()
    assert work.ticket(seed, i, j, state).hex() == vector["last_tile_ticket"]
