"""A small asynchronous JSON-RPC 2.0 client of a node: calls over HTTP, subscriptions over a WebSocket, bulk by stream.

    async with RpcClient("http://127.0.0.1:8545") as rpc:
        block = await rpc.call("chain_getBlock", {"height": 7}, result=BlockView)
        async with rpc.subscribe("newHeads", HeadView) as heads:
            async for head in heads:
                ...

The node is not trusted: answers are bounded in size and decoded strictly into the type that was asked for. Every
failure is a `WalletError`: `RpcError` if the node refused, `NetworkError` if it could not be asked or did not make
sense (`RequestTimeout` if it took too long). None of them says whether a call that was sent took effect.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Any, BinaryIO, Generic, NoReturn, Self, TypeVar, overload

import aiohttp
import msgspec
from msgspec import UNSET, Raw, Struct
from yarl import URL

from api import errors
from api.errors import ErrorObject
from api.http import refuse_redirects
from wallet.errors import ExitCode, WalletError

T = TypeVar("T")

ParamsLike = Struct | Mapping[str, object] | Sequence[object]
"""Parameters by name (a struct or a mapping) or by position."""

MAX_ANSWER_BYTES = 32 << 20
"""Three times the largest block in JSON. Of a larger answer no more than this and a little is ever held."""
MAX_EVENT_BYTES = 1 << 20

_CLOSE_SECONDS = 1.0
"""Whatever is closed is gone after this, and whatever the node goes on sending."""

_EXIT_CODES = {
    errors.METHOD_NOT_FOUND.name: ExitCode.USAGE,
    errors.INVALID_PARAMS.name: ExitCode.USAGE,
    errors.NOT_FOUND.name: ExitCode.NOT_FOUND,
    errors.REJECTED.name: ExitCode.REJECTED,
    errors.LIMIT.name: ExitCode.REJECTED,
    errors.FORBIDDEN.name: ExitCode.REJECTED,
    errors.TIMEOUT.name: ExitCode.TIMEOUT,
    errors.NOT_READY.name: ExitCode.NETWORK,
    errors.UNAVAILABLE.name: ExitCode.NETWORK,
}


class RpcError(WalletError):
    """The node answered with an error.

    `code` is the chain's reason where there is one (`wrong-nonce`), else the error's name (`not-found`); `number` is
    JSON-RPC's. `account_nonce`: where a nonce was refused, the first that no block has used.
    """

    def __init__(
        self,
        number: int,
        name: str,
        message: str,
        fix: str,
        reason: str | None = None,
        account_nonce: int | None = None,
    ) -> None:
        code = reason or name.lower().replace("_", "-")
        super().__init__(code, message, fix, _EXIT_CODES.get(name, ExitCode.INTERNAL))
        self.number = number
        self.name = name
        self.reason = reason
        self.account_nonce = account_nonce

    @classmethod
    def of(cls, error: ErrorObject) -> RpcError:
        """What a node answered."""
        data = error.data
        fix = data.fix or "The node did not say what to do."
        return cls(error.code, data.name, error.message, fix, data.reason, data.account_nonce)


class NetworkError(WalletError):
    """The node could not be reached, hung up, or answered what is not JSON-RPC."""

    def __init__(self, message: str, fix: str, code: str = "network", exit_code: ExitCode = ExitCode.NETWORK) -> None:
        super().__init__(code, message, fix, exit_code)


class RequestTimeout(NetworkError):
    """The node did not answer in time."""

    def __init__(self, url: URL, seconds: float) -> None:
        fix = (
            "See whether the node is busy or the network slow; if this was a transaction, look it up before repeating."
        )
        super().__init__(f"{url} did not answer within {seconds:g} s", fix, "timeout", ExitCode.TIMEOUT)


class _Request(Struct, frozen=True):
    id: int
    method: str
    params: Any = UNSET
    jsonrpc: str = "2.0"


class _Notification(Struct, frozen=True):
    subscription: int
    event: Raw


class _Answer(Struct, frozen=True):
    """A response or, without an id, a notification."""

    result: Raw = Raw()
    error: ErrorObject | None = None
    id: int | None = None
    params: _Notification | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)


@asynccontextmanager
async def _within(url: URL, seconds: float) -> AsyncIterator[None]:
    try:
        with _as_network_errors(url):
            async with asyncio.timeout(seconds):
                yield
    except TimeoutError:
        raise RequestTimeout(url, seconds) from None


@contextmanager
def _as_network_errors(url: URL) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except aiohttp.ClientConnectorError as error:
        fix = "See that the node is running and that this is its RPC address."
        raise NetworkError(f"Cannot connect to {url}: {error.strerror or error.os_error}", fix) from error
    except (aiohttp.ClientError, OSError) as error:
        fix = "Try again; if it stays, see the node's log and that this is its RPC address."
        raise NetworkError(f"The connection to {url} failed: {error or type(error).__name__}", fix) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        _refuse_nonsense(url, str(error)[:200], error)


def _refuse_nonsense(url: URL, why: str, cause: BaseException | None = None) -> NoReturn:
    fix = "See that this is the RPC address of a node of the same version."
    raise NetworkError(f"{url} gave an answer that makes no sense: {why}", fix) from cause


class RpcClient:
    """Talks to one node. Made inside a running event loop, and closed at the end: best by `async with`.

    `url` is http(s)://host:port; WebSockets connect to /ws below it. `timeout_seconds` bounds each call, and each
    subscription's beginning, `stream_seconds` each transfer of bulk. Raises `WalletError` for a URL of another kind.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 15.0, stream_seconds: float = 120.0) -> None:
        try:
            self.url = URL(url)
        except ValueError:
            self.url = URL()
        if self.url.scheme not in ("http", "https") or not self.url.host:
            fix = "Write it like http://127.0.0.1:8545."
            raise WalletError("bad-url", f"{url!r} is not the address of a node", fix, ExitCode.USAGE)
        self._timeout_seconds = timeout_seconds
        self._stream_seconds = stream_seconds
        self._ids = itertools.count(1)
        # What a node sends is as large as it looks: nothing is decompressed.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            middlewares=(refuse_redirects,),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cut every connection; after a second at the latest."""
        await _in_time(self._session.close())

    @overload
    async def call(self, method: str, params: ParamsLike | None = None, *, result: type[T]) -> T: ...
    @overload
    async def call(self, method: str, params: ParamsLike | None = None, *, result: Any) -> Any: ...
    async def call(self, method: str, params: ParamsLike | None = None, *, result: Any) -> Any:
        """Call a method; gives its result decoded as the type `result`. Raises `RpcError` or `NetworkError`."""
        request = self._request(method, params)
        async with _within(self.url, self._timeout_seconds):
            raw = self._result_of(request, _answer_decoder.decode(await self._post(request)))
            return msgspec.json.decode(raw, type=result)

    async def put(self, path: str, body: BinaryIO, *, query: Mapping[str, str], result: type[T]) -> T:
        """Stream `body` to a path of the node; gives the answer as `call` does. Raises `RpcError` or `NetworkError`."""
        url = self.url.joinpath(path).with_query(query)
        async with (
            _within(url, self._stream_seconds),
            self._session.put(url, data=body, allow_redirects=False) as response,
        ):
            answer = await _read_bounded(response, url, MAX_ANSWER_BYTES)
            _refuse_error(response, url, answer)
            return msgspec.json.decode(answer, type=result)

    async def get(self, path: str, *, limit: int) -> bytes | None:
        """What a path of the node holds, at most `limit` bytes; None if it is not there."""
        url = self.url.joinpath(path)
        async with (
            _within(url, self._stream_seconds),
            self._session.get(url, allow_redirects=False) as response,
        ):
            answer = await _read_bounded(response, url, limit)
            if response.status == 404:
                return None
            _refuse_error(response, url, answer)
            return answer

    async def has(self, path: str) -> bool:
        """Whether a path of the node holds something."""
        url = self.url.joinpath(path)
        async with (
            _within(url, self._timeout_seconds),
            self._session.head(url, allow_redirects=False) as response,
        ):
            return response.status == 200

    async def is_ready(self) -> bool:
        """Whether the node answers, and says that it takes its full part."""
        url = self.url / "ready"
        try:
            async with (
                _within(url, self._timeout_seconds),
                self._session.get(url, allow_redirects=False) as response,
            ):
                return response.status == 200
        except NetworkError:
            return False

    @asynccontextmanager
    async def subscribe(self, topic: str, event: type[T]) -> AsyncIterator[Subscription[T]]:
        """Subscribe over a connection of its own; events that happen from entry on are delivered, in order.

        Raises `RpcError` or `NetworkError`.
        """
        url = self.url / "ws"
        request = self._request("subscribe", [topic])
        async with _within(url, self._timeout_seconds):
            ws = await self._session.ws_connect(
                url,
                max_msg_size=MAX_EVENT_BYTES,
                heartbeat=30.0,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
            )
        try:
            async with _within(url, self._timeout_seconds):
                await ws.send_str(msgspec.json.encode(request).decode())
                raw = self._result_of(request, await _receive(ws, url))
                number = msgspec.json.decode(raw, type=int)
            yield Subscription(ws, url, number, event)
        finally:
            await _in_time(ws.close())  # aiohttp's own limit begins anew with every frame that comes

    def _request(self, method: str, params: ParamsLike | None) -> _Request:
        assert not isinstance(params, str | bytes), "parameters are a struct, a mapping or a sequence"
        return _Request(next(self._ids), method, UNSET if params is None else params)

    async def _post(self, request: _Request) -> bytes:
        body = msgspec.json.encode(request)
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self.url, data=body, headers=headers, allow_redirects=False) as response:
            if response.content_type != "application/json":
                _refuse_nonsense(self.url, f"HTTP {response.status}, {response.content_type}")
            return await _read_bounded(response, self.url, MAX_ANSWER_BYTES)

    def _result_of(self, request: _Request, answer: _Answer) -> Raw:
        if answer.error is not None:
            raise RpcError.of(answer.error)
        if answer.id != request.id or not memoryview(answer.result).nbytes:
            _refuse_nonsense(self.url, "it does not answer the request")
        return answer.result


