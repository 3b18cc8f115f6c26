"""Reasons for which a block, a transaction or a proof is refused.

A rule violation is data: a code that never changes its meaning, what was seen and what the rule asks for. Whoever
catches it (a peer's score, an RPC error, a log line) decides by the code, never by the text. A programmer's error is
an assertion instead, and a tensor that has not arrived yet is `MissingTensor`: transient, and nobody's fault.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The codes, grouped by the stage that finds them."""

    # decoding
    OVERSIZE = "oversize"
    MALFORMED = "malformed"
    NOT_CANONICAL = "not-canonical"
    # header
    BAD_VERSION = "bad-version"
    WRONG_CHAIN = "wrong-chain"
    BAD_HEIGHT = "bad-height"
    UNKNOWN_PARENT = "unknown-parent"
    INVALID_PARENT = "invalid-parent"
    WRONG_PARENT_TICKET = "wrong-parent-ticket"
    TIME_TOO_OLD = "time-too-old"
    TIME_TOO_NEW = "time-too-new"
    WRONG_TARGET = "wrong-target"
    MISSING_PROOF = "missing-proof"
    WRONG_ANSWER = "wrong-answer"
    BAD_UNIT = "bad-unit"
    TILE_OUT_OF_RANGE = "tile-out-of-range"
    TICKET_ABOVE_TARGET = "ticket-above-target"
    WRONG_TILE_STATE = "wrong-tile-state"
    MISSING_STRIPS = "missing-strips"
    WRONG_STRIPS = "wrong-strips"
    REORG_TOO_DEEP = "reorg-too-deep"
    # body, before execution
    WRONG_BODY_ROOT = "wrong-body-root"
    BODY_TOO_LARGE = "body-too-large"
    TOO_MANY_TENSOR_BYTES = "too-many-tensor-bytes"
    TOO_MANY_RESULTS = "too-many-results"
    DUPLICATE_TRANSACTION = "duplicate-transaction"
    DUPLICATE_RESULT = "duplicate-result"
    BAD_PUBLIC_KEY = "bad-public-key"
    BAD_SIGNATURE = "bad-signature"
    # transactions
    WRONG_NONCE = "wrong-nonce"
    GAS_LIMIT_TOO_LOW = "gas-limit-too-low"
    BLOCK_GAS_EXCEEDED = "block-gas-exceeded"
    BASE_FEE_TOO_HIGH = "base-fee-too-high"
    INSUFFICIENT_BALANCE = "insufficient-balance"
    INSUFFICIENT_BOND = "insufficient-bond"
    AMOUNT_OVERFLOW = "amount-overflow"
    BAD_PAYLOAD = "bad-payload"
    UNSUPPORTED_MODE = "unsupported-mode"
    OPERAND_OUT_OF_RANGE = "operand-out-of-range"
    UNIT_TOO_LARGE = "unit-too-large"
    PRICE_TOO_LOW = "price-too-low"
    BAD_EXPIRY = "bad-expiry"
    UNKNOWN_JOB = "unknown-job"
    NOT_OWNER = "not-owner"
    ALREADY_CANCELLED = "already-cancelled"
    UNKNOWN_WORKER = "unknown-worker"
    ALREADY_RETIRED = "already-retired"
    # results
    UNKNOWN_PACKET = "unknown-packet"
    NOT_ASSIGNEE = "not-assignee"
    WRONG_PRODUCT = "wrong-product"
    # result of execution
    WRONG_STATE_ROOT = "wrong-state-root"
    SUPPLY_MISMATCH = "supply-mismatch"


class Refusal(Exception):
    """What a person or a program can meet: `code` (kebab-case, never changes its meaning), `message` and `fix`.

    `message` says what happened, `fix` what to do about it. Neither ever contains a secret: they end up on screens and
    in logs.
    """

    def __init__(self, code: str, message: str, fix: str) -> None:
        self.code = code
        self.message = message
        self.fix = fix
        super().__init__(f"{message}: {fix}")


class ConsensusError(Exception):
    """A rule of the protocol is broken, for good: the same bytes will be refused again.

    Attributes: `reason` the code, `got` and `expected` what was seen and what the rule asks for (any printable value).
    """

    def __init__(self, reason: Reason, got: object = None, expected: object = None) -> None:
        self.reason = reason
        self.got = got
        self.expected = expected
        detail = ""
        if got is not None:
            detail += f": got {_show(got)}"
        if expected is not None:
            detail += f"{',' if detail else ':'} expected {_show(expected)}"
        super().__init__(f"{reason.value}{detail}")


class BadProof(ConsensusError):
    """The proof beside a header is false: that copy and its sender are at fault, never the id."""


class MissingTensor(Exception):
    """A tensor that the block obliges is not at hand yet. Transient: fetch it, then try again."""

    def __init__(self, commitment: bytes) -> None:
        self.commitment = commitment
        super().__init__(f"tensor {commitment.hex()} is not available yet")


def _show(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."
