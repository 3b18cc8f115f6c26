"""`work_*`: units for outside miners, and the answers of outside workers."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from consensus.block import MAX_HEADER_BYTES, HeaderCore, PacketUnit
from consensus.codec import decode
from consensus.transaction import Result
from node.pool.intake import NotYet
from node.rpc.context import Context, decode_hex, refusals
from node.rpc.jsonrpc import NOT_READY, REJECTED, UNAVAILABLE, RpcError
from node.rpc.methods_chain import is_syncing
from node.rpc.registry import Params, Table
from node.rpc.views import Hex32, IdleView, unit_view
from node.rpc.views_work import ResultAccepted, UnitOffer, WorkAccepted

TABLE: Table[Context] = Table()

_MAX_RESULT_BYTES = 256


class ForMiner(Params, frozen=True):
    """Who mines."""

    miner: Annotated[str, Meta(max_length=90, description="Address that the block is to reward.")]


class Submission(Params, frozen=True):
    """A winning tile."""

    id: Annotated[Hex32, Meta(description="The unit's id, from `work_getUnit`.")]
    i: Annotated[int, Meta(ge=0, description="Row of the winning tile.")]
    j: Annotated[int, Meta(ge=0, description="Column of the winning tile.")]
    state: Annotated[
        str,
        Meta(pattern="^[0-9a-f]*$", min_length=128, max_length=128, description="The tile's 16 × u32, little-endian."),
    ]
    product: Annotated[Hex32, Meta(description="Commitment of the unit's whole product, uploaded before.")]


class Answer(Params, frozen=True):
    """A worker's claim."""

    result: Annotated[
        str, Meta(max_length=2 * _MAX_RESULT_BYTES, description="Canonical bytes of the signed Result, hexadecimal.")
    ]


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
        unit=unit_view(core.unit) if isinstance(core.unit, PacketUnit) else IdleView(),
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
    commitment = bytes.fromhex(params.product)
    product = await node.compute.run(node.chain.tensors.tensor, commitment)
    if product is None:
        raise RpcError(
            UNAVAILABLE, "The product is not here", fix="Upload it first: PUT /tensors.", reason="missing-tensor"
        )
    with refusals():
        change = await node.desk.submit(
            bytes.fromhex(params.id), params.i, params.j, bytes.fromhex(params.state), product
        )
    block_id = bytes.fromhex(params.id)
    entry = node.chain.entry(block_id)
    assert entry is not None, "a block that was imported"
    accepted = any(done.block.id == block_id for done in change.connected)
    return WorkAccepted(params.id, entry.height, accepted)


@TABLE.method("work_result", errors=[REJECTED, UNAVAILABLE])
async def work_result(node: Context, params: Answer) -> ResultAccepted:
    """Take a worker's signed answer to a packet; the product was uploaded before.

    `waiting` says that the packet is not known to be dealt to the worker yet: the next tips try the answer again.
    """
    result = decode_hex(Result, params.result, _MAX_RESULT_BYTES, "Result")
    with refusals():
        try:
            identity = await node.door.result(result)
        except NotYet:
            return ResultAccepted(result.id(node.chain.genesis_hash).hex(), waiting=True)
    return ResultAccepted(identity.hex())
