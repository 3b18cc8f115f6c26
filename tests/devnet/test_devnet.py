"""The devnet's parts that need no running network: accounts, rules, ports, lock, orders, command line."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from consensus.address import encode_address
from consensus.params import TILE
from devnet import control, keys, layout
from devnet.control import Order
from devnet.layout import DevnetError, Layout, Record
from devnet.processes import NodeProcess, Processes, node_environment
from devnet.watch import NetworkState, NodeState
from tilework import devnet as commands
from wallet.accounts.keys import account_key, clean_mnemonic
from wallet.accounts.keystore import Keystore
from worker.key import WorkerKey


@pytest.fixture
def place(tmp_path: Path) -> Layout:
    directory = tmp_path / "net"
    directory.mkdir()
    return Layout(directory)


def describe(place: Layout, count: int | None = 3, first_port: int | None = None) -> Record:
    record = layout.describe(place, layout.establish(place, None), count, "user", first_port)
    place.write(record)
    return record


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(DevnetError) as caught:
        yield
    assert caught.value.code == code
    assert caught.value.fix


def test_the_accounts_are_those_of_the_public_mnemonic() -> None:
    words = clean_mnemonic(keys.MNEMONIC)
    derived = [account_key(words, index) for index in range(10)]
    assert [key.private_key for key in derived] == list(keys.SECRETS)
    assert [key.address for key in derived] == [keys.account(index).address for index in range(10)]
    assert len({keys.account(index).x25519_key for index in range(10)}) == 10


def test_genesis_funds_ten_accounts_and_is_made_once(place: Layout) -> None:
    rules = layout.establish(place, None)
    assert [a.amount for a in rules.allocations] == [1_000_000 * TILE] * 10
    assert rules.spacing_ms == 2_000
    assert layout.establish(place, None) == rules
    assert layout.establish(place, 2_000) == rules
    with refused("block-time-fixed"):
        layout.establish(place, 500)


def test_a_new_network_may_be_faster(place: Layout) -> None:
    rules = layout.establish(place, 500)
    assert (rules.spacing_ms, rules.halflife_ms) == (500, 15_000)


def test_a_damaged_genesis_is_no_new_network(place: Layout) -> None:
    place.genesis.write_text("{")
    with refused("genesis-damaged"):
        layout.establish(place, None)


def ports_of(record: Record) -> list[int]:
    return [int(node.rpc.rpartition(":")[2]) for node in record.nodes]


@contextmanager
def busy_port() -> Iterator[int]:
    with socket.socket() as busy:
        busy.bind((layout.HOST, 0))
        busy.listen()
        yield int(busy.getsockname()[1])


def test_ports_are_the_usual_ones_unless_taken_and_are_kept(place: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy_port() as base:
        monkeypatch.setattr(layout, "RPC_PORT", base)
        first = describe(place, 2)
        ports = [int(part.rpartition(":")[2]) for node in first.nodes for part in (node.rpc, node.p2p)]
        assert base not in ports
        assert len(set(ports)) == 4
        assert first.nodes[0].metrics == f"{first.nodes[0].rpc}/metrics"
    assert ports_of(describe(place, 2)) == ports_of(first)


def test_ports_that_were_asked_for_are_had_or_refused(place: Layout) -> None:
    describe(place, 2)
    with busy_port() as base:
        for count in (1, 2):
            with refused("port-taken"):
                describe(place, count, base + 1 - count)
    assert ports_of(describe(place, 2, base)) == [base, base + 1], "also where the network had others before"
    assert ports_of(describe(place, 2)) == [base, base + 1]
    assert ports_of(describe(place, 2, 0)) != [base, base + 1]


def test_a_network_keeps_its_number_of_nodes(place: Layout) -> None:
    assert len(describe(place, None).nodes) == 3
    assert len(describe(place, 2).nodes) == 2
    assert len(describe(place, None).nodes) == 2


def test_a_network_without_blocks_says_so() -> None:
    state = NetworkState((NodeState("node0", 1, 7, "aa", 2),), height=7)
    assert "no block" not in commands.status_line(state)
    quiet = msgspec.structs.replace(state, quiet_seconds=61.0)
    assert "all miners are gone: no block for 61 s" in commands.status_line(quiet)


def test_every_node_works_for_an_account_of_its_own(place: Layout) -> None:
    record = describe(place)
    assert [node.worker for node in record.nodes] == [record.accounts[index].address for index in (1, 2, 3)]
    assert [account.use for account in record.accounts[:5]] == [
        "yours",
        "worker of node0",
        "worker of node1",
        "worker of node2",
        "free",
    ]
    layout.prepare_node(place, 0)
    layout.prepare_node(place, 0)
    file = place.node(0) / "worker.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert encode_address(WorkerKey.load(file).address, "tdev") == record.nodes[0].worker


def test_no_secret_is_on_a_nodes_command_line(place: Layout) -> None:
    arguments = " ".join(layout.node_arguments(describe(place), 1, 0.001))
    assert not any(secret.hex() in arguments for secret in keys.SECRETS)
    assert "junk" not in arguments


def test_idle_duty_makes_one_block_per_spacing(place: Layout) -> None:
    rules = layout.establish(place, None)
    # Three nodes, 2 ms a unit: 1.5 units per 2 s in all.
    assert layout.idle_duty(rules, 0.002, 3) == pytest.approx(0.0005)
    assert layout.idle_duty(rules, 60.0, 1) == 1.0


def test_nodes_get_one_thread_per_library_and_no_foreign_settings() -> None:
    seen = node_environment({"PATH": "/bin", "TILEWORK_RPC_PORT": "1", "TILEWORK_KERNEL": "portable"})
    assert seen["PATH"] == "/bin"
    assert seen["TILEWORK_KERNEL"] == "portable"
    assert seen["OPENBLAS_NUM_THREADS"] == seen["NUMBA_NUM_THREADS"] == "1"
    assert "TILEWORK_RPC_PORT" not in seen


# ---------------------------------------------------------------------- lock, record, removal


def test_one_supervisor_at_a_time(place: Layout) -> None:
    assert place.supervisor() is None
    with place.hold():
        assert place.supervisor() == os.getpid()
        with refused("already-running"), place.hold():
            pass
        assert place.supervisor() == os.getpid()
    assert place.supervisor() is None
    with place.hold():
        pass


def test_a_directory_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("not-writable"), Layout(tmp_path / "file" / "net").hold():
        pass
    with refused("path-too-long"), Layout(tmp_path / ("x" * 100)).hold():
        pass


def test_the_record_survives_a_round_trip_and_damage_is_named(place: Layout) -> None:
    with refused("no-devnet"):
        place.read()
    record = describe(place)
    assert place.read() == record
    assert "public" in record.warning
    place.record.write_text("[]")
    with refused("devnet-damaged"):
        place.read()


def test_reset_removes_a_stopped_devnet_and_nothing_else(place: Layout) -> None:
    (place.directory / "thesis.txt").write_text("all of it")
    with refused("no-devnet"):
        place.remove()
    assert (place.directory / "thesis.txt").exists()
    describe(place)
    with place.hold(), refused("already-running"):
        place.remove()
    place.remove()
    assert not place.directory.exists()


# ---------------------------------------------------------------------- orders and processes


def test_orders_are_carried_out_or_refused(place: Layout) -> None:
    async def carry_out(order: Order) -> Order:
        if order.node == 7:
            raise DevnetError("no-such-node", "there is no node 7", "count again")
        return order

    async def main() -> None:
        place.control.touch()  # left by a supervisor that was killed
        async with control.serve(place.control, carry_out):
            assert place.control.stat().st_mode & 0o077 == 0
            answer = await asyncio.to_thread(control.send, place.control, Order("kill", 2))
            assert json.loads(bytes(answer)) == {"do": "kill", "node": 2}
            with refused("no-such-node"):
                await asyncio.to_thread(control.send, place.control, Order("kill", 7))
            with refused("bad-order"):
                await asyncio.to_thread(control.send, place.control, Order("dance"))  # type: ignore[arg-type]
            for line in (b'{"do":"\xff"}', b'{"and":' + b"[" * 60_000, b""):
                reader, writer = await asyncio.open_unix_connection(place.control)
                writer.write(line + b"\n")
                assert b'"bad-order"' in await reader.read()
                writer.close()
        assert not place.control.exists()

    asyncio.run(main())
    with refused("not-running"):
        control.send(place.control, Order("status"))


def test_a_node_that_ends_is_noticed_with_its_last_words(tmp_path: Path) -> None:
    async def main() -> None:
        node = NodeProcess("node0", ["node", "run", "--no-such-option"], tmp_path / "log")
        changes: list[int | None] = []
        ended = asyncio.Event()

        def note() -> None:
            changes.append(node.pid)
            if node.pid is None:
                ended.set()

        node.changed = note
        async with Processes([node]) as processes:
            await processes.start()
            await asyncio.wait_for(ended.wait(), 60)
            with pytest.raises(DevnetError, match=r"status 2;[\s\S]*no-such-option") as caught:
                processes.check_alive()
            assert caught.value.code == "node-failed"
        assert len(changes) == 2

    asyncio.run(main())


# ---------------------------------------------------------------------- command line


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    def invoke(*arguments: str, directory: Path = tmp_path / "net") -> Result:
        return CliRunner().invoke(commands.devnet, [*arguments, "--dir", str(directory), "--json"])

    return invoke


@pytest.mark.parametrize("arguments", [("status",), ("logs",), ("stop",), ("reset",), ("kill", "0"), ("restart", "1")])
def test_commands_without_a_devnet_exit_with_4(run: Callable[..., Result], arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 4
    assert json.loads(result.stderr)["code"] == "no-devnet"


def test_commands_on_a_stopped_devnet(run: Callable[..., Result], place: Layout) -> None:
    describe(place)
    result = run("status")
    assert (result.exit_code, json.loads(result.stdout)["running"]) == (0, False)
    result = run("kill", "0")
    assert (result.exit_code, json.loads(result.stderr)["code"]) == (5, "not-running")
    assert json.loads(run("stop").stdout) == {"stopped": False}
    result = run("logs", "5")
    assert (result.exit_code, json.loads(result.stderr)["code"]) == (4, "no-such-node")
    assert run("up", "--nodes", "0").exit_code == 2
    with place.hold():
        result = run("up")
        assert (result.exit_code, json.loads(result.stderr)["code"]) == (3, "already-running")


def test_logs_show_the_end_of_each(run: Callable[..., Result], place: Layout) -> None:
    record = describe(place, 2)
    for node in record.nodes:
        Path(node.data_dir).mkdir()
        Path(node.log).write_text("".join(f"{node.name} line {number}\n" for number in range(9)))
    lines = [json.loads(line) for line in run("logs", "--lines", "2").stdout.splitlines()]
    assert lines == [{"node": name, "line": f"{name} line {n}"} for name in ("node0", "node1") for n in (7, 8)]
    assert run("logs", "1", "--lines", "0").stdout == ""


def test_the_users_account_opens_with_the_public_password(place: Layout) -> None:
    commands._make_wallet(place)
    commands._make_wallet(place)
    key = Keystore(place.wallet).unlock("user", place.password.read_text().strip())
    assert key.address == keys.account(0).address


def test_the_status_line() -> None:
    nodes = (NodeState("node0", 7, 41, "aa", 1), NodeState("node1", 8, 40, "bb", 1), NodeState("node2", None))
    state = NetworkState(
        nodes, height=41, spread=1, jobs=2, useful=3, recent=40, circulating_grains=10_000_550 * TILE - 7
    )
    line = commands.status_line(state)
    assert line == (
        "height 41 · spread 1 · peers 1 1 – · jobs 2 · useful 8 % of 40 blocks · supply 10,000,550 TILE · node2 down"
    )
    assert "useful – of 0 blocks" in commands.status_line(NetworkState(()))
