"""JSON-RPC 2.0 envelopes: from the bytes of one message to the bytes of its answer.

Source: https://www.jsonrpc.org/specification. Here is neither transport nor any method: `Dispatcher.respond` takes
a message and a `Call`, and whoever owns the methods supplies the latter.

Where the specification leaves a choice:

- A request has no members beyond its four: a misspelt `params` is an error rather than a call without parameters.
  Nor does a member occur twice: whoever inspects traffic on the way must read what we read.
- An id is a string, an integer of any size, or null, and is echoed digit for digit.
- A batch runs in order, one call after the other: transactions of one sender arrive as they were written. Its calls
  share one deadline and one allowance for the size of the answer.
- An error carries `data`: `name` (a stable word), `fix` (what to do), `reason` where the chain's rules gave one, and
  `incident` for an internal error, whose traceback stays in the node's log under that number.

JSON is parsed by msgspec alone. Nested values stay raw until their type is known, so that a message of millions of
tiny elements never becomes millions of objects.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from typing import Literal, NoReturn

import msgspec
from msgspec import Raw, Struct

from api.errors import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    LIMIT,
    PARSE_ERROR,
    TIMEOUT,
    ErrorData,
    ErrorKind,
    ErrorObject,
)

logger = logging.getLogger(__name__)

MAX_BATCH = 100
MAX_BATCH_ANSWER_BYTES = 8 << 20
"""After so much the rest of a batch is refused: it is some of the largest blocks, and answers wait in memory."""

NULL = Raw(b"null")
_MEMBERS = (b'"jsonrpc"', b'"method"', b'"params"', b'"id"')

NO_METHOD = "(none)"
"""What `Observe` is told instead of a method's name where none of ours was named: labels must stay bounded."""


class RpcError(Exception):
    """An error that the client sees. Without `message`, the kind's own; without `fix`, its documentation.

    `reason` is the stable code of the broken rule where the chain refused something, `nonces` the account's and the
    next that is free, where that is what was refused.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str | None = None,
        *,
        fix: str | None = None,
        reason: str | None = None,
        incident: str | None = None,
        nonces: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.kind = kind
        data = ErrorData(kind.name, fix or kind.doc, reason, incident, *nonces)
        self.object = ErrorObject(kind.code, message or kind.message, data)
        super().__init__(self.object.message)

    def response(self, request_id: Raw = NULL) -> bytes:
        """The whole response object, as JSON."""
        return msgspec.json.encode(_Failure(self.object, request_id))


def internal_error(where: str) -> RpcError:
    """Log the exception being handled under a fresh incident number; the client gets the number only."""
    incident = secrets.token_hex(6)
    logger.exception("incident %s in %s", incident, where)
    return RpcError(
        INTERNAL_ERROR,
        fix=f"This is a fault of the node; its operator finds incident {incident} in its log.",
        incident=incident,
    )


class _Request(Struct, frozen=True, forbid_unknown_fields=True):
    jsonrpc: Literal["2.0"]
    method: str
    params: Raw = Raw()
    id: Raw = Raw()

    @property
    def is_notification(self) -> bool:
        return is_absent(self.id)


class _Identified(Struct, frozen=True):
    """Whatever can be said of a request that is otherwise invalid."""

    id: Raw = Raw()


class _Success(Struct, frozen=True):
    result: Raw
    id: Raw
    jsonrpc: Literal["2.0"] = "2.0"


class _Failure(Struct, frozen=True):
    error: ErrorObject
    id: Raw
    jsonrpc: Literal["2.0"] = "2.0"


class _Name(str):
    """An object's key, of a type of its own so that decoding shows us each one, repeated ones included."""

    __slots__ = ()


_REQUEST_FORM = (
    'A request is {"jsonrpc": "2.0", "method": string, "params": array or object, "id": string, integer or null}; '
    "`params` may be left out, and a request without `id` is a notification."
)

_raw_decoder = msgspec.json.Decoder(Raw)
_request_decoder = msgspec.json.Decoder(_Request)
_identified_decoder = msgspec.json.Decoder(_Identified)
_id_decoder: msgspec.json.Decoder[int | str | None] = msgspec.json.Decoder(int | str | None)


