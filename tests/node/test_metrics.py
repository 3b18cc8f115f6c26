"""What Prometheus reads, and that two nodes in one process do not share it."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.chain.chain import ConnectedBlock, Import
from node.chain.index import Outcome
from node.metrics import Metrics, Reading
from tests.builders import ChainBuilder

READING = Reading(7, 8, 3, 2, 100, 1, 4096, True, {"idle_units": 5.0, "seconds": 0.5})


def samples(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        sample.name + "".join(sorted(f"[{value}]" for value in sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_gauges_are_read_at_each_scrape() -> None:
    readings = [READING]
    metrics = Metrics(lambda: readings[-1])
    found = samples(metrics)
    assert (found["tilework_height"], found["tilework_peers"], found["tilework_ready"]) == (7, 3, 1)
    assert (found["tilework_mempool_bytes"], found["tilework_tensor_bytes"]) == (100, 4096)
    assert found["tilework_mining_idle_units_total"] == 5
    readings.append(Reading(9, 9, 0, 0, 0, 0, 0, False, {}))
    assert samples(metrics)["tilework_height"] == 9
    assert all(name.startswith("tilework_") for name in found)


def test_events_are_counted() -> None:
    metrics, other = Metrics(lambda: READING), Metrics(lambda: READING)
    builder = ChainBuilder()
    block = builder.mine().block
    outcome = Outcome((), (), bytes(32), 0)
    metrics.new_tip(Import((), (ConnectedBlock(block, outcome),)))
    metrics.new_tip(Import((block, block), (ConnectedBlock(block, outcome),)))
    metrics.imported(0.02)
    metrics.called("chain_info", 0.001, "OK")
    metrics.called("chain_info", 0.001, "LIMIT")
    found = samples(metrics)
    assert (found["tilework_blocks_total"], found["tilework_reorgs_total"]) == (2, 1)
    assert found["tilework_reorged_blocks_total"] == 2
    assert found["tilework_import_seconds_count"] == 1
    assert found["tilework_rpc_calls_total[LIMIT][chain_info]"] == 1
    assert found["tilework_rpc_seconds_count[chain_info]"] == 2
    assert found["tilework_process_resident_memory_bytes"] > 0
    assert samples(other)["tilework_blocks_total"] == 0


def test_a_reading_that_fails_is_not_hidden() -> None:
    def broken() -> Reading:
        raise RuntimeError("no node")

    with pytest.raises(RuntimeError):
        Metrics(broken).text()
