"""`python -m benchmarks [NAME …]`: measure everything, or the named scripts, and print one table of ratios."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module
from pathlib import Path

import numba
import numpy as np

SCRIPTS = ("work", "freivalds", "imports", "dearest", "nodes", "reads")


def main() -> int:
    """Print the table; 1 if a target was missed."""
    names = sys.argv[1:] or SCRIPTS
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown:
        print(f"no benchmark named {unknown[0]}; there are: {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    print(f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"numpy {np.__version__}, numba {numba.__version__}; medians of one run\n")
    missed = 0
    for name in names:
        for row in import_module(f"benchmarks.{name}").run():
            print(row, flush=True)
            missed += not row.met
    print(f"\n{missed} targets missed" if missed else "\nall targets met")
    return 1 if missed else 0


def _processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
