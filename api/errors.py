"""The errors that a node answers with: JSON-RPC's own and the chain's (https://www.jsonrpc.org/specification)."""

from __future__ import annotations

from msgspec import Struct

from api.fields import Count


class ErrorKind(Struct, frozen=True):
    """One row of the table of errors: `status` is its HTTP status where an answer is not JSON-RPC (streams)."""

    code: int
    name: str
    message: str
    status: int
    doc: str


class ErrorData(Struct, frozen=True, omit_defaults=True):
    """`error.data`: what a program or a person needs in order to react.

    `name` is the kind's, `fix` says what to do, `reason` is the stable code of the broken rule where the chain refused
    something, `incident` finds an internal error in the node's log. Where a transaction's nonce was refused,
    `account_nonce` is the first that no block has used, `next_nonce` the first that is not pending either.
    """

    name: str = "UNKNOWN"
    fix: str = ""
    reason: str | None = None
    incident: str | None = None
    account_nonce: Count | None = None
    next_nonce: Count | None = None


class ErrorObject(Struct, frozen=True):
    """`error` of a response."""

    code: int
    message: str
    data: ErrorData = ErrorData()


PARSE_ERROR = ErrorKind(-32700, "PARSE_ERROR", "Parse error", 400, "The message is not JSON.")
INVALID_REQUEST = ErrorKind(
    -32600, "INVALID_REQUEST", "Invalid Request", 400, "The message is JSON, but not a JSON-RPC 2.0 request."
)
METHOD_NOT_FOUND = ErrorKind(
    -32601, "METHOD_NOT_FOUND", "Method not found", 404, "The node has no such method; `rpc.discover` lists them."
)
INVALID_PARAMS = ErrorKind(
    -32602, "INVALID_PARAMS", "Invalid params", 400, "A parameter is missing, unknown, or of the wrong type or range."
)
INTERNAL_ERROR = ErrorKind(
    -32603,
    "INTERNAL_ERROR",
    "Internal error",
    500,
    "A fault of the node; `data.incident` finds it in the node's log.",
)
NOT_FOUND = ErrorKind(-32001, "NOT_FOUND", "Not found", 404, "What was asked for does not exist, or is not known here.")
REJECTED = ErrorKind(
    -32002,
    "REJECTED",
    "Rejected",
    422,
    "The rules of the chain or of the mempool refuse it; `data.reason` says which.",
)
LIMIT = ErrorKind(-32003, "LIMIT", "Limit exceeded", 413, "Too large, too many or too often; ask for less.")
TIMEOUT = ErrorKind(
    -32004, "TIMEOUT", "Timed out", 504, "The call took longer than allowed and was stopped; it may be repeated."
)
NOT_READY = ErrorKind(-32005, "NOT_READY", "Not ready", 503, "The node is starting or still syncing; try again.")
UNAVAILABLE = ErrorKind(
    -32006,
    "UNAVAILABLE",
    "Unavailable",
    503,
    "This node or this connection does not offer it, or no longer keeps it.",
)
FORBIDDEN = ErrorKind(
    -32007, "FORBIDDEN", "Forbidden", 403, "The Host or Origin of the HTTP request is not on the node's list."
)

ERRORS = (
    PARSE_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    INVALID_PARAMS,
    INTERNAL_ERROR,
    NOT_FOUND,
    REJECTED,
    LIMIT,
    TIMEOUT,
    NOT_READY,
    UNAVAILABLE,
    FORBIDDEN,
)
assert len({kind.code for kind in ERRORS}) == len({kind.name for kind in ERRORS}) == len(ERRORS)
assert all(-32099 <= kind.code <= -32000 for kind in ERRORS[5:]), "the specification reserves the rest"
