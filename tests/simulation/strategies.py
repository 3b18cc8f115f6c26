"""What an adversary may try: each a `Strategy` that departs from the honest one in one way (docs/economics.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from consensus.codec import MAX_AMOUNT
from consensus.crypto import H
from consensus.params import TILE
from consensus.state import GROUPS, PLACES, Packet, account, ledger
from consensus.transaction import Result, Transaction
from tests.builders import Job
from tests.simulation.economy import MARKET_PRICE, OWNER, SPARES, Economy, Setting, Strategy


class SelfDealing(Strategy):
    """Post jobs of zeros to oneself, and run the lottery on whichever of them one is dealt.

    With `exclusive`, the price is so low that nobody else is able: every packet comes back to its owner. Else anyone
    may be dealt them, at the market's price. Packets are kept as long as the window allows, to mine on.
    """

    def __init__(self, exclusive: bool, every: int = 4) -> None:
        self.exclusive = exclusive
        self.every = every
        self._turn = 0

    def transactions(self, economy: Economy) -> list[Transaction]:
        self._turn += 1
        if self._turn % self.every != 1 % self.every:
            return []
        price = 1 if self.exclusive else economy.setting.price
        return [economy.job(OWNER, 2, 2, price, zero=True).transaction]

    def answers_now(self, economy: Economy, packet_id: bytes, packet: Packet) -> bool:
        last = packet.dealt_at + economy.chain.params.window
        return not economy.is_owners(packet) or economy.chain.height + 1 == last

    def unit(self, economy: Economy) -> bytes | None:
        mine = [i for i, p in economy.held() if p.worker in economy.owned and economy.is_owners(p)]
        return min(mine) if mine else None


class Withholding(Strategy):
    """Never answer; with `persistent`, pay each fine back into the bond, so as to be dealt the next packet too."""

    def __init__(self, persistent: bool) -> None:
        self.persistent = persistent

    def transactions(self, economy: Economy) -> list[Transaction]:
        if not self.persistent:
            return []
        chain, bond = economy.chain, economy.bond
        short = [key for key in economy.mine if chain.worker(key).bond < bond]
        return [chain.register(key, bond=bond - chain.worker(key).bond) for key in short]

    def answers_now(self, economy: Economy, packet_id: bytes, packet: Packet) -> bool:
        return False


class Lapsing(Strategy):
    """Let every fourth packet lapse, as if by mistake."""

    def answers_now(self, economy: Economy, packet_id: bytes, packet: Packet) -> bool:
        return packet_id[0] % 4 > 0


class Delaying(Strategy):
    """Answer in the last block of the window: no fine, but the place is taken meanwhile."""

    def answers_now(self, economy: Economy, packet_id: bytes, packet: Packet) -> bool:
        return economy.chain.height + 1 == packet.dealt_at + economy.chain.params.window


class Hoarding(Withholding):
    """Register as many further identities as there are workers, with the least bond, and never answer."""

    def __init__(self) -> None:
        super().__init__(persistent=False)
        self._registered = False

    def transactions(self, economy: Economy) -> list[Transaction]:
        if self._registered:
            return []
        self._registered = True
        return [economy.chain.register(key) for key in SPARES]


class Purchase(Strategy):
    """Buy products honestly: a job of `packets` every `every` blocks, all of them needed, at the market's price."""

    def __init__(self, packets: int = 10, every: int = 13) -> None:
        self.packets = packets
        self.every = every
        self.jobs: list[Job] = []
        self._turn = 0

    def transactions(self, economy: Economy) -> list[Transaction]:
        self._turn += 1
        if self._turn % self.every == 1:
            self.jobs.append(self.offer(economy))
            return [self.jobs[-1].transaction]
        return self.after(economy)

    def offer(self, economy: Economy) -> Job:
        """The job to post."""
        return economy.job(OWNER, self.packets, self.packets, MARKET_PRICE)

    def after(self, economy: Economy) -> list[Transaction]:
        """What else the owner sends."""
        return []


class Spiting(Purchase):
    """Withhold the packets of a rival owner, and answer those of one's own jobs."""

    def answers_now(self, economy: Economy, packet_id: bytes, packet: Packet) -> bool:
        return economy.is_owners(packet)


