"""An account's movements as RPC shows them: what the index says, and beside it who paid whom, for what."""

from __future__ import annotations

from functools import cache
from itertools import groupby

from api.chain import MovementView
from consensus.address import encode_address
from consensus.events import Opened
from consensus.rules import payloads
from consensus.transaction import RegisterWorker, Transfer
from node.chain.index import Movement
from node.rpc.context import ReadChain


def page(chain: ReadChain, address: bytes, limit: int, before: int | None) -> list[MovementView]:
    """About `limit` movements of whole heights, newest first, below the height `before`."""
    chosen: list[Movement] = []
    for _, same_height in groupby(chain.archive.movements(address, before), lambda movement: movement.height):
        movements = list(same_height)
        if chosen and len(chosen) + len(movements) > limit:
            break
        chosen += movements
        if len(chosen) >= limit:
            break
    else:
        if len(chosen) < limit and before != 0:
            return [*_views(chain, chosen), *_from_genesis(chain, address)]
    return _views(chain, chosen)


def _from_genesis(chain: ReadChain, address: bytes) -> list[MovementView]:
    given = sum(one.amount for one in chain.params.allocations if one.address == address)
    if not given:
        return []
    return [MovementView(0, "genesis", given, chain.genesis_hash.hex(), chain.params.genesis_time_ms)]


def _views(chain: ReadChain, movements: list[Movement]) -> list[MovementView]:
    prefix, maturity = chain.params.address_prefix, chain.params.maturity

    def text(address: bytes) -> str:
        return encode_address(address, prefix)

    @cache
    def job_of(packet_id: bytes) -> tuple[str, str | None]:
        """Of a packet, its job and the job's owner."""
        job = chain.archive.packet_events(packet_id)[0][1].job
        return job.hex(), owner_of(job)

    @cache
    def owner_of(job: bytes) -> str | None:
        # A job that was opened below the base is known by its later events only.
        return next((text(e.owner) for _, e in chain.archive.job_events(job) if isinstance(e, Opened)), None)

    def view(movement: Movement) -> MovementView:
        height, kind, amount, reference = movement.height, movement.kind, movement.amount, movement.reference.hex()
        entry = chain.entry(chain.archive.id_at(height) or b"")
        time_ms = 0 if entry is None else entry.core.time_ms
        match kind:
            case "block":
                return MovementView(height, kind, amount, reference, time_ms, matures_at=height + maturity)
            case "packet" | "miss":
                job, owner = job_of(movement.reference)
                moved, bond = (amount, 0) if kind == "packet" else (0, amount)
                return MovementView(height, kind, moved, reference, time_ms, bond=bond, job=job, counterparty=owner)
            case "bond":
                return MovementView(height, "bond-back", amount, reference, time_ms, bond=-amount)
            case "escrow" | "refund":
                return MovementView(height, kind, amount, reference, time_ms)
        return _of_transaction(chain, movement, time_ms, prefix)

    return [view(movement) for movement in movements]


def _of_transaction(chain: ReadChain, movement: Movement, time_ms: int, prefix: str) -> MovementView:
    """A movement by a transaction: of its sender (sent), or of somebody that it pays (received)."""
    found = chain.archive.transaction(movement.reference)
    assert found is not None, "an indexed movement without its transaction"
    _, tx, receipt = found
    payload = tx.body.payload
    view = payloads.kind_of(payload).view
    outputs, memo = view.outputs(payload), view.memo(payload).hex()
    if movement.kind == "received":
        return MovementView(
            height=movement.height,
            kind="received",
            amount=movement.amount,
            reference=movement.reference.hex(),
            time_ms=time_ms,
            counterparty=encode_address(tx.body.address, prefix),
            memo=memo,
        )
    moves = receipt.ok and isinstance(payload, Transfer | RegisterWorker)
    return MovementView(
        height=movement.height,
        kind="fee" if not moves else "sent" if isinstance(payload, Transfer) else "bond",
        amount=movement.amount,
        reference=movement.reference.hex(),
        time_ms=time_ms,
        fee=receipt.fee,
        bond=payload.bond if moves and isinstance(payload, RegisterWorker) else 0,
        counterparty=encode_address(outputs[0].address, prefix) if moves and len(outputs) == 1 else None,
        memo=memo,
        ok=receipt.ok,
    )
