"""`work_*`: units for outside miners, and the answers of outside workers."""

from __future__ import annotations

from api.errors import NOT_READY, REJECTED, UNAVAILABLE
from api.params import MAX_ANSWER_BYTES, MAX_RESULT_BYTES, ForMiner, SignedResult, Submission
from api.work import ResultAccepted, UnitOffer, WorkAccepted
from consensus.block import MAX_HEADER_BYTES, Answer, HeaderCore
from consensus.codec import decode
from consensus.transaction import Result
from node.pool.intake import NotYet
from node.rpc.context import Context, decode_hex, refusals
from node.rpc.jsonrpc import RpcError
from node.rpc.methods.chain import is_syncing
from node.rpc.registry import Table
from node.rpc.views import unit_view

TABLE: Table[Context] = Table()


@TABLE.method("work_getUnit", errors=[NOT_READY])
async def work_get_unit(node: Context, params: ForMiner) -> UnitOffer:
    """The next unit for a miner: a packet that it holds as a worker, each once for every tip, else an idle unit."""
    if is_syncing(node.chain):
        raise RpcError(NOT_READY, "The node is still syncing", fix="Wait until `syncing` of `chain_info` is false.")
    given = await node.desk.get_unit(node.address(params.miner))
    core = decode(HeaderCore, given.core, MAX_HEADER_BYTES)
    return UnitOffer(
        id=given.id.hex(),
        core=given.core.hex(),
        seed=given.seed.hex(),
        target=given.target.to_bytes(32, "big").hex(),
        unit=unit_view(core.unit),
        m=given.shape.m,
        k=given.shape.k,
        n=given.shape.n,
        packet_id=None if given.packet_id is None else given.packet_id.hex(),
        a=None if given.left is None else given.left.hex(),
        b=None if given.right is None else given.right.hex(),
        height=core.height,
        deadline=given.deadline,
    )


@TABLE.method("work_submit", errors=[REJECTED, UNAVAILABLE])
async def work_submit(node: Context, params: Submission) -> WorkAccepted:
    """Hand in a unit that won: its block is sealed, checked and sent to the network."""
    answer = None if params.answer is None else decode_hex(Answer, params.answer, MAX_ANSWER_BYTES, "Answer")
    if answer is not None and not node.chain.tensors.has(answer.product):
        raise RpcError(
            UNAVAILABLE, "The product is not here", fix="Upload it first: PUT /tensors.", reason="missing-tensor"
        )
    with refusals():
        change = await node.desk.submit(
            bytes.fromhex(params.id), params.i, params.j, bytes.fromhex(params.state), answer
        )
    block_id = bytes.fromhex(params.id)
    entry = node.chain.entry(block_id)
    assert entry is not None, "a block that was imported"
    accepted = any(done.block.id == block_id for done in change.connected)
    return WorkAccepted(params.id, entry.height, accepted)


@TABLE.method("work_result", errors=[REJECTED, UNAVAILABLE])
async def work_result(node: Context, params: SignedResult) -> ResultAccepted:
    """Take a worker's signed answer to a packet; the product was uploaded before.

    `waiting` says that the packet is not known to be dealt to the worker yet: the next tips try the answer again.
    """
    result = decode_hex(Result, params.result, MAX_RESULT_BYTES, "Result")
    with refusals():
        try:
            result_id = await node.door.result(result)
        except NotYet:
            return ResultAccepted(result.id(node.chain.genesis_hash).hex(), waiting=True)
    return ResultAccepted(result_id.hex())
