"""Buying products from a real node, and from one that lies."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from api.rules import ParamsView
from api.work import DeclarationView, WorkerView
from consensus import params
from consensus.shape import MAX_UNIT_BYTES, Shape
from consensus.transition import genesis_transition
from tests.wallet.network import ALICE, BOB, Running, key_of, register_worker, running_node
from tests.wallet.proxy import LyingNode, lying_node
from wallet.client import job as job_module
from wallet.client.client import Client, SyncClient
from wallet.client.job import Job, Progress
from wallet.client.matrices import to_npy
from wallet.client.offers import Terms, find_deal, make_offer, worthwhile_packets
from wallet.client.slicing import MIN_UNIT_BYTES, choose_grid, cut
from wallet.errors import ExitCode, WalletError
from wallet.models.quantised import Layer, QuantisedNetwork, Requantise, run, run_local

Int64 = npt.NDArray[np.int64]


@pytest.fixture
def liar(network: Running) -> Iterator[LyingNode]:
    with lying_node(network.url) as node:
        yield node


def matrices(m: int, k: int, n: int, seed: int = 0) -> tuple[Int64, Int64]:
    rng = np.random.default_rng(seed)
    return rng.integers(-63, 64, (m, k)), rng.integers(-63, 64, (k, n))


def scenario(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(bounded())


async def reached(client: Client, job: Job, status: str) -> None:
    """Wait until the chain says so of the first of the job's jobs."""
    async with client.gateway.heads() as heads:
        while (view := await client.gateway.job(job.ids[0])) is None or view.status != status:
            await heads.wait(1)


# -- products


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 5), (65, 64, 63), (200, 130, 150)])
def test_a_bought_product_is_exact(network: Running, shape: tuple[int, int, int]) -> None:
    x, w = matrices(*shape)

    async def body() -> None:
        async with Client(network.url, ALICE, prefix="tdev") as client:
            product = await client.multiply(x, w, memory_bound=2 * MIN_UNIT_BYTES)
        assert product.dtype == np.int32
        assert np.array_equal(product, x @ w)

    scenario(body)


def test_progress_cost_and_explanations_of_a_job(network: Running) -> None:
    x, w = matrices(256, 128, 128, seed=1)

    async def body() -> None:
        async with Client(network.url, ALICE) as client:
            before = await client.gateway.account(client.network.address_text(ALICE.address))
            job = await client.submit(x, w, packets=8, price=50)
            seen: list[Progress] = [progress async for progress in job.progress()]
            assert np.array_equal(await job.result(), x @ w)
            assert [p.verified for p in seen] == sorted(p.verified for p in seen)
            assert (seen[-1].status, seen[-1].verified, seen[-1].packets, seen[-1].workers) == ("complete", 8, 8, 1)
            stories = await job.explain()
            assert [story.index for story in stories] == list(range(8))
            assert all("was paid" in story.verdict for story in stories)
            await reached(client, job, "closed")
            cost = await job.cost()
            assert cost.escrowed == cost.paid + cost.refunded > 0
            assert cost.burned * 9 < cost.paid <= cost.burned * 11
            after = await client.gateway.account(client.network.address_text(ALICE.address))
            assert before.balance - after.balance == cost.paid + cost.fees

    scenario(body)


