"""A stranger cannot send a node or a wallet elsewhere."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from api.chain import HeaderView
from node.p2p.limits import DEFAULT
from node.p2p.transport import ConnectionLost, Endpoint, TlsTransport
from tests.node.p2p.net import identity
from wallet.client.rpc import NetworkError, RpcClient


@asynccontextmanager
async def serving(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    server = web.Server(handle)
    sockets = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=tls)
    try:
        yield sockets.sockets[0].getsockname()[1]
    finally:
        sockets.close()
        await server.shutdown(0.1)


class Elsewhere:
    """What only this machine can reach; it must never be asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        return web.Response(text="secret")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_listener_that_redirects_the_dial_is_no_peer(status: int, tmp_path: Path) -> None:
    async def story() -> None:
        elsewhere = Elsewhere()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        evil = identity("evil")
        pem = tmp_path / "evil.pem"
        pem.write_bytes(evil.private_pem + evil.certificate_pem)
        context.load_cert_chain(pem)
        async with serving(elsewhere.handle) as inner:

            async def redirect(_request: web.BaseRequest) -> web.StreamResponse:
                return web.Response(status=status, headers={"Location": f"http://127.0.0.1:{inner}/admin"})

            async with serving(redirect, context) as outer:
                dialler = TlsTransport(identity("dialler"), DEFAULT)
                with pytest.raises(ConnectionLost, match="never followed"):
                    await dialler.dial(Endpoint("127.0.0.1", outer))
                await dialler.close()
        assert elsewhere.asked == []

    asyncio.run(story())


def test_a_node_that_redirects_a_subscription_is_a_network_error() -> None:
    async def story() -> None:
        elsewhere = Elsewhere()
        async with serving(elsewhere.handle) as inner:

            async def redirect(_request: web.BaseRequest) -> web.StreamResponse:
                return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{inner}/admin"})

            async with serving(redirect) as outer, RpcClient(f"http://127.0.0.1:{outer}") as rpc:
                with pytest.raises(NetworkError, match="never followed"):
                    async with rpc.subscribe("newHeads", HeaderView):
                        pass
        assert elsewhere.asked == []

    asyncio.run(story())
