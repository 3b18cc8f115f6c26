"""What a node says of itself, where a stranger could make it say something else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from node.chain.split import Split
from node.notes import Notes
from node.report import CLAIM_SECONDS, Report
from tests.node.rig import Rig, asynchronous


def report_of(rig: Rig, *peers: SimpleNamespace) -> Report:
    network: Any = SimpleNamespace(address="127.0.0.1:1", peers=lambda: list(peers), only_group=lambda: "")
    failure: Any = SimpleNamespace(error=None)
    notes = Notes(rig.chain, lambda: len(peers), None, rig.compute)
    own: dict[str, Any] = {"node_id": bytes(32), "worker": None, "needs_peers": True}
    return Report(rig.chain, rig.intake, network, None, failure, notes, **own)


@asynchronous
async def test_a_chain_with_more_work_that_is_too_deep_to_follow_is_no_secret() -> None:
    rig = Rig()
    await rig.mine(3)
    peer = SimpleNamespace(height=3, connected_s=1000.0)
    rig.chain._split = Split(fork_height=1, height=7, work=rig.chain.tip.total_work + 1)
    ready = report_of(rig, peer).ready()
    assert not ready.ok
    assert "at height 7, leaves this one 2 blocks below" in ready.reason
    assert "--allow-deep-reorg" in ready.reason
    await rig.mine(2)
    assert report_of(rig, peer).ready().ok


@asynchronous
async def test_a_claim_without_work_behind_it_makes_no_node_unready_for_long() -> None:
    """A peer says that it stands at height 2⁶². While all are new that may be so; then its headers would have come.
    Whoever leaves and comes again says it in vain as long as one peer stays."""
    rig = Rig()
    await rig.mine(3)
    honest = SimpleNamespace(height=3, connected_s=1000.0)
    new = SimpleNamespace(height=3, connected_s=2.0)
    fresh = SimpleNamespace(height=2**62, connected_s=1.0)
    old = SimpleNamespace(height=2**62, connected_s=CLAIM_SECONDS + 1)
    assert report_of(rig, honest).ready().ok
    assert not report_of(rig, new, fresh).ready().ok
    assert report_of(rig, honest, fresh).ready().ok
    assert report_of(rig, old).ready().ok
