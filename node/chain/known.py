"""The headers that are known, each in all of its copies, and the strips that prove the tiles of packets."""

from __future__ import annotations

from collections.abc import Callable

from consensus import validation
from consensus.block import Header, Zero
from consensus.codec import encode
from consensus.errors import ConsensusError, Reason
from consensus.params import ChainParams
from consensus.validation import Strips
from node.chain import schema
from node.chain.archive import Archive
from node.chain.headers import MAX_COPIES, HeaderEntry, HeaderTree, locator
from node.chain.snapshot import stored_header
from node.chain.store import Store
from node.chain.tensors import TensorStore


class KnownHeaders:
    """The header tree with what is stored beside it. Reading is thread-safe; whoever writes holds the import lock.

    Attributes:
        tree: the entries, by id and by descent.
    """

    def __init__(
        self,
        params: ChainParams,
        genesis_hash: bytes,
        store: Store,
        tensors: TensorStore,
        archive: Archive,
        tree: HeaderTree,
        clock: Callable[[], int],
    ) -> None:
        self.tree = tree
        self._params = params
        self._genesis_hash = genesis_hash
        self._store = store
        self._tensors = tensors
        self._archive = archive
        self._clock = clock
        self._held: dict[object, HeaderEntry] = {}

    def hold(self, whose: object, entry: HeaderEntry) -> None:
        """Drop nothing that leads to this entry, until the same one holds another or releases it."""
        self._held[whose] = entry

    def release(self, whose: object) -> None:
        """What was held so may be dropped again."""
        self._held.pop(whose, None)

    def header(self, block_id: bytes, ticket: bytes | None = None) -> Header | None:
        """A header; with `ticket`, the copy that has this winning ticket."""
        entry = self.tree.get(block_id)
        if entry is None or not entry.copies:
            return None
        return entry.header if ticket is None else entry.copy(ticket)

    def strips(self, block_id: bytes, ticket: bytes | None = None) -> Strips | None:
        """What proves the tile of a header; None for one of zero operands, or where the operands are gone."""
        header = self.header(block_id, ticket)
        if header is None or isinstance(header.core.unit, Zero):
            return None
        strips = self.strips_at_hand(header)
        if strips is None and (data := self._store.get(schema.strips(block_id, header.ticket))) is not None:
            return schema.decode(Strips, data)
        return strips

    def strips_at_hand(self, header: Header) -> Strips | None:
        """The strips of a header, out of operands that are here."""
        unit, proof = header.core.unit, header.proof
        if isinstance(unit, Zero) or proof is None:
            return None
        left = self._tensors.strip(unit.left.commitment, proof.i)
        right = self._tensors.strip(unit.right.commitment, proof.j)
        return None if left is None or right is None else Strips(*left, *right)

    def locator(self) -> list[bytes]:
        """Ids on the best header's chain, dense near the top and then ever sparser, down to genesis."""
        return locator(self.tree.best)

    def after(self, locator: list[bytes], tip_height: int, limit: int) -> list[Header]:
        """Main-chain headers behind the first id of `locator` that is on it, each in the copy that its child names.

        `tip_height` is the main chain's; at most `limit` headers come.
        """
        start = 0
        for block_id in locator:
            entry = self.tree.get(block_id)
            if entry is not None and self._archive.id_at(entry.height) == block_id:
                start = entry.height
                break
        headers: list[Header] = []
        child: HeaderEntry | None = None
        for height in range(min(start + limit + 1, tip_height), start, -1):
            entry = self.tree.get(self._archive.id_at(height) or b"")
            if entry is None or (child is not None and child.parent is not entry):
                return []  # a reorganisation went by: let the asker ask again
            named = entry.copy(child.core.parent_ticket) if child is not None else None
            headers.append(named or entry.header)
            child = entry
        return headers[::-1][:limit]

    def add(self, header: Header, parent: HeaderEntry, strips: Strips | None) -> HeaderEntry:
        """Check a new header against its parent and put it into the tree. Raises `ConsensusError`."""
        self._take(header, parent, strips)
        entry, dropped = self.tree.add_loose(header, parent, lambda: tuple(self._held.values()))
        headers = [Header(loose.core, proof) for loose in dropped for proof in loose.copies.values()]
        if keys := [schema.strips(h.id, h.ticket) for h in headers if not isinstance(h.core.unit, Zero)]:
            self._store.write(dict.fromkeys(keys))
        return entry

    def add_copy(self, entry: HeaderEntry, header: Header, strips: Strips | None) -> None:
        """Another proof of a known core: checked like the first. Raises `ConsensusError`."""
        if header.copy_id in entry.copies or entry.parent is None or len(entry.copies) >= MAX_COPIES:
            return
        if not entry.parent.copies:  # its only copy was false: nothing is left to check a child against
            raise ConsensusError(Reason.INVALID_PARENT, entry.parent.invalid)
        self._take(header, entry.parent, strips)
        if not entry.copies:
            self.tree.readmit(entry)
        entry.copies[header.copy_id] = header.proof
        if entry.has_body or self._archive.id_at(entry.height) == entry.id:
            self._store.write({schema.header(entry.id): encode(stored_header(entry))})

    def check(self, header: Header, parent: HeaderEntry, strips: Strips | None) -> None:
        """Whether a header is a child of `parent`, with the work that it claims. Raises `ConsensusError`."""
        validation.check_header(self._params, header, parent.context(header.core.parent_ticket), self._clock())
        validation.check_answer(self._genesis_hash, header)
        validation.check_tile(header, strips or self.strips_at_hand(header))

    def _take(self, header: Header, parent: HeaderEntry, strips: Strips | None) -> None:
        self.check(header, parent, strips)
        # Strips that came with a header are kept: where its block is never executed here, nothing else proves its work.
        if strips is not None and not isinstance(header.core.unit, Zero):
            self._store.write({schema.strips(header.id, header.ticket): encode(strips)})
