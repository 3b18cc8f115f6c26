"""Whole nodes on loopback, in this process: they start, mine, answer, find each other, and stop in time."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from consensus import params
from consensus.codec import encode
from consensus.params import TILE, Allocation
from consensus.rules.payloads import intrinsic_gas
from consensus.transaction import Output, Transfer, TxBody
from node import genesis, service
from node.chain.chain import Chain
from node.chain.store import StorageError
from node.config import Config, Limits, Mining, P2p, Rpc
from node.service import Node
from node.start import RESTORE, StartError
from tests.builders import ALICE, BOB, FUNDS
from worker.key import WorkerKey

STOP_SECONDS = 5.0


def devnet_rules() -> params.ChainParams:
    """Like devnet, and old enough that blocks come as fast as they are mined."""
    born_ms = time.time_ns() // 10**6 - 3_600_000
    return params.devnet(born_ms, (Allocation(ALICE.address, FUNDS),))


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "genesis.json"
    path.write_bytes(genesis.dump(devnet_rules()))
    return path


def config_of(
    directory: Path, rules: Path | None, mine: bool = False, peers: tuple[str, ...] = (), **ports: int
) -> Config:
    return Config(
        data_dir=directory,
        genesis=rules,
        p2p=P2p(port=ports.get("p2p", 0), peers=peers),
        rpc=Rpc(port=ports.get("rpc", 0)),
        mining=Mining(enabled=mine, idle_duty=0.2),
        limits=Limits(tensor_cache_mib=16),
    )


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    for _ in range(round(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(condition)


async def call(node: Node, method: str, **fields: object) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": fields}
    async with aiohttp.ClientSession() as session, session.post(node.report.rpc_address, json=request) as response:
        answer = await response.json()
    assert "result" in answer, answer
    return answer["result"]


async def probe(node: Node, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(node.report.rpc_address + path) as response:
        return response.status, await response.text()


def scenario(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(bounded())


def transfer(node: Node, amount: int) -> str:
    payload = Transfer((Output(BOB.address, amount),))
    body = TxBody(ALICE.public, 0, tip=1, gas_limit=0, max_base_fee=100, payload=payload)
    body = replace(body, gas_limit=intrinsic_gas(node.chain.params, body))
    return encode(ALICE.sign(node.chain.genesis_hash, body)).hex()


def test_a_node_mines_answers_and_stops_in_time(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        node = Node(config_of(tmp_path / "n", rules, mine=True))
        async with node.running():
            await until(lambda: node.report.ready().ok)
            txid = (await call(node, "tx_send", transaction=transfer(node, 5)))["txid"]
            await until(lambda: node.chain.archive.locate(bytes.fromhex(txid)) is not None)
            assert (await call(node, "tx_get", txid=txid))["ok"] is True
            info = await call(node, "node_info")
            assert (info["network"], info["rpc_address"]) == ("devnet", node.report.rpc_address)
            assert info["miner"] is not None
            assert (await call(node, "node_mining"))["idle_blocks"] >= 1
            assert [(await probe(node, path))[0] for path in ("/health", "/ready")] == [200, 200]
            status, text = await probe(node, "/metrics")
            assert status == 200
            assert "tilework_import_seconds_count" in text
            started = time.monotonic()
        assert time.monotonic() - started < STOP_SECONDS

    scenario(body)


def test_subscribers_are_told_and_hold_nothing_up(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        node = Node(config_of(tmp_path / "n", rules, mine=True))
        async with aiohttp.ClientSession() as session:
            async with node.running():
                ws = await session.ws_connect(node.report.rpc_address + "/ws")
                await ws.send_json({"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": ["newHeads"]})
                assert (await ws.receive_json())["result"] == 1
                heights = [(await ws.receive_json())["params"]["event"]["height"] for _ in range(3)]
                assert heights == list(range(heights[0], heights[0] + 3))
                started = time.monotonic()
            assert time.monotonic() - started < STOP_SECONDS

    scenario(body)


def test_what_was_mined_is_there_after_a_restart_without_the_genesis_file(tmp_path: Path, rules: Path) -> None:
    first = Node(config_of(tmp_path / "n", rules, mine=True))

    async def mine() -> None:
        async with first.running():
            await until(lambda: first.chain.tip.height >= 3)

    async def start_again() -> None:
        second = Node(config_of(tmp_path / "n", None))
        async with second.running():
            assert second.chain.tip.id == first.chain.tip.id
            assert second.report.info().node_id == first.report.info().node_id

    scenario(mine)
    rules.unlink()
    scenario(start_again)


def test_two_nodes_find_each_other_and_agree(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        miner = Node(config_of(tmp_path / "a", rules, mine=True))
        async with miner.running():
            await until(lambda: miner.chain.tip.height >= 5)
            address = miner.report.info().p2p_address
            follower = Node(config_of(tmp_path / "b", rules, peers=(address,)))
            async with follower.running():
                await until(lambda: follower.report.ready().ok)
                await until(lambda: follower.chain.archive.id_at(5) == miner.chain.archive.id_at(5))
                assert (await call(follower, "node_peers"))[0]["height"] >= 5

    scenario(body)


def test_a_node_whose_peers_are_away_is_not_ready_and_mines_in_the_end(
    tmp_path: Path, rules: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CATCH_UP_SECONDS", 0.5)

    async def body() -> None:
        node = Node(config_of(tmp_path / "n", rules, mine=True, peers=(f"127.0.0.1:{free_port}",)))
        async with node.running():
            assert node.report.ready().reason == "no peer is connected"
            assert (await probe(node, "/ready"))[0] == 503
            assert (await probe(node, "/health"))[0] == 200
            assert node.chain.tip.height == 0
            await until(lambda: node.chain.tip.height > 0)
            assert not node.report.ready().ok

    scenario(body)


@pytest.mark.parametrize("operation", ["add_block", "read"])
def test_a_failing_disk_stops_the_node_with_its_reason(
    tmp_path: Path, rules: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    async def body() -> None:
        node = Node(config_of(tmp_path / "n", rules, mine=True))

        def full(*_: object) -> None:
            raise StorageError("No space left on device")

        async with asyncio.timeout(10):
            async with node.running():
                monkeypatch.setattr(Chain, operation, full)
                await node.stopped()
                assert node.report.ready().reason == "No space left on device"

    with pytest.raises(StorageError, match="No space left"):
        scenario(body)


def test_a_port_in_use_names_itself_and_leaves_nothing_open(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for which in ("rpc", "p2p"):
                node = Node(config_of(tmp_path / "n", rules, **{which: port}))
                with pytest.raises(StartError) as caught:
                    async with node.running():
                        raise AssertionError("it serves")
                assert caught.value.code == "port-in-use"
                assert f"--{which}-port" in caught.value.fix
        async with Node(config_of(tmp_path / "n", rules)).running():
            pass

    scenario(body)


def refused(config: Config) -> StartError:
    with pytest.raises(StartError) as caught:
        Node(config)
    assert caught.value.fix
    return caught.value


def test_a_directory_belongs_to_one_node(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        node = Node(config_of(tmp_path / "n", rules))
        assert refused(config_of(tmp_path / "n", rules)).code == "data-dir-in-use"
        async with node.running():
            assert refused(config_of(tmp_path / "n", rules)).code == "data-dir-in-use"
        async with Node(config_of(tmp_path / "n", rules)).running():
            pass

    scenario(body)


def test_the_operator_may_allow_deep_reorganisations(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        config = config_of(tmp_path / "n", rules)
        for allowed in (False, True):
            node = Node(replace(config, allow_deep_reorg=allowed))
            async with node.running():
                assert node.chain.allow_deep_reorg is allowed

    scenario(body)


def test_what_cannot_be_started_says_why(tmp_path: Path, rules: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(config_of(tmp_path / "file", rules)).code == "data-dir-unwritable"
    assert refused(config_of(tmp_path / "file" / "below", rules)).code == "data-dir-unwritable"
    assert refused(config_of(tmp_path / "a", None)).code == "genesis"
    assert refused(config_of(tmp_path / "b", rules, peers=("nonsense",))).code == "config"
    key = tmp_path / "open.key"
    WorkerKey.generate().create(key)
    key.chmod(0o644)
    config = config_of(tmp_path / "c", rules, mine=True)
    config = Config(data_dir=config.data_dir, genesis=rules, mining=Mining(enabled=True, worker_key=key))
    assert refused(config).code == "worker-key-unusable"
    key.chmod(0o600)
    identity = tmp_path / "c" / "node.key"
    identity.chmod(0o644)
    assert refused(config).code == "key-unusable"


def test_a_damaged_database_is_told_with_what_to_do_about_it(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        config = config_of(tmp_path / "n", rules)
        for _ in range(2):  # opening writes the log out as a table
            async with Node(config).running():
                pass
        (table,) = (config.directory / "chain").glob("*.ldb")
        table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])
        error = refused(config)
        assert (error.code, error.fix) == ("storage", RESTORE)

    scenario(body)


def test_another_networks_directory_is_refused(tmp_path: Path, rules: Path) -> None:
    async def body() -> None:
        async with Node(config_of(tmp_path / "n", rules)).running():
            pass
        other = tmp_path / "other.json"
        other.write_bytes(genesis.dump(params.devnet(1, (Allocation(BOB.address, TILE),))))
        error = refused(config_of(tmp_path / "n", other))
        assert error.code == "storage"
        assert "another network" in error.message

    scenario(body)


def test_no_secret_is_logged_and_key_files_are_private(
    tmp_path: Path, rules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        with caplog.at_level(logging.DEBUG, logger="tilework"):
            node = Node(config_of(tmp_path / "n", rules, mine=True))
            async with node.running():
                await until(lambda: node.chain.tip.height >= 1)
        for name in ("worker.key", "node.key"):
            assert (tmp_path / "n" / name).stat().st_mode & 0o077 == 0
        secrets = (tmp_path / "n" / "worker.key").read_text()
        logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
        for secret in [part for part in secrets.split('"') if len(part) == 64]:
            assert secret not in logged

    scenario(body)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
