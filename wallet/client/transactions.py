"""Building and signing transactions: which network, how much gas, at which fees, under which nonce.

Gas follows from a transaction's bytes alone, so the wallet computes it by consensus' own rule. Base fees move: a
transaction allows for a few full blocks before it, pays only what its block asks, and never more than a stated limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from api.params import REPLACEMENT_PERCENT
from consensus.address import encode_address
from consensus.codec import MAX_AMOUNT
from consensus.params import TILE, ChainParams, mainnet
from consensus.rules.issuance import next_base_fee
from consensus.rules.payloads import intrinsic_gas
from consensus.transaction import Payload, TxBody
from consensus.transition import genesis_transition
from wallet.accounts.amounts import format_tile
from wallet.errors import ExitCode, WalletError

HEADROOM_BLOCKS = 12
"""Full blocks in a row, each raising the base fee by an eighth, that a transaction may have to wait through."""

DEFAULT_MAX_FEE_GRAINS = TILE
"""Most that a transaction may cost in fees unless its sender says otherwise: a node that asks for more is wrong, or in
for the tip."""


@dataclass(frozen=True, slots=True)
class Rules:
    """One network's rules, and its genesis hash, which every signature is bound to."""

    params: ChainParams
    genesis_hash: bytes

    def __post_init__(self) -> None:
        """The hash must follow from the rules: a node cannot pass one network off as another, to have a transaction
        signed that means something elsewhere. Raises `WalletError` (network-mismatch)."""
        own = mainnet()
        if genesis_transition(self.params)[0].id != self.genesis_hash:
            raise _mismatch("the node's rules do not lead to the genesis hash that it names")
        if self.params.address_prefix == own.address_prefix and self.params != own:
            raise _mismatch(f"its addresses begin with {own.address_prefix!r} like mainnet's, and its rules are others")

    def address_text(self, address: bytes) -> str:
        """How an address is shown on this network."""
        return encode_address(address, self.params.address_prefix)

    def require(self, prefix: str) -> None:
        """Raises `WalletError` (network-mismatch) unless accounts with `prefix` are of this network."""
        if prefix != self.params.address_prefix:
            raise _mismatch(
                f"the node is of {self.params.network}, whose addresses begin with {self.params.address_prefix!r}, "
                f"not with {prefix!r}"
            )


@dataclass(frozen=True, slots=True)
class FeeTerms:
    """Grains per gas: the tip, and the highest base fee that is accepted."""

    tip: int
    max_base_fee: int

    @classmethod
    def of(cls, body: TxBody) -> FeeTerms:
        """What a transaction offers."""
        return cls(body.tip, body.max_base_fee)


def choose_fees(
    params: ChainParams,
    payload: Payload,
    base_fee: int,
    tip: int,
    max_fee_grains: int | None = None,
    *,
    exact: bool = False,
) -> FeeTerms:
    """Fees for `payload` now that the base fee is `base_fee`: headroom for `HEADROOM_BLOCKS` full blocks, within
    `max_fee_grains` in all (None: `DEFAULT_MAX_FEE_GRAINS`). The tip is less where the limit leaves no more, unless it
    is to be `exact`.

    Raises `WalletError` (fee-too-low) if that is less than the transaction costs right now.
    """
    limit = DEFAULT_MAX_FEE_GRAINS if max_fee_grains is None else max_fee_grains
    gas = gas_of(params, payload)
    affordable = limit // gas
    least = base_fee + tip if exact else base_fee
    if affordable < least:
        message = f"this costs {format_tile(gas * least)} TILE in fees now, and {format_tile(limit)} are allowed"
        raise WalletError("fee-too-low", message, "allow more (--fee), or wait until the network is less busy")
    tip = min(tip, affordable - base_fee)
    return FeeTerms(tip, min(_headroom(params, base_fee), affordable - tip))


def outbid(
    params: ChainParams, payload: Payload, wished: FeeTerms, before: FeeTerms, max_fee_grains: int | None = None
) -> FeeTerms:
    """The fees that were wished for, or more where a node would else keep what offers those `before` under the same
    nonce: the tip, and the whole, must be higher by a tenth. Raises `WalletError` (fee-too-low)."""
    tip = max(wished.tip, _raised(before.tip))
    max_base_fee = max(wished.max_base_fee, _raised(before.tip + before.max_base_fee) - tip)
    limit = DEFAULT_MAX_FEE_GRAINS if max_fee_grains is None else max_fee_grains
    cost = gas_of(params, payload) * (tip + max_base_fee)
    if cost > limit:
        message = f"to take its place this may cost {format_tile(cost)} TILE in fees, {format_tile(limit)} are allowed"
        raise WalletError("fee-too-low", message, "allow more (--fee), or wait until a block takes the one before")
    return FeeTerms(tip, max_base_fee)


def gas_of(params: ChainParams, payload: Payload) -> int:
    """Gas that a transaction with `payload` uses."""
    return intrinsic_gas(params, TxBody(bytes(32), 0, 0, 0, 0, payload))


def build(params: ChainParams, public_key: bytes, nonce: int, payload: Payload, fees: FeeTerms) -> TxBody:
    """The transaction, ready to be signed; its gas limit is the gas that it uses."""
    body = TxBody(public_key, nonce, fees.tip, 0, fees.max_base_fee, payload)
    return replace(body, gas_limit=intrinsic_gas(params, body))


def max_fee(body: TxBody) -> int:
    """The most that a transaction can cost in fees, in grains."""
    return body.gas_limit * (body.max_base_fee + body.tip)


def check_balance(balance: int, needed: int, what: str) -> None:
    """Raises `WalletError` (insufficient-balance), with the numbers, unless `balance` covers `needed` grains."""
    if balance < needed:
        message = (
            f"{what} takes up to {format_tile(needed)} TILE, fees included, and the account holds "
            f"{format_tile(balance)}: {format_tile(needed - balance)} are missing"
        )
        raise WalletError("insufficient-balance", message, "fund the account, or send or offer less")


def _raised(grains: int) -> int:
    return grains + max(1, -(-grains * REPLACEMENT_PERCENT // 100))


def _headroom(params: ChainParams, base_fee: int) -> int:
    highest = base_fee
    for _ in range(HEADROOM_BLOCKS):
        highest = next_base_fee(params, highest, params.gas_limit)
    return min(highest, MAX_AMOUNT)


def _mismatch(message: str) -> WalletError:
    fix = "choose a node of the network that you mean (--rpc), and an account of it"
    return WalletError("network-mismatch", message, fix, ExitCode.REJECTED)
