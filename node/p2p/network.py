"""The node among its peers: who is connected, who is dialled, and what each of them is told.

The network is an observer of the intake: what the intake has verified goes out to the peers, and what the peers bring
goes in through the intake. All tasks are owned here and end with `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from consensus.transaction import Result, Transaction
from node.chain.chain import Import
from node.chain.store import StorageError
from node.compute import BYTE_S, Compute, Shares
from node.p2p.admission import Admission
from node.p2p.book import Book, is_acceptable, read_book, write_book
from node.p2p.dialler import Dialler
from node.p2p.download import BlockChain, BlockIntake, Downloader
from node.p2p.fetch import Fetcher, Tensors
from node.p2p.gossip import Gossip, ItemIntake
from node.p2p.handshake import Acquaintance, Introduction, Refused, greet_dialler, greet_listener, say_goodbye
from node.p2p.identity import Identity
from node.p2p.limits import DEFAULT, MAX_ADDRESSES, PeerLimits
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
from node.p2p.transport import Connection, ConnectionLost, Endpoint, Transport

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

    listen: Endpoint | None
    static_peers: tuple[Endpoint, ...] = ()
    allow_private: bool = False
    book_path: Path | None = None
    agent: str = "tilework"
    limits: PeerLimits = DEFAULT


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
        shares: Shares,
        fatal: Callable[[BaseException], None],
    ) -> None:
        """`clock` gives Unix milliseconds; on `shares` runs what peers ask for; `fatal` gets the error, or the group,
        after which the node must stop."""
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
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[asyncio.Task[Any]] = set()
        self._base = chain.base
        self._listening: Endpoint | None = None
        self._stopping = False
        self._admission: Admission[Peer] = Admission(identity.key, limits, rng)
        self.book = Book(config.allow_private, rng, limits)
        self._dialler = Dialler(self._connect, self._spawn, self._admission, self.book, limits, clock, rng)
        self._server = Server(chain, shares, limits.state_page_bytes)
        self._headers = HeaderSync(chain, compute, limits, self._headers_arrived)
        blocks = Fetcher(chain.tensors, intake, compute, limits.download_bytes, rng)
        self._downloader = Downloader(chain, intake, self._headers, blocks, compute, limits)
        items = Fetcher(chain.tensors, intake, compute, limits.gossip_bytes, rng, limits.bytes_turn_s)
        self._gossip = Gossip(intake, chain.genesis_hash, items, self._admission.present, shares, limits)
        self._handlers = self._handler_table(shares)

    @property
    def address(self) -> Endpoint | None:
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
            self._dialler.own = self._listening
            logger.info("listening for peers", extra={"address": str(self._listening)})
        self._intake.observers.append(self)
        for service in (
            self._headers.retry_early,
            self._downloader.run,
            self._downloader.fetch_operands,
            self._gossip.announce,
            self._tell_status,
            self._dialler.fill,
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
        self._admission.close()
        if self in self._intake.observers:
            self._intake.observers.remove(self)
        self._note_anchors()
        for peer in self._admission.present():
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
        return [peer.info() for peer in self._admission.present()]

    def only_group(self) -> str:
        """The network group that all peers are of; empty where there is no such danger."""
        return self._admission.only_group()

    def add_peer(self, address: Endpoint) -> None:
        """Dial an address from now on, again and again."""
        self._dialler.keep(address)

    # ------------------------------------------------------------------ observer of the intake

    def new_tip(self, change: Import) -> None:
        """Tell the peers, unless many more blocks are about to follow."""
        self._downloader.wake()
        self._gossip.new_tip()
        tip, status = self._chain.tip, self._server.status()
        if self._chain.base is not self._base:  # before anybody asks for bodies that are not here
            self._base = self._chain.base
            for peer in self._admission.present():
                peer.send(status)
        if self._downloader.is_on_its_way:
            return
        for peer in self._admission.present():
            if peer.note_known(tip.id):
                told = peer.send(NewBlock(change.connected[-1].block.header))
            else:
                told = peer.send(status)
            peer.told = tip.id if told else b""

    def new_transaction(self, tx: Transaction, txid: bytes) -> None:
        """Announce it."""
        self._gossip.new_transaction(tx, txid)

    def new_result(self, result: Result, result_id: bytes) -> None:
        """Announce it."""
        self._gossip.new_result(result, result_id)

    # ------------------------------------------------------------------ sessions

    async def _accept(self, connection: Connection) -> None:
        """The transport's callback: one inbound connection from start to end."""
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            if (unwanted := self._admission.unwanted_host(connection.remote.host)) is not None:
                await say_goodbye(connection, unwanted)
                return
            async with asyncio.timeout(self._limits.handshake_s):
                acquaintance = await greet_dialler(
                    connection, self._introduction(), lambda key: self._admission.unwanted(key, inbound=True)
                )
            await self._session(connection, acquaintance, inbound=True)
        except (Refused, ConnectionLost, TimeoutError) as error:
            logger.debug("no peer came about", extra={"remote": str(connection.remote), "why": repr(error)})
        finally:
            self._sessions.discard(task)
            await connection.close()

    async def _connect(self, address: Endpoint) -> None:
        """One outbound connection from start to end.

        Raises:
            Refused, ConnectionLost: it did not come about.
        """
        try:
            async with asyncio.timeout(self._limits.dial_s):
                connection = await self._transport.dial(address)
            try:
                self._dialler.note_key(address, connection.listener_key)
                async with asyncio.timeout(self._limits.handshake_s):
                    acquaintance = await greet_listener(connection, self._introduction())
                if (unwanted := self._admission.unwanted(acquaintance.key, inbound=False)) is not None:
                    await say_goodbye(connection, unwanted)
                    raise Refused(unwanted)
                self.book.note_answer(address, self._clock())
                await self._session(connection, acquaintance, inbound=False)
            finally:
                await connection.close()
        except TimeoutError:
            raise ConnectionLost(f"{address}: no answer in time") from None

    async def _session(self, connection: Connection, acquaintance: Acquaintance, inbound: bool) -> None:
        """Both ends have agreed: run the peer until it goes."""
        if (unwanted := self._admission.unwanted(acquaintance.key, inbound)) is not None:
            await say_goodbye(connection, unwanted)
            return
        peer = Peer(connection, inbound, acquaintance, self._handlers, self._limits)
        self._admission.admit(peer)
        connection.settle()
        logger.info("peer connected", extra={"peer": peer.name, "address": str(peer.address), "inbound": inbound})
        if inbound and peer.listen_port:
            self.book.add(peer.home, self._clock())
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
            self._admission.discharge(peer, misbehaved=peer.departure is Leave.MISBEHAVED)
            why = peer.departure.name if peer.departure is not None else "gone"
            logger.info("peer disconnected", extra={"peer": peer.name, "why": why, "score": round(peer.score)})

    async def _learn_addresses(self, peer: Peer) -> None:
        """Companion of an outbound session: whom we chose to dial may name others."""
        while True:
            with contextlib.suppress(Missing, PeerStalled):
                answer = await peer.request(GetPeers(), Peers)
                for named in answer.addresses:
                    self.book.add(Endpoint(named.host, named.port), self._clock())
            await asyncio.sleep(self._limits.book_learn_s)

    # ------------------------------------------------------------------ services

    async def _tell_status(self) -> None:
        """Now and then, tell whoever has not heard where this node stands."""
        while True:
            await asyncio.sleep(self._limits.ping_interval_s)
            for peer in self._admission.present():
                if peer.told != self._chain.tip.id and peer.send(self._server.status()):
                    peer.told = self._chain.tip.id

    async def _keep_book(self) -> None:
        while True:
            await asyncio.sleep(self._limits.book_save_s)
            self._note_anchors()
            if self._config.book_path is not None:
                await self._compute.run(write_book, self.book.dump(), self._config.book_path)

    def _note_anchors(self) -> None:
        outbound = [peer.address for peer in self._admission.present() if not peer.inbound]
        if outbound:
            self.book.set_anchors(outbound)

    def _headers_arrived(self) -> None:
        self._downloader.wake()

    def _introduction(self) -> Introduction:
        port = self._listening.port if self._listening is not None else 0
        genesis = self._chain.genesis_hash
        return Introduction(self._identity, genesis, self._config.agent, port, self._server.status)

    def _handler_table(self, shares: Shares) -> Handlers:
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
            served=lambda peer, size: shares.charge(peer.asker, size * BYTE_S),
        )
        assert set(handlers.requests) == {row.struct for row in DECLARATIONS if row.role is Role.REQUEST}
        assert set(handlers.notices) == {row.struct for row in DECLARATIONS if row.role is Role.NOTICE}
        return handlers

    async def _serve_items(self, peer: Peer, request: GetItems) -> Message:
        return self._gossip.items(request)

    async def _serve_peers(self, peer: Peer, request: GetPeers) -> Message:
        """Where others listen: who is connected now, then who answered once."""
        connected = [other.home for other in self._admission.present() if other is not peer]
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
