"""The outside miner: a process with a key of its own, against a real node and one that lies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from consensus.block import HeaderCore
from consensus.codec import decode, encode
from consensus.params import Allocation
from tests.wallet.network import ALICE, FUNDS, Running, register_worker, rules, running_node
from tests.wallet.proxy import lying_node
from tilework import mine as command
from wallet.client.client import Client
from wallet.client.rpc import NetworkError
from wallet.client.units import OutsideMiner, told
from wallet.errors import ExitCode, WalletError
from worker.key import WorkerKey
from worker.stats import MinerStats

OUTSIDER = WorkerKey(bytes([7]) * 32, bytes([8]) * 32)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node that mines nothing: whatever happens, the outside miner did it."""
    chain = rules()
    chain = replace(chain, allocations=(*chain.allocations, Allocation(OUTSIDER.address, FUNDS)))
    with running_node(tmp_path_factory.mktemp("quiet") / "node", chain, mines=False) as node:
        yield node


def mine(url: str, units: int, **options: Any) -> MinerStats:
    arguments = {"threads": 1, "idle_duty": 1.0, "tell": lambda _text: None, **options}
    miner = OutsideMiner(url, OUTSIDER, **arguments)
    asyncio.run(miner.run(units))
    return miner.stats


def test_idle_units_win_blocks(quiet: Running) -> None:
    before = quiet.node.chain.tip.height
    done = mine(quiet.url, 3)
    assert done.blocks_won >= 2
    assert done.idle_units + done.units_lost >= 3
    assert quiet.node.chain.tip.height == before + done.blocks_won
    assert quiet.node.chain.tip.header.core.miner == OUTSIDER.address
    assert "blocks won" in told(done)


def test_packets_are_answered_with_signed_results_or_blocks(quiet: Running) -> None:
    async def story() -> MinerStats:
        miner = OutsideMiner(quiet.url, OUTSIDER, 2, 0.2, lambda _text: None)
        working = asyncio.create_task(miner.run())
        await register_worker(quiet.url, OUTSIDER, min_price=1)
        rng = np.random.default_rng(0)
        x, w = rng.integers(-63, 64, (512, 128)), rng.integers(-63, 64, (128, 64))
        async with Client(quiet.url, ALICE) as client:
            job = await client.submit(x, w, packets=8, price=5000)
            assert np.array_equal(await job.result(40), x @ w)
        working.cancel()
        await asyncio.wait([working])
        return miner.stats

    done = asyncio.run(story())
    assert done.packet_units >= 8
    assert done.results_sent + done.blocks_won >= 8


def test_an_answer_that_was_lost_is_sent_again_and_not_computed_again(quiet: Running) -> None:
    async def story() -> MinerStats:
        with lying_node(quiet.url) as liar:
            liar.swallowed.add("work_result")  # as a reorganisation would: it was taken, and is on no chain
            miner = OutsideMiner(liar.url, OUTSIDER, 1, 0.2, lambda _text: None)
            working = asyncio.create_task(miner.run())
            await register_worker(quiet.url, OUTSIDER, min_price=1)
            rng = np.random.default_rng(1)
            x, w = rng.integers(-63, 64, (512, 128)), rng.integers(-63, 64, (128, 64))
            async with Client(quiet.url, ALICE) as client:
                job = await client.submit(x, w, packets=8, price=5000)
                assert np.array_equal(await job.result(40), x @ w)
            working.cancel()
            await asyncio.wait([working])
            assert liar.calls.count("work_result") == miner.stats.results_sent + miner.stats.results_refused
            assert not liar.swallowed
        return miner.stats

    done = asyncio.run(story())
    assert done.packet_units == 8, "each packet was computed once"
    assert done.packets_answered >= 9, "and one of them answered twice"


def test_it_outlives_a_node_that_is_away_for_a_while(quiet: Running) -> None:
    async def story() -> None:
        with lying_node(quiet.url) as liar:
            miner = OutsideMiner(liar.url, OUTSIDER, 1, 0.2, lambda _text: None)
            working = asyncio.create_task(miner.run())
            await _until(lambda: miner.stats.blocks_won > 0)
            liar.is_down = True
            await asyncio.sleep(0.5)
            won = miner.stats.blocks_won
            liar.is_down = False
            await _until(lambda: miner.stats.blocks_won > won)
            working.cancel()
            await asyncio.wait([working])
            assert working.cancelled()

    asyncio.run(story())


