"""`python -m benchmarks.strangers [WORD …]`: what a node keeps while strangers try it: work, RPC, the way in, memory.

A miner at full duty, an honest peer beside it, and one attack at a time (`benchmarks._attacks`, those with a WORD in
their names) in a process of its own on the same machine. The rate of work is compared with that just before the attack,
under the same looks at the node; everything else is the worst seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from benchmarks._attacks import ATTACKS, Stranger
from benchmarks._bench import Row, main
from consensus.codec import encode
from consensus.rules import payloads
from consensus.transaction import Output, Transfer, TxBody
from consensus.transition import genesis_transition
from devnet import keys
from node import genesis
from node.p2p.handshake import Refused
from node.p2p.transport import ConnectionLost
from tests.processes.harness import RealNode, RpcFailed, call, rig, until

BEFORE_S, SETTLE_S, DURING_S = 6.0, 3.0, 12.0
PATIENCE_S = 15.0


@dataclass
class Seen:
    """What was seen while an attack ran. Seconds, but for `memory_mb` and `descriptors`; `busy` is the part of a core
    that the node took besides its mining."""

    calls: list[float] = field(default_factory=list)
    joins: list[float] = field(default_factory=list)
    payments: list[float] = field(default_factory=list)
    memory_mb: float = 0.0
    descriptors: int = 0
    failures: int = 0
    busy: float = 0.0


def run() -> list[Row]:
    """All rows."""
    wanted = sys.argv[1:]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory, rig(Path(directory), spacing_ms=1_000) as made:
        victim = made.node(units_per_block=10**6)
        honest = made.node(peers=[victim.p2p_port], units_per_block=0)
        for node in (victim, honest):
            node.start()
            node.wait_ready()
        until(lambda: victim.height() >= 12, "some blocks")
        facts = {"p2p": victim.p2p_port, "rpc": victim.rpc_port, "genesis": str(made.genesis)}
        facts["tensor"] = _upload(victim)
        payer = _Payer(made.genesis, honest)
        for name in ATTACKS:
            if not wanted or any(word in name for word in wanted):
                rows += _attacked(name, victim, honest, payer, facts)
                for row in rows[-5:]:
                    print(row, file=sys.stderr, flush=True)
    return rows


measure = run


def _attacked(name: str, victim: RealNode, honest: RealNode, payer: _Payer, facts: dict[str, Any]) -> list[Row]:
    txid = payer.pay()
    until(lambda: _has(victim, txid), "a payment")
    info = victim.call("chain_info")
    told = facts | {"txid": txid, "tip": info["tip"], "height": info["height"]}
    alone, quiet = _watched(victim, payer, facts, BEFORE_S)
    with _attack(name, told):
        time.sleep(SETTLE_S if "jobs" not in name else 2 * SETTLE_S)  # which have operands to hash
        under, seen = _watched(victim, payer, facts, DURING_S)
        behind = victim.height() - honest.height()
    calls = sorted(seen.calls)
    cost = seen.busy - quiet.busy
    others = f"{cost:.2f} of a core, {seen.descriptors} descriptors, {behind} blocks behind, {seen.failures} failures"
    return [
        Row(f"{name}: work kept", under / alone, "×", 0.8, others),
        Row(f"{name}: RPC p99", 1e3 * calls[len(calls) * 99 // 100], "ms", 100, better="lower"),
        Row(f"{name}: a peer gets in", max(seen.joins, default=PATIENCE_S), "s", 5, better="lower"),
        Row(f"{name}: a payment arrives", max(seen.payments, default=PATIENCE_S), "s", 5, better="lower"),
        Row(f"{name}: memory", seen.memory_mb, "MB", 1_000, better="lower"),
    ]


def _watched(victim: RealNode, payer: _Payer, facts: dict[str, Any], seconds: float) -> tuple[float, Seen]:
    """Units per second of the victim, and what its users see of it meanwhile."""
    seen, end = Seen(), time.monotonic() + seconds
    watchers = [
        threading.Thread(target=watch, args=arguments)
        for watch, arguments in (
            (_watch_calls, (victim, seen, end)),
            (_watch_joins, (facts, seen, end)),
            (_watch_payments, (victim, payer, seen, end)),
        )
    ]
    for watcher in watchers:
        watcher.start()
    before, busy, started = _units(victim), _busy_s(victim), time.perf_counter()
    time.sleep(seconds)
    taken = time.perf_counter() - started
    rate, seen.busy = (_units(victim) - before) / taken, (_busy_s(victim) - busy) / taken
    for watcher in watchers:
        watcher.join()
    return rate, seen


@contextlib.contextmanager
def _attack(name: str, facts: dict[str, Any]) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks._attacks", name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(facts) + "\n")
    process.stdin.flush()
    try:
        yield
        assert process.poll() is None, f"the attack {name!r} ended by itself"
    finally:
        process.kill()
        process.wait()


def _upload(victim: RealNode) -> str:
    """A megabyte of tensor that the victim holds; its commitment."""
    file = io.BytesIO()
    np.save(file, np.ones((1024, 1024), np.int8))
    request = urllib.request.Request(f"{victim.url}/tensors?side=rows", file.getvalue(), method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.loads(answer.read())["commitment"])


def _has(victim: RealNode, txid: str) -> bool:
    try:
        return bool(victim.call("tx_get", txid=txid))
    except RpcFailed:
        return False


def _busy_s(victim: RealNode) -> float:
    """Processor time of the victim's threads but the one that mines."""
    assert victim.process is not None
    total = 0
    for task in Path(f"/proc/{victim.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            if fields[16] == "0":  # mining is nice
                total += sum(map(int, fields[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def _units(victim: RealNode) -> int:
    return int(until(lambda: victim.call("node_mining"), "an answer")["idle_units"])


def _watch_calls(victim: RealNode, seen: Seen, end: float) -> None:
    assert victim.process is not None
    process = victim.process.pid
    while time.monotonic() < end:
        started = time.perf_counter()
        try:
            call(victim.url, "chain_info")
        except RpcFailed:
            seen.failures += 1
        seen.calls.append(time.perf_counter() - started)
        seen.memory_mb = max(seen.memory_mb, _resident_mb(process))
        seen.descriptors = max(seen.descriptors, len(os.listdir(f"/proc/{process}/fd")))
        time.sleep(0.02)


def _watch_joins(facts: dict[str, Any], seen: Seen, end: float) -> None:
    async def join() -> None:
        while True:
            with contextlib.suppress(ConnectionLost, Refused):
                async with Stranger(facts).connected():
                    return
            await asyncio.sleep(0.3)

    async def watch() -> None:
        while time.monotonic() < end:
            started = time.perf_counter()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await join()
            seen.joins.append(time.perf_counter() - started)
            await asyncio.sleep(1)

    asyncio.run(watch())


def _watch_payments(victim: RealNode, payer: _Payer, seen: Seen, end: float) -> None:
    while time.monotonic() < end:
        started = time.perf_counter()
        txid = payer.pay()
        while not _has(victim, txid) and time.perf_counter() - started < PATIENCE_S:
            time.sleep(0.05)
        seen.payments.append(time.perf_counter() - started)
        time.sleep(1)


class _Payer:
    """Sends payments through the honest node."""

    def __init__(self, rules: Path, node: RealNode) -> None:
        self._rules = genesis.load(rules)
        self._genesis_hash = genesis_transition(self._rules)[0].id
        self._key = keys.account(9)
        self._node = node
        self._nonce = 0

    def pay(self) -> str:
        """The id of one more payment."""
        payload = Transfer((Output(bytes(20), 1),))
        body = TxBody(self._key.public_key, self._nonce, 10, 0, 10**6, payload)
        body = replace(body, gas_limit=payloads.intrinsic_gas(self._rules, body))
        self._nonce += 1
        tx = self._key.transaction(body, self._genesis_hash)
        self._node.call("tx_send", transaction=encode(tx).hex())
        return body.txid(self._genesis_hash).hex()


def _resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main(run, measure)
