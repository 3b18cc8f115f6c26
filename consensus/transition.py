"""Executing a block: `apply_block(params, state after the parent, block) -> Transition`, a pure function.

Nothing is changed until the shell commits the transition, in one batch; `undo` takes it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus import crypto, state
from consensus.block import Block, Header, PacketUnit, genesis
from consensus.errors import BadProof, ConsensusError, Reason
from consensus.events import Event, Receipt
from consensus.params import ChainParams
from consensus.proofs.products import Products, check_operands
from consensus.rules import assignment, jobs, payloads, workers
from consensus.rules.execution import Execution
from consensus.rules.issuance import next_base_fee
from consensus.state import (
    ACCOUNTS,
    LEDGER,
    REWARDS,
    WORKERS,
    Account,
    Changes,
    EmptyState,
    Ledger,
    Overlay,
    Packet,
    Reward,
    StateReader,
    Worker,
)
from consensus.transaction import (
    Result,
    Transaction,
)
from consensus.validation import obliged_operands


@dataclass(frozen=True)
class Transition:
    """What a block does to the state.

    Attributes:
        writes: key → new value (None deletes), trie nodes included.
        undo: the same keys → what they held before.
        state_root: root after the block; the next header carries it.
        receipts: one per transaction, in order.
        events: what happened to jobs and packets.
        reward: grains that the miner is credited after `maturity`.
    """

    writes: Changes
    undo: Changes
    state_root: bytes
    receipts: tuple[Receipt, ...]
    events: tuple[Event, ...]
    reward: int


def genesis_transition(params: ChainParams) -> tuple[Block, Transition]:
    """The genesis block and the state that it starts from: the funded accounts and the ledger."""
    overlay = Overlay(EmptyState())
    for allocation in params.allocations:
        ACCOUNTS.put(overlay, Account(allocation.amount), allocation.address)
    issued = sum(allocation.amount for allocation in params.allocations)
    assert len({a.address for a in params.allocations}) == len(params.allocations), "an address is funded twice"
    LEDGER.put(overlay, Ledger(issued, 0, params.initial_base_fee, 0, 0, params.genesis_time_ms, ()))
    root, writes = state.commit(EmptyState(), overlay.writes)
    return genesis(params, root), Transition(writes, dict.fromkeys(writes), root, (), (), 0)


def apply_block(
    params: ChainParams, genesis_hash: bytes, parent: StateReader, block: Block, products: Products
) -> Transition:
    """Execute `block` over the state after its parent.

    The header and the body have passed `consensus.validation`; what is checked here needs the state or the tensors.

    Raises:
        ConsensusError: a rule is broken; nothing has been changed.
        MissingTensor: a tensor that the block obliges is not at hand; try again with it.
    """
    core = block.header.core
    if core.state_root != (root := state.root_of(parent)):
        raise ConsensusError(Reason.WRONG_STATE_ROOT, core.state_root, root)
    execution = Execution(params, parent, core.height, core.time_ms, core.miner)
    _oblige_operands(execution, block, products)
    workers.see(execution, core.miner)
    apply_unit(execution, block.header, products)
    for result in block.body.results:
        apply_result(execution, genesis_hash, result, products)
    for tx in block.body.transactions:
        apply_transaction(execution, genesis_hash, tx)
    _finish(execution, core.parent_ticket)
    _check_supply(execution, parent)
    root, writes = state.commit(parent, execution.state.writes)
    undo = {key: parent.get(key) for key in writes}
    return Transition(writes, undo, root, tuple(execution.receipts), tuple(execution.events), execution.reward)


def apply_unit(execution: Execution, header: Header, products: Products) -> None:
    """A packet as the block's own unit is the miner's implicit Result; of any other unit nobody needs the product."""
    unit, result = header.core.unit, header.result
    if not isinstance(unit, PacketUnit):
        return
    assert result is not None, "checked with the header"
    product = result.body.product
    execution.oblige({product: unit.shape.product_bytes})
    packet, _ = _assignment(execution, unit.packet_id, header.core.miner)
    if (unit.shape, unit.a_root, unit.b_root) != (packet.shape, packet.a_root, packet.b_root):
        raise ConsensusError(Reason.BAD_UNIT, unit, "the packet's operands")
    if not products.product_holds(packet.left, packet.right, product):
        raise BadProof(Reason.WRONG_PRODUCT, product, "the packet's product")
    jobs.answer(execution, unit.packet_id, packet, product, won=True)


def apply_result(execution: Execution, genesis_hash: bytes, result: Result, products: Products) -> None:
    """One explicit Result: the assignee's, signed, and true."""
    body = result.body
    packet, worker = _assignment(execution, body.packet_id, body.worker)
    if not crypto.verify(worker.public_key, body.signing_hash(genesis_hash), result.signature):
        raise ConsensusError(Reason.BAD_SIGNATURE, result.signature, "the worker's signature for this network")
    execution.oblige({body.product: packet.shape.product_bytes})
    if not products.product_holds(packet.left, packet.right, body.product):
        raise ConsensusError(Reason.WRONG_PRODUCT, body.product, "the packet's product")
    jobs.answer(execution, body.packet_id, packet, body.product, won=False)