def test_a_node_that_stays_away_is_one_clear_error(quiet: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where several things were under way when patience ended."""
    monkeypatch.setattr("wallet.client.units._PATIENCE_SECONDS", 0.5)

    async def story() -> None:
        with lying_node(quiet.url) as liar:
            miner = OutsideMiner(liar.url, OUTSIDER, 1, 0.2, lambda _text: None)
            working = asyncio.create_task(miner.run())
            await _until(lambda: miner.stats.blocks_won > 0)
            liar.is_down = True
            with pytest.raises(NetworkError) as caught:
                await asyncio.wait_for(working, 30)
            assert caught.value.exit_code == ExitCode.NETWORK

    asyncio.run(story())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (any condition, not one that signals)
            await asyncio.sleep(0.02)


def test_as_a_process_it_stops_at_control_c_and_reports(quiet: Running, tmp_path: Path) -> None:
    OUTSIDER.create(tmp_path / "key")
    before = quiet.node.chain.tip.height
    arguments = ["mine", "--key", str(tmp_path / "key"), "--rpc", quiet.url, "--idle-duty", "0.1", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from tilework.main import main; main()", *arguments], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    # A block of an earlier miner may still be on its way when the process has not even begun: look for its own.
    while quiet.node.chain.tip.height == before or os.getpriority(os.PRIO_PROCESS, process.pid) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = quiet.node.chain.tip.height
    while quiet.node.chain.tip.height == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) >= 10
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert process.returncode == 130
    assert json.loads(output)["blocks_won"] >= 1


def test_a_unit_that_rewards_another_is_not_worked(quiet: Running) -> None:
    def robbed(_params: Any, offer: dict[str, Any]) -> dict[str, Any]:
        core = replace(decode(HeaderCore, bytes.fromhex(offer["core"]), 1024), miner=bytes(20))
        return offer | {"core": encode(core).hex(), "id": core.id.hex()}

    def renamed(_params: Any, offer: dict[str, Any]) -> dict[str, Any]:
        return offer | {"id": "00" * 32}

    def garbage(_params: Any, offer: dict[str, Any]) -> dict[str, Any]:
        return offer | {"core": offer["core"][:-2]}

    with lying_node(quiet.url) as liar:
        for lie, why in ((robbed, "rewards another account"), (renamed, "its id"), (garbage, "cannot be read")):
            liar.changes["work_getUnit"] = lie
            with pytest.raises(WalletError, match=why) as caught:
                mine(liar.url, 1)
            assert (caught.value.code, caught.value.exit_code) == ("node-lies", ExitCode.NETWORK)


def test_a_stale_unit_is_only_lost(quiet: Running) -> None:
    async def story() -> list[str]:
        said: list[str] = []
        with lying_node(quiet.url) as liar:
            # A block comes between the offer and the answer, and the miner does not hear of it.
            await asyncio.gather(
                OutsideMiner(liar.url, OUTSIDER, 1, 1.0, said.append).run(1),
                OutsideMiner(quiet.url, OUTSIDER, 1, 1.0, said.append).run(3),
            )
        return said

    said = asyncio.run(story())
    assert all("lost" in line for line in said)


# -- key files


def test_the_node_and_the_outside_miner_read_the_same_key_file(tmp_path: Path) -> None:
    OUTSIDER.create(tmp_path / "key")
    assert command.load_worker_key(tmp_path / "key").address == OUTSIDER.address


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"x" * 2000, b'{"version":2,"ed25519":"","x25519":""}', b'{"version":1,"ed25519":"zz","x25519":""}'],
)
def test_other_files_are_no_keys(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(WalletError, match="not a worker key") as caught:
        command.load_worker_key(path)
    assert caught.value.__cause__ is None


def test_a_key_that_others_can_read_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WalletError, match="cannot read") as caught:
        command.load_worker_key(tmp_path / "none")
    assert caught.value.exit_code == ExitCode.NOT_FOUND
    OUTSIDER.create(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(WalletError, match="other users"):
        command.load_worker_key(tmp_path / "key")


def test_without_a_key_it_says_how_to_make_one() -> None:
    result = CliRunner().invoke(command.mine, ["--json"], standalone_mode=False)
    assert isinstance(result.exception, WalletError)
    assert result.exception.exit_code == ExitCode.USAGE
    assert "tilework worker register" in result.exception.fix
