"""Transactions and Results: announced by id, fetched once, verified, and only then passed on.

Every peer has a queue of ids that it announced. Its own worker takes them in their order (nonces come in order). While
one peer is asked for an id, the workers of its other announcers wait, but for a moment only: a peer that does not
deliver holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Protocol

from consensus.codec import decode, encode
from consensus.errors import ConsensusError, MissingTensor, Reason
from consensus.rules import payloads
from consensus.tensor import Tensor
from consensus.transaction import Result, Transaction, decode_transaction
from node.compute import Compute, Shares
from node.p2p.fetch import Fetcher, Unavailable, together
from node.p2p.limits import MAX_ANNOUNCED, MAX_REQUESTED, MAX_STRIP_BYTES, PeerLimits
from node.p2p.messages import Announce, GetItems, Items, Kind, Message, NotFound
from node.p2p.peer import Missing, Offence, Peer, PeerStalled, TokenBucket
from node.pool.intake import NotYet
from node.pool.mempool import PoolError, PoolReason

_MAX_RESULT_BYTES = 256

CONDEMNING = frozenset(
    {
        Reason.OVERSIZE,
        Reason.MALFORMED,
        Reason.NOT_CANONICAL,
        Reason.BAD_PUBLIC_KEY,
        Reason.BAD_SIGNATURE,
        Reason.BAD_PAYLOAD,
        Reason.OPERAND_OUT_OF_RANGE,
        Reason.UNIT_TOO_LARGE,
        Reason.WRONG_PRODUCT,
    }
)
"""Refusals that no state explains: whoever relays such a thing has not verified it."""


class TransactionPool(Protocol):
    """Pending transactions."""

    def get(self, txid: bytes) -> Transaction | None: ...


class ItemIntake(Protocol):
    """The door for transactions and Results."""

    @property
    def pool(self) -> TransactionPool: ...
    async def transaction(self, tx: Transaction, compute: Compute | None = None) -> bytes: ...
    async def result(self, result: Result, compute: Compute | None = None) -> bytes: ...
    async def tensor(self, tensor: Tensor, obliged: bool = False) -> None: ...


class Gossip:
    """Relays what the intake has verified. An `Observer` of the intake calls `new_transaction` and `new_result`."""

    def __init__(
        self,
        intake: ItemIntake,
        genesis_hash: bytes,
        fetcher: Fetcher,
        peers: Callable[[], Collection[Peer]],
        shares: Shares,
        limits: PeerLimits,
    ) -> None:
        self._intake = intake
        self._genesis_hash = genesis_hash
        self._fetcher = fetcher
        self._peers = peers
        self._shares = shares
        self._limits = limits
        self._fresh: list[tuple[Kind, bytes]] = []
        self._has_fresh = asyncio.Event()
        self._recent: OrderedDict[bytes, tuple[Kind, Result | None]] = OrderedDict()
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._queues: dict[Peer, _Announced] = {}
        self._taking: dict[bytes, _Turn] = {}

    # ------------------------------------------------------------------ what the intake tells

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        """A verified transaction: offer it to the peers."""
        self._offer(Kind.TRANSACTION, txid, None)

    def new_result(self, result: Result, item_id: bytes) -> None:
        """A verified Result: offer it to the peers."""
        self._offer(Kind.RESULT, item_id, result)

    def new_tip(self) -> None:
        """What the old state refused, the new one may take."""
        self._refused.clear()
        for queue in self._queues.values():
            queue.put_off.clear()

    async def announce(self) -> None:
        """For ever: tell all peers what is new, some milliseconds' worth in one message."""
        while True:
            await self._has_fresh.wait()
            await asyncio.sleep(self._limits.gossip_interval_s)
            self._has_fresh.clear()
            fresh, self._fresh = self._fresh, []
            for peer in self._peers():
                self._tell(peer, fresh)

    def items(self, request: GetItems) -> Message:
        """Serve a request: those of the first ids that are here and fit."""
        items: list[bytes] = []
        room = MAX_STRIP_BYTES
        for item_id in request.ids:
            value = self._item(Kind(request.kind), item_id)
            if value is None:
                continue
            data = encode(value)
            room -= len(data) + 8
            if room < 0:
                break
            items.append(data)
        return Items(tuple(items)) if items else NotFound()

    # ------------------------------------------------------------------ what peers tell

    def note_announcement(self, peer: Peer, message: Announce) -> None:
        """A peer offers ids; those that are not here are fetched by its worker."""
        queue = self._queue_of(peer)
        now = asyncio.get_running_loop().time()
        for item_id in message.ids:
            if not peer.note_known(item_id) and not queue.repeats.take(now):
                peer.penalise(Offence.FLOOD, "ids announced before")
                return
            if self._is_wanted(item_id):
                if len(queue.ids) >= self._limits.max_announced:
                    peer.penalise(Offence.FLOOD, "announced ids")
                    return
                queue.ids.append((Kind(message.kind), item_id))
                queue.arrived.set()

    async def follow(self, peer: Peer) -> None:
        """Companion of a peer's session: tell it what is pending, then fetch what it announces."""
        queue = self._queue_of(peer)
        pending = [(kind, item_id) for item_id, (kind, _) in self._recent.items()]
        self._tell(peer, [entry for entry in pending if self._item(*entry) is not None])
        try:
            while True:
                await queue.arrived.wait()
                queue.arrived.clear()
                while queue.ids:
                    await self._fetch_some(peer, queue)
        finally:
            self._queues.pop(peer, None)

    async def _fetch_some(self, peer: Peer, queue: _Announced) -> None:
        """Ask for the queue's next ids of one kind, and take in what comes."""
        kind = queue.ids[0][0]
        ids: list[bytes] = []
        while queue.ids and queue.ids[0][0] is kind and len(ids) < MAX_REQUESTED:
            item_id = queue.ids.popleft()[1]
            await self._others_turn(item_id)
            if self._is_wanted(item_id) and item_id not in ids:
                ids.append(item_id)
        mine = _Turn(asyncio.get_running_loop().time() + self._limits.gossip_turn_s)
        self._taking.update(dict.fromkeys(ids, mine))
        try:
            while ids:
                answer = await peer.request(GetItems(kind, tuple(ids)), Items)
                for data in answer.items:
                    item_id = await self._take(peer, kind, data)
                    if item_id not in ids:
                        peer.penalise(Offence.UNSOLICITED, kind.name)
                        return
                    ids.remove(item_id)
        except Missing:
            pass  # a block has taken it meanwhile, or it was replaced
        except PeerStalled:
            peer.penalise(Offence.STALL, kind.name)
        except ConsensusError as error:
            peer.penalise(Offence.GARBAGE, error)
        finally:
            for item_id in [item_id for item_id, turn in self._taking.items() if turn is mine]:
                del self._taking[item_id]
            mine.over.set()

    async def _others_turn(self, item_id: bytes) -> None:
        """Wait while another peer's worker is at it, until its turn has passed."""
        while (busy := self._taking.get(item_id)) is not None:
            try:
                async with asyncio.timeout_at(busy.until):
                    await busy.over.wait()
            except TimeoutError:
                return  # asking once more costs less than waiting, and whoever comes first counts

    async def _take(self, peer: Peer, kind: Kind, data: bytes) -> bytes:
        """Decode and verify one item; its id. ConsensusError where it cannot be decoded."""
        share = self._shares.of(peer.asker)
        if kind is Kind.TRANSACTION:
            tx = await share.run(decode_transaction, data)
            item_id = tx.body.txid(self._genesis_hash)
            needs = [operand.commitment for operand in payloads.operands(tx)]
            await self._verified(peer, item_id, lambda: self._intake.transaction(tx, share), needs)
        else:
            result = decode(Result, data, _MAX_RESULT_BYTES)
            item_id = result.id(self._genesis_hash)
            await self._verified(peer, item_id, lambda: self._intake.result(result, share))
        return item_id

    async def _verified(
        self, peer: Peer, item_id: bytes, submit: Callable[[], Awaitable[bytes]], needs: Iterable[bytes] = ()
    ) -> None:
        """Hand an item to the intake; fetch the tensors that it lacks from its announcer first."""
        try:
            try:
                await submit()
            except MissingTensor as missing:
                fetch = partial(self._fetcher.tensor, obliged=False, household=peer.asker.household)
                await together(fetch(wanted, lambda: [peer]) for wanted in dict.fromkeys((missing.commitment, *needs)))
                await submit()
        except (NotYet, Unavailable, MissingTensor):
            pass  # a later block, or another announcer, may help
        except PoolError as error:
            if error.code == PoolReason.NONCE_GAP:
                self._put_off(peer, item_id)
            else:
                self._refuse(item_id)
        except ConsensusError as error:
            if error.reason in CONDEMNING:
                # The id covers no signature: the true item, from somebody else, stays welcome.
                peer.penalise(Offence.INVALID, error)
            else:
                self._refuse(item_id)
        else:
            peer.brought_item_at = asyncio.get_running_loop().time()

    def _put_off(self, peer: Peer, txid: bytes) -> None:
        """What stands behind a gap of nonces is asked for again a little later, a few times: others bring the gap."""
        queue = self._queues.get(peer)
        if queue is None or queue.put_off[txid] >= self._limits.gap_retries:
            return
        queue.put_off[txid] += 1

        def again() -> None:
            if len(queue.ids) < self._limits.max_announced:
                queue.ids.append((Kind.TRANSACTION, txid))
                queue.arrived.set()

        asyncio.get_running_loop().call_later(self._limits.gap_retry_s, again)

    # ------------------------------------------------------------------ small helpers

    def _offer(self, kind: Kind, item_id: bytes, result: Result | None) -> None:
        self._recent[item_id] = kind, result
        if len(self._recent) > self._limits.max_recent:
            self._recent.popitem(last=False)
        self._fresh.append((kind, item_id))
        self._has_fresh.set()

    def _tell(self, peer: Peer, entries: Iterable[tuple[Kind, bytes]]) -> None:
        unknown = [entry for entry in entries if entry[1] not in peer.known]
        for kind in Kind:
            ids = [item_id for which, item_id in unknown if which is kind]
            for start in range(0, len(ids), MAX_ANNOUNCED):
                some = ids[start : start + MAX_ANNOUNCED]
                if peer.send(Announce(kind, tuple(some))):
                    for item_id in some:
                        peer.note_known(item_id)

    def _item(self, kind: Kind, item_id: bytes) -> Transaction | Result | None:
        if kind is Kind.TRANSACTION:
            return self._intake.pool.get(item_id)
        known = self._recent.get(item_id)
        return known[1] if known is not None else None

    def _is_wanted(self, item_id: bytes) -> bool:
        return item_id not in self._recent and item_id not in self._refused and self._intake.pool.get(item_id) is None

    def _refuse(self, item_id: bytes) -> None:
        self._refused[item_id] = None
        if len(self._refused) > self._limits.max_recent:
            self._refused.popitem(last=False)

    def _queue_of(self, peer: Peer) -> _Announced:
        if peer not in self._queues:
            now = asyncio.get_running_loop().time()
            self._queues[peer] = _Announced(TokenBucket(self._limits.repeats_per_s, self._limits.repeats_burst, now))
        return self._queues[peer]


class _Turn:
    """One peer's worker fetches some ids; the others let it alone until `until`, of the event loop's time."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.over = asyncio.Event()


class _Announced:
    """What one peer offers and this node has not looked at yet; how often it may offer what it has offered."""

    def __init__(self, repeats: TokenBucket) -> None:
        self.repeats = repeats
        self.put_off: Counter[bytes] = Counter()
        self.ids: deque[tuple[Kind, bytes]] = deque()
        self.arrived = asyncio.Event()
