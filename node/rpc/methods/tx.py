"""`tx_*`: sending transactions, following them, and what they cost."""

from __future__ import annotations

import msgspec

from api.chain import Fees, GasView, MovementView, TxSent, TxView
from api.errors import NOT_FOUND, REJECTED, UNAVAILABLE
from api.params import History, NoParams, OfTransaction, SignedTransaction
from consensus import state
from consensus.params import MAX_TX_BYTES
from consensus.transaction import Transaction
from node.rpc.context import Context, decode_hex, refusals
from node.rpc.jsonrpc import RpcError
from node.rpc.movements import page
from node.rpc.registry import Table
from node.rpc.views import Placed, tx_view

TABLE: Table[Context] = Table()


_QUIET_TIP = 1
"""Grains per gas that put a transaction before those that offer nothing."""


@TABLE.method("tx_send", errors=[REJECTED, UNAVAILABLE])
async def tx_send(node: Context, params: SignedTransaction) -> TxSent:
    """Check a signed transaction, keep it until a block takes it, and tell the network.

    The operands of a job must have been uploaded before. Sending one that is already pending is no error.
    """
    tx = decode_hex(Transaction, params.transaction, MAX_TX_BYTES, "transaction")
    with refusals():
        txid = await node.door.transaction(tx)
    return TxSent(txid.hex())


@TABLE.method("tx_get", errors=[NOT_FOUND])
async def tx_get(node: Context, params: OfTransaction) -> TxView:
    """A transaction, pending or in the main chain."""
    txid = bytes.fromhex(params.txid)
    view = await node.compute.run(_find, node, txid)
    if view is None:
        fix = "It was never sent here, was refused, or waited too long: send it (again) with `tx_send`."
        raise RpcError(NOT_FOUND, f"There is no transaction {params.txid}", fix=fix)
    return view


@TABLE.method("tx_fees")
async def tx_fees(node: Context, _params: NoParams) -> Fees:
    """What gas costs now. The base fee changes by at most 1/8 a block: double lasts for five full blocks."""
    params, pool = node.chain.params, node.door.pool

    def fees() -> Fees:
        base_fee = node.chain.read(lambda reader: state.ledger(reader).base_fee)
        waiting = pool.best(base_fee, 4096)
        gas, tip = 0, _QUIET_TIP
        for pending in waiting:  # what it takes to stand before the last that still fits
            gas += pending.tx.body.gas_limit
            if gas > params.gas_limit:
                tip = max(tip, pending.rank[0] + 1)
                break
        view = GasView(**msgspec.structs.asdict(params.gas))
        return Fees(base_fee, tip, 2 * base_fee + 10, view, params.gas_limit)

    return await node.compute.run(fees)


@TABLE.method("tx_history")
async def tx_history(node: Context, params: History) -> list[MovementView]:
    """What came to and left an account, newest first; last of all what genesis gave it.

    A page ends with a whole height, so that `before` goes on where it ended: it is shorter than `limit` where the next
    height would exceed it, and longer where one height alone does. An empty page is the end.
    """
    address = node.address(params.address)
    return await node.compute.run(page, node.chain, address, params.limit, params.before)


def _find(node: Context, txid: bytes) -> TxView | None:
    chain = node.chain
    confirmed = chain.archive.transaction(txid)
    if confirmed is None:
        tx = node.door.pool.get(txid)
        if tx is not None:
            return tx_view(tx, txid, node.prefix, None)
        confirmed = chain.archive.transaction(txid)  # it may have left the pool for a block between the two looks
    if confirmed is None:
        return None
    location, tx, receipt = confirmed
    count = max(1, chain.tip.height - location.height + 1)
    return tx_view(tx, txid, node.prefix, Placed(location.block, location.height, count, receipt))
