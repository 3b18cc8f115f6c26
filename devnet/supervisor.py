"""One running devnet: brought up in order, then ready to be looked at, hurt and healed, and at the end gone."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from consensus.params import ChainParams
from devnet import control, layout, watch
from devnet.control import Order
from devnet.layout import DevnetError, Layout, Measured, Record
from devnet.processes import NodeProcess, Processes
from devnet.watch import NetworkState, Observer
from wallet.client.gateway import Gateway
from wallet.client.transactions import Rules
from wallet.errors import WalletError

Say = Callable[[str], None]


class DevnetStatus(Struct, frozen=True):
    """What `tilework devnet status` answers."""

    devnet: Record
    network: NetworkState


class Devnet:
    """The nodes of a network and the doors to them. Made by `running`."""

    def __init__(
        self, where: Layout, rules: ChainParams, record: Record, processes: Processes, clients: Sequence[Gateway]
    ) -> None:
        self._layout = where
        self._rules = rules
        self._record = record
        self._processes = processes
        self._clients = clients
        self._observer = Observer(clients)
        self._looking = asyncio.Lock()

    @property
    def record(self) -> Record:
        """devnet.json as of now."""
        running = zip(self._record.nodes, self._processes.nodes, strict=True)
        return replace(self._record, nodes=tuple(replace(node, pid=process.pid) for node, process in running))

    def save(self) -> None:
        """Write devnet.json."""
        self._layout.write(self.record)

    def mark(self, status: str, pid: int | None) -> None:
        """Note in devnet.json how far the network is."""
        self._record = replace(self._record, status=status, pid=pid)
        self.save()

    async def look(self) -> NetworkState:
        """The network now."""
        async with self._looking:
            return await self._observer.look([(node.name, node.pid) for node in self._processes.nodes])

    async def bring_up(self, say: Say) -> None:
        """Start the nodes, wait until all are ready, register their workers and wait until they are dealt to."""
        nodes = self._record.nodes
        await self._processes.start()
        say(f"{len(nodes)} nodes started")
        for client, node in zip(self._clients, nodes, strict=True):
            await watch.wait_ready(client, node.name, self._processes.check_alive)
            await watch.check_identity(client, node.name, self._record.genesis_hash)
        say("every node serves; registering their workers")
        network = Rules(self._rules, bytes.fromhex(self._record.genesis_hash))
        try:
            for client, node in zip(self._clients, nodes, strict=True):
                await watch.register_worker(client, network, node)
        except WalletError as error:
            message = f"a worker could not be registered: {error}"
            raise DevnetError("not-registered", message, "read the logs: tilework devnet logs") from None
        told = -1

        def progress(height: int, goal: int) -> None:
            nonlocal told
            if height != told and height < goal:
                say(f"height {height}: their workers will be dealt packets from height {goal} on")
                told = height

        await watch.wait_in_force(self._clients[0], self._rules, nodes, progress, self._processes.check_alive)

    async def carry_out(self, order: Order) -> Struct:
        """What another command wants. Raises DevnetError."""
        if order.do == "status":
            return DevnetStatus(self.record, await self.look())
        process = self._processes.node(order.node)
        if order.do == "kill":
            if process.pid is None:
                fix = f"start it again: tilework devnet restart {order.node}"
                raise DevnetError("node-stopped", f"{process.name} does not run", fix)
            await process.stop(now=True)
        else:
            await process.stop()
            await process.start()
            await watch.wait_ready(self._clients[order.node], process.name, process.check_alive)
        return self.record.nodes[order.node]


@asynccontextmanager
async def running(
    where: Layout, count: int | None, spacing_ms: int | None, account: str, say: Say, first_port: int | None = None
) -> AsyncIterator[Devnet]:
    """A devnet, ready for jobs. The caller holds the layout's lock.

    `spacing_ms` is as in `layout.establish`, `account` the name of the user's account, `count` (of nodes) and
    `first_port` as in `layout.describe`. Raises DevnetError. However the context ends, no process is left.
    """
    rules = layout.establish(where, spacing_ms)
    say("warming the kernels (some seconds the first time)")
    measured = await _warm()
    record = layout.describe(where, rules, count, account, first_port)  # now, so that its ports are free when taken
    duty = layout.idle_duty(rules, measured.idle_unit_seconds, len(record.nodes))
    async with AsyncExitStack() as stack:
        nodes = []
        for node in record.nodes:
            layout.prepare_node(where, node.index)
            arguments = layout.node_arguments(record, node.index, duty)
            nodes.append(NodeProcess(node.name, arguments, where.node(node.index) / "node.log"))
        clients = [await stack.enter_async_context(Gateway(node.rpc, patience_seconds=0)) for node in record.nodes]
        processes = Processes(nodes)
        devnet = Devnet(where, rules, record, processes, clients)
        stack.callback(devnet.mark, "stopped", None)
        await stack.enter_async_context(processes)
        for process in nodes:
            process.changed = devnet.save
        devnet.mark("starting", os.getpid())
        await stack.enter_async_context(control.serve(where.control, devnet.carry_out))
        await devnet.bring_up(say)
        devnet.mark("ready", os.getpid())
        yield devnet


async def _warm() -> Measured:
    """Compile the kernels for all nodes and time an idle unit, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "devnet.warmup", stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        message = f"the kernels cannot be compiled: {errors.decode(errors='replace')[-400:]}"
        raise DevnetError("warm-up-failed", message, "install the package again; TILEWORK_KERNEL=portable does without")
    return msgspec.json.decode(output, type=Measured)
