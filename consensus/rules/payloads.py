"""The kinds of payload that a transaction can carry: one row a kind, and nothing of a kind anywhere else in consensus.

A further kind is a struct in `consensus.transaction.Payload` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from consensus.codec import encode
from consensus.errors import ConsensusError, Reason
from consensus.params import MAX_MEMO_BYTES, MAX_OUTPUTS, ChainParams, GasSchedule
from consensus.rules import jobs, workers
from consensus.rules.execution import Execution
from consensus.tensor import TensorSpec
from consensus.transaction import (
    CancelJob,
    Output,
    Payload,
    RegisterWorker,
    RetireWorker,
    SubmitJob,
    Transaction,
    Transfer,
    TxBody,
)

P = TypeVar("P", bound=Payload)


@dataclass(frozen=True)
class View(Generic[P]):
    """What a reader of the chain is shown of a payload beside its kind."""

    outputs: Callable[[P], tuple[Output, ...]] = lambda _payload: ()
    """Who is paid, at once."""
    memo: Callable[[P], bytes] = lambda _payload: b""


@dataclass(frozen=True)
class Kind(Generic[P]):
    """One kind of payload.

    Attributes:
        name: as people and RPC call it.
        run: takes effect on the state; gets the transaction's body and id. Checks before it writes: one that raises has
            changed nothing.
        gas: what it uses beyond the price of every transaction and of its own bytes.
        check: the rules that it can break by itself, whatever the state.
        spends: grains that leave the sender for good or for a bond, fees aside.
        escrows: grains that leave the sender for a job's escrow; `events.Opened` tells of them.
        operands: tensors that it obliges every node to have.
        view: what RPC shows of it.
    """

    name: str
    run: Callable[[Execution, TxBody, bytes, P], None]
    gas: Callable[[GasSchedule, P], int]
    check: Callable[[ChainParams, P], None] = lambda _params, _payload: None
    spends: Callable[[P], int] = lambda _payload: 0
    escrows: Callable[[ChainParams, P], int] = lambda _params, _payload: 0
    operands: Callable[[P], list[TensorSpec]] = lambda _payload: []
    view: View[P] = View()


def _check_transfer(_params: ChainParams, transfer: Transfer) -> None:
    if not 1 <= len(transfer.outputs) <= MAX_OUTPUTS:
        raise ConsensusError(Reason.BAD_PAYLOAD, f"{len(transfer.outputs)} outputs", f"1 to {MAX_OUTPUTS}")
    if len(transfer.memo) > MAX_MEMO_BYTES:
        raise ConsensusError(Reason.BAD_PAYLOAD, f"a memo of {len(transfer.memo)} bytes", f"at most {MAX_MEMO_BYTES}")


def _paid(transfer: Transfer) -> int:
    return sum(output.amount for output in transfer.outputs)


def _transfer(execution: Execution, body: TxBody, _txid: bytes, transfer: Transfer) -> None:
    execution.debit(body.address, _paid(transfer))
    for output in transfer.outputs:
        execution.credit(output.address, output.amount)


def _job_gas(gas: GasSchedule, job: SubmitJob) -> int:
    product_bytes = sum(job.shape(packet).product_bytes for packet in job.packets)
    operand_bytes = sum(spec.size for spec in job.operands())
    return gas.job + gas.packet * len(job.packets) + gas.tensor_byte * (operand_bytes + product_bytes)


KINDS: dict[type[Payload], Kind[Any]] = {
    Transfer: Kind[Transfer](
        name="transfer",
        run=_transfer,
        gas=lambda gas, transfer: gas.output * len(transfer.outputs),
        check=_check_transfer,
        spends=_paid,
        view=View(outputs=lambda transfer: transfer.outputs, memo=lambda transfer: transfer.memo),
    ),
    RegisterWorker: Kind[RegisterWorker](
        name="register_worker",
        run=lambda execution, body, _txid, registration: workers.register(execution, body, registration),
        gas=lambda gas, registration: gas.worker + gas.place * registration.max_packets,
        check=workers.check,
        spends=lambda registration: registration.bond,
    ),
    RetireWorker: Kind[RetireWorker](
        name="retire_worker",
        run=lambda execution, body, _txid, _retirement: workers.retire(execution, body),
        gas=lambda gas, _retirement: gas.worker,
    ),
    SubmitJob: Kind[SubmitJob](
        name="submit_job",
        run=jobs.submit,
        gas=_job_gas,
        check=jobs.check,
        escrows=lambda params, job: sum(jobs.job_fees(params, job)),
        operands=SubmitJob.operands,
    ),
    CancelJob: Kind[CancelJob](
        name="cancel_job",
        run=lambda execution, body, _txid, cancellation: jobs.cancel(execution, body, cancellation.job),
        gas=lambda gas, _cancellation: gas.worker,
    ),
}


def kind_of(payload: Payload) -> Kind[Any]:
    """The row of a payload's kind."""
    return KINDS[type(payload)]


def intrinsic_gas(params: ChainParams, body: TxBody) -> int:
    """Gas that a transaction uses, known from its bytes alone. It does not depend on its gas limit's encoding."""
    gas, payload = params.gas, body.payload
    return gas.transaction + gas.byte * len(encode(payload)) + kind_of(payload).gas(gas, payload)


def outlay(params: ChainParams, payload: Payload) -> int:
    """Grains that a payload takes from its sender, fees aside: what is paid, bonded or put into escrow."""
    kind = kind_of(payload)
    return kind.spends(payload) + kind.escrows(params, payload)


def operands(tx: Transaction) -> list[TensorSpec]:
    """The tensors that a transaction obliges every node to have."""
    return kind_of(tx.body.payload).operands(tx.body.payload)
