"""What WebSocket clients can subscribe to, published as it enters the node."""

from __future__ import annotations

from api import topics
from api.chain import HeaderView
from api.topics import JobEvent, PendingResult, PendingTx, Reorg
from consensus.address import encode_address
from consensus.events import JobEvent as ChainJobEvent
from consensus.events import Returned
from consensus.transaction import Result, Transaction
from node.chain.chain import Import
from node.rpc.context import Context, ReadChain
from node.rpc.registry import Table
from node.rpc.story import name_of, tell
from node.rpc.subscriptions import Hub
from node.rpc.views import header_view, kind_name

TABLE: Table[Context] = Table()

NEW_HEADS = TABLE.topic(
    topics.NEW_HEADS,
    HeaderView,
    "Each block that joins the main chain, in order; after a reorganisation the new branch's.",
)
PENDING_TRANSACTIONS = TABLE.topic(topics.PENDING_TRANSACTIONS, PendingTx, "Each transaction that enters the mempool.")
JOBS = TABLE.topic(topics.JOBS, JobEvent, "What happens to jobs and packets, as told by blocks of the main chain.")
RESULTS = TABLE.topic(topics.RESULTS, PendingResult, "Each verified Result that enters the pool.")
REORGS = TABLE.topic(topics.REORGS, Reorg, "Each reorganisation, before the new branch's heads.")


class Publisher:
    """An observer of the intake that publishes to a hub."""

    def __init__(self, hub: Hub, chain: ReadChain) -> None:
        self._hub = hub
        self._chain = chain
        self._prefix = chain.params.address_prefix

    def new_tip(self, change: Import) -> None:
        """Blocks have joined the main chain; others may have left it."""
        if change.disconnected:
            gone = tuple(block.id.hex() for block in change.disconnected)
            come = tuple(done.block.id.hex() for done in change.connected)
            self._hub.publish(REORGS, Reorg(change.disconnected[-1].height - 1, gone, come))
        above = len(change.connected)
        for done in change.connected:
            header = done.block.header
            entry = self._chain.entry(header.id)
            assert entry is not None, "a block of the main chain"
            self._hub.publish(NEW_HEADS, header_view(header, self._prefix, entry.total_work, above, True))
            above -= 1
            for event in done.outcome.events:
                if not isinstance(event, Returned):
                    self._hub.publish(JOBS, self._job_event(header.core.height, event))

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        """A transaction has entered the mempool."""
        sender = self._text(tx.body.address)
        self._hub.publish(
            PENDING_TRANSACTIONS, PendingTx(txid.hex(), sender, tx.body.nonce, kind_name(tx.body.payload))
        )

    def new_result(self, result: Result, result_id: bytes) -> None:
        """A Result has entered the pool."""
        body = result.body
        view = PendingResult(result_id.hex(), body.packet_id.hex(), self._text(body.worker), body.product.hex())
        self._hub.publish(RESULTS, view)

    def _job_event(self, height: int, event: ChainJobEvent) -> JobEvent:
        packet: bytes | None = getattr(event, "packet_id", None)
        worker: bytes | None = getattr(event, "worker", None)
        return JobEvent(
            height=height,
            job=event.job.hex(),
            event=name_of(event),
            packet_id=None if packet is None else packet.hex(),
            worker=None if worker is None else self._text(worker),
            text=tell(event, self._text),
        )

    def _text(self, address: bytes) -> str:
        return encode_address(address, self._prefix)