def test_several_jobs_make_one_product(network: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wallet.client.slicing.MAX_PACKETS", 3)
    x, w = matrices(256, 64, 128, seed=2)

    async def body() -> None:
        async with Client(network.url, ALICE) as client:
            job = await client.submit(x, w, memory_bound=MIN_UNIT_BYTES)
            assert len(job.ids) == 3
            assert np.array_equal(await job.result(), x @ w)
            assert np.array_equal(await (await client.attach(job.ids, x, w)).result(), x @ w)
            with pytest.raises(WalletError, match="make 3 of the product's 8 packets") as caught:
                await client.attach(job.ids[:1], x, w)
            assert caught.value.code == "job-incomplete"

    scenario(body)


def test_several_orders_at_once_from_one_account(network: Running) -> None:
    async def body() -> None:
        async with Client(network.url, BOB) as client:
            pairs = [matrices(70, 64, 64, seed) for seed in range(4)]
            products = await asyncio.gather(*(client.multiply(x, w) for x, w in pairs))
            assert all(np.array_equal(product, x @ w) for product, (x, w) in zip(products, pairs, strict=True))

    scenario(body)


def test_a_network_runs_through_the_client(network: Running) -> None:
    x, w = matrices(100, 80, 70)
    layers = (Layer(w.astype(np.int8), None, Requantise(1, 9, True)), Layer(w.T[:70, :9].astype(np.int8)))
    network_of_layers, images = QuantisedNetwork(layers), x.astype(np.int8)

    async def body() -> None:
        async with Client(network.url, ALICE) as client:
            logits = await run(network_of_layers, images, client.matmul(packets=2))
        assert np.array_equal(logits, run_local(network_of_layers, images))

    scenario(body)


def test_the_sync_face_and_resuming_elsewhere(network: Running) -> None:
    x, w = matrices(128, 64, 128, seed=3)
    with SyncClient(network.url, ALICE) as client:
        job = client.submit(x, w, packets=2)
        assert job.refresh().packets == 2
    with SyncClient(network.url) as other:
        resumed = other.attach(job.ids, x, w)
        told: list[Progress] = []
        product = resumed.result(60, told.append)
        assert np.array_equal(product, x @ w)
        assert not product.flags.writeable
        assert told[-1].status == "complete"
        assert [progress.verified for progress in resumed.progress()] == [2]
        assert resumed.cost().paid > 0
        assert len(resumed.explain()) == 2
        assert np.array_equal(other.attach(job.ids[0], x, w).result(), x @ w)
        with pytest.raises(WalletError, match="no key"):
            other.multiply(x, w)
    with SyncClient(network.url, ALICE) as client:
        assert np.array_equal(client.multiply(x, w), x @ w)
        with pytest.raises(WalletError, match="no part of the job is open"):
            client.attach(job.ids, x, w).cancel()


# -- bad input, before anything is sent


@pytest.mark.parametrize(
    ("x", "w", "code"),
    [
        (np.zeros(3, int), np.zeros((3, 1), int), "matrix-invalid"),
        (np.zeros((1, 3)), np.zeros((3, 1), int), "matrix-invalid"),
        (np.array([[np.nan]]), np.zeros((1, 1), int), "matrix-invalid"),
        (np.array([[64]]), np.zeros((1, 1), int), "matrix-invalid"),
        (np.zeros((0, 1), int), np.zeros((1, 1), int), "matrix-invalid"),
        (np.zeros((1, 2), int), np.zeros((1, 2), int), "shape-mismatch"),
        (np.zeros((1, 541_201), np.int8), np.zeros((541_201, 1), np.int8), "sum-too-large"),
    ],
)
def test_matrices_that_cannot_be_multiplied(network: Running, x: Any, w: Any, code: str) -> None:
    with SyncClient(network.url, ALICE) as client, pytest.raises(WalletError) as caught:
        client.submit(x, w)
    assert (caught.value.code, caught.value.exit_code) == (code, ExitCode.USAGE)


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"price": 0}, "price-too-low"),
        ({"price": 4}, "no-able-worker"),
        ({"packets": 0}, "packets-invalid"),
        ({"packets": -1}, "packets-invalid"),
        ({"memory_bound": 100}, "memory-bound"),
        ({"memory_bound": MAX_UNIT_BYTES + 1}, "memory-bound"),
        ({"life": 3}, "expiry-invalid"),
        ({"life": 10**6}, "expiry-invalid"),
    ],
)
def test_terms_that_nobody_can_meet(network: Running, terms: dict[str, int], code: str) -> None:
    with SyncClient(network.url, ALICE) as client, pytest.raises(WalletError) as caught:
        client.submit(*matrices(2, 2, 2), **terms)
    assert caught.value.code == code
    assert caught.value.fix


