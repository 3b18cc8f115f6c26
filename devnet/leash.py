"""Runs a module for as long as the process that started it lives: `python -m devnet.leash tilework node run …`.

Standard input is a pipe whose other end the starter holds and never writes to. The system closes it when the starter
ends, however it ends (kill -9 included), and then this process stops as on SIGTERM. So no node outlives its devnet.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_GRACE_SECONDS = 8.0
"""A clean shutdown takes less than five seconds; whatever hangs longer is cut off."""


def _follow_starter() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_follow_starter, name="leash", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