def first_byte(raw: Raw) -> bytes:
    """What kind of JSON value it is (blanks are already gone); empty for a member that was left out."""
    return bytes(memoryview(raw)[:1])


def is_absent(raw: Raw) -> bool:
    """Whether the member was left out, which differs from null."""
    return not memoryview(raw).nbytes


def excerpt(text: object, limit: int = 200) -> str:
    """A client's own words, or an error that quotes them, short enough to send back."""
    words = str(text)
    return words if len(words) <= limit else words[: limit - 1] + "…"


def decode_array(raw: Raw, limit: int) -> list[Raw]:
    """The elements of a JSON array, undecoded.

    Raises `msgspec.ValidationError` for anything but an array of at most `limit` elements, as soon as it meets the
    first one too many: `list[Raw]` would build millions of objects before it looked at their number.
    """
    row = _row_decoder(limit).decode(raw)
    elements: list[Raw] = [getattr(row, field) for field in row.__struct_fields__]
    return [element for element in elements if not is_absent(element)]


@cache
def _row_decoder(limit: int) -> msgspec.json.Decoder[Struct]:
    fields = [(f"e{i}", Raw, Raw()) for i in range(limit)]
    return msgspec.json.Decoder(
        msgspec.defstruct("Row", fields, array_like=True, forbid_unknown_fields=True, frozen=True)
    )


def visit_names(raw: Raw, visit: Callable[[str], None]) -> None:
    """Call `visit` with every key of a JSON object in order, repeated ones too; `visit` raises `RpcError` to refuse."""

    def key(_type: type, name: str) -> _Name:
        visit(name)
        return _Name(name)

    msgspec.json.decode(raw, type=dict[_Name, Raw], dec_hook=key)


Call = Callable[[str, Raw], Awaitable[bytes]]
"""Calls a method by name with its undecoded params (empty if absent); gives its result as JSON or raises `RpcError`."""

Ready = Callable[[str, Raw], bytes | None]
"""Gives the result of a method as JSON where it is at hand; None, or an `RpcError`: the call takes the usual way."""

Keep = Callable[[int], None]
"""Told how many bytes each answer takes, before the next is made; may raise to end all of them."""

Observe = Callable[[str, float, str], None]
"""Told of each call: method (or `NO_METHOD`), seconds, outcome (`OK` or the name of an error)."""


class Dispatcher:
    """Answers messages: one request, or a batch of at most `MAX_BATCH`, within `call_seconds` altogether."""

    def __init__(self, names: Collection[str], *, call_seconds: float, observe: Observe) -> None:
        """`names` are the methods that there are: no other name is ever told to `observe`, however its call ends."""
        self._names = names
        self._call_seconds = call_seconds
        self._observe = observe

    def at_once(self, message: bytes, ready: Ready) -> bytes | None:
        """The answer to one plain request, where `ready` has its result: nothing is waited for.

        None: `respond` to it. That is so for batches, for notifications, for whatever is wrong with it, and for what
        would take a closer look: a backslash could spell a member's name a second time.
        """
        begin = time.perf_counter()
        if not message.isascii() or b"\\" in message:
            return None
        for name in _MEMBERS:
            if message.count(name) > 1:
                return None
        try:
            request = _request_decoder.decode(message)
            request_id = bytes(request.id)
            if not (request_id.isdigit() or request_id[:1] == b'"'):
                return None
            result = ready(request.method, request.params)
        except (msgspec.DecodeError, RecursionError, RpcError):
            return None
        if result is None:
            return None
        self._observe(request.method, time.perf_counter() - begin, "OK")
        return b'{"result":%b,"id":%b,"jsonrpc":"2.0"}' % (result, request_id)

    async def respond(self, message: str | bytes, call: Call, keep: Keep) -> bytes | None:
        """The answer to one message as JSON, or None where none is due (notifications).

        A call past its time is cancelled. Work that a handler has handed to a thread runs on there. Raises what `keep`
        raises, and nothing else.
        """
        deadline = asyncio.get_running_loop().time() + self._call_seconds
        try:
            document = _parse(message)
            if first_byte(document) != b"[":
                return await self._respond_one(document, call, keep, deadline)
            batch = _parse_batch(document)
        except RpcError as error:
            self._observe(NO_METHOD, 0.0, error.kind.name)
            return error.response()
        return await self._respond_all(batch, call, keep, deadline)

    async def _respond_all(self, batch: list[Raw], call: Call, keep: Keep, deadline: float) -> bytes | None:
        answers: list[Raw] = []
        spare_bytes = MAX_BATCH_ANSWER_BYTES
        for element in batch:
            await asyncio.sleep(0)  # whoever else waits comes in between, however little each call awaits
            answer = await self._respond_one(element, call if spare_bytes > 0 else _refuse_more, keep, deadline)
            if answer is not None:
                answers.append(Raw(answer))
                spare_bytes -= len(answer)
        return msgspec.json.encode(answers) if answers else None

    async def _respond_one(self, raw: Raw, call: Call, keep: Keep, deadline: float) -> bytes | None:
        try:
            request = _parse_request(raw)
        except RpcError as error:
            self._observe(NO_METHOD, 0.0, error.kind.name)
            return error.response(_identify(raw))
        clock = asyncio.get_running_loop().time
        begin = clock()
        method, outcome = request.method if request.method in self._names else NO_METHOD, "OK"
        try:
            answer = msgspec.json.encode(_Success(await _run(request, call, deadline), request.id))
        except RpcError as error:
            outcome = error.kind.name
            answer = error.response(request.id)
        self._observe(method, clock() - begin, outcome)
        if request.is_notification:
            return None
        keep(len(answer))
        return answer


