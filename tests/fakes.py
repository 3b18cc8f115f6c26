"""In-memory stand-ins for what the shell provides: exactly the small interfaces that consensus declares."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from consensus.state import NODE_PREFIX
from consensus.tensor import Tensor


class Snapshot:
    """A `StateReader` over an immutable map. Trie nodes are kept out of the ordered keys: nobody scans them."""

    def __init__(self, records: Mapping[bytes, bytes]) -> None:
        self.records = records

    @cached_property
    def _ordered(self) -> list[bytes]:
        return sorted(key for key in self.records if not key.startswith(NODE_PREFIX))

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for position in range(bisect_left(self._ordered, max(prefix, after)), len(self._ordered)):
            key = self._ordered[position]
            if key == after:
                continue
            if not key.startswith(prefix):
                return
            yield key, self.records[key]

    def changed(self, writes: Mapping[bytes, bytes | None]) -> Snapshot:
        """The map after `writes` (None deletes)."""
        records = {**self.records, **writes}
        return Snapshot({key: value for key, value in records.items() if value is not None})


class MemoryTensors:
    """A `TensorSource` that keeps whatever it is given."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._tensors = {tensor.commitment: tensor for tensor in tensors}

    def tensor(self, commitment: bytes) -> Tensor | None:
        return self._tensors.get(commitment)

    def add(self, tensor: Tensor) -> Tensor:
        self._tensors[tensor.commitment] = tensor
        return tensor

    def drop(self, commitment: bytes) -> Tensor:
        """Lose a tensor, as a node that has not fetched it yet."""
        return self._tensors.pop(commitment)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors.values())
