"""What was verified before is recalled only while its evidence is here."""

from __future__ import annotations

import pytest

from consensus.errors import MissingTensor
from consensus.tensor import COLUMNS, Tensor
from node.chain.tensors import TensorStore
from node.chain.verified import VerifiedProducts
from tests.builders import exact, operand

A, B = operand(64, 128, 1), operand(128, 64, 2)
SEED = bytes(range(32))


def kept(*tensors: Tensor) -> TensorStore:
    store = TensorStore(None)
    for tensor in tensors:
        store.add(tensor)
    return store


def test_a_verdict_does_not_outlive_its_operand() -> None:
    left = Tensor(A)
    store = kept(left)
    products = VerifiedProducts(store)
    assert products.operand_holds(left.spec)
    assert products.operand_holds(left.spec)
    store.remove(left.commitment)
    with pytest.raises(MissingTensor) as missing:
        products.operand_holds(left.spec)
    assert missing.value.commitment == left.commitment
    store.add(left)
    assert products.operand_holds(left.spec)


@pytest.mark.parametrize("gone", range(3))
def test_a_verdict_does_not_outlive_a_product_or_what_it_is_made_of(gone: int) -> None:
    left, right, product = Tensor(A), Tensor(B, COLUMNS), Tensor(exact(A, B))
    tensors = (left, right, product)
    store = kept(*tensors)
    products = VerifiedProducts(store)
    assert products.product_holds(left.spec, right.spec, product.commitment)
    store.remove(tensors[gone].commitment)
    with pytest.raises(MissingTensor):
        products.product_holds(left.spec, right.spec, product.commitment)


def test_what_was_verified_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, product = Tensor(A), Tensor(B, COLUMNS), Tensor(exact(A, B))
    products = VerifiedProducts(kept(left, right, product))
    assert products.product_holds(left.spec, right.spec, product.commitment)
    monkeypatch.setattr("consensus.proofs.freivalds.verify", lambda *_args, **_more: pytest.fail("checked again"))
    assert products.product_holds(left.spec, right.spec, product.commitment)
