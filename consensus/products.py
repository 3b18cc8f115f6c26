"""Whether the tensors of a block hold what it claims: operands in range, products true (docs/protocol.md, 4 and 8).

Consensus asks through the small `Products` interface, so that a node can answer from what it has verified already.
"""

from __future__ import annotations

from typing import Protocol

from consensus import freivalds, work
from consensus.errors import MissingTensor
from consensus.params import NOISED_BOUND
from consensus.tensor import Tensor, TensorSpec, in_operand_range


class TensorSource(Protocol):
    """Where tensors are looked up."""

    def tensor(self, commitment: bytes) -> Tensor | None:
        """The tensor, if it is at hand."""


class Products(Protocol):
    """The three questions. Each raises `MissingTensor` while a tensor is not at hand."""

    def operand_holds(self, operand: TensorSpec) -> bool:
        """Whether every entry lies in [−63, 63]."""

    def product_holds(self, left: TensorSpec, right: TensorSpec, product: TensorSpec) -> bool:
        """Whether the product of the operands is true."""

    def idle_holds(self, seed: bytes, product: TensorSpec, k: int) -> bool:
        """Whether the product of the idle unit under `seed`, the noise times the noise, is true."""


class CheckedProducts:
    """Answers by looking at the tensors themselves."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def operand_holds(self, operand: TensorSpec) -> bool:
        return in_operand_range(self._tensor(operand).matrix)

    def product_holds(self, left: TensorSpec, right: TensorSpec, product: TensorSpec) -> bool:
        a, b, c = (self._tensor(spec).matrix for spec in (left, right, product))
        return freivalds.verify(a, b, c)

    def idle_holds(self, seed: bytes, product: TensorSpec, k: int) -> bool:
        a, b = work.idle_operands(seed, product.rows, product.cols, k)
        return freivalds.verify(a, b, self._tensor(product).matrix, bound=NOISED_BOUND)

    def _tensor(self, spec: TensorSpec) -> Tensor:
        tensor = self._source.tensor(spec.commitment)
        if tensor is None:
            raise MissingTensor(spec.commitment)
        return tensor
