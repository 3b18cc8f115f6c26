"""Real nodes with real faults: crashes in the middle of an import, late comers, partitions, bad lines."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.processes.harness import RealNode, agree, rig, until
from tests.processes.proxy import Proxy

pytestmark = pytest.mark.long


def is_beyond(node: RealNode, height: int) -> bool:
    return node.height() > height


def test_a_node_killed_in_the_middle_of_an_import_resumes_where_it_was(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        miner = made.node()
        miner.idle_duty = 1.0
        miner.start()
        miner.wait_ready()
        until(lambda: miner.height() >= 120, "a chain to synchronise")
        late = made.node([miner.p2p_port], units_per_block=0)
        for reached in (1, 20, 40):
            late.start()
            until(partial(is_beyond, late, reached), "the import to have begun")
            late.end(signal.SIGKILL)
        late.start()
        late.wait_ready()
        height = miner.height()
        until(lambda: agree([miner, late], height), "both to agree")
        assert "Traceback" not in late.log()


def test_a_node_that_joins_late_catches_up(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        first = made.node()
        second = made.node([first.p2p_port])
        for node in (first, second):
            node.start()
        for node in (first, second):
            node.wait_ready()
        until(lambda: first.height() >= 20, "twenty blocks")
        late = made.node([second.p2p_port])
        late.start()
        late.wait_ready()
        assert late.height() >= 18
        height = first.height() + 3
        until(lambda: agree([first, second, late], height), "all to agree on what came after")


def test_a_partition_heals_with_a_reorganisation(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        hub = made.node()
        with (
            Proxy(hub.p2p_port, seed=1, delay_s=0.005) as line,
            Proxy(hub.p2p_port, seed=2, delay_s=0.005) as weak_line,
        ):
            beside = made.node([line.port])
            apart = made.node([weak_line.port])
            nodes = [hub, beside, apart]
            for node in nodes:
                node.start()
            for node in nodes:
                node.wait_ready()
            until(lambda: agree(nodes, 3), "a common beginning")

            weak_line.cut()
            until(lambda: not apart.call("node_peers"), "the partition")
            split = max(node.height() for node in nodes)
            until(lambda: min(hub.height(), apart.height()) >= split + 3, "blocks on both sides")
            before = {node.p2p_port: node.id_at(split + 2) for node in nodes}
            assert before[hub.p2p_port] != before[apart.p2p_port]

            weak_line.heal()
            until(lambda: agree(nodes, split + 3), "all to agree again")
            after = hub.id_at(split + 2)
            assert after in before.values()
            assert sum(identity != after for identity in before.values()) >= 1
            height = max(node.height() for node in nodes)
            until(lambda: agree(nodes, height + 2), "the chain to go on")


def test_nodes_agree_over_a_slow_and_lossy_line(tmp_path: Path) -> None:
    with rig(tmp_path, spacing_ms=6000) as made:
        hub = made.node()
        with Proxy(hub.p2p_port, seed=3, delay_s=0.1, loss=0.05) as line:
            far = made.node([line.port])
            for node in (hub, far):
                node.start()
            for node in (hub, far):
                node.wait_ready()
            until(lambda: agree([hub, far], 8), "eight common blocks", patience_s=180)
