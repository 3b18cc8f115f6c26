"""What a node grants its peers: every bound of the network in one frozen value (docs/protocol.md, section 15).

Sizes are in bytes, times in seconds. Tests shrink single values; a running node uses the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_STRIP_BYTES = 1 << 20
"""Strips that travel in one message; the largest strip of a product (64 × 4096 int32) just fits."""

MAX_MESSAGE_BYTES = MAX_STRIP_BYTES + (16 << 10)
"""The largest message of any type: its strips, their Merkle paths (64 of six hashes) and the envelope."""

PREFIX_BYTES = 5
"""Type and request number, in front of every message."""

MAX_HEADERS = 512
"""Headers in one reply, at most."""

MAX_LOCATOR = 64
"""Ids in a locator: ten dense ones, then one per doubling, reach genesis from any height below 2⁵⁰."""

MAX_ANNOUNCED = 256
"""Ids in one announcement of transactions or results."""

MAX_REQUESTED = 64
"""Transactions or results asked for at once."""

MAX_ADDRESSES = 64
"""Addresses in one reply."""


MAX_STATE_BYTES = 1 << 20
"""Records of a state in one reply, envelopes included."""


@dataclass(frozen=True)
class PeerLimits:
    """Bounds on one node's network."""

    max_inbound: int = 64
    max_outbound: int = 8
    max_inbound_per_host: int = 8
    """From one address that is not loopback."""
    max_strangers: int = 64
    """Inbound connections whose hello is not verified yet. Each is a descriptor, and some KiB."""
    max_strangers_per_group: int = 32
    """The same from one network group."""
    handshakes_per_s: float = 10.0
    """TLS handshakes with one network group: a few milliseconds each, so this is some per cent of a core."""
    handshakes_burst: int = 20
    handshake_s: float = 5.0
    """A connection must be a WebSocket after this, and its hello here after as long again."""
    dial_s: float = 5.0
    stop_s: float = 2.0

    ping_interval_s: float = 15.0
    ping_timeout_s: float = 20.0
    """Longer than `send_s`: a peer that reads slowly is not taken for dead."""
    send_s: float = 15.0
    """Most time in which one frame must leave for the peer."""
    request_s: float = 10.0
    """A peer that answers nothing for so long, while it owes answers, stalls: 1 MiB takes as long at 0.8 Mbit/s."""
    request_total_s: float = 45.0
    """One answer must be there after this, whatever else the peer answers meanwhile."""

    max_pending: int = 16
    """Requests to one peer that wait for their answers."""
    max_unanswered: int = 64
    """A peer's requests that wait for us; it promises to keep below `max_pending`."""
    reply_backlog_bytes: int = 256 << 10
    """The next answer is made once no more than this waits to leave."""
    send_backlog_bytes: int = 2 << 20
    """A peer that lets more than this pile up is dropped."""

    unknown_bytes: int = 4 << 10
    """Largest message of an unknown type."""
    unknown_per_s: float = 1.0
    unknown_burst: float = 8.0

    download_window: int = 32
    """Blocks fetched at once, ahead of the one that is executed next."""
    download_bytes: int = 48 << 20
    """Blocks' tensors on their way into this node at any time."""
    gossip_bytes: int = 32 << 20
    """The same for jobs and Results that no block holds yet: they must not hold up blocks."""
    max_headers: int = MAX_HEADERS
    """Headers asked for at once."""
    header_syncs: int = 2
    """Peers of each direction whose headers are taken in at the same time."""
    header_turn_s: float = 2.0
    """Who brings no header for so long goes on without a place; it waits for one again with what it brings then."""
    header_batch: int = 64
    """Headers checked in one go off the event loop."""
    strips_ahead: int = 8
    """Packet headers whose strips are fetched ahead of their check."""
    header_retry_s: float = 5.0
    """Pause before a peer that claims more work than it has shown is asked again."""
    weigh_s: float = 60.0
    """Pause before a peer's chain that is too deep to be followed is weighed again, and the most that this takes."""
    max_early: int = 64
    """Headers kept aside because their time has not come."""
    early_retry_s: float = 1.0
    unavailable_retry_s: float = 1.0
    """Pause before asking everybody again for what nobody had."""
    block_patience_s: float = 3.0
    """After so long a block that does not come is set aside, if another chain is there that does not need it."""
    slow_retry_s: float = 15.0
    """Pause before a block that was set aside is looked at again, doubled each time."""

    header_patience_s: float = 20.0
    """A node that catches up waits so long for an eighth of `max_headers` that somebody claims to have; nobody brings
    headers for longer in one turn, either."""
    state_patience_s: float = 30.0
    """The most that one peer's state may take, doubled with each failure of its network group."""
    state_page_bytes: int = MAX_STATE_BYTES
    """Records in each answer but the last: sent so, and expected so, lest a state comes drop by drop."""
    max_state_bytes: int = 8 << 30
    """Largest state that is fetched: its root, which tells a false one, is known only at its end."""
    operands_retry_s: float = 10.0
    """Pause before looking again for operands that a snapshot's open groups still lack."""

    gossip_interval_s: float = 0.05
    gossip_turn_s: float = 2.0
    """After so long an announced id that does not come is asked of its other announcers, too."""
    gap_retry_s: float = 1.0
    gap_retries: int = 5
    """A job behind a gap of nonces is asked for again after so long, so often until the next block."""
    bytes_turn_s: float = 1.0
    """Whoever is slow with tensors of no block makes way for others who have waited for so long."""
    max_known: int = 4096
    """Ids per peer that it is known to know."""
    repeats_per_s: float = 1000.0
    repeats_burst: float = 4096.0
    """Announced ids that a peer is known to know already: announcements cross, at the rate of what is new at most."""
    max_announced: int = 2048
    """Ids announced by one peer that wait to be fetched."""
    max_recent: int = 4096
    """Own transactions and results that are offered to peers who come later."""

    score_half_life_s: float = 600.0
    cool_down_s: float = 600.0
    max_cooling: int = 1024

    backoff_first_s: float = 1.0
    backoff_most_s: float = 60.0
    book_dial_s: float = 2.0
    """Pause between looks for another outbound peer."""
    book_learn_s: float = 300.0
    book_save_s: float = 300.0


DEFAULT = PeerLimits()
