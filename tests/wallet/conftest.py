"""A real network for the tests that need one; one for each test module, since starting it takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.wallet.network import Running, register_worker, running_node


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A mining node whose worker is registered and dealt to."""
    with running_node(tmp_path_factory.mktemp("network") / "node") as node:
        asyncio.run(register_worker(node.url, min_price=5))
        yield node
