"""Descriptors that are short for a moment, by themselves and under the stores."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plyvel
import pytest

from consensus.tensor import Tensor
from node.chain import patience
from node.chain.patience import PATIENCE_S, patiently
from node.chain.tensors import TensorStore

EMFILE = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
ENFILE = OSError(errno.ENFILE, os.strerror(errno.ENFILE))
LEVEL = plyvel.IOError(b"IO error: /data/chain/000042.ldb: Too many open files")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds slept; nobody waits for them."""
    slept = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: slept[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.__setitem__(0, slept[0] + seconds))
    return slept


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def operation() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return operation


@pytest.mark.parametrize("error", [EMFILE, ENFILE, LEVEL])
def test_a_passing_shortage_is_waited_for(clock: list[float], error: Exception) -> None:
    assert patiently(failing(error, error, error)) == "done"
    assert clock[0] == pytest.approx(3 * patience.PAUSE_S)


def test_a_lasting_shortage_is_an_error_after_a_while(clock: list[float]) -> None:
    with pytest.raises(OSError, match="Too many open files"):
        patiently(failing(*[EMFILE] * 1000))
    assert PATIENCE_S <= clock[0] <= PATIENCE_S + 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), plyvel.IOError(b"bad block")])
def test_any_other_error_is_raised_at_once(clock: list[float], error: Exception) -> None:
    with pytest.raises(OSError):  # noqa: PT011  (each has its own text)
        patiently(failing(error))
    assert clock[0] == 0


def test_tensors_are_written_and_read_through_a_shortage(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tensor = TensorStore(tmp_path, 0), Tensor(np.zeros((64, 128), np.int8))
    true_open, short = io.open, [3]

    def short_open(*args: Any, **kwargs: Any) -> Any:
        if short[0]:
            short[0] -= 1
            raise EMFILE
        return true_open(*args, **kwargs)

    monkeypatch.setattr(io, "open", short_open)
    store.add(tensor)
    short[0] = 3
    assert store.tensor(tensor.commitment) is not None
    assert short[0] == 0
