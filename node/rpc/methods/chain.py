"""`chain_*`: the network, its headers and blocks, its supply."""

from __future__ import annotations

from api.chain import BlockView, ChainInfo, HeaderView, Supply
from api.errors import INVALID_PARAMS, NOT_FOUND, UNAVAILABLE
from api.params import NoParams, WhichBlock
from api.rules import ParamsView
from consensus import state
from consensus.codec import encode
from consensus.state import StateReader
from node.chain.headers import HeaderEntry
from node.rpc.context import Context, ReadChain
from node.rpc.jsonrpc import RpcError
from node.rpc.registry import Table
from node.rpc.views import Placed, header_view, result_view, tx_view

TABLE: Table[Context] = Table()

_SYNCING_BEHIND = 2
"""Headers ahead of the tip from which on a node calls itself syncing; one is a block on its way."""


@TABLE.method("chain_info", at_hand=lambda node, _params: node.at_hand.info.get(None))
async def chain_info(node: Context, _params: NoParams) -> ChainInfo:
    """The network, its tip, and the rules that clients need."""
    return await node.at_hand.info.make(None, node.compute, lambda: _info(node.chain))


@TABLE.method("chain_params")
async def chain_params(node: Context, _params: NoParams) -> ParamsView:
    """All rules of the network. Saved to a file, they are what `tilework node run --genesis` reads to join it."""
    return ParamsView.of(node.chain.params)


@TABLE.method(
    "chain_getHeader",
    errors=[NOT_FOUND],
    at_hand=lambda node, params: node.at_hand.headers.get((params.id, params.height)),
)
async def chain_get_header(node: Context, params: WhichBlock) -> HeaderView:
    """A header, by id or by height; of a block with several proofs, the copy that its child names."""

    def view() -> HeaderView:
        return header_of(node.chain, find(node.chain, params))

    # What is off the main chain may change without a new tip.
    key = (params.id, params.height)
    return await node.at_hand.headers.make(key, node.compute, view, lambda header: header.main)


@TABLE.method("chain_getBlock", errors=[NOT_FOUND, UNAVAILABLE])
async def chain_get_block(node: Context, params: WhichBlock) -> BlockView:
    """A whole block, by id or by height."""
    return await node.compute.run(lambda: _block(node.chain, find(node.chain, params)))


@TABLE.method("chain_supply")
async def chain_supply(node: Context, _params: NoParams) -> Supply:
    """How many grains there are. Every block is checked against them."""

    def supply(reader: StateReader, tip: HeaderEntry) -> Supply:
        ledger = state.ledger(reader)
        return Supply(tip.height, ledger.issued, ledger.burned, ledger.issued - ledger.burned)

    return await node.read(supply)


def is_syncing(chain: ReadChain) -> bool:
    """Whether the tip lags behind the headers by more than a block on its way."""
    return chain.best_header.height - chain.tip.height >= _SYNCING_BEHIND


def find(chain: ReadChain, which: WhichBlock) -> HeaderEntry:
    """The entry that is meant, or NOT_FOUND."""
    if which.id is not None and which.height is not None:
        raise RpcError(INVALID_PARAMS, "Invalid params: both id and height", fix="Give one of them.")
    if which.id is not None:
        entry = chain.entry(bytes.fromhex(which.id))
        if entry is None or not entry.copies:
            raise RpcError(NOT_FOUND, f"There is no block {which.id}", fix="See that the id is of this network.")
        return entry
    if which.height is None:
        return chain.tip
    block_id = chain.archive.id_at(which.height)
    entry = None if block_id is None else chain.entry(block_id)
    if entry is None:
        fix = "Ask for a height up to `height` of `chain_info`."
        raise RpcError(NOT_FOUND, f"There is no block at height {which.height} yet", fix=fix)
    return entry


def confirmations(chain: ReadChain, entry: HeaderEntry) -> int:
    """Blocks of the main chain from the entry up to the tip, both counted; 0 off the main chain."""
    height = chain.tip.height
    return height - entry.height + 1 if entry.height <= height and chain.archive.id_at(entry.height) == entry.id else 0


def header_of(chain: ReadChain, entry: HeaderEntry) -> HeaderView:
    """The view of an entry."""
    count = confirmations(chain, entry)
    child = chain.entry(chain.archive.id_at(entry.height + 1) or b"") if count > 1 else None
    named = None if child is None else entry.copy(child.core.parent_ticket)
    return header_view(named or entry.header, chain.params.address_prefix, entry.total_work, count, count > 0)


def _info(chain: ReadChain) -> ChainInfo:
    params = chain.params
    tip, root, tick = chain.read(lambda reader: (chain.tip, state.root_of(reader), state.ledger(reader).tick))
    return ChainInfo(
        network=params.network,
        chain_id=params.chain_id,
        address_prefix=params.address_prefix,
        genesis_hash=chain.genesis_hash.hex(),
        height=tip.height,
        tip=tip.id.hex(),
        time_ms=tip.core.time_ms,
        target=tip.core.target.hex(),
        total_work=str(tip.total_work),
        best_header_height=chain.best_header.height,
        snapshot_height=chain.base.height,
        state_root=root.hex(),
        tick=tick,
        syncing=is_syncing(chain),
        spacing_ms=params.spacing_ms,
        maturity=params.maturity,
        window=params.window,
        max_life=params.max_life,
        min_reserve=params.min_reserve,
        min_price=params.min_price,
        min_fee=params.min_fee,
        retention=params.retention,
        gas_limit=params.gas_limit,
    )


def _block(chain: ReadChain, entry: HeaderEntry) -> BlockView:
    block, prefix = chain.block(entry.id), chain.params.address_prefix
    if block is None and 0 < entry.height <= chain.base.height:
        message = f"Block {entry.height} is pruned: this node joined from a snapshot at height {chain.base.height}"
        raise RpcError(
            NOT_FOUND, message, fix="Ask a node whose `snapshot_height` of `chain_info` is below that height."
        )
    if block is None:
        message = f"The body of block {entry.id.hex()} is not here"
        raise RpcError(UNAVAILABLE, message, fix="Only its header has arrived; ask again later.")
    count, outcome = confirmations(chain, entry), chain.archive.outcome(entry.id)
    receipts = [None] * len(block.body.transactions) if outcome is None else outcome.receipts
    transactions = [
        tx_view(tx, tx.body.txid(chain.genesis_hash), prefix, Placed(entry.id, entry.height, count, receipt))
        for tx, receipt in zip(block.body.transactions, receipts, strict=True)
    ]
    return BlockView(
        header=header_of(chain, entry),
        transactions=tuple(transactions),
        results=tuple(result_view(result, prefix) for result in block.body.results),
        reward_grains=None if outcome is None else outcome.reward,
        size=len(encode(block)),
    )