class Subscription(Generic[T]):
    """The events of one subscription, in order and without holes: where there would be one, `NetworkError` comes.

    Whoever goes on subscribes again, and asks for what happened meanwhile.
    """

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, url: URL, number: int, event: type[T]) -> None:
        self._ws = ws
        self._url = url
        self._number = number
        self._decoder = msgspec.json.Decoder(event)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        with _as_network_errors(self._url):
            answer = await _receive(self._ws, self._url)
            if answer.params is None or answer.params.subscription != self._number:
                _refuse_nonsense(self._url, "it is not an event of the subscription")
            return self._decoder.decode(answer.params.event)


async def _in_time(closing: Awaitable[object]) -> None:
    """Close, politely if that is quick; cancelled, aiohttp cuts the connection."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await closing


async def _read_bounded(response: aiohttp.ClientResponse, url: URL, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > limit:
            _refuse_nonsense(url, f"more than {limit} bytes")
    return bytes(body)


def _refuse_error(response: aiohttp.ClientResponse, url: URL, body: bytes) -> None:
    """Raise what a path answered, unless it is what was asked for."""
    if 200 <= response.status < 300:
        return
    if response.content_type == "application/json":
        error = _answer_decoder.decode(body).error
        if error is not None:
            raise RpcError.of(error)
    _refuse_nonsense(url, f"HTTP {response.status}, {response.content_type}")


async def _receive(ws: aiohttp.ClientWebSocketResponse, url: URL) -> _Answer:
    message = await ws.receive()
    if message.type is aiohttp.WSMsgType.TEXT:
        return _answer_decoder.decode(message.data)
    why = f": {message.extra}" if message.type is aiohttp.WSMsgType.CLOSE and message.extra else ""
    fix = "Connect again, and ask for what happened meanwhile."
    raise NetworkError(f"{url} closed the connection{why} (code {ws.close_code})", fix)
