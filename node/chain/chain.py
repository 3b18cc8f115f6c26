"""The chain: which blocks there are, which of them count, and what they did to the state.

One lock serialises imports; a second one, held only while a batch is committed or something is read, keeps readers
consistent. A block is executed on an overlay first and then written, with its undo data, index and tip, in one synced
batch: a crash leaves either the old tip or the new one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from consensus import transition, validation
from consensus.block import Block, Body, Header
from consensus.codec import encode
from consensus.errors import BadProof, ConsensusError, MissingTensor, Reason
from consensus.events import Dealt
from consensus.params import ChainParams
from consensus.proofs.trie import CorruptTrieError
from consensus.state import GROUPS, PACKETS, Changes, CorruptRecordError, Overlay, StateReader
from consensus.transition import Transition
from consensus.validation import Strips
from node.chain import index, schema, snapshot
from node.chain.archive import Archive
from node.chain.headers import HeaderEntry, HeaderTree, fork_point, path
from node.chain.index import Outcome
from node.chain.known import KnownHeaders
from node.chain.opening import open_chain
from node.chain.retention import Retention
from node.chain.schema import Tip
from node.chain.snapshot import Staging, stored_header
from node.chain.split import Split
from node.chain.store import StorageError, Store
from node.chain.tensors import TensorStore
from node.chain.tipstate import TipState
from node.chain.verified import VerifiedProducts, VerifiedSignatures

T = TypeVar("T")

logger = logging.getLogger("tilework.chain")

_DEEP_TOLD_SECONDS = 60.0
"""Pause before the operator is told of another refused branch."""


@dataclass(frozen=True)
class ConnectedBlock:
    """A block that became part of the main chain, and what it did."""

    block: Block
    outcome: Outcome


@dataclass(frozen=True)
class Import:
    """What taking in a block changed. Nothing changed if it went to a side branch."""

    disconnected: tuple[Block, ...] = ()
    connected: tuple[ConnectedBlock, ...] = ()

    @property
    def tip_changed(self) -> bool:
        """Whether there is a new tip."""
        return bool(self.connected)


class Chain:
    """The durable chain of one network.

    Attributes:
        params, genesis, genesis_hash: of the network.
        tensors: where the blocks' tensors are kept.
        archive: the main chain's blocks, and what they did.
        known: headers, on the main chain or off it.
        products, signatures: what was verified before; whoever verifies in gossip does so through these.
        allow_deep_reorg: the operator's override of `params.max_reorg` (`node.config`): undo as far as undo data reach.
    """

    def __init__(
        self,
        params: ChainParams,
        store: Store,
        tensors: TensorStore,
        clock: Callable[[], int],
        imported: Callable[[float], None] = lambda _seconds: None,
        allow_deep_reorg: bool = False,
    ) -> None:
        """Open the chain in `store`, or found it; check that tip, state root and undo data fit.

        `clock` gives Unix milliseconds; `imported` is told, on its thread, the seconds that each `add_block` took.

        Raises:
            StorageError: the store belongs to another network or is damaged.
        """
        self.params = params
        self.genesis, founding = transition.genesis_transition(params)
        self.genesis_hash = self.genesis.id
        self.tensors = tensors
        self.products = VerifiedProducts(tensors)
        self.signatures = VerifiedSignatures(self.genesis_hash)
        self.allow_deep_reorg = allow_deep_reorg
        self._store = store
        self._retention = Retention(store, tensors)
        self._imported = imported
        self._deep_told = -_DEEP_TOLD_SECONDS
        self._split: Split | None = None
        self._importing = threading.RLock()
        self._viewing = threading.RLock()
        self.archive = Archive(store, self._viewing)
        self._tree = HeaderTree(self.genesis.header)
        self.known = KnownHeaders(params, self.genesis_hash, store, tensors, self.archive, self._tree, clock)
        self._state, self._tip, self._base = open_chain(store, self.archive, self._tree, self.genesis, founding)
        with contextlib.suppress(MissingTensor):  # the network will bring it
            self._advance()

    # ------------------------------------------------------------------ reading

    @property
    def tip(self) -> HeaderEntry:
        """The executed block with the most work."""
        return self._tip

    @property
    def best_header(self) -> HeaderEntry:
        """The checked header with the most work; ahead of the tip while bodies are being fetched."""
        return self._tree.best

    @property
    def base(self) -> HeaderEntry:
        """The block that execution began behind: genesis, or that whose state was adopted."""
        return self._base

    def entry(self, block_id: bytes) -> HeaderEntry | None:
        """What is known of a block id."""
        return self._tree.get(block_id)

    def headers_after(self, locator: list[bytes], limit: int) -> list[Header]:
        """See `KnownHeaders.after`."""
        return self.known.after(locator, self.tip.height, limit)

    def block(self, block_id: bytes) -> Block | None:
        """A block whose body is stored."""
        header, body = self.known.header(block_id), self.archive.body(block_id)
        return None if header is None or body is None else Block(header, body)

    def missing_tensors(self, block: Block) -> list[bytes]:
        """Commitments of the tensors that a block obliges and that are not here yet."""
        return [c for c in validation.obliged_tensors(block) if not self.tensors.has(c)]

    def read(self, function: Callable[[StateReader], T]) -> T:
        """Evaluate `function` on the state after the tip; no block is committed meanwhile, so let it be short."""
        with self._viewing:
            return function(self._state)

    def records(self, start: bytes) -> tuple[HeaderEntry, Iterator[tuple[bytes, bytes]]]:
        """The tip, and the records after it from the key `start` on, to be walked at leisure: they do not change."""
        with self._viewing:
            place = self._state.place
            pairs = self._store.scan(place, start=place + max(start, snapshot.FIRST_KEY))
            return self._tip, ((key[len(place) :], value) for key, value in pairs)

    def missing_operands(self) -> list[bytes]:
        """Operands of open groups that are not here: after a snapshot was adopted they come one by one."""
        return [
            c for c in snapshot.open_operands(self.params, self._state, self._tip.height) if not self.tensors.has(c)
        ]

    # ------------------------------------------------------------------ importing

    def add_header(self, header: Header, strips: Strips | None = None) -> HeaderEntry:
        """Check a header against its parent and put it into the tree.

        Raises:
            ConsensusError: UNKNOWN_PARENT and TIME_TOO_NEW may pass later; WRONG_PARENT_TICKET asks for the parent's
                other copy, MISSING_STRIPS for the strips; for any other the sender is to blame.
        """
        with self._importing:
            entry = self._tree.get(header.id)
            if entry is not None:
                self.known.add_copy(entry, header, strips)
                return entry
            parent = self._tree.get(header.core.parent)
            if parent is None:
                raise ConsensusError(Reason.UNKNOWN_PARENT, header.core.parent, "a known block")
            if parent.invalid:
                raise ConsensusError(Reason.INVALID_PARENT, parent.invalid)
            if not self._may_undo(self._depth(parent)):
                self.known.check(header, parent, strips)  # a header without work is its sender's fault, however deep
            self._check_depth(parent)
            return self.known.add(header, parent, strips)

    def add_block(self, block: Block, strips: Strips | None = None) -> Import:
        """Check, execute and keep a block; reorganise if its chain has the most work.

        Raises:
            ConsensusError: the block is refused. `BadProof`: only this copy of it.
            MissingTensor: fetch the tensor, then add the block again.
            StorageError: the node must stop.
        """
        started = time.perf_counter()
        try:
            with self._importing:
                return self._take_in(block, strips)
        finally:
            self._imported(time.perf_counter() - started)

    def _take_in(self, block: Block, strips: Strips | None) -> Import:
        entry = self.add_header(block.header, strips)
        if entry.invalid:
            raise ConsensusError(Reason.INVALID_PARENT, entry.invalid, "a block that was not refused before")
        if entry.has_body or self._is_main(entry):
            return self._advance(entry)
        self._check_depth(entry)
        validation.check_body(self.params, self.genesis_hash, block)
        self.signatures.check(block.body.transactions)
        if entry.parent is self._tip:
            return self._extend(entry, block)
        self._store.write(self._stored(entry, block))
        entry.has_body = True
        return self._advance(entry)

    @property
    def split(self) -> Split | None:
        """A chain with more work that this node may not follow by itself, if one has been found."""
        found = self._split
        return found if found is not None and found.work > self._tip.total_work else None

    def note_weighed(self, start: HeaderEntry, end: HeaderEntry) -> bool:
        """Whether the chain from `start` to `end`, which was weighed, has more work than the tip: a split."""
        if end.total_work <= self._tip.total_work:
            return False
        with self._importing:
            depth = self._depth(start)
            if self._may_undo(depth):
                return False
            fork_height = self._tip.height - depth
            if self.split is None:
                facts = {"fork": fork_height, "depth": depth, "override": "--allow-deep-reorg"}
                logger.error("a chain with more work is too deep to follow", extra=facts)
            self._split = Split(fork_height, end.height, end.total_work)
        return True

    def keep_tensor(self, commitment: bytes, blocks: int) -> None:
        """Keep a tensor that no block obliges yet for some `blocks`; a longer duty stays."""
        with self._importing:
            self._store.write(self._retention.changes({commitment: self._tip.height + blocks}))

    def stage(self, above: HeaderEntry) -> Staging:
        """Begin to build the state that the header `above` names. One at a time: the one before is removed.

        Raises:
            ConsensusError: REORG_TOO_DEEP: the block is not for this node.
        """
        with self._importing:
            self._check_depth(above)
            return Staging(self._store, snapshot.spare(self._state.place))

    def adopt(self, above: HeaderEntry, staged: Staging) -> Import:
        """Go on from a fetched state: the parent of `above`, whose header names that state, becomes tip and base.

        Raises:
            ConsensusError: WRONG_STATE_ROOT: the state is another one; REORG_TOO_DEEP: the block is not for this node.
        """
        with self._importing:
            base, before = above.parent, self._state.place
            assert base is not None, "genesis names no state"
            if staged.root != above.core.state_root:
                raise ConsensusError(Reason.WRONG_STATE_ROOT, staged.root, above.core.state_root)
            self._check_depth(base)
            if base.total_work <= self._tip.total_work:
                return Import()
            fork = fork_point(self._tip, base)
            # Written first, for they are many: as long as no height points to them they mean nothing.
            snapshot.write_headers(self._store, path(fork, base))
            batch: Changes = {schema.undo(e.id): None for e in islice(fork.ancestors(), self.params.retention)}
            disconnected = [self._disconnect(entry, batch)[0] for entry in path(fork, self._tip)[::-1]]
            batch.update({schema.main(entry.height): entry.id for entry in path(fork, base)})
            batch.update(self._retention.changes(snapshot.open_operands(self.params, staged.reader, base.height)))
            batch[schema.BASE] = batch[schema.TIP] = encode(Tip(base.id, base.height, staged.root))
            batch[schema.PLACE] = staged.place
            state = TipState(self._store, staged.place)
            with self._viewing:
                self._store.write(batch)
                self._state, self._tip, self._base = state, base, base
            self._tree.settle(path(fork, base))
            self._leave_deep()
            snapshot.clear(self._store, before)
            self._retention.drop(base.height)
            return Import(tuple(disconnected))

    def _extend(self, entry: HeaderEntry, block: Block) -> Import:
        """The common case: the block stands on the tip. Everything goes into one batch."""
        connected, changes = self._execute(entry, block, self._state)
        batch = self._stored(entry, block) | self._connection(entry, connected, changes, {})
        self._commit(entry, changes.state_root, batch)
        entry.has_body = True
        above = self._advance(entry)
        return Import(above.disconnected, (connected, *above.connected))

    def _advance(self, arrived: HeaderEntry | None = None) -> Import:
        """Move to the best chain whose bodies are all here, if it has more work than the tip.

        `arrived` is the entry whose body came last; None looks at all. A branch with a bad block is cut there.
        """
        while True:
            candidates = self._tree.descendants(arrived or self._tree.genesis)
            good = [
                e for e in candidates if e.total_work > self._tip.total_work and not e.invalid and self._is_linked(e)
            ]
            good = [e for e in good if self._may_undo(self._depth(e))]
            if not good:
                return Import()
            best = max(good, key=lambda e: e.total_work)
            try:
                return self._reorganise(best)
            except ConsensusError as error:
                if arrived is not None and arrived.invalid:
                    raise
                logger.warning("branch refused", extra={"block": best.id.hex(), "reason": str(error)})

    def _reorganise(self, target: HeaderEntry) -> Import:
        """Undo down to the fork, execute up to `target`, and commit both as one batch."""
        fork = fork_point(self._tip, target)
        overlay = Overlay(self._state)
        batch: Changes = {}
        disconnected = []
        for entry in path(fork, self._tip)[::-1]:
            undone, undo = self._disconnect(entry, batch)
            overlay.writes.update(undo)
            disconnected.append(undone)
        connected = []
        for entry in path(fork, target):
            block = self.block(entry.id)
            assert block is not None, "linked blocks have bodies"
            done, changes = self._execute(entry, block, overlay)
            connected.append(done)
            overlay.writes.update(changes.writes)
            batch.update(self._connection(entry, done, changes, batch))
        # The undone state and the new one, in that order: later writes win.
        batch.update(self._state.keyed(overlay.writes))
        self._commit(target, connected[-1].outcome.state_root, batch)
        if disconnected:
            logger.warning("reorganised", extra={"fork": fork.height, "from": len(disconnected), "to": len(connected)})
        return Import(tuple(disconnected), tuple(connected))

    def _disconnect(self, entry: HeaderEntry, batch: Changes) -> tuple[Block, Changes]:
        """Take a block out of the main chain: the block, and what undoes it. Its index goes in `batch`."""
        block, outcome, undo = self.block(entry.id), self.archive.outcome(entry.id), self.archive.undo(entry.id)
        if block is None or outcome is None or undo is None:
            raise StorageError(f"block {entry.id.hex()} at height {entry.height} has no undo data")
        batch.update(dict.fromkeys(index.entries(block, entry.id, outcome)))
        batch.update(dict.fromkeys((schema.undo(entry.id), schema.outcome(entry.id), schema.main(entry.height))))
        return block, undo

    def _execute(self, entry: HeaderEntry, block: Block, state: StateReader) -> tuple[ConnectedBlock, Transition]:
        try:
            done = transition.apply_block(self.params, self.genesis_hash, state, block, self.products)
        except ConsensusError as error:
            self._note_refusal(entry, block, error)
            raise
        except (CorruptTrieError, CorruptRecordError) as error:
            raise StorageError(f"the state is damaged: {error}") from error
        outcome = Outcome(done.receipts, done.events, done.state_root, done.reward)
        return ConnectedBlock(block, outcome), done

    def _note_refusal(self, entry: HeaderEntry, block: Block, error: ConsensusError) -> None:
        """Remember a refusal: of the id, or of one copy where only the proof is false."""
        if isinstance(error, BadProof):
            entry.copies.pop(block.header.copy_id, None)
            if entry.copies:
                return
        self._tree.refuse(entry, str(error))
        # A false proof is forgotten at a restart, when a good copy may come first; a bad block never gets better.
        if not isinstance(error, BadProof):
            self._store.write({schema.refused(entry.id): str(error).encode()})

    def _check_depth(self, parent: HeaderEntry) -> None:
        """Refuse, loudly, a branch that leaves the main chain deeper than a node rewrites by itself."""
        depth = self._depth(parent)
        if not self._may_undo(depth):
            # Such a header costs its sender little, so its refusal may cost no more than a line now and then.
            now = time.monotonic()
            if now >= self._deep_told + _DEEP_TOLD_SECONDS:
                self._deep_told = now
                facts = {"block": parent.id.hex(), "depth": depth, "override": "--allow-deep-reorg"}
                logger.error("deep reorganisation refused", extra=facts)
            raise ConsensusError(Reason.REORG_TOO_DEEP, f"{depth} blocks", f"at most {self.params.max_reorg}")

    def _may_undo(self, depth: int) -> bool:
        deepest = self.params.retention if self.allow_deep_reorg else self.params.max_reorg
        return depth <= min(deepest, self._tip.height - self._base.height)

    def _depth(self, entry: HeaderEntry) -> int:
        """Main-chain blocks that moving to the entry's chain would undo."""
        if self._tip.parent is None:  # while a fresh node takes in headers, the walk down would grow with every one
            return 0
        return self._tip.height - next(e for e in entry.ancestors() if self._is_main(e)).height

    # ------------------------------------------------------------------ what is written

    def _stored(self, entry: HeaderEntry, block: Block) -> Changes:
        """A block itself, with the strips that prove its header even after its operands are gone."""
        changes: Changes = {
            schema.header(entry.id): encode(stored_header(entry)),
            schema.body(entry.id): encode(block.body),
        }
        strips = self.known.strips_at_hand(block.header)
        if strips is not None:
            changes[schema.strips(entry.id, block.header.ticket)] = encode(strips)
        return changes

    def _connection(self, entry: HeaderEntry, done: ConnectedBlock, changes: Transition, pending: Changes) -> Changes:
        """A block's part in the main chain: state, undo, index, and how long its tensors are kept.

        `pending` holds the parts of the blocks below it that connect in the same batch.
        """
        params, height = self.params, entry.height
        batch = self._state.keyed(changes.writes)
        batch.update(index.entries(done.block, entry.id, done.outcome))
        batch.update(self._retention.changes(self._duties(height, done, changes), pending))
        batch[schema.main(height)] = entry.id
        batch[schema.outcome(entry.id)] = encode(done.outcome)
        batch[schema.undo(entry.id)] = schema.encode_changes(changes.undo)
        outlived = self.archive.id_at(height - params.retention) if height > params.retention else None
        if outlived is not None:
            batch[schema.undo(outlived)] = None
        return batch

    def _duties(self, height: int, done: ConnectedBlock, changes: Transition) -> dict[bytes, int]:
        """Tensors that a block gives a reason to keep → the height through which."""
        retention, after = self.params.retention, Overlay(self._state, changes.writes)
        keep = dict.fromkeys(validation.obliged_tensors(done.block), height + retention)
        for tx, receipt in zip(done.block.body.transactions, done.outcome.receipts, strict=True):
            job = GROUPS.get(after, receipt.txid)
            if job is not None:
                operands = validation.obliged_operands(Body((), (tx,)))
                keep.update({operand.commitment: job.kept_until for operand in operands})
        for event in done.outcome.events:
            if isinstance(event, Dealt):
                packet = PACKETS.get(after, event.packet_id)
                assert packet is not None, "a packet that was dealt in this block"
                # An answer comes within a window, which is far shorter than a retention whatever the rate of blocks.
                for operand in (packet.left, packet.right):
                    until = max(height + 2 * retention, keep.get(operand.commitment, 0))
                    keep[operand.commitment] = until
        return keep

    def _commit(self, tip: HeaderEntry, state_root: bytes, batch: Changes) -> None:
        batch[schema.TIP] = encode(Tip(tip.id, tip.height, state_root))
        with self._viewing:
            self._store.write(batch)
            self._state.committed(batch)
            self._tip = tip
        self._leave_deep()
        self._retention.drop(tip.height)

    def _leave_deep(self) -> None:
        """Headers that nobody completed, and that now part from the main chain too deep, are best no more."""
        while not self._may_undo(self._depth(best := self._tree.best)):
            self._tree.leave(next(e for e in best.ancestors() if e.parent is not None and self._is_main(e.parent)))

    def _is_main(self, entry: HeaderEntry) -> bool:
        return entry.height <= self._tip.height and self.archive.id_at(entry.height) == entry.id

    def _is_linked(self, entry: HeaderEntry) -> bool:
        """Whether all bodies from the main chain up to the entry are here."""
        for ancestor in entry.ancestors():
            if self._is_main(ancestor):
                return True
            if not ancestor.has_body:
                return False
        return True
