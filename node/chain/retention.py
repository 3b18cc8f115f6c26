"""How long each tensor is kept: a height per commitment, and the same by height, so that what is over is found."""

from __future__ import annotations

from collections.abc import Mapping

from consensus.state import Changes
from node.chain import schema
from node.chain.store import Store
from node.chain.tensors import TensorStore


class Retention:
    """The duties on one store of tensors. Used under the chain's lock."""

    def __init__(self, store: Store, tensors: TensorStore) -> None:
        self._store = store
        self._tensors = tensors

    def changes(self, keep: Mapping[bytes, int], pending: Changes | None = None) -> Changes:
        """What to write so that tensors are kept through these heights; a longer duty stays.

        `pending` is what the same batch writes already: several blocks may connect at once.
        """
        changes: Changes = {}
        for commitment, until in keep.items():
            known = self._until(commitment, pending or {})
            if known is None or known < until:
                if known is not None:
                    changes[schema.tensor_expiry(known, commitment)] = None
                changes[schema.tensor_until(commitment)] = schema.pack_height(until)
                changes[schema.tensor_expiry(until, commitment)] = b""
        return changes

    def drop(self, height: int) -> None:
        """Forget the tensors whose time is over."""
        gone: Changes = {}
        for key, _ in self._store.scan(schema.TENSOR_EXPIRY):
            until, commitment = schema.unpack_tensor_expiry(key)
            if until > height:
                break
            gone[key] = None
            if self._until(commitment) == until:  # else a later duty has taken this one's place
                self._tensors.remove(commitment)
                gone[schema.tensor_until(commitment)] = None
        if gone:
            self._store.write(gone)

    def _until(self, commitment: bytes, pending: Changes | None = None) -> int | None:
        key = schema.tensor_until(commitment)
        data = pending[key] if pending and key in pending else self._store.get(key)
        return None if data is None else schema.unpack_height(data)
