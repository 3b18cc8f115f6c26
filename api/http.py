"""How HTTP is spoken to a stranger: whoever answers is whom was asked."""

from __future__ import annotations

import aiohttp


async def refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A client middleware: no WebSocket is opened where an answer points instead of where it was asked for.

    A stranger could otherwise have this machine ask what only it can reach. Plain requests say `allow_redirects=False`
    themselves; aiohttp has no such word for WebSockets.
    """
    response = await handler(request)
    if request.headers.get("Upgrade") == "websocket" and 300 <= response.status < 400:
        response.close()
        raise aiohttp.ClientPayloadError(f"HTTP {response.status}: it points elsewhere, which is never followed")
    return response
