"""Whether the vector kernels run here."""

from __future__ import annotations

import os
from functools import cache

import llvmlite.binding

KERNEL_VARIABLE = "TILEWORK_KERNEL"


@cache
def has_kernels() -> bool:
    """Whether the processor has AVX2 and nobody forbade its use by TILEWORK_KERNEL=portable in the environment.

    Decided once. Raises ValueError for any other value of the variable.
    """
    forced = os.environ.get(KERNEL_VARIABLE, "")
    if forced not in ("", "portable"):
        raise ValueError(f'{KERNEL_VARIABLE}={forced}: expected "portable", or no value to let the processor decide')
    # Numba compiles for what this same library finds.
    return not forced and llvmlite.binding.get_host_cpu_features().get("avx2", False)