class Cancelling(Purchase):
    """Cancel as soon as the products are in gossip; with `censor`, also keep their Results out of one's own blocks."""

    def __init__(self, censor: bool) -> None:
        super().__init__()
        self.censor = censor

    def after(self, economy: Economy) -> list[Transaction]:
        group = economy.chain.group(self.jobs[-1])
        return [] if group is None or group.cancelled else [economy.chain.cancel(OWNER, self.jobs[-1])]

    def admitted(self, economy: Economy, results: list[Result]) -> list[Result]:
        if not self.censor:
            return results
        return [r for r in results if not economy.is_owners(economy.chain.packet(r.body.packet_id))]


class OwnFirst(Strategy):
    """Put one's own Results first in one's blocks."""

    def admitted(self, economy: Economy, results: list[Result]) -> list[Result]:
        return sorted(results, key=lambda result: result.body.worker not in economy.owned)


class OthersLeftOut(Strategy):
    """Leave everybody else's Results out of one's own blocks, so that they may miss their windows."""

    def admitted(self, economy: Economy, results: list[Result]) -> list[Result]:
        return [result for result in results if result.body.worker in economy.owned]


class Crowding(OthersLeftOut):
    """Flood the market with jobs of one's own besides, so that others' answers find no room."""

    def transactions(self, economy: Economy) -> list[Transaction]:
        return [economy.job(OWNER, 12, 12, MARKET_PRICE).transaction]


class Jamming(Purchase):
    """Keep dear packets that no worker's bond can stand for at the head of the queue: escrow returns as they expire."""

    def __init__(self) -> None:
        super().__init__(packets=12, every=8)

    def offer(self, economy: Economy) -> Job:
        return economy.job(OWNER, self.packets, self.packets, 100 * MARKET_PRICE)


class Enough(Strategy):
    """Include no more than the threshold's Results of any group, one's own first: what is beyond might go unpaid."""

    def admitted(self, economy: Economy, results: list[Result]) -> list[Result]:
        room: dict[bytes, int] = {}
        chosen = []
        for result in sorted(results, key=lambda result: result.body.worker not in economy.owned):
            job = economy.chain.packet(result.body.packet_id).job
            if job not in room:
                group = GROUPS.get(economy.chain.state, job)
                assert group is not None, "a held packet without its group"
                room[job] = max(0, group.threshold - group.done)
            if room[job]:
                room[job] -= 1
                chosen.append(result)
        return chosen


class Asking(Purchase):
    """Need no more packets of a job than one's own workers are dealt on average. Who needs fewer pays for fewer."""

    def offer(self, economy: Economy) -> Job:
        threshold = max(1, round(economy.setting.share * self.packets))
        return economy.job(OWNER, self.packets, threshold, MARKET_PRICE)


class Undercutting(Asking):
    """Complete such a job by one's own answers, and leave everybody else's out of one's blocks."""

    def admitted(self, economy: Economy, results: list[Result]) -> list[Result]:
        return [
            result
            for result in results
            if result.body.worker in economy.owned or not economy.is_owners(economy.chain.packet(result.body.packet_id))
        ]


class Steering(SelfDealing):
    """Post a job to oneself whenever the known draw deals all of it to one's own workers, at the market's price.

    The draw of the next block hangs on a ticket that is known and on the job's id, so the owner tries variants of his
    transaction until one suits him.
    """

    VARIANTS = 48

    def __init__(self) -> None:
        super().__init__(exclusive=False)

    def transactions(self, economy: Economy) -> list[Transaction]:
        self._turn += 1
        if self._turn % self.every != 1:
            return []
        own, nonce = {key.address for key in economy.mine}, account(economy.chain.state, OWNER.address).nonce
        for variant in range(self.VARIANTS):
            offer = economy.job(OWNER, 2, 2, economy.setting.price, zero=True, tip=variant, nonce=nonce)
            if all(first_place(economy, packet_id) in own for packet_id in offer.packets):
                return [offer.transaction]
        return []


class Dodging(Strategy):
    """Look at the known draws: retire a worker that is about to be dealt a packet, and come back afterwards.

    Whoever could move the array of places by that would choose among as many draws as he has workers.
    """

    def __init__(self) -> None:
        self._away: set[bytes] = set()

    def transactions(self, economy: Economy) -> list[Transaction]:
        chain, sent = economy.chain, []
        drawn = {first_place(economy, packet_id) for packet_id in economy.pending}
        for key in economy.mine:
            if key.address in self._away:
                sent.append(chain.register(key, bond=0))
                self._away.discard(key.address)
            elif key.address in drawn:
                sent.append(chain.retire(key))
                self._away.add(key.address)
        return sent


