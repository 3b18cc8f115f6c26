"""Tilework: a blockchain whose blocks are won by multiplying the matrices that somebody paid for.

    from tilework import Client, SyncClient

Names are imported when they are first used, so that the command line's help loads no numerical library.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wallet.client.client import Client, SyncClient

__all__ = ["Client", "SyncClient", "__version__"]

__version__ = version("tilework")


def __getattr__(name: str) -> object:
    if name not in ("Client", "SyncClient"):
        raise AttributeError(f"module 'tilework' has no attribute {name!r}")
    from wallet.client import client

    return getattr(client, name)
