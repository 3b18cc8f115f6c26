"""Importing blocks: transfers against the raw rate of signatures, and the cost of a block as the chain grows."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks._bench import Row, main
from benchmarks._chains import lineage, lived_chain, open_chain
from consensus import crypto
from node.chain.chain import Chain
from tests.builders import USERS, WORKERS, ChainBuilder, Key, Node

TRANSFERS = 900
ROUNDS = 5
LONG = 1_000
EARLY = 200


def run() -> list[Row]:
    """All rows."""
    return [*_transfers(), *_growth()]


measure = run


def _transfers() -> list[Row]:
    """Blocks of 900 transfers by eight senders, imported on one thread with no signature seen before."""
    builder = ChainBuilder()
    recipients = [Key(f"recipient {number}") for number in range(TRANSFERS)]
    senders = (*USERS, *WORKERS)
    for round_ in range(ROUNDS):
        pay = [
            builder.transfer(senders[number % len(senders)], recipient, 1 + round_)
            for number, recipient in enumerate(recipients)
        ]
        builder.mine(pay)
    with tempfile.TemporaryDirectory() as directory:
        chain, store = open_chain(builder, Path(directory) / "node")
        ratios, rates = [], []
        for node in lineage(builder.tip):
            transactions = node.block.body.transactions
            signed = [(tx.body.sender, tx.body.signing_hash(chain.genesis_hash), tx.signature) for tx in transactions]
            started = time.perf_counter()
            assert all(crypto.verify(*one) for one in signed)
            raw = time.perf_counter() - started
            started = time.perf_counter()
            chain.add_block(node.block)
            taken = time.perf_counter() - started
            ratios.append(raw / taken)
            rates.append(TRANSFERS / taken)
        store.close()
    note = f"{statistics.median(rates):,.0f} transfers/s"
    return [Row("block import of transfers ÷ raw signature rate", statistics.median(ratios), "×", 0.3, note)]


def _growth() -> list[Row]:
    """Blocks near height 1,000 against blocks near height 100, on two chains that take turns."""
    nodes = list(lineage((builder := lived_chain(LONG)).tip))
    early, late = nodes[:EARLY], nodes[-EARLY:]
    with tempfile.TemporaryDirectory() as directory:
        young, young_store = open_chain(builder, Path(directory) / "young")
        old, old_store = open_chain(builder, Path(directory) / "old")
        for node in early[: EARLY // 2]:
            young.add_block(node.block)
        for node in nodes[: -EARLY // 2]:
            old.add_block(node.block)
        times: dict[str, list[float]] = {"early": [], "late": []}
        for first, second in zip(early[EARLY // 2 :], late[EARLY // 2 :], strict=True):
            times["early"].append(_timed(young, first))
            times["late"].append(_timed(old, second))
        young_store.close()
        old_store.close()
    early_ms, late_ms = (1e3 * statistics.median(times[name]) for name in ("early", "late"))
    note = f"{early_ms:.2f} → {late_ms:.2f} ms"
    return [Row("cost of a block, height 1,000 ÷ height 100", late_ms / early_ms, "×", 1.2, note, better="lower")]


def _timed(chain: Chain, node: Node) -> float:
    started = time.perf_counter()
    chain.add_block(node.block)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(run, measure)