class Diluting(Strategy):
    """Lock a bond for places that are never able, so that the packets of others find no place for longer."""

    def __init__(self) -> None:
        self._registered = False

    def transactions(self, economy: Economy) -> list[Transaction]:
        if self._registered:
            return []
        self._registered = True
        chain = economy.chain
        return [chain.register(key, packets=20, min_price=MAX_AMOUNT, max_base_fee=10**6) for key in SPARES]


def first_place(economy: Economy, packet_id: bytes) -> bytes:
    """The worker whose place a packet tries first in the block after the tip."""
    view = economy.chain.state
    known = ledger(view)
    draw = H("tw/deal", known.tickets[-economy.chain.params.deal_lag + 1] + packet_id + bytes(4))
    place = PLACES.get(view, int.from_bytes(draw, "big") % known.places)
    assert place is not None, "an array with a gap"
    return place.worker


@dataclass(frozen=True)
class Case:
    """A strategy, the honest one that it departs from, and the market that both meet.

    Attributes:
        margin: grains by which it loses at least, whatever the share; None for those that can win (docs/economics.md).
        seeds: how many runs even out the luck of the dealing, in the tests; the benchmark makes more.
    """

    name: str
    strategy: Callable[[], Strategy]
    market: Setting
    margin: int | None
    baseline: Callable[[], Strategy] = Strategy
    seeds: int = 1


_MARKET = Setting(share=0)
_DEAR = Setting(share=0, price=20 * MARKET_PRICE * 4)
"""A fee of 6 TILE for each packet: a miss burns 24."""
_QUIET = Setting(share=0, packets=0)
_OWNER_ONLY = Setting(share=0, packets=0, works=False)
_SPARE_PACKETS = Setting(share=0, packets=10, threshold=5, interval=4)

LOSING = (
    Case("self-dealing, zeros, nobody else able", lambda: SelfDealing(True), _QUIET, TILE // 2500),
    Case("self-dealing, zeros, at the market's price", lambda: SelfDealing(False), _QUIET, TILE // 10),
    Case("withholding answers", lambda: Withholding(False), _MARKET, 8 * TILE, seeds=3),
    Case("withholding answers, bond refilled", lambda: Withholding(True), _MARKET, 8 * TILE, seeds=3),
    Case("answering in the last block only", Delaying, _MARKET, TILE // 50, seeds=4),
    Case("letting every fourth packet lapse", Lapsing, _MARKET, TILE, seeds=6),
    Case("withholding a rival's packets only", Spiting, _MARKET, 8 * TILE, Purchase, seeds=3),
    Case("crowding out others' answers with own jobs", Crowding, _MARKET, TILE, seeds=2),
    Case("withholding dear packets, 4 fees burned", lambda: Withholding(False), _DEAR, 20 * TILE, seeds=3),
    Case("withholding dear packets, bond refilled", lambda: Withholding(True), _DEAR, 20 * TILE, seeds=3),
    Case("hoarding places with 20 identities", Hoarding, _MARKET, 50 * TILE),
    Case("steering jobs of zeros to one's own workers", Steering, _QUIET, TILE // 100),
    Case("cancelling once products are seen", lambda: Cancelling(False), _OWNER_ONLY, TILE // 20_000, Purchase),
)
LIMITS = (
    Case("cancelling, and censoring one's own jobs", lambda: Cancelling(True), _OWNER_ONLY, None, Purchase, seeds=6),
    Case("one's own Results first, 5 of 10 needed", OwnFirst, _SPARE_PACKETS, None, seeds=3),
    Case("others' Results left out", OthersLeftOut, _SPARE_PACKETS, None, seeds=3),
    Case("only as many Results as are needed", Enough, _SPARE_PACKETS, None, seeds=3),
    Case("dodging packets that the draw would deal", Dodging, _MARKET, None, seeds=3),
    Case("locking bonds for places that are never able", Diluting, _MARKET, None, seeds=3),
    Case("jamming the queue's head", Jamming, _MARKET, None, seeds=2),
    Case("completing one's own job early", Undercutting, _QUIET, None, Asking, seeds=6),
)