def _assignment(execution: Execution, packet_id: bytes, address: bytes) -> tuple[Packet, Worker]:
    packet = jobs.held_packet(execution, packet_id, address)
    worker = WORKERS.get(execution.state, address)
    assert worker is not None, "a bond that returned before its last window ended"
    return packet, worker


def apply_transaction(execution: Execution, genesis_hash: bytes, tx: Transaction) -> Receipt:
    """Charge the gas, use the nonce, then let the payload succeed or fail.

    Raises:
        ConsensusError: the transaction cannot stand in this block at all.
    """
    body, params = tx.body, execution.params
    address = body.address
    sender = state.account(execution.state, address)
    used = payloads.intrinsic_gas(params, body)
    price = execution.ledger.base_fee + body.tip
    if body.nonce != sender.nonce:
        raise ConsensusError(Reason.WRONG_NONCE, body.nonce, sender.nonce)
    if execution.ledger.base_fee > body.max_base_fee:
        raise ConsensusError(Reason.BASE_FEE_TOO_HIGH, execution.ledger.base_fee, f"at most {body.max_base_fee}")
    if execution.gas_used + used > params.gas_limit:
        raise ConsensusError(Reason.BLOCK_GAS_EXCEEDED, execution.gas_used + used, params.gas_limit)
    if sender.balance < body.gas_limit * price:
        raise ConsensusError(Reason.INSUFFICIENT_BALANCE, sender.balance, body.gas_limit * price)
    execution.debit(address, used * price)
    execution.burn(used * execution.ledger.base_fee)
    execution.reward += used * body.tip
    execution.gas_used += used
    execution.use_nonce(address)
    txid = body.txid(genesis_hash)
    try:
        payloads.kind_of(body.payload).run(execution, body, txid, body.payload)
        receipt = Receipt(txid, used, used * price)
    except ConsensusError as failure:
        receipt = Receipt(txid, used, used * price, failure.reason.value, str(failure))
    execution.receipts.append(receipt)
    return receipt


def _oblige_operands(execution: Execution, block: Block, products: Products) -> None:
    operands = obliged_operands(block.body)
    execution.oblige({operand.commitment: operand.size for operand in operands})
    check_operands(products, operands)


def _finish(execution: Execution, parent_ticket: bytes) -> None:
    """Windows that end, closings, maturity, dealing; then the ledger of the next block."""
    params, before = execution.params, execution.ledger
    jobs.end_windows(execution)
    jobs.close_due(execution)
    workers.review_due(execution)
    REWARDS.put(execution.state, Reward(execution.miner, execution.reward), execution.height + params.maturity)
    due = REWARDS.get(execution.state, execution.height)
    if due is not None:
        execution.credit(due.miner, due.amount)
        REWARDS.delete(execution.state, execution.height)
    # Header h carries the ticket of h − 1, so the oldest of the last `deal_lag` headers' is that of h − deal_lag
    # (genesis's where the chain is shorter).
    tickets = (*before.tickets, parent_ticket)[-params.deal_lag :]
    assignment.deal(execution, tickets[0])
    after = Ledger(
        issued=before.issued + execution.minted,
        burned=execution.burned,
        base_fee=next_base_fee(params, before.base_fee, execution.gas_used),
        sequence=execution.sequence,
        tick=execution.tick,
        ticked_ms=execution.ticked_ms,
        tickets=tickets,
        places=execution.places,
        held=execution.held,
        held_bytes=execution.held_bytes,
        dealt_through=execution.dealt_through,
    )
    LEDGER.put(execution.state, after)


def _check_supply(execution: Execution, parent: StateReader) -> None:
    """issued − burned = what all records hold: true of genesis, and every block changes both sides alike."""
    before, after = execution.ledger, state.ledger(execution.state)
    supply = (after.issued - after.burned) - (before.issued - before.burned)
    held = state.holdings_change(parent, execution.state.writes)
    if supply != held:
        raise ConsensusError(Reason.SUPPLY_MISMATCH, held, supply)
