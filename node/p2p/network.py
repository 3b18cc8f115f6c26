"""The node among its peers: who is connected, who is dialled, and what each of them is told.

The network is an observer of the intake: what the intake has verified goes out to the peers, and what the peers bring
goes in through the intake. All tasks are owned here and end with `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from consensus.transaction import Result, Transaction
from node.chain.chain import Import
from node.chain.store import StorageError
from node.compute import Compute
from node.p2p.book import Book, is_acceptable, network_group, read_book, write_book
from node.p2p.download import BlockChain, BlockIntake, Downloader
from node.p2p.fetch import Fetcher, Tensors
from node.p2p.gossip import Gossip, ItemIntake
from node.p2p.handshake import Acquaintance, Introduction, Refused, greet_dialler, greet_listener, say_goodbye
from node.p2p.identity import Identity
from node.p2p.limits import DEFAULT, MAX_ADDRESSES, Limits
from node.p2p.messages import (
    DECLARATIONS,
    Announce,
    GetBody,
    GetHeaderCopy,
    GetHeaders,
    GetItems,
    GetPeers,
    GetState,
    GetStrips,
    GetTensor,
    Leave,
    Message,
    NewBlock,
    PeerAddress,
    Peers,
    Role,
    Status,
)
from node.p2p.peer import Handlers, Missing, Peer, PeerGone, PeerInfo, PeerStalled
from node.p2p.serving import ServedChain, ServedTensors, Server
from node.p2p.sync import HeaderChain, HeaderSync
from node.p2p.transport import Address, Connection, ConnectionLost, Transport

logger = logging.getLogger("tilework.network")


class NetworkTensors(ServedTensors, Tensors, Protocol):
    """The tensor store, as the network sees it."""


class NetworkChain(HeaderChain, BlockChain, ServedChain, Protocol):
    """The chain, as the network sees it."""

    @property
    def genesis_hash(self) -> bytes: ...
    @property
    def tensors(self) -> NetworkTensors: ...


class NetworkIntake(BlockIntake, ItemIntake, Protocol):
    """The intake, as the network sees it."""

    @property
    def observers(self) -> list[Any]: ...


@dataclass(frozen=True)
class NetworkConfig:
    """What an operator chooses.

    Attributes:
        listen: where to take connections (port 0: any free one); None takes none.
        static_peers: always dialled, whatever the address book says.
        allow_private: private and loopback addresses may be learnt and dialled (devnet).
        book_path: where the address book is kept; None keeps it in memory.
        agent: how the node calls itself.
    """

    listen: Address | None
    static_peers: tuple[Address, ...] = ()
    allow_private: bool = False
    book_path: Path | None = None
    agent: str = "tilework"
    limits: Limits = DEFAULT


class Network:
    """The set of peers. An `Observer` of the intake."""

    def __init__(
        self,
        config: NetworkConfig,
        identity: Identity,
        chain: NetworkChain,
        intake: NetworkIntake,
        transport: Transport,
        clock: Callable[[], int],
        rng: random.Random,
        compute: Compute,
        fatal: Callable[[BaseException], None],
    ) -> None:
        """`clock` gives Unix milliseconds; `fatal` gets the error, or the group, after which the node must stop."""
        limits = config.limits
        self._config = config
        self._limits = limits
        self._identity = identity
        self._chain = chain
        self._intake = intake
        self._transport = transport
        self._clock = clock
        self._rng = rng
        self._compute = compute
        self._fatal = fatal
        self._peers: dict[bytes, Peer] = {}
        self._keys: dict[Address, bytes] = {}
        self._dialling: set[Address] = set()
        self._static: set[Address] = set()
        self._cooling: OrderedDict[bytes | str, float] = OrderedDict()
        self._handshakes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._base = chain.base
        self._listening: Address | None = None
        self.book = Book(config.allow_private, rng, limits)
        self._server = Server(chain, compute, limits.state_page_bytes)
        self._headers = HeaderSync(chain, compute, limits, self._headers_arrived)
        blocks = Fetcher(chain.tensors, intake, compute, limits.download_bytes, rng)
        self._downloader = Downloader(chain, intake, self._headers, blocks, compute, limits)
        items = Fetcher(chain.tensors, intake, compute, limits.gossip_bytes, rng)
        self._gossip = Gossip(intake, chain.genesis_hash, items, self._present, compute, limits)
        self._handlers = self._handler_table()

    @property
    def address(self) -> Address | None:
        """Where this node takes connections, once started."""
        return self._listening

    async def start(self) -> None:
        """Listen and begin to dial.

        Raises:
            OSError: the address is in use, or not this machine's.
        """
        if self._config.book_path is not None:
            await self._compute.run(read_book, self.book, self._config.book_path)
        if self._config.listen is not None:
            self._listening = await self._transport.listen(self._config.listen, self._accept)
            logger.info("listening for peers", extra={"address": str(self._listening)})
        self._intake.observers.append(self)
        for service in (
            self._headers.retry_early,
            self._downloader.run,
            self._downloader.fetch_operands,
            self._gossip.announce,
            self._tell_status,
            self._dial_book,
            self._keep_book,
        ):
            self._spawn(service())
        for address in self._config.static_peers:
            self.add_peer(address)

    async def stop(self) -> None:
        """Say goodbye, end every task and connection; within `stop_s`."""
        if self._stopping:
            return
        self._stopping = True
        if self in self._intake.observers:
            self._intake.observers.remove(self)
        self._note_anchors()
        for peer in self._present():
            peer.leave(Leave.STOPPING)
        for task in self._tasks - self._sessions:
            task.cancel()
        everything = self._tasks | self._sessions
        if everything:
            _, late = await asyncio.wait(everything, timeout=self._limits.stop_s / 2)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=self._limits.stop_s / 4)
        await self._transport.close()
        if self._config.book_path is not None:
            await self._compute.run(write_book, self.book.dump(), self._config.book_path)

    def peers(self) -> list[PeerInfo]:
        """Who is connected."""
        return [peer.info() for peer in self._present()]

    def add_peer(self, address: Address) -> None:
        """Dial an address from now on, again and again."""
        if address not in self._static:
            self._static.add(address)
            self._spawn(self._keep_dialling(address))

    # ------------------------------------------------------------------ observer of the intake

    def new_tip(self, change: Import) -> None:
        """Tell the peers, unless many more blocks are about to follow."""
        self._downloader.wake()
        self._gossip.new_tip()
        tip, status = self._chain.tip, self._server.status()
        if self._chain.base is not self._base:  # before anybody asks for bodies that are not here
            self._base = self._chain.base
            for peer in self._present():
                peer.send(status)
        if tip.total_work < self._chain.best_header.total_work:
            return
        for peer in self._present():
            if peer.note_known(tip.id):
                told = peer.send(NewBlock(change.connected[-1].block.header))
            else:
                told = peer.send(status)
            peer.told = tip.id if told else b""

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        """Announce it."""
        self._gossip.new_transaction(tx, txid)

    def new_result(self, result: Result, identity: bytes) -> None:
        """Announce it."""
        self._gossip.new_result(result, identity)

    # ------------------------------------------------------------------ sessions

    async def _accept(self, connection: Connection) -> None:
        """The transport's callback: one inbound connection from start to end."""
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            if (unwanted := self._unwanted_host(connection.remote.host)) is not None:
                await say_goodbye(connection, unwanted)
                return
            self._handshakes += 1
            try:
                async with asyncio.timeout(self._limits.handshake_s):
                    acquaintance = await greet_dialler(connection, self._introduction(), self._unwanted_dialler)
            finally:
                self._handshakes -= 1
            await self._session(connection, acquaintance, inbound=True)
        except (Refused, ConnectionLost, TimeoutError) as error:
            logger.debug("no peer came about", extra={"remote": str(connection.remote), "why": repr(error)})
        finally:
            self._sessions.discard(task)
            await connection.close()

    async def _dial(self, address: Address) -> None:
        """One outbound connection from start to end.

        Raises:
            Refused, ConnectionLost: it did not come about.
        """
        self._dialling.add(address)
        try:
            async with asyncio.timeout(self._limits.dial_s):
                connection = await self._transport.dial(address)
            try:
                self._keys[address] = connection.listener_key
                async with asyncio.timeout(self._limits.handshake_s):
                    acquaintance = await greet_listener(connection, self._introduction())
                if (unwanted := self._unwanted(acquaintance.key, inbound=False)) is not None:
                    await say_goodbye(connection, unwanted)
                    raise Refused(unwanted)
                self.book.note_answer(address, self._clock())
                await self._session(connection, acquaintance, inbound=False)
            finally:
                await connection.close()
        except TimeoutError:
            raise ConnectionLost(f"{address}: no answer in time") from None
        finally:
            self._dialling.discard(address)

    async def _session(self, connection: Connection, acquaintance: Acquaintance, inbound: bool) -> None:
        """Both ends have agreed: run the peer until it goes."""
        if (unwanted := self._unwanted(acquaintance.key, inbound)) is not None:
            await say_goodbye(connection, unwanted)
            return
        replaced = self._peers.get(acquaintance.key)
        if replaced is not None:
            replaced.leave(Leave.DUPLICATE)
        peer = self._peers[acquaintance.key] = Peer(connection, inbound, acquaintance, self._handlers, self._limits)
        logger.info("peer connected", extra={"peer": peer.name, "address": str(peer.address), "inbound": inbound})
        if inbound and peer.listen_port:
            self._keys[_home(peer)] = peer.key
            self.book.add(_home(peer), self._clock())
        companions = [self._headers.follow, self._gossip.follow]
        if not inbound:
            companions.append(self._learn_addresses)
        try:
            await peer.run(*companions)
        except* StorageError as errors:
            self._fatal(errors)
        except* Exception:
            logger.exception("session failed", extra={"peer": peer.name})
        finally:
            if self._peers.get(peer.key) is peer:
                del self._peers[peer.key]
            if peer.departure is Leave.MISBEHAVED:
                self._cool_down(peer)
            why = peer.departure.name if peer.departure is not None else "gone"
            logger.info("peer disconnected", extra={"peer": peer.name, "why": why, "score": round(peer.score)})

    async def _learn_addresses(self, peer: Peer) -> None:
        """Companion of an outbound session: whom we chose to dial may name others."""
        while True:
            with contextlib.suppress(Missing, PeerStalled):
                answer = await peer.request(GetPeers(), Peers)
                for found in answer.addresses:
                    self.book.add(Address(found.host, found.port), self._clock())
            await asyncio.sleep(self._limits.book_learn_s)

    # ------------------------------------------------------------------ who is wanted

    def _unwanted_host(self, host: str) -> Leave | None:
        """Why a connection from this host is not even greeted."""
        if self._stopping:
            return Leave.STOPPING
        if self._is_cooling(host):
            return Leave.COOLING_DOWN
        same = sum(peer.inbound and peer.address.host == host for peer in self._present())
        if self._handshakes >= self._limits.max_handshakes:
            return Leave.FULL
        if same >= self._limits.max_inbound_per_host and not _is_local(host):
            return Leave.FULL
        return None

    def _unwanted_dialler(self, key: bytes) -> Leave | None:
        return self._unwanted(key, inbound=True)

    def _unwanted(self, key: bytes, inbound: bool) -> Leave | None:
        """Why a peer with this key is not wanted, or no longer."""
        if self._stopping:
            return Leave.STOPPING
        if self._is_cooling(key):
            return Leave.COOLING_DOWN
        present = self._peers.get(key)
        if present is not None and not present.is_gone:
            # Two nodes that dial each other at once must keep the same connection: the one that the lesser key dialled.
            lesser_dialled = (key < self._identity.key) == inbound
            return None if present.inbound != inbound and lesser_dialled else Leave.DUPLICATE
        if inbound and self._count(inbound=True) >= self._limits.max_inbound:
            return Leave.FULL
        return None

    def _cool_down(self, peer: Peer) -> None:
        """Leave a misbehaving peer alone for a while: its key, and its host unless many honest nodes may share it."""
        until = asyncio.get_running_loop().time() + self._limits.cool_down_s
        self._cooling[peer.key] = until
        if not _is_local(peer.address.host):
            self._cooling[peer.address.host] = until
        while len(self._cooling) > self._limits.max_cooling:
            self._cooling.popitem(last=False)

    def _is_cooling(self, what: bytes | str) -> bool:
        return self._cooling.get(what, 0.0) > asyncio.get_running_loop().time()

    def _present(self) -> list[Peer]:
        return [peer for peer in self._peers.values() if not peer.is_gone]

    def _count(self, inbound: bool) -> int:
        return sum(peer.inbound == inbound for peer in self._present())

    # ------------------------------------------------------------------ dialling

    async def _keep_dialling(self, address: Address) -> None:
        """A configured peer: dial, and dial again with growing, jittered pauses, for ever."""
        pause = self._limits.backoff_first_s
        loop = asyncio.get_running_loop()
        while True:
            key = self._keys.get(address)
            if key is None or (key not in self._peers and not self._is_cooling(key)):
                begun = loop.time()
                try:
                    await self._dial(address)
                except Refused as refusal:
                    logger.info("peer refuses", extra={"address": str(address), "why": str(refusal)})
                    if refusal.reason is Leave.SELF:
                        return
                except ConnectionLost as error:
                    logger.debug("dial failed", extra={"address": str(address), "why": str(error)})
                lasted = loop.time() - begun > 2 * self._limits.backoff_most_s
                pause = self._limits.backoff_first_s if lasted else min(2 * pause, self._limits.backoff_most_s)
            else:
                pause = self._limits.backoff_first_s
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))

    async def _dial_book(self) -> None:
        """Fill the outbound places: first with the anchors, then from the book, one network group each."""
        waiting = list(self.book.anchors)
        while True:
            if len(self._dialling) < self._limits.max_outbound:  # an address stays there while its session lasts
                address = waiting.pop(0) if waiting else self._pick()
                if address is not None and address not in self._dialling | self._static:
                    self._spawn(self._dial_once(address))
            await asyncio.sleep(self._limits.book_dial_s * self._rng.uniform(0.5, 1.0))

    def _pick(self) -> Address | None:
        connected = {peer.address for peer in self._present()}
        connected |= {address for address, key in self._keys.items() if key in self._peers}
        groups = {_group(peer.address) for peer in self._present() if not peer.inbound}
        own = {self._listening} if self._listening is not None else set()
        return self.book.pick(self._clock(), connected | self._dialling | self._static | own, groups)

    async def _dial_once(self, address: Address) -> None:
        try:
            await self._dial(address)
        except Refused as refusal:
            if refusal.reason in (Leave.SELF, Leave.WRONG_GENESIS):
                self.book.forget(address)
            else:
                self.book.note_failure(address, self._clock())
        except ConnectionLost:
            self.book.note_failure(address, self._clock())
        finally:
            if address not in self._static and self._keys.get(address) not in self._peers:
                self._keys.pop(address, None)

    # ------------------------------------------------------------------ services

    async def _tell_status(self) -> None:
        """Now and then, tell whoever has not heard where this node stands."""
        while True:
            await asyncio.sleep(self._limits.ping_interval_s)
            for peer in self._present():
                if peer.told != self._chain.tip.id and peer.send(self._server.status()):
                    peer.told = self._chain.tip.id

    async def _keep_book(self) -> None:
        while True:
            await asyncio.sleep(self._limits.book_save_s)
            self._note_anchors()
            if self._config.book_path is not None:
                await self._compute.run(write_book, self.book.dump(), self._config.book_path)

    def _note_anchors(self) -> None:
        outbound = [peer.address for peer in self._present() if not peer.inbound]
        if outbound:
            self.book.set_anchors(outbound)

    def _headers_arrived(self) -> None:
        self._downloader.wake()

    def _introduction(self) -> Introduction:
        port = self._listening.port if self._listening is not None else 0
        genesis = self._chain.genesis_hash
        return Introduction(self._identity, genesis, self._config.agent, port, self._server.status)

    def _handler_table(self) -> Handlers:
        """Every request and notice of the message table has its handler here."""
        handlers = Handlers(
            requests={
                GetHeaders: self._server.headers,
                GetHeaderCopy: self._server.header_copy,
                GetStrips: self._server.strips,
                GetBody: self._server.body,
                GetTensor: self._server.tensor,
                GetState: self._server.state,
                GetItems: self._serve_items,
                GetPeers: self._serve_peers,
            },
            notices={
                Status: self._headers.note_status,
                NewBlock: self._headers.note_block,
                Announce: self._gossip.note_announcement,
            },
        )
        assert set(handlers.requests) == {row.struct for row in DECLARATIONS if row.role is Role.REQUEST}
        assert set(handlers.notices) == {row.struct for row in DECLARATIONS if row.role is Role.NOTICE}
        return handlers

    async def _serve_items(self, peer: Peer, request: GetItems) -> Message:
        return self._gossip.items(request)

    async def _serve_peers(self, peer: Peer, request: GetPeers) -> Message:
        """Where others listen: who is connected now, then who answered once."""
        connected = [_home(other) for other in self._present() if other is not peer]
        addresses = [home for home in connected if is_acceptable(home, self._config.allow_private)]
        addresses += self.book.sample(MAX_ADDRESSES)
        return Peers(tuple(PeerAddress(*address) for address in list(dict.fromkeys(addresses))[:MAX_ADDRESSES]))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """An error that no service expects ends the node: going on half alive would hide it."""
        try:
            await work
        except PeerGone:
            pass
        except Exception as error:
            logger.exception("network service failed")
            self._fatal(error)


def _home(peer: Peer) -> Address:
    """Where a peer listens, as far as it told; port 0 where it does not."""
    return Address(peer.address.host, peer.listen_port) if peer.inbound else peer.address


def _is_local(host: str) -> bool:
    """Loopback and private networks: many nodes may share the host."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _group(address: Address) -> str:
    try:
        return network_group(address)
    except ValueError:
        return address.host
