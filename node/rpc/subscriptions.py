"""Events for those who asked: a hub of topics, and one bounded feed for each connected client."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from api.errors import INVALID_PARAMS, LIMIT
from node.rpc.jsonrpc import RpcError
from node.rpc.registry import Topic

E = TypeVar("E")


class Hub:
    """Delivers events to whoever subscribed to their topic. Belongs to the event loop's thread."""

    def __init__(self, topics: Iterable[Topic[Any]]) -> None:
        self._topics = {topic.name: topic for topic in topics}
        self._feeds: set[Feed] = set()

    @property
    def topics(self) -> tuple[Topic[Any], ...]:
        return tuple(self._topics.values())

    def publish(self, topic: Topic[E], event: E) -> None:
        """Queue the event for each subscriber; never waits. A topic that is not the hub's is a programmer's error."""
        assert self._topics.get(topic.name) is topic, topic.name
        feeds = [feed for feed in self._feeds if feed.wants(topic)]
        if feeds:
            encoded = Raw(msgspec.json.encode(event))
            for feed in feeds:
                feed.offer(topic, encoded)

    def named(self, name: str) -> Topic[Any]:
        """Raises `RpcError` for a name that is no topic."""
        topic = self._topics.get(name)
        if topic is None:
            raise RpcError(
                INVALID_PARAMS, f"There is no topic {name[:64]!r}", fix=f"Topics: {', '.join(self._topics)}."
            )
        return topic

    def attach(self, feed: "Feed") -> None:
        self._feeds.add(feed)

    def detach(self, feed: "Feed") -> None:
        self._feeds.discard(feed)


class Notification(Struct, frozen=True):
    """`params` of the notification `subscription`."""

    subscription: int
    topic: str
    event: Raw


class _Event(Struct, frozen=True):
    params: Notification
    jsonrpc: str = "2.0"
    method: str = "subscription"


class Feed:
    """One client's subscriptions, and the events that wait to be sent to it, up to a number of bytes."""

    def __init__(self, subscriptions_limit: int, bytes_limit: int) -> None:
        self._subscriptions_limit = subscriptions_limit
        self._bytes_limit = bytes_limit
        self._topics: dict[int, Topic[Any]] = {}
        self._last_id = 0
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self._queued_bytes = 0
        self.overflow = asyncio.Event()
        """Set once the client is too slow: nothing more is queued, and its connection must end."""

    def subscribe(self, topic: Topic[Any]) -> int:
        if len(self._topics) >= self._subscriptions_limit:
            raise RpcError(LIMIT, f"One connection holds at most {self._subscriptions_limit} subscriptions")
        self._last_id += 1
        self._topics[self._last_id] = topic
        return self._last_id

    def unsubscribe(self, subscription: int) -> bool:
        return self._topics.pop(subscription, None) is not None

    def wants(self, topic: Topic[Any]) -> bool:
        return topic in self._topics.values()

    def offer(self, topic: Topic[Any], event: Raw) -> None:
        for subscription, wanted in self._topics.items():
            if wanted is not topic or self.overflow.is_set():
                continue
            frame = msgspec.json.encode(_Event(Notification(subscription, topic.name, event)))
            if self._queued_bytes + len(frame) > self._bytes_limit:
                self.overflow.set()
            else:
                self._queued_bytes += len(frame)
                self._frames.put_nowait(frame)

    async def pump(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send what is queued, for ever."""
        while True:
            frame = await self._frames.get()
            await send(frame)
            self._queued_bytes -= len(frame)
