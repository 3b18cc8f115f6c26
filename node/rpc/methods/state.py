"""`state_*`: accounts after the tip, and proofs of them for clients that hold only headers."""

from __future__ import annotations

from api.chain import AccountView, ProofView
from api.params import OfAccount
from consensus import state
from consensus.codec import encode
from consensus.proofs import trie
from consensus.state import ACCOUNTS, NODE_PREFIX, StateReader
from node.chain.headers import HeaderEntry
from node.rpc.context import Context
from node.rpc.registry import Table

TABLE: Table[Context] = Table()


@TABLE.method("state_getAccount", at_hand=lambda node, params: node.at_hand.accounts.get(params.address))
async def state_get_account(node: Context, params: OfAccount) -> AccountView:
    """An account's balance and nonces. An address that was never used is an empty account."""
    address, pool = node.address(params.address), node.door.pool

    def view() -> AccountView:
        account = node.chain.read(lambda reader: state.account(reader, address))
        pending = len(pool.pending_of(address))
        return AccountView(params.address.lower(), account.balance, account.nonce, pool.next_nonce(address), pending)

    return await node.at_hand.accounts.make(params.address, node.compute, view)


@TABLE.method("state_getProof")
async def state_get_proof(node: Context, params: OfAccount) -> ProofView:
    """A Merkle proof of an account's record, or of its absence, after the tip.

    Check it against the `state_root` of the header one above `height`, with `consensus.proofs.trie.verify`.
    """
    address = node.address(params.address)
    key = ACCOUNTS.key(address)

    def prove(reader: StateReader, tip: HeaderEntry) -> ProofView:
        proof = trie.prove(lambda path: reader.get(NODE_PREFIX + path), key)
        value = reader.get(key)
        return ProofView(
            address=params.address.lower(),
            height=tip.height,
            block=tip.id.hex(),
            state_root=state.root_of(reader).hex(),
            key=key.hex(),
            value=None if value is None else value.hex(),
            proof=encode(proof).hex(),
        )

    return await node.read(prove)