def test_too_small_a_balance_is_told_in_numbers(network: Running) -> None:
    with SyncClient(network.url, key_of("nobody")) as client, pytest.raises(WalletError) as caught:
        client.submit(*matrices(2, 2, 2))
    assert caught.value.code == "insufficient-balance"
    assert "the account holds 0" in caught.value.message


def test_an_account_of_another_network_is_refused(network: Running) -> None:
    with pytest.raises(WalletError, match="not with 'tile'"), SyncClient(network.url, ALICE, prefix="tile"):
        pass


def test_jobs_that_do_not_exist_or_are_about_other_matrices(network: Running) -> None:
    x, w = matrices(64, 64, 64, seed=4)
    with SyncClient(network.url, ALICE) as client:
        job = client.submit(x, w)
        job.result(60)
        for wrong in (x + (x < 63), x[:1]):
            with pytest.raises(WalletError, match="other matrices") as caught:
                client.attach(job.ids, wrong, w)
            assert caught.value.exit_code == ExitCode.USAGE
        with pytest.raises(WalletError, match="knows of no job") as caught:
            client.attach("ab" * 32, x, w)
        assert caught.value.exit_code == ExitCode.NOT_FOUND
        with pytest.raises(WalletError, match="not the id of a job"):
            client.attach("x", x, w)


# -- jobs that come to nothing


def unwanted(client: Client, x: Int64, w: Int64, tick: int, life: int = 12) -> Any:
    """An offer below the price of every worker."""
    left, right = x.astype(np.int8), w.astype(np.int8)
    grid = choose_grid(Shape(left.shape[0], left.shape[1], right.shape[1]), packets=2)
    return make_offer(client.network.params, cut(left, right, grid), 1, life, tick)


def test_an_expired_job_says_why_and_returns_the_escrow(network: Running) -> None:
    async def body() -> None:
        x, w = matrices(128, 64, 64, seed=5)
        async with Client(network.url, ALICE) as client:
            job = await client.order(unwanted(client, x, w, (await client.gateway.info()).tick))
            with pytest.raises(WalletError, match=r"2 of 2 packets unanswered.*expired at height") as caught:
                await job.result()
            assert caught.value.code == "job-expired"
            cost = await job.cost()
            assert (cost.paid, cost.refunded) == (0, cost.escrowed)

    scenario(body)


def test_unanswered_packets_are_offered_as_often_as_asked(network: Running) -> None:
    async def body() -> None:
        x, w = matrices(128, 64, 64, seed=6)
        async with Client(network.url, ALICE) as client:
            job = await client.order(unwanted(client, x, w, (await client.gateway.info()).tick), attempts=2)
            with pytest.raises(WalletError, match="unanswered"):
                await job.result()
            assert len(job.ids) == 2

    scenario(body)


def test_a_time_out_leaves_the_job_alone(network: Running) -> None:
    async def body() -> None:
        x, w = matrices(128, 64, 64, seed=7)
        async with Client(network.url, ALICE) as client:
            job = await client.order(unwanted(client, x, w, (await client.gateway.info()).tick, life=300))
            with pytest.raises(WalletError, match=r"after 0\.3 s, 0 of 2 packets") as caught:
                await job.result(0.3)
            assert (caught.value.code, caught.value.exit_code) == ("job-timeout", ExitCode.TIMEOUT)
            assert job.ids[0] in caught.value.fix
            await reached(client, job, "open")
            await job.cancel()
            with pytest.raises(WalletError, match="was cancelled") as caught:
                await job.result()
            assert caught.value.code == "job-cancelled"
            assert (await job.cost()).refunded == (await job.cost()).escrowed

    scenario(body)


