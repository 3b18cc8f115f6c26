"""Whether the vector kernels run here, and can be relied on."""

from __future__ import annotations

import os
from functools import cache

import llvmlite.binding

KERNEL_VARIABLE = "TILEWORK_KERNEL"


_faults: list[str] = []


def has_kernels() -> bool:
    """Whether they are to be used: the processor has AVX2, nobody forbade its use by TILEWORK_KERNEL=portable in the
    environment, and no fault was found.

    Raises ValueError for any other value of the variable.
    """
    return not _faults and _can_run()


def distrust(fault: str) -> None:
    """Use the portable path from now on, in all of this process: a kernel has `fault`."""
    _faults.append(fault)


def kernel_fault() -> str:
    """Why the kernels are not used although the processor could run them, in words; empty where that is not so."""
    return _faults[0] if _faults else ""


@cache
def _can_run() -> bool:
    """What of `has_kernels` does not change. Raises ValueError for any other value of the variable."""
    forced = os.environ.get(KERNEL_VARIABLE, "")
    if forced not in ("", "portable"):
        raise ValueError(f'{KERNEL_VARIABLE}={forced}: expected "portable", or no value to let the processor decide')
    # Numba compiles for what this same library finds.
    return not forced and llvmlite.binding.get_host_cpu_features().get("avx2", False)
