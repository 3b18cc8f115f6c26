"""What a miner has done."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class MinerStats:
    """Counters since the miner started.

    Attributes:
        idle_units, packet_units: evaluated to the end.
        macs: multiplications in them, as packets are priced.
        seconds: that the bench spent on them.
        idle_blocks, packet_blocks: won with them.
        results_sent, results_refused: signed answers to packets, of those that won no block.
        units_lost: that could not be made.
    """

    idle_units: int = 0
    packet_units: int = 0
    macs: int = 0
    seconds: float = 0.0
    idle_blocks: int = 0
    packet_blocks: int = 0
    results_sent: int = 0
    results_refused: int = 0
    units_lost: int = 0

    @property
    def packets_answered(self) -> int:
        """By a Result, or by the block that its unit won."""
        return self.results_sent + self.packet_blocks

    @property
    def blocks_won(self) -> int:
        """With whatever unit."""
        return self.idle_blocks + self.packet_blocks

    @property
    def macs_per_second(self) -> float:
        """The bench's speed; 0 before the first unit."""
        return self.macs / self.seconds if self.seconds else 0.0

    def counters(self) -> dict[str, int | float]:
        """All that is counted, by name, the sums included."""
        return asdict(self) | {"packets_answered": self.packets_answered, "blocks_won": self.blocks_won}
