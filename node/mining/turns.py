"""Which packet a worker is to make now; the same for the own miner and for those outside."""

from __future__ import annotations

from node.chain.headers import HeaderEntry
from node.mining.producer import Held, Producer
from node.pool.intake import Intake


class Turns:
    """Gives each packet once for every tip, until its answer is in the pool. Used on the event loop."""

    def __init__(self, intake: Intake, producer: Producer) -> None:
        self._intake = intake
        self._producer = producer
        self._given: dict[bytes, HeaderEntry] = {}

    def next_packet(self, worker: bytes) -> Held | None:
        """The worker's most urgent packet that is not answered and whose turn has not been on this tip.

        Its operands are here; after a fast start they may still be arriving.
        """
        chain, answers = self._intake.chain, self._intake.results
        tip, tensors = chain.tip, chain.tensors
        if self._given:
            self._given = {packet_id: given for packet_id, given in self._given.items() if given is tip}
        for held in self._producer.held(worker):
            if held.packet_id in self._given or answers.get(held.packet_id) is not None:
                continue
            if tensors.has(held.packet.left.commitment) and tensors.has(held.packet.right.commitment):
                return held
        return None

    def give(self, packet_id: bytes, tip: HeaderEntry) -> None:
        """Note that the packet was given out as a unit on `tip`."""
        self._given[packet_id] = tip
