"""What all nodes of one network must agree on, as one frozen value that consensus functions take first.

What a node may choose for itself (ports, limits of its mempool, how hard it mines) lives in `node.config`.
Amounts are in grains (1 TILE = 10⁹ grains), times in milliseconds, sizes in bytes.
"""

from __future__ import annotations

import msgspec

from consensus.codec import MAX_AMOUNT, Address, Amount, Hash, Value, encode
from consensus.crypto import H

TILE = 10**9
"""Grains in one TILE."""

MAX_TARGET = 2**254 - 1
"""The easiest target: target · k / 1024 stays below 2²⁵⁶ for every k."""
PROTOCOL_VERSION = 2

MAX_TX_BYTES = 128 << 10
MAX_BODY_BYTES = 1 << 20
MAX_BODY_TX_BYTES = MAX_BODY_BYTES * 3 // 4
"""Of a body, what transactions may take: a quarter is always there for Results, whatever tips are offered."""
MAX_TENSOR_BYTES = 32 << 20
MAX_OPERAND_BYTES = MAX_TENSOR_BYTES // 2
"""Of the tensors that a block obliges, what new jobs' operands may take: the other half is there for products."""
MAX_MEMO_BYTES = 256
MAX_OUTPUTS = 1024
MAX_PACKETS = 1024
MAX_PLACES = 64
"""Packets that one worker may hold at once. Who can make more registers another: a worker's record is rewritten with
each packet, so it must stay small."""


class Allocation(Value, frozen=True):
    """Grains that genesis gives to an address."""

    address: Address
    amount: Amount


class GasSchedule(Value, frozen=True):
    """Gas per thing that a transaction makes every node do or keep.

    One unit of gas is about the work of hashing, sending and keeping one byte of tensor for `retention` blocks, by far
    the largest load of bytes. The rest follows from time: a full block of any kind must be imported within a quarter of
    devnet's spacing on one laptop core, signatures, trie, index and disk included: a millisecond is some 150,000 gas.
    `python -m benchmarks.dearest` measures it.
    """

    transaction: int = 56_000
    """A signature, an account, a receipt, an entry in the index: 0.4 ms."""
    byte: int = 16
    output: int = 16_000
    """A new account in the trie, and in the index: 0.1 ms."""
    worker: int = 40_000
    """A worker's record and its reviews."""
    place: int = 16_000
    """A place that enters the array and leaves it."""
    job: int = 64_000
    """A group, its escrow, its operands' keeping, and its closing."""
    packet: int = 22_000
    """A packet in the queue, its dealing and its end: 0.2 ms with the bytes of the least product."""
    tensor_byte: int = 1


