"""The dearest block that an attacker can make, of each kind, against a quarter of devnet's spacing on one core.

Every block is as full as gas, bytes and the bounds of `ChainParams` allow, stands on a state with 50,000 accounts and
30,000 places, and is imported by a real chain on LevelDB that has seen none of its signatures or products before.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from benchmarks._bench import Row, main
from benchmarks._chains import lineage, store_chain
from consensus.codec import MAX_AMOUNT, encode
from consensus.params import MAX_BODY_TX_BYTES, MAX_OUTPUTS, MAX_PLACES, TILE
from consensus.rules import payloads
from consensus.state import ledger
from consensus.transaction import Output, Result, Transaction, Transfer
from node.chain.chain import Chain
from node.chain.store import LevelStore
from node.chain.tensors import TensorStore
from tests.builders import FUNDED, ChainBuilder, Job, Key, Node, operand, regtest

ACCOUNTS = 50_000
PLACES = 30_000
QUARTER_S = 0.5

_numbers = count()


@dataclass(frozen=True)
class Kind:
    """A kind of dear block: `prepare` mines what it needs on a chain, and gives the block itself as the last one."""

    name: str
    build: Callable[[ChainBuilder], Node]


def run() -> list[Row]:
    """All rows."""
    large, rows = _large_state(), []
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "base"
        store_chain(large, base)
        for kind in KINDS:
            branch = large.fork()
            node = kind.build(branch)
            place = Path(directory) / "chain"
            shutil.copytree(base / "chain", place)
            seconds, undo_bytes = _imported(branch, node, large.height, place)
            shutil.rmtree(place)
            note = f"{seconds * 1e3:.0f} ms, undo {undo_bytes >> 10:,} KiB, {_contents(node)}"
            rows.append(Row(f"dearest block: {kind.name}", seconds / QUARTER_S, "×", 1.0, note, better="lower"))
    return rows


measure = run


def _contents(node: Node) -> str:
    body, gas = node.block.body, sum(receipt.gas_used for receipt in node.transition.receipts)
    return f"{len(body.transactions)} transactions, {len(body.results)} Results, {gas / 1e6:.1f}M gas"


def _imported(builder: ChainBuilder, node: Node, known: int, place: Path) -> tuple[float, int]:
    """Seconds that a chain on disk, with the first `known` blocks, takes for the block; bytes of its undo record."""
    store, tensors = LevelStore(place), TensorStore(None)
    for tensor in builder.tensors:
        tensors.add(tensor)
    chain = Chain(builder.params, store, tensors, lambda: time.time_ns() // 10**6)
    for before in [one for one in lineage(node) if one.height > known][:-1]:
        chain.add_block(before.block)
    started = time.perf_counter()
    change = chain.add_block(node.block)
    seconds = time.perf_counter() - started
    assert change.tip_changed
    store.close()
    return seconds, sum(len(key) + len(value or b"") for key, value in node.transition.undo.items())


def _large_state() -> ChainBuilder:
    """Fresh accounts by the thousand, and workers with 64 places each."""
    chain = ChainBuilder(regtest())
    made = 0
    while made < ACCOUNTS:
        made += _fill(chain, (_outputs(chain, FUNDED[n % 8]) for n in count()))[1] * MAX_OUTPUTS
    _workers(chain, PLACES // MAX_PLACES, min_price=MAX_AMOUNT)
    return chain


def _workers(chain: ChainBuilder, number: int, **terms: int) -> list[Key]:
    """New workers with 64 places each, all of them in the array."""
    keys = _funded(chain, number, 700 * TILE)
    waiting, places = list(keys), ledger(chain.state).places + number * MAX_PLACES
    while waiting:
        offers = (chain.register(key, packets=MAX_PLACES, max_base_fee=10**6, **terms) for key in waiting)
        del waiting[: _fill(chain, offers)[1]]
    while ledger(chain.state).places < places:
        chain.mine()
    return keys


def _fill(chain: ChainBuilder, offers: Iterator[Transaction]) -> tuple[Node, int]:
    """A block of as many of the transactions as it holds, and their number."""
    chosen, gas, size = [], 0, 0
    for tx in offers:
        gas += payloads.intrinsic_gas(chain.params, tx.body)
        size += len(encode(tx))
        if gas > chain.params.gas_limit or size > MAX_BODY_TX_BYTES:
            break
        chosen.append(tx)
    return chain.mine(chosen), len(chosen)


def _strangers(number: int) -> list[bytes]:
    return [next(_numbers).to_bytes(20, "big") for _ in range(number)]


def _outputs(chain: ChainBuilder, sender: Key, outputs: int = MAX_OUTPUTS) -> Transaction:
    payload = Transfer(tuple(Output(address, 1) for address in _strangers(outputs)))
    return chain.tx(sender, payload, max_base_fee=10**6)


def _funded(chain: ChainBuilder, number: int, amount: int) -> list[Key]:
    """New accounts that hold so much."""
    keys = [Key(f"dear {next(_numbers)}") for _ in range(number)]
    left = iter(keys)
    while some := list(islice(left, 1_000)):
        payload = Transfer(tuple(Output(key.address, amount) for key in some))
        chain.mine([chain.tx(FUNDED[0], payload, max_base_fee=10**6)])
    return keys


# ---------------------------------------------------------------------- kinds


def _empty(chain: ChainBuilder) -> Node:
    return chain.mine()


def _single_transfers(chain: ChainBuilder) -> Node:
    senders = _funded(chain, 4_000, TILE)
    return _fill(chain, (_outputs(chain, key, 1) for key in senders))[0]


def _wide_transfers(chain: ChainBuilder) -> Node:
    return _fill(chain, (_outputs(chain, FUNDED[n % 8]) for n in count()))[0]


def _failing(chain: ChainBuilder) -> Node:
    senders = _funded(chain, 4_000, TILE)
    too_much = Transfer((Output(bytes(20), 2 * TILE),))
    return _fill(chain, (chain.tx(key, too_much, max_base_fee=10**3) for key in senders))[0]


def _small_registrations(chain: ChainBuilder) -> Node:
    keys = _funded(chain, 2_000, 20 * TILE)
    return _fill(chain, (chain.register(key, max_base_fee=10**3) for key in keys))[0]


def _retirements(chain: ChainBuilder) -> Node:
    keys = _funded(chain, 2_400, 20 * TILE)
    waiting = list(keys)
    while waiting:
        done = _fill(chain, (chain.register(key, max_base_fee=10**3) for key in waiting))[1]
        del waiting[:done]
    return _fill(chain, (chain.retire(key, max_base_fee=10**3) for key in keys))[0]


def _reviews(chain: ChainBuilder) -> Node:
    """Workers with 64 places each join together; their places come in once the delay is over, as many as fit."""
    keys = _funded(chain, 60, 700 * TILE)
    _fill(chain, (chain.register(key, packets=MAX_PLACES, max_base_fee=10**3) for key in keys))
    return chain.mine(count=chain.params.registration_delay)


def _leaving(chain: ChainBuilder) -> Node:
    """The same workers leave together, so that places of others move into the gaps."""
    keys = _funded(chain, 60, 700 * TILE)
    _fill(chain, (chain.register(key, packets=MAX_PLACES, max_base_fee=10**3) for key in keys))
    chain.mine(count=chain.params.registration_delay + 3)
    _fill(chain, (chain.retire(key, max_base_fee=10**3) for key in keys))
    return chain.mine(count=chain.params.registration_delay)


def _grid(chain: ChainBuilder, side: int, price: int = 1 << 20, expiry: int | None = None) -> Job:
    """A job of side² packets of 64×64×64."""
    number = next(_numbers)
    left, right = operand(64 * side, 64, number), operand(64, 64 * side, number)
    return chain.job(FUNDED[number % 8], left, right, rows=64, cols=64, price=price, max_base_fee=10**6, expiry=expiry)


def _jobs(chain: ChainBuilder) -> Node:
    return _fill(chain, (_grid(chain, 32).transaction for _ in count()))[0]


def _one_packet_jobs(chain: ChainBuilder) -> Node:
    return _fill(chain, (_grid(chain, 1).transaction for _ in count()))[0]


def _cancellations(chain: ChainBuilder) -> Node:
    jobs: list[Job] = []
    while len(jobs) < 1_200:
        made = [_grid(chain, 1, price=MAX_AMOUNT >> 40) for _ in range(900)]
        done = _fill(chain, (job.transaction for job in made))[1]
        jobs += made[:done]
    owners = {key.address: key for key in FUNDED}
    offers = (chain.cancel(owners[job.transaction.body.address], job, max_base_fee=10**6) for job in jobs)
    return _fill(chain, offers)[0]


def _closings(chain: ChainBuilder) -> Node:
    """Two jobs of a thousand packets expire with one tick."""
    expiry = chain.height + 20
    for _ in range(2):
        chain.mine([_grid(chain, 32, expiry=expiry).transaction])
    while ledger(chain.state).tick < expiry:
        node = chain.mine()
    return node


def _dealing_in_vain(chain: ChainBuilder) -> Node:
    """All that is examined tries all places in vain."""
    return chain.mine([_grid(chain, 32).transaction])


def _dealing(chain: ChainBuilder) -> Node:
    _workers(chain, 60)
    return chain.mine([_grid(chain, 32).transaction])


def _results(chain: ChainBuilder, keys: list[Key], most: int) -> list[Result]:
    """The answers of these workers, so many at most."""
    held = [(holding.packet_id, key) for key in keys for holding in chain.worker(key).holds]
    return [chain.result(packet_id, key) for packet_id, key in held[:most]]


def _misses(chain: ChainBuilder) -> Node:
    """As many windows as a block goes through end with one tick: what quick blocks dealt between two of them."""
    _workers(chain, 60)
    node = chain.mine([_grid(chain, 32).transaction])
    started = node.header.core.time_ms
    for step in range(1, 6):
        chain.mine(time_ms=started + step)
    while not any(type(event).__name__ == "Missed" for event in node.transition.events):
        node = chain.mine()
    return node


def _small_results(chain: ChainBuilder) -> Node:
    """As many Results as a block takes, of workers who hold many packets each."""
    keys, most = _workers(chain, 60), chain.params.max_results
    chain.mine([_grid(chain, 32).transaction])
    while sum(len(chain.worker(key).holds) for key in keys) < most:
        chain.mine()
    return chain.mine(results=_results(chain, keys, most))


def _large_results(chain: ChainBuilder) -> Node:
    """Products of 16 MiB, two in a block."""
    keys = _workers(chain, 60)
    for seed in range(2):
        left, right = operand(2048, 512, seed), operand(512, 2048, seed)
        chain.mine([chain.job(FUNDED[seed], left, right, price=1 << 20, max_base_fee=10**6).transaction])
    while sum(len(chain.worker(key).holds) for key in keys) < 2:
        chain.mine()
    return chain.mine(results=_results(chain, keys, 2))


KINDS = (
    Kind("nothing", _empty),
    Kind("transfers of one output", _single_transfers),
    Kind("transfers of 1,024 outputs", _wide_transfers),
    Kind("transfers that fail", _failing),
    Kind("registrations of one place", _small_registrations),
    Kind("retirements", _retirements),
    Kind("places that come in together", _reviews),
    Kind("places that leave together", _leaving),
    Kind("jobs of 1,024 packets", _jobs),
    Kind("jobs of one packet", _one_packet_jobs),
    Kind("cancellations", _cancellations),
    Kind("closings", _closings),
    Kind("dealing in vain", _dealing_in_vain),
    Kind("dealing", _dealing),
    Kind("windows that end", _misses),
    Kind("Results of the smallest products", _small_results),
    Kind("Results of the largest products", _large_results),
)


if __name__ == "__main__":
    main(run, measure)