def test_a_job_whose_transaction_fails_says_so(network: Running) -> None:
    async def body() -> None:
        x, w = matrices(64, 64, 64, seed=8)
        async with Client(network.url, ALICE) as client:
            # Expires before it could be dealt: the chain refuses it when it is executed.
            job = await client.order(unwanted(client, x, w, tick=1, life=1))
            with pytest.raises(WalletError, match="transaction failed: bad-expiry") as caught:
                await job.result()
            assert caught.value.code == "job-failed"

    scenario(body)


# -- nodes that lie


def bought_from(liar: LyingNode, seed: int) -> tuple[Any, Int64]:
    x, w = matrices(128, 64, 64, seed)
    with SyncClient(liar.url, ALICE, patience_seconds=0.5) as client:
        return client.submit(x, w, packets=2).result(20), x @ w


def unknown(_params: Any, _result: Any) -> Any:
    raise KeyError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("wallet.client.gateway._LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(job_module, "WITHHELD_SECONDS", 0.3)


def test_without_subscriptions_the_client_asks(liar: LyingNode) -> None:
    product, expected = bought_from(liar, 20)
    assert np.array_equal(product, expected)


def test_a_wrong_product_is_never_believed(liar: LyingNode) -> None:
    def off_by_one(data: bytes) -> bytes:
        return data[:-4] + (int.from_bytes(data[-4:], "little", signed=True) + 1).to_bytes(4, "little", signed=True)

    liar.tensor = off_by_one
    with pytest.raises(WalletError, match="not the product of packet") as caught:
        bought_from(liar, 21)
    assert (caught.value.code, caught.value.exit_code) == ("product-wrong", ExitCode.NETWORK)


@pytest.mark.parametrize(
    "served",
    [None, b"", b"garbage", to_npy(np.zeros((64, 64), np.int64)).read(), to_npy(np.zeros((64, 128), np.int32)).read()],
)
def test_a_withheld_product_is_told_apart_from_one_that_is_late(liar: LyingNode, served: bytes | None) -> None:
    liar.tensor = lambda _data: served
    with pytest.raises(WalletError, match="does not serve its product") as caught:
        bought_from(liar, 22)
    assert caught.value.code == "product-withheld"


def test_a_false_status_is_not_taken_for_a_result(liar: LyingNode) -> None:
    liar.changes["job_get"] = lambda _params, view: view | {"status": "closed", "done": 2, "closed_at": 5, "refund": 0}
    liar.changes["job_packets"] = lambda _params, views: [view | {"product": None, "status": "done"} for view in views]
    with pytest.raises(WalletError, match=r"was closed with 2 of 2 packets unanswered"):
        bought_from(liar, 23)
    liar.changes = {"job_packets": lambda _params, views: [view | {"index": 9} for view in views]}
    with pytest.raises(WalletError, match="was closed with 2 of 2 packets unanswered") as caught:
        bought_from(liar, 24)
    assert "hides answers" in caught.value.fix


def test_products_of_another_packet_do_not_pass(liar: LyingNode) -> None:
    def swapped(_params: Any, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one | {"index": other["index"]} for one, other in zip(views, views[::-1], strict=True)]

    liar.changes["job_packets"] = swapped
    with pytest.raises(WalletError, match="not the product of packet"):
        bought_from(liar, 25)


def test_a_node_that_loses_a_transaction_gets_it_again(liar: LyingNode) -> None:
    liar.swallowed.add("tx_send")
    product, expected = bought_from(liar, 26)
    assert np.array_equal(product, expected)
    assert liar.calls.count("tx_send") == 2


def test_a_job_that_a_reorganisation_removed_for_good_is_lost_loudly(liar: LyingNode, network: Running) -> None:
    x, w = matrices(128, 64, 64, 27)
    with SyncClient(liar.url, ALICE, patience_seconds=0.5) as client:
        job = client.submit(x, w, packets=2)
        with SyncClient(network.url) as other:
            other.attach(job.ids, x, w).result(30)
        # As after a reorganisation in which the account's nonce went to another transaction.
        liar.changes = dict.fromkeys(("job_get", "tx_get"), unknown)
        with pytest.raises(WalletError, match="cannot be sent again") as caught:
            job.result(20)
        assert caught.value.code == "job-lost"
        assert caught.value.txids == job.ids


def test_a_node_that_is_away_for_a_while_is_waited_for(liar: LyingNode) -> None:
    x, w = matrices(128, 64, 64, 28)
    with SyncClient(liar.url, ALICE, patience_seconds=20) as client:
        job = client.submit(x, w, packets=2)
        liar.is_down = True
        threading.Timer(1.0, lambda: setattr(liar, "is_down", False)).start()
        assert np.array_equal(job.result(30), x @ w)


def test_a_node_that_stays_away_is_a_network_error(liar: LyingNode) -> None:
    x, w = matrices(64, 64, 64, 29)
    with SyncClient(liar.url, ALICE, patience_seconds=0.3) as client:
        job = client.submit(x, w)
        liar.is_down = True
        begin = time.monotonic()
        with pytest.raises(WalletError) as caught:
            job.result(30)
        assert caught.value.exit_code == ExitCode.NETWORK
        assert time.monotonic() - begin < 10
        liar.is_down = False
        assert np.array_equal(job.result(30), x @ w)


def test_another_transaction_is_not_passed_off_as_the_job(liar: LyingNode, network: Running) -> None:
    x, w = matrices(64, 64, 64, 30)
    with SyncClient(network.url, ALICE) as client:
        first, second = client.submit(x, w), client.submit(w, x)
        first.result(30)
        second.result(30)
    raw = raw_of(network, second.ids[0])
    liar.changes["tx_get"] = lambda _params, view: view | {"raw": raw}
    with SyncClient(liar.url) as client, pytest.raises(WalletError, match="another transaction"):
        client.attach(first.ids, w, x)


def raw_of(network: Running, txid: str) -> str:
    async def ask() -> str:
        async with Client(network.url) as client:
            view = await client.gateway.transaction(txid)
            assert view is not None
            return view.raw

    return asyncio.run(ask())


def test_a_network_passed_off_as_another_is_refused(liar: LyingNode) -> None:
    mainnet = genesis_transition(params.mainnet())[0].id.hex()
    liar.changes["chain_info"] = lambda _params, info: info | {"genesis_hash": mainnet}
    with pytest.raises(WalletError, match="do not lead to the genesis hash"), SyncClient(liar.url, ALICE):
        pass
    liar.changes["chain_params"] = lambda _params, _view: msgspec.to_builtins(ParamsView.of(params.mainnet()))
    with pytest.raises(WalletError, match="not with 'tdev'"), SyncClient(liar.url, ALICE, prefix="tdev"):
        pass


def test_fees_that_a_node_makes_up_are_capped(liar: LyingNode) -> None:
    liar.changes["tx_fees"] = lambda _params, fees: fees | {"base_fee": 10**9}
    with pytest.raises(WalletError) as caught:
        bought_from(liar, 31)
    assert caught.value.code == "fee-too-low"


def test_a_node_that_stores_something_else_than_was_sent_is_caught(liar: LyingNode) -> None:
    liar.stored = lambda answer: re.sub(rb'"commitment":"[0-9a-f]{8}', b'"commitment":"00000000', answer)
    with pytest.raises(WalletError, match="committed to another matrix") as caught:
        bought_from(liar, 32)
    assert caught.value.code == "commitment-differs"


# -- a node that is restarted


def test_a_job_survives_the_restart_of_its_node(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    x, w = matrices(256, 64, 64, 40)
    products: list[Any] = []

    def buy() -> None:
        with SyncClient(f"http://127.0.0.1:{port}", ALICE, patience_seconds=40) as client:
            products.append(client.multiply(x, w, packets=4))

    with running_node(tmp_path / "node", port=port) as node:
        asyncio.run(register_worker(node.url))
        thread = threading.Thread(target=buy)
        thread.start()
        time.sleep(0.4)
    with running_node(tmp_path / "node", port=port):
        thread.join(60)
    assert np.array_equal(products[0], x @ w)


# -- deals


def worker(places: int, min_price: int = 1, memory: int = MAX_UNIT_BYTES, active: bool = True) -> WorkerView:
    return WorkerView(
        address="tdev1",
        registered=True,
        active=active,
        bond=places * RULES.min_reserve,
        reserved=0,
        places=places,
        min_price=min_price,
        max_unit_bytes=memory,
        announced=None,
        seen=1,
        retired_at=None,
        paid=0,
        burned=0,
        missed=0,
        held=(),
    )


RULES = params.devnet(0)


def deal(workers: list[WorkerView], **terms: Any) -> Any:
    return find_deal(RULES, workers, Shape(2048, 2048, 2048), Terms(**terms))


def test_the_price_is_what_half_of_the_places_work_for() -> None:
    assert deal([worker(1, 3), worker(1, 9), worker(1, 5)]).price == 5
    assert deal([worker(9, 3), worker(1, 9)]).price == 3
    assert deal([worker(1, 0)]).price == RULES.min_price
    assert deal([worker(1, 3), worker(9, 5)], price=4).price == 4


def test_a_price_counts_the_able_places_and_what_is_about_to_be_asked() -> None:
    found = deal([worker(2, 3), worker(3, 9), worker(4, 5), worker(8, 1, memory=1 << 20)], memory_bound=16 << 20)
    assert (found.price, found.able, found.places) == (5, 6, 17)
    dearer = replace(worker(1, 3), announced=DeclarationView(20, 8, MAX_UNIT_BYTES, 1))
    cheaper = replace(worker(1, 3), announced=DeclarationView(20, 1, MAX_UNIT_BYTES, 1))
    assert (deal([dearer]).price, deal([cheaper]).price) == (8, 3)
    assert deal([dearer], price=4).able == 1, "it works for that until then"


def test_packets_fit_the_memory_of_half_of_the_places_and_number_what_is_worthwhile() -> None:
    assert deal([worker(4, memory=1 << 20), worker(5, memory=4 << 20)]).grid.unit_bytes <= 4 << 20
    assert deal([worker(6, memory=1 << 20), worker(5, memory=4 << 20)]).grid.unit_bytes <= 1 << 20
    assert 6 <= deal([worker(8)]).grid.packets <= 10
    assert deal([worker(10_000)]).grid.packets <= 1.25 * worthwhile_packets(Shape(2048, 2048, 2048)) == 160
    assert worthwhile_packets(Shape(1, 1, 1)) == 1


def test_nobody_there_or_nobody_able_is_said_before_anything_is_paid() -> None:
    for none in ([], [worker(5, active=False)]):
        with pytest.raises(WalletError, match="no worker is active"):
            deal(none)
    with pytest.raises(WalletError, match="too large for every active worker") as caught:
        deal([worker(5, memory=1 << 20)], memory_bound=16 << 20, packets=1)
    assert str(1 << 20) in caught.value.fix
    with pytest.raises(WalletError, match="works for 4") as caught:
        deal([worker(5, 7), worker(5, 9)], price=4)
    assert caught.value.fix == "offer 7 or more"


def test_offers_keep_the_order_of_packets_and_sum_their_escrow() -> None:
    x, w = (m.astype(np.int8) for m in matrices(200, 64, 200))
    slices = cut(x, w, choose_grid(Shape(200, 64, 200), packets=4))
    offer = make_offer(RULES, slices, price=1000, life=100, tick=7)
    (part,) = offer.parts
    assert part.payload.expiry == 107
    assert part.packets == (0, 1, 2, 3)
    partial = make_offer(replace(RULES, min_fee=5), slices, 1, 100, 7, wanted=[3, 1])
    assert partial.parts[0].packets == (3, 1)
    assert partial.escrow == 10
