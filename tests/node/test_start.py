"""What a node needs of its machine before it starts."""

from __future__ import annotations

import resource

import pytest
from msgspec.structs import fields

from node.p2p.limits import DEFAULT
from node.rpc.server import RpcConfig
from node.start import DESCRIPTORS, StartError, reserve_descriptors

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((256, INFINITY), (DESCRIPTORS, INFINITY)),
        ((256, 4096), (DESCRIPTORS, 4096)),
        ((DESCRIPTORS, DESCRIPTORS), None),
        ((20_000, 20_000), None),
        ((INFINITY, INFINITY), None),
    ],
)
def test_descriptors_are_raised_to_what_a_node_needs(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised: tuple[int, int] | None
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, value: calls.append(value))
    reserve_descriptors()
    assert calls == ([] if raised is None else [raised])


def test_too_few_descriptors_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 512))
    with pytest.raises(StartError, match="may open 512 files") as refusal:
        reserve_descriptors()
    assert "ulimit -n" in refusal.value.fix


def test_what_strangers_and_clients_can_take_leaves_room() -> None:
    network = DEFAULT.max_inbound + DEFAULT.max_strangers + 2 * DEFAULT.max_outbound
    assert network == 144
    clients = next(field.default for field in fields(RpcConfig) if field.name == "connections")
    assert network + clients + DESCRIPTORS // 5 <= 2 * DESCRIPTORS // 3