async def _run(request: _Request, call: Call, deadline: float) -> Raw:
    """The result, as JSON; every failure but cancellation from outside becomes an `RpcError`."""
    if asyncio.get_running_loop().time() >= deadline:
        raise RpcError(TIMEOUT)
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            return Raw(await call(request.method, request.params))
    except RpcError:
        raise
    except Exception as error:
        if isinstance(error, TimeoutError) and limit.expired():
            raise RpcError(TIMEOUT) from None
        raise internal_error(request.method) from None


async def _refuse_more(_method: str, _params: Raw) -> bytes:
    raise RpcError(LIMIT, "The batch's answer is too large", fix="Send fewer calls in one batch.")


def _parse(message: str | bytes) -> Raw:
    """Check the whole message's syntax; gives it without surrounding blanks."""
    try:
        text = message.decode() if isinstance(message, bytes) else message
        return _raw_decoder.decode(text)
    except RecursionError:
        raise RpcError(PARSE_ERROR, fix="The JSON is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RpcError(PARSE_ERROR, fix=f"Send one JSON document in UTF-8: {excerpt(error)}.") from None


def _parse_batch(raw: Raw) -> list[Raw]:
    try:
        batch = decode_array(raw, MAX_BATCH)
    except msgspec.ValidationError:
        raise RpcError(
            LIMIT, f"A batch holds at most {MAX_BATCH} requests", fix="Split it into several messages."
        ) from None
    if not batch:
        raise RpcError(INVALID_REQUEST, fix="An empty batch asks for nothing; send at least one request.")
    return batch


def _parse_request(raw: Raw) -> _Request:
    try:
        request = _request_decoder.decode(raw)
        _refuse_repeats(raw)
        _id_decoder.decode(request.id if not request.is_notification else NULL)
    except (msgspec.ValidationError, RecursionError) as error:
        _refuse_request(excerpt(error))
    if first_byte(request.params) not in (b"", b"[", b"{"):
        _refuse_request("`params` is an array or an object, or is left out")
    return request


def _refuse_request(why: str) -> NoReturn:
    raise RpcError(INVALID_REQUEST, fix=f"{why}. {_REQUEST_FORM}")


def _refuse_repeats(raw: Raw) -> None:
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            _refuse_request(f"`{name}` is given twice")
        seen.add(name)

    visit_names(raw, visit)


def _identify(raw: Raw) -> Raw:
    """The id of an invalid request if it has a valid one, else null, as the specification asks."""
    try:
        _refuse_repeats(raw)
        request_id = _identified_decoder.decode(raw).id
        if not is_absent(request_id):
            _id_decoder.decode(request_id)
            return request_id
    except (msgspec.ValidationError, RecursionError, RpcError):
        pass
    return NULL
