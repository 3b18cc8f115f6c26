"""Founding a chain in an empty store, and finding one again in a store that has it."""

from __future__ import annotations

from typing import NamedTuple

from consensus.block import Block
from consensus.codec import encode
from consensus.proofs.trie import CorruptTrieError
from consensus.state import root_of
from consensus.transition import Transition
from node.chain import schema, snapshot
from node.chain.archive import Archive
from node.chain.headers import HeaderEntry, HeaderTree
from node.chain.index import Outcome
from node.chain.schema import Tip
from node.chain.snapshot import stored_header
from node.chain.store import StorageError, Store
from node.chain.tipstate import TipState


class Opened(NamedTuple):
    """Where a chain stands: the state after `tip`; nothing at or below `base` can be undone."""

    state: TipState
    tip: HeaderEntry
    base: HeaderEntry


def open_chain(store: Store, archive: Archive, tree: HeaderTree, genesis: Block, founding: Transition) -> Opened:
    """Found the chain if the store is empty; then rebuild `tree`, and check that what the tip needs is there.

    Raises:
        StorageError: the store belongs to another network or is damaged.
    """
    if store.get(schema.TIP) is None:
        _found(store, tree, genesis, founding)
    state = TipState(store, store.get(schema.PLACE) or schema.STATE)
    if archive.id_at(0) != genesis.id:
        raise StorageError(
            "this directory holds another network's chain than the genesis file describes: "
            "choose another --data-dir, or take the right file"
        )
    tip = schema.decode(Tip, store.get(schema.TIP) or b"")
    data = store.get(schema.BASE)
    base = Tip(genesis.id, 0, founding.state_root) if data is None else schema.decode(Tip, data)
    snapshot.read_headers(store, tree, base.height)
    for key, reason in store.scan(schema.REFUSED):
        refused = tree.get(key[len(schema.REFUSED) :])
        if refused is not None:
            tree.refuse(refused, reason.decode())
    tip_entry, base_entry = tree.get(tip.block), tree.get(base.block)
    if base_entry is None or archive.id_at(base.height) != base_entry.id:
        raise StorageError(f"the base at height {base.height} is not in the store")
    executed = tip.height > base.height
    if tip_entry is None or archive.id_at(tip.height) != tip.block or (executed and archive.body(tip.block) is None):
        raise StorageError(f"the tip at height {tip.height} is not in the store")
    try:
        root = root_of(state)
    except CorruptTrieError as error:
        raise StorageError(f"the state is damaged: {error}") from error
    if root != tip.state_root:
        raise StorageError(f"the state does not have the root that the tip at height {tip.height} left")
    if executed and store.get(schema.undo(tip.block)) is None:
        raise StorageError(f"the tip at height {tip.height} has no undo data")
    snapshot.clear(store, snapshot.spare(state.place))  # a crash may have left something
    return Opened(state, tip_entry, base_entry)


def _found(store: Store, tree: HeaderTree, genesis: Block, founding: Transition) -> None:
    store.write(
        {schema.STATE + key: value for key, value in founding.writes.items()}
        | {
            schema.header(genesis.id): encode(stored_header(tree.genesis)),
            schema.body(genesis.id): encode(genesis.body),
            schema.outcome(genesis.id): encode(Outcome((), (), founding.state_root, 0)),
            schema.main(0): genesis.id,
            schema.TIP: encode(Tip(genesis.id, 0, founding.state_root)),
        }
    )
