"""A kernel that computes something else than the reference is found at the start, and is used no more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from consensus import work
from consensus.proofs import freivalds
from consensus.shape import OPERAND_BOUND, Shape
from consensus.work import engine, features, portable, reference, selfcheck
from consensus.work.features import has_kernels, kernel_fault
from node import service

if not has_kernels():
    pytest.skip("for the kernels alone", allow_module_level=True)

from consensus.proofs import freivalds_kernel
from consensus.work import fast, kernel

SEED = bytes(range(32))


@pytest.fixture(autouse=True)
def _trusted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_faults", [])


def broken(function: Callable[..., Any], break_it: Callable[..., None]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        result = function(*arguments)
        break_it(*arguments)
        return result

    return run


def flip(position: int) -> Callable[..., None]:
    """Change the last bit of the first entry of an argument."""

    def change(*arguments: Any) -> None:
        arguments[position].reshape(-1)[-1] ^= 1

    return change


def test_the_kernels_of_this_machine_agree_with_the_reference() -> None:
    assert (work.warm(), freivalds.warm(), kernel_fault()) == ("", "", "")
    assert has_kernels()
    assert selfcheck.fault_of(portable) == ""


@pytest.mark.parametrize(
    ("name", "position", "what"),
    [
        ("draw_slots", 1, "the noise"),
        ("pack_noise_rows", 4, "the noise"),
        ("pack_wide_columns", 6, "the product"),
        ("evaluate_wide_rows", 9, "the product"),
        ("evaluate_wide_rows", 10, "the transcript"),
        ("pack_plain_columns", 4, "the product without noise"),
        ("multiply_plain_rows", 6, "the product without noise"),
        ("pack_noise_columns", 4, "an idle unit"),
        ("evaluate_noise_rows", 7, "the product of an idle unit"),
        ("evaluate_noise_rows", 8, "the transcript of an idle unit"),
    ],
)
def test_a_kernel_that_is_wrong_in_one_bit_is_found_and_replaced(
    monkeypatch: pytest.MonkeyPatch, name: str, position: int, what: str
) -> None:
    monkeypatch.setattr(kernel, name, broken(getattr(kernel, name), flip(position)))
    fault = work.warm()
    assert what in fault
    assert "differs from the reference" in fault
    assert (has_kernels(), kernel_fault()) == (False, fault)
    assert engine._implementation() is portable
    a, b = np.full((64, 64), OPERAND_BOUND, np.int8), np.full((64, 64), -OPERAND_BOUND, np.int8)
    found, true = work.evaluate(SEED, a, b), reference.evaluate(SEED, a, b)
    assert found.states is not None
    assert np.array_equal(found.product, true.product)
    assert np.array_equal(found.states, true.states)
    assert work.warm() == fault, "told again to whoever asks"


def test_a_kernel_that_is_wrong_at_the_edge_of_the_range_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = fast.multiply

    def saturating(a: Any, b: Any, threads: int) -> Any:
        product = true(a, b, threads)
        return np.minimum(product, OPERAND_BOUND**2 * a.shape[1] - 1)

    monkeypatch.setattr(fast, "multiply", saturating)
    assert "of the largest operands" in work.warm()


def test_kernels_that_cannot_be_compiled_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("LLVM ERROR")

    monkeypatch.setattr(kernel, "evaluate_wide_rows", fail)
    assert work.warm() == "RuntimeError: LLVM ERROR"
    assert engine._implementation() is portable


@pytest.mark.parametrize(("verdict", "what"), [(False, "refuses a true product"), (True, "for true")])
def test_a_check_that_judges_falsely_is_found_and_replaced(
    monkeypatch: pytest.MonkeyPatch, verdict: bool, what: str
) -> None:
    monkeypatch.setattr(freivalds_kernel, "rows_agree", lambda *_arguments: verdict)
    assert what in freivalds.warm()
    a = np.ones((64, 64), np.int8)
    product = a.astype(np.int32) @ a.astype(np.int32)
    assert freivalds.verify(a, a, product)
    product[3, 5] += 1
    assert not freivalds.verify(a, a, product)


def test_a_node_says_so_loudly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernel, "draw_slots", broken(kernel.draw_slots, flip(1)))
    with caplog.at_level(logging.ERROR):
        service._warm_kernels()
    (line,) = {record.message for record in caplog.records if record.levelno == logging.ERROR}
    assert "KERNELS NOT USED" in line


def test_operands_reach_the_edges() -> None:
    extremes = {
        (int(a.min()), int(a.max()), int(b.min()), int(b.max())) for _, a, b in selfcheck.operands(Shape(64, 64, 64))
    }
    assert {(63, 63, 63, 63), (-63, -63, -63, -63), (-63, 63, -63, -63)} <= extremes
