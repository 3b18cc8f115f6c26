"""What Prometheus sees of a node: counters that are told, and gauges that are read when they are asked for.

Every node has a registry of its own, so that several of them live in one process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counted
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from consensus.transaction import Result, Transaction
from node.chain.chain import Import

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Reading:
    """The node at a moment. `mined` holds the miner's counters by name."""

    height: int
    best_header_height: int
    peers: int
    mempool_transactions: int
    mempool_bytes: int
    results: int
    tensor_bytes: int
    ready: bool
    mined: dict[str, float]


_GAUGES = {
    "height": "Height of the tip.",
    "best_header_height": "Height of the best checked header.",
    "peers": "Connected peers.",
    "mempool_transactions": "Transactions that wait for a block.",
    "mempool_bytes": "Bytes of the mempool.",
    "results": "Verified Results that wait for a block.",
    "tensor_bytes": "Bytes of the tensors that are kept.",
    "ready": "Whether the node is ready (1) or not (0).",
}


class _Readings(Collector):
    """Reads the node at each scrape."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The gauges, and the miner's counters."""
        reading = self._read()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"tilework_{name}", text, value=float(getattr(reading, name)))
        for name, value in reading.mined.items():
            text = f"Of the node's own miner: {name.replace('_', ' ')}."
            yield CounterMetricFamily(f"tilework_mining_{name}", text, value=value)

    def describe(self) -> Iterable[Metric]:
        """Nothing before the first scrape: the node may not be complete when this is registered."""
        return ()


class _Calls(Collector):
    """Counts RPC calls. A counter with labels of the library takes longer than the answer to a small call."""

    def __init__(self) -> None:
        self._outcomes: Counted[tuple[str, str]] = Counted()
        self._times: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(_SECONDS) + 1))
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def count(self, method: str, seconds: float, outcome: str) -> None:
        """One more."""
        self._outcomes[method, outcome] += 1
        self._times[method][bisect_left(_SECONDS, seconds)] += 1
        self._seconds[method] += seconds

    def collect(self) -> Iterable[Metric]:
        """Calls by method and outcome, and a histogram of their times by method."""
        calls = CounterMetricFamily("tilework_rpc_calls", "RPC calls.", labels=["method", "outcome"])
        for labels, count in self._outcomes.items():
            calls.add_metric(labels, count)
        times = HistogramMetricFamily("tilework_rpc_seconds", "Time of RPC calls.", labels=["method"])
        bounds = [*map(str, _SECONDS), "+Inf"]
        for method, counts in self._times.items():
            times.add_metric([method], list(zip(bounds, accumulate(counts), strict=True)), self._seconds[method])
        return calls, times

    def describe(self) -> Iterable[Metric]:
        """See `_Readings.describe`."""
        return ()


class Metrics:
    """An observer of the intake, and of RPC calls and imports."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Readings(read))
        ProcessCollector(namespace="tilework", registry=self.registry)
        self._blocks = Counter("tilework_blocks", "Blocks that joined the main chain.", registry=self.registry)
        self._reorgs = Counter("tilework_reorgs", "Reorganisations.", registry=self.registry)
        self._undone = Counter("tilework_reorged_blocks", "Blocks that left the main chain.", registry=self.registry)
        self._transactions = Counter(
            "tilework_transactions_accepted", "Transactions taken into the mempool.", registry=self.registry
        )
        self._results = Counter("tilework_results_accepted", "Results taken into the pool.", registry=self.registry)
        self._imports = Histogram(
            "tilework_import_seconds", "Time to take in a block.", buckets=_SECONDS, registry=self.registry
        )
        self._calls = _Calls()
        self.registry.register(self._calls)

    def new_tip(self, change: Import) -> None:
        """Count blocks and reorganisations."""
        self._blocks.inc(len(change.connected))
        if change.disconnected:
            self._reorgs.inc()
            self._undone.inc(len(change.disconnected))

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        """Count it."""
        self._transactions.inc()

    def new_result(self, result: Result, result_id: bytes) -> None:
        """Count it."""
        self._results.inc()

    def imported(self, seconds: float) -> None:
        """A block was taken in, or refused, after `seconds`. From any thread."""
        self._imports.observe(seconds)

    def called(self, method: str, seconds: float, outcome: str) -> None:
        """A call of RPC has ended. On the event loop's thread, like the scrape."""
        self._calls.count(method, seconds, outcome)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
