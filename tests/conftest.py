"""Settings of the whole suite. (Its place puts the repository's root on the path: `from tests.builders import …`.)"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

# A shared core can pause for longer than any single example takes, so time per example says nothing here.
# The blob of a failing example gives it again on any machine (CONTRIBUTING.md).
settings.register_profile("tilework", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("tilework")

if TYPE_CHECKING:
    from tests.wallet.network import Running


@pytest.fixture(scope="session", autouse=True)
def _no_journal_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands that are given no directory for accounts keep their journal away from that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILEWORK_WALLET_DIR", str(tmp_path_factory.mktemp("keystore")))
        yield


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A mining node whose worker is registered and dealt to; one a test module, since starting it takes seconds."""
    from tests.wallet.network import register_worker, running_node  # the whole node: not for a run of a few tests

    with running_node(tmp_path_factory.mktemp("network") / "node") as node:
        asyncio.run(register_worker(node.url, min_price=5))
        yield node
