"""A passing shortage of descriptors is no failed disk: whoever runs into it tries again for a while."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 5.0
"""Longer than a stranger may keep a descriptor without having said who it is."""
PAUSE_S = 0.05

_SHORTAGES = (errno.EMFILE, errno.ENFILE)


def patiently(operation: Callable[[], T]) -> T:
    """Run an operation that opens a file and changes nothing before; again, while no descriptor is to be had. Blocks.

    Raises:
        OSError: the operation's last one, after `PATIENCE_S`; any other at once.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return operation()
        except OSError as error:
            if not _is_shortage(error) or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_S)


def _is_shortage(error: OSError) -> bool:
    """LevelDB's errors have a text alone."""
    return error.errno in _SHORTAGES or any(os.strerror(code) in str(error) for code in _SHORTAGES)
