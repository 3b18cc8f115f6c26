"""Sending more than a node keeps of one account: whoever sends waits for blocks, and needs to do nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from api import errors
from wallet.client import purse
from wallet.client.purse import deliver
from wallet.client.rpc import RpcError
from wallet.errors import ExitCode, WalletError


class FakeGateway:
    """A node that keeps a transaction once its account's nonce has come far enough; every wait is a block or none."""

    def __init__(self, wanted: int, mines: bool = True, reason: str = "too-many-pending") -> None:
        self.nonce = 0
        self.waits = 0
        self.seconds = 0.0
        self._wanted = wanted
        self._mines = mines
        self._reason = reason

    async def send(self, _transaction: object, _txid: str) -> None:
        if self.nonce < self._wanted:
            fix = f"wait for {self._wanted - self.nonce}"
            raise RpcError(-32002, errors.REJECTED.name, "too far ahead", fix, self._reason, self.nonce)

    @asynccontextmanager
    async def heads(self, _tell: object) -> AsyncIterator[FakeGateway]:
        yield self

    async def wait(self, seconds: float) -> None:
        self.waits += 1
        self.seconds += seconds
        self.nonce += 4 * self._mines


SENT: Any = SimpleNamespace(transaction=None, txid=bytes(32))
NETWORK: Any = SimpleNamespace(params=SimpleNamespace(spacing_ms=1000))


def scenario(
    body: Callable[[FakeGateway, list[str]], Coroutine[Any, Any, None]],
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purse.time, "monotonic", lambda: gateway.seconds)
    asyncio.run(body(gateway, []))


async def delivered(gateway: FakeGateway, told: list[str]) -> None:
    any_gateway: Any = gateway
    await deliver(any_gateway, NETWORK, SENT, told.append)


def test_a_transaction_too_far_ahead_waits_for_as_many_blocks_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(gateway: FakeGateway, told: list[str]) -> None:
        await delivered(gateway, told)
        assert gateway.waits == 200
        assert "wait for 800" in told[0]
        assert len(told) == 200

    scenario(body, FakeGateway(wanted=800), monkeypatch)


def test_it_is_given_up_where_nobody_mines(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(gateway: FakeGateway, told: list[str]) -> None:
        with pytest.raises(WalletError) as caught:
            await delivered(gateway, told)
        assert (caught.value.code, caught.value.exit_code) == ("too-many-pending", ExitCode.TIMEOUT)
        assert 60 < gateway.seconds < 80
        assert len(told) == 1

    scenario(body, FakeGateway(wanted=800, mines=False), monkeypatch)


def test_another_refusal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(gateway: FakeGateway, told: list[str]) -> None:
        with pytest.raises(RpcError):
            await delivered(gateway, told)
        assert not gateway.waits

    scenario(body, FakeGateway(wanted=1, reason="insufficient-balance"), monkeypatch)
