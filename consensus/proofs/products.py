"""Whether the tensors of a block hold what it claims: operands in range, products true (docs/protocol.md, 4 and 8).

Consensus asks through the small `Products` interface, so that a node can answer from what it has verified already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from consensus.errors import ConsensusError, MissingTensor, Reason
from consensus.proofs import freivalds
from consensus.tensor import ROWS, Tensor, TensorSpec, in_operand_range


class TensorSource(Protocol):
    """Where tensors are looked up."""

    def tensor(self, commitment: bytes) -> Tensor | None:
        """The tensor, if it is at hand."""


class Products(Protocol):
    """The two questions. Each raises `MissingTensor` while a tensor is not at hand."""

    def operand_holds(self, operand: TensorSpec) -> bool:
        """Whether every entry lies in [−63, 63]."""

    def product_holds(self, left: TensorSpec, right: TensorSpec, product: bytes) -> bool:
        """Whether the tensor committed to by `product` is the product of the operands, in int32 row strips."""


def check_operands(products: Products, operands: Iterable[TensorSpec]) -> None:
    """OPERAND_OUT_OF_RANGE unless every operand holds; `MissingTensor` while one is not at hand."""
    for operand in operands:
        if not products.operand_holds(operand):
            raise ConsensusError(Reason.OPERAND_OUT_OF_RANGE, operand.commitment, "entries in [−63, 63]")


class CheckedProducts:
    """Answers by looking at the tensors themselves."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def operand_holds(self, operand: TensorSpec) -> bool:
        return in_operand_range(self._tensor(operand.commitment).matrix)

    def product_holds(self, left: TensorSpec, right: TensorSpec, product: bytes) -> bool:
        a, b, c = (self._tensor(commitment) for commitment in (left.commitment, right.commitment, product))
        return c.spec.side == ROWS and freivalds.verify(a.matrix, b.matrix, c.matrix)

    def _tensor(self, commitment: bytes) -> Tensor:
        tensor = self._source.tensor(commitment)
        if tensor is None:
            raise MissingTensor(commitment)
        return tensor
