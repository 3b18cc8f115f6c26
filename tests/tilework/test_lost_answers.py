"""Between the wallet and its node answers get lost, broken and held back, and either of the two dies: no payment is
ever lost sight of, and whoever follows the advice on the screen pays once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from consensus.address import encode_address
from consensus.params import TILE
from tests.tilework.shell import Shell
from tests.wallet.network import BOB, Running, key_of
from tests.wallet.proxy import LyingNode, lying_node
from wallet.client.gateway import Gateway

BOB_TEXT = encode_address(BOB.address, "tdev")


def quick(*cases: str, of: tuple[str, ...]) -> list[Any]:
    """All of the cases, of which only some are for every run: each starts several processes."""
    return [pytest.param(case, marks=[] if case in cases else pytest.mark.long) for case in of]


MANGLINGS = quick("drop", of=("drop", "garble", "gateway", "withhold"))


@pytest.fixture
def shell(tmp_path: Path, network: Running) -> Shell:
    return Shell(tmp_path, network.url)


@pytest.fixture
def liar(network: Running) -> Iterator[LyingNode]:
    with lying_node(network.url) as liar:
        yield liar


def received(network: Running, address: str) -> int:
    async def look() -> int:
        async with Gateway(network.url) as gateway:
            return (await gateway.account(address)).balance

    return network.do(look())


def payee(name: str) -> str:
    return encode_address(key_of(name).address, "tdev")


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mangling", MANGLINGS)
def test_a_lost_answer_to_sending_is_found_out_about(
    shell: Shell, network: Running, liar: LyingNode, mangling: str
) -> None:
    """The node took it, and its answers to other questions pass: the wallet asks, and knows."""
    liar.mangled["tx_send"] = mangling
    to = payee(f"found {mangling}")
    sent = shell.ok("wallet", "send", to, "1.5", "--yes", "--wait", 1, url=liar.url)
    assert sent["status"] == "confirmed"
    assert sent["txid"] in [m["reference"] for m in shell.ok("wallet", "history")["movements"]]
    assert liar.calls.count("tx_send") == 1
    assert received(network, to) == 3 * TILE // 2


@pytest.mark.parametrize("mangling", MANGLINGS)
def test_where_nothing_can_be_found_out_the_id_is_told_and_the_advice_pays_once(
    shell: Shell, network: Running, liar: LyingNode, mangling: str
) -> None:
    """The node took it, and from then on nothing comes back."""
    liar.mangled["tx_send"], liar.goes_down_after = mangling, "tx_send"
    to = payee(f"told {mangling}")
    status, error = shell.refused("wallet", "send", to, "1.5", "--yes", url=liar.url)
    assert (status, error["code"]) in {(5, "outcome-unknown"), (6, "outcome-unknown")}
    txid = error["txid"]
    assert error["txids"] == [txid]
    assert txid in error["message"]
    assert "do not pay again" in error["fix"]
    assert "try again" not in (error["message"] + error["fix"]).lower()
    shell.wait_paid(txid)
    assert shell.follow(error["fix"])["txid"] == txid
    assert received(network, to) == 3 * TILE // 2


def test_a_payment_that_never_arrived_is_shown_blocks_the_next_and_is_paid_once(
    shell: Shell, network: Running, liar: LyingNode
) -> None:
    liar.mangled["tx_send"] = "lose"
    to = payee("lost on the way")
    _, error = shell.refused("wallet", "send", to, "1", "--yes", url=liar.url)
    assert error["code"] == "outcome-unknown"
    (waiting,) = shell.waiting()
    assert (waiting["txid"], waiting["state"]) == (error["txid"], "unknown")
    text = shell.run("wallet", "history")[1]
    assert "unknown" in text
    assert f"tilework wallet resend {error['txid']}" in text
    # Whoever types the command once more hears of the first before anything is signed.
    _, again = shell.refused("wallet", "send", to, "1", "--yes")
    assert (again["code"], again["txid"]) == ("earlier-unresolved", error["txid"])
    shell.follow(again["fix"])
    shell.wait_paid(error["txid"])
    assert received(network, to) == TILE
    shell.ok("wallet", "send", to, "1", "--yes", "--wait", 1)
    assert received(network, to) == 2 * TILE


@pytest.mark.long
def test_a_payment_that_never_arrived_can_be_made_void(shell: Shell, network: Running, liar: LyingNode) -> None:
    liar.mangled["tx_send"] = "lose"
    to = payee("void")
    _, error = shell.refused("wallet", "send", to, "1", "--yes", url=liar.url)
    done = shell.ok("wallet", "cancel", error["txid"], "--yes", "--wait", 1)
    assert done["replaces"] == error["txid"]
    (waiting,) = (one for one in shell.waiting() if one["txid"] == error["txid"])
    assert waiting["state"] == "replaced"
    assert "not paid" in shell.run("wallet", "history")[1]
    for command in ("resend", "cancel", "bump"):
        status, gone = shell.refused("wallet", command, error["txid"], *(["--yes"] if command != "resend" else []))
        assert (status, gone["code"]) == (3, "already-replaced")
    shell.ok("wallet", "send", payee("another"), "1", "--yes", "--wait", 1)
    assert received(network, to) == 0


@pytest.mark.long
def test_a_node_that_dies_while_a_block_is_waited_for(shell: Shell, network: Running, liar: LyingNode) -> None:
    liar.goes_down_after = "tx_send"
    to = payee("died")
    _, error = shell.refused("wallet", "send", to, "1", "--yes", "--wait", 1, url=liar.url)
    assert error["code"] == "outcome-unknown"
    assert error["txid"] in error["message"]
    shell.wait_paid(error["txid"])
    assert shell.follow(error["fix"])["txid"] == error["txid"]
    assert received(network, to) == TILE


def test_a_false_refusal_is_not_believed_where_the_node_has_it(shell: Shell, network: Running, liar: LyingNode) -> None:
    def refuse(_params: Any, _result: Any) -> Any:
        raise KeyError

    liar.changes["tx_send"] = refuse
    to = payee("false refusal")
    shell.ok("wallet", "send", to, "1", "--yes", "--wait", 1, url=liar.url)
    assert received(network, to) == TILE


@pytest.mark.long
def test_another_id_than_the_one_sent_is_not_believed(shell: Shell, network: Running, liar: LyingNode) -> None:
    liar.changes["tx_send"] = lambda _params, _result: {"txid": "ab" * 32}
    to = payee("another id")
    sent = shell.ok("wallet", "send", to, "1", "--yes", "--wait", 1, url=liar.url)
    assert sent["txid"] != "ab" * 32
    assert received(network, to) == TILE


def test_a_refusal_costs_nothing_and_keeps_nothing_waiting(shell: Shell) -> None:
    used = shell.ok("wallet", "send", BOB_TEXT, "1", "--yes", "--wait", 1)["nonce"]
    status, error = shell.refused("wallet", "send", BOB_TEXT, "2", "--yes", "--nonce", used)
    assert (status, error["code"]) == (3, "nonce-too-low")
    assert error["txid"] in error["message"]
    assert "costs nothing" in error["message"]
    assert shell.waiting() == [] or all(one["txid"] != error["txid"] for one in shell.waiting())
    shell.ok("wallet", "send", BOB_TEXT, "2", "--yes", "--wait", 1)


# --- the client is killed --------------------------------------------------------------------------------------------

STEPS = (
    "turn before -",
    "prepare after -",
    "note before -",
    "note after -",
    "call before tx_send",
    "call after tx_send",
    "wait before -",
    "call after tx_get",
)


@pytest.mark.parametrize("step", quick("note after -", "call after tx_send", of=STEPS))
def test_a_payment_survives_kill_9_at_every_step(shell: Shell, network: Running, step: str) -> None:
    to = payee(f"killed {step}"[:32])
    status, out, err = shell.run("wallet", "send", to, "1", "--yes", "--wait", 2, die_at=step)
    assert status == -signal.SIGKILL, (out, err)
    signed = shell.waiting()
    on_screen = [word for word in err.split() if len(word) == 64]
    paid = [m["reference"] for m in shell.ok("wallet", "history")["movements"]]
    assert all(txid in paid or txid in [one["txid"] for one in signed] for txid in on_screen)
    if any(one["state"] == "unknown" for one in signed):
        _, error = shell.refused("wallet", "send", to, "1", "--yes")
        assert error["code"] == "earlier-unresolved"
        txid = shell.follow(error["fix"])["txid"]
    elif signed or received(network, to):
        (txid,) = on_screen
    else:
        assert not on_screen
        txid = shell.ok("wallet", "send", to, "1", "--yes")["txid"]
    shell.wait_paid(txid)
    assert received(network, to) == TILE


@pytest.mark.parametrize("step", quick("note after -", of=STEPS[:-1]))
def test_a_job_survives_kill_9_at_every_step(shell: Shell, step: str) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.integers(-63, 64, (128, 64)), rng.integers(-63, 64, (64, 64))
    np.save(shell.home / "x.npy", x)
    np.save(shell.home / "w.npy", w)
    submit = ("job", "submit", "x.npy", "w.npy", "-o", "c.npy", "--packets", 2, "--yes")
    before = {view["job"] for view in shell.ok("job", "list", "--limit", 200)["jobs"]}
    status, out, err = shell.run(*submit, die_at=step)
    assert status == -signal.SIGKILL, (out, err)
    listed = shell.ok("job", "list", "--limit", 200)
    mine = {one["txid"] for one in listed["waiting"]} | {view["job"] for view in listed["jobs"]} - before
    if any(one["state"] == "unknown" for one in listed["waiting"]):
        _, error = shell.refused(*submit)
        assert error["code"] == "earlier-unresolved"
        assert set(error["txids"]) == mine
        shell.follow(error["fix"])
    elif mine:
        shell.ok("job", "result", ",".join(mine), "x.npy", "w.npy", "-o", "c.npy")
    else:
        shell.ok(*submit)
    assert np.array_equal(np.load(shell.home / "c.npy"), x @ w)
    after = {view["job"] for view in shell.ok("job", "list", "--limit", 200)["jobs"]} - before
    assert len(after) == 1
    assert not mine or after == mine


@pytest.mark.parametrize("mangling", MANGLINGS)
def test_a_job_whose_answer_is_lost_is_resumed_by_the_advice(shell: Shell, liar: LyingNode, mangling: str) -> None:
    np.save(shell.home / "x.npy", np.ones((64, 64), np.int8))
    liar.mangled["tx_send"], liar.goes_down_after = mangling, "tx_send"
    submit = ("job", "submit", "x.npy", "x.npy", "-o", "c d.npy", "--yes")
    status, error = shell.refused(*submit, url=liar.url)
    assert (status, error["code"]) in {(5, "outcome-unknown"), (6, "outcome-unknown")}
    assert error["txid"] in error["message"]
    done = shell.follow(error["fix"])
    assert done["jobs"] == [error["txid"]]
    assert np.all(np.load(shell.home / "c d.npy") == 64)
    assert done["cost"]["held"] == 0


# --- many at once ----------------------------------------------------------------------------------------------------


def test_many_commands_send_from_one_account_at_once(shell: Shell, network: Running) -> None:
    to = payee("many")
    running = [shell.start("wallet", "send", to, f"0.0{n}", "--yes", "--wait", 1, "--json") for n in range(1, 9)]
    answers = []
    for process in running:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        answers.append(msgspec.json.decode(out))
    nonces = sorted(answer["nonce"] for answer in answers)
    assert nonces == list(range(nonces[0], nonces[0] + 8))
    assert len({answer["txid"] for answer in answers}) == 8
    assert received(network, to) == sum(n * TILE // 100 for n in range(1, 9))


# --- what is stuck ---------------------------------------------------------------------------------------------------


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Shell]:
    """A shell whose node mines nothing, so that whatever is sent waits."""
    from tests.wallet.network import running_node

    with running_node(tmp_path / "node", mines=False) as node:
        yield Shell(tmp_path, node.url)


def test_what_waits_is_bumped_and_cancelled(still: Shell) -> None:
    first = still.ok("wallet", "send", BOB_TEXT, "1", "--tip", 3, "--yes")
    assert [one["state"] for one in still.waiting()] == ["pending"]
    bumped = still.ok("wallet", "bump", first["txid"], "--yes")
    assert (bumped["replaces"], bumped["nonce"]) == (first["txid"], first["nonce"])
    assert bumped["tip"] >= 4
    states = {one["txid"]: one["state"] for one in still.waiting()}
    assert states == {first["txid"]: "outbid", bumped["txid"]: "pending"}
    high = still.ok("wallet", "bump", bumped["txid"], "--tip", 50, "--yes")
    assert high["tip"] == 50
    gone = still.ok("wallet", "cancel", high["txid"], "--yes")
    states = {one["txid"]: one["state"] for one in still.waiting()}
    assert states.pop(gone["txid"]) == "pending"
    assert set(states.values()) == {"outbid"}
    # What is outbid keeps nobody waiting: the next payment takes the next nonce.
    assert still.ok("wallet", "send", BOB_TEXT, "2", "--yes")["nonce"] == first["nonce"] + 1
    same = still.ok("wallet", "send", BOB_TEXT, "2", "--yes", "--dry-run")
    assert len(same["same"]) == 1
    assert "s ago as much was paid to it" in still.run("wallet", "send", BOB_TEXT, "2", "--yes", "--dry-run")[1]


@pytest.mark.long
def test_a_tip_and_a_nonce_are_taken_as_they_are_given(still: Shell) -> None:
    plan = still.ok("wallet", "send", BOB_TEXT, "1", "--tip", 7, "--nonce", 5, "--dry-run")
    assert plan["nonce"] == 5
    sent = still.ok("wallet", "send", BOB_TEXT, "1", "--tip", 7, "--nonce", 0, "--yes")
    assert sent["nonce"] == 0
    _, error = still.refused("wallet", "send", BOB_TEXT, "2", "--tip", 7, "--nonce", 0, "--yes")
    assert error["code"] == "replacement-underpriced"
    other = still.ok("wallet", "send", BOB_TEXT, "2", "--tip", 12, "--nonce", 0, "--yes")
    assert {one["txid"]: one["state"] for one in still.waiting()}[other["txid"]] == "pending"


@pytest.mark.long
def test_ids_that_are_none_and_transactions_that_nobody_knows(still: Shell) -> None:
    for command in (("resend",), ("bump", "--yes"), ("cancel", "--yes")):
        status, error = still.refused("wallet", command[0], "xyz", *command[1:])
        assert (status, error["code"]) == (2, "txid-invalid")
        status, error = still.refused("wallet", command[0], "ab" * 32, *command[1:])
        assert (status, error["code"]) == (4, "transaction-not-found")


def test_a_journal_that_cannot_be_written_sends_nothing(still: Shell) -> None:
    (still.home / "ks" / "journal").write_text("in the way")
    _, error = still.refused("wallet", "send", BOB_TEXT, "1", "--yes")
    assert error["code"] == "journal"
    (still.home / "ks" / "journal").unlink()
    assert still.waiting() == []
    assert still.ok("wallet", "balance", "--account", "alice")["pending_transactions"] == 0
