"""What the benchmark scripts share: a row of the table, and medians that are fair to each other."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure. `target` is the bound that it should keep, None where there is none."""

    name: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""
    better: Literal["higher", "lower"] = "higher"

    @property
    def met(self) -> bool:
        """Whether the value keeps its target."""
        if self.target is None:
            return True
        return self.value >= self.target if self.better == "higher" else self.value <= self.target

    def __str__(self) -> str:
        relation = "≥" if self.better == "higher" else "≤"
        target = "" if self.target is None else f"{relation} {self.target:g} {'' if self.met else 'MISSED'}"
        return f"{self.name:<58} {self.value:>9.3g} {self.unit:<8} {target:<16} {self.note}".rstrip()


def median_time(function: Callable[[], object], repeat: int) -> float:
    """The median time of one call, in seconds, after a call that warms up."""
    function()
    return statistics.median(_time(function) for _ in range(repeat))


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1
) -> dict[str, float]:
    """Median times in seconds of functions that take turns, so that a busy moment slows them all alike.

    rounds: how many turns each gets. repeat: calls in a turn, each timed; short functions need several, or they
    measure the cache that the one before left behind.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            times[name] += [_time(function) for _ in range(repeat)]
    return {name: statistics.median(taken) for name, taken in times.items()}


def run_alone(module: str) -> list[Row]:
    """Rows of `python -m module --json` in a process of its own, whose BLAS has one thread and picks its own kernel."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", module, "--json"]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Row(**row) for row in json.loads(output)]


def main(run: Callable[[], list[Row]], measure: Callable[[], list[Row]]) -> None:
    """The command line of a script: the table, or with --json what `run_alone` reads."""
    if "--json" in sys.argv:
        print(json.dumps([asdict(row) for row in measure()]))
    else:
        print(*run(), sep="\n")


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