class ChainParams(Value, frozen=True):
    """The rules of one network. The genesis block's nonce is the hash of this value, so no two networks share a hash.

    Heights are counted in blocks; "blocks" below means a number of heights.
    """

    network: str
    """Name, as in `--network`."""
    chain_id: int
    """In every header, beside the genesis hash in every signature: a second guard against replay."""
    address_prefix: str
    """Human-readable part of bech32m addresses."""
    genesis_time_ms: int
    """Unix time of genesis; ASERT is anchored there."""
    spacing_ms: int
    """Intended time between blocks (T)."""
    halflife_ms: int
    """ASERT half-life: 30 blocks, long enough to ride out luck, short enough to follow a laptop's lid."""
    anchor_target: Hash
    """Target of genesis, 32 bytes big-endian."""
    maturity: int
    """Blocks until a subsidy, tips and inclusion shares can be spent."""
    window: int
    """Ticks in which a dealt packet may be answered."""
    liveness: int
    """Ticks after which a worker that was not seen is dealt nothing."""
    max_life: int
    """Most ticks between a job and its expiry."""
    retention: int
    """Blocks for which tensors are kept after they were last needed."""
    max_reorg: int
    """Deepest reorganisation that a node applies by itself."""
    min_reserve: Amount
    """Least part of the bond that stands for a packet held, and burns if it is missed. Beyond that it is four times the
    packet's fee: dearer than any pay, whatever was to be gained by withholding."""
    allocations: tuple[Allocation, ...]
    """Accounts that genesis funds (devnet and regtest only: there is no premine)."""
    initial_subsidy: Amount = 50 * TILE
    halving_interval: int = 2**20
    gas: GasSchedule = GasSchedule()
    gas_limit: int = 64 << 20
    """Twice the 32 MiB of tensors that a block may oblige: a block full of tensors sits at the fee market's target."""
    initial_base_fee: Amount = 1
    base_fee_change_denominator: int = 8
    min_price: Amount = 1
    """Least price of a group in grains per 2⁴⁰ of weight: a free job would be a free claim on strangers' time."""
    min_fee: Amount = 100
    """Least fee of a packet, so that the burned tenth is at least 10 grains."""
    registration_delay: int = 8
    """Ticks before a declaration counts: twice `deal_lag`, so nobody picks an address, or a price, for a known draw."""
    deal_lag: int = 4
    """The draw at h uses the ticket of block h − 4: its miner could not know whom it would favour."""
    max_examined: int = 256
    """Queued packets looked at per block; with `max_tries` bounds the cost of dealing."""
    max_tries: int = 64
    """Places that are tried for a packet in one block, in the first half only workers that hold none of its group."""
    max_results: int = 384
    """Results in a block's body: each is a signature, a product's check and some records, and pays no gas. Dealing
    keeps what is held within half of what a window's blocks may carry."""
    max_missed: int = 512
    """Windows that end per block, the rest in the blocks after it: twice what a block deals, so none wait for long."""
    max_seated: int = 2_048
    """Steps in reviews of workers' places per block, the rest in the blocks after it: as many as are paid for, at
    registration, by half a block's gas."""
    max_closed: int = 2_048
    """Packets of ended groups forgotten per block, the rest in the blocks after it: two of the largest groups, a tenth
    of a devnet spacing. They were paid for when they were opened."""

    @property
    def hash(self) -> bytes:
        """H("tw/params", …): names the network; its first 8 bytes are the genesis nonce."""
        return H("tw/params", encode(self))

    def __post_init__(self) -> None:
        anchor = int.from_bytes(self.anchor_target, "big")
        assert 1 <= anchor <= MAX_TARGET
        # A miner must not see the draw before its registration is in force, nor a reward be spent before a reorg.
        assert self.registration_delay > self.deal_lag
        assert self.window > 0
        assert self.max_life > self.window
        # Undo data and tensors must outlast the deepest reorg that is applied.
        assert self.retention > self.max_reorg + self.window
        assert self.min_reserve > 0
        assert self.max_missed >= self.max_examined
        assert self.max_results >= self.max_examined
        assert self.max_seated > 1
        # All grains that can ever exist fit into one amount, so no credit can overflow.
        minted = 2 * self.initial_subsidy * self.halving_interval
        assert minted + sum(allocation.amount for allocation in self.allocations) <= MAX_AMOUNT
        # The fee market's target must have room for one block's worth of tensors.
        assert self.gas_limit // 2 >= MAX_TENSOR_BYTES * self.gas.tensor_byte


_SPACING_DEVNET_MS = 2_000
_SPACING_MAINNET_MS = 30_000


def devnet(genesis_time_ms: int, allocations: tuple[Allocation, ...] = (), network: str = "devnet") -> ChainParams:
    """A network of its own for one developer: born when it is started, so that difficulty starts at its anchor.

    The anchor makes a block worth 24 idle tickets, 0.2 GMAC: a few milliseconds of a core every two seconds.
    """
    return ChainParams(
        network=network,
        chain_id=2,
        address_prefix="tdev",
        genesis_time_ms=genesis_time_ms,
        spacing_ms=_SPACING_DEVNET_MS,
        halflife_ms=30 * _SPACING_DEVNET_MS,
        anchor_target=(2**256 // 48).to_bytes(32, "big"),
        maturity=10,
        window=10,
        liveness=300,
        max_life=1_000,
        retention=2_000,
        max_reorg=100,
        min_reserve=10 * TILE,
        allocations=allocations,
    )


def regtest(genesis_time_ms: int, allocations: tuple[Allocation, ...] = ()) -> ChainParams:
    """Devnet's rules at the easiest target, for tests with an injected clock."""
    easiest = MAX_TARGET.to_bytes(32, "big")
    params = devnet(genesis_time_ms, allocations, network="regtest")
    return msgspec.structs.replace(params, chain_id=3, anchor_target=easiest)


def mainnet() -> ChainParams:
    """The public network. No allocations: every grain is mined.

    The anchor is what one laptop core (~45 GMAC/s) wins in one spacing.
    """
    return ChainParams(
        network="mainnet",
        chain_id=1,
        address_prefix="tile",
        genesis_time_ms=1_798_761_600_000,
        spacing_ms=_SPACING_MAINNET_MS,
        halflife_ms=30 * _SPACING_MAINNET_MS,
        anchor_target=(2**256 // 2**18).to_bytes(32, "big"),
        maturity=100,
        window=20,
        liveness=2_880,
        max_life=20_000,
        retention=20_000,
        max_reorg=100,
        min_reserve=10 * TILE,
        allocations=(),
    )
