"""Limits that uvicorn lacks: idle connections, clients that do not read, and too many connections."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from pyllm.server.auth import PUBLIC
from pyllm.server.errors import unavailable
from pyllm.server.state import ServerState

# So many connections above the limit get an answer; further ones are closed without one.
_TOLD = 64
# Bytes of the head of a request; h11 has a limit of its own, and httptools none.
_MOST_HEAD = 1 << 17
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
# How often a connection is looked at, in parts of the shortest limit.
_LOOKS = 4


def watched(protocol: type[asyncio.Protocol], state: ServerState) -> type[asyncio.Protocol]:
    """One of uvicorn's protocols, with the limits of a server.

    Args:
        protocol: The class of its connections.
        state: The server's; its settings have the limits.
    """
    return type(f"Watched{protocol.__name__}", (_Watched, protocol), {"pyllm": state})


class _Watched(asyncio.Protocol):
    """Looks at a connection a few times a minute, so that requests themselves cost nothing."""

    pyllm: ServerState
    # What the protocols of uvicorn have.
    app: ASGIApp
    connections: set[Any]
    cycle: Any
    loop: asyncio.AbstractEventLoop

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        settings = self.pyllm.settings
        self._transport = transport
        self._since, self._unsent, self._head = self.loop.time(), 0, 0
        self._pause = max(0.02, min(settings.timeout, settings.head_timeout) / _LOOKS)
        self._timer = self.loop.call_later(self._pause, self._look)
        excess = len(self.connections) - settings.max_connections
        if excess > _TOLD:
            transport.abort()
        elif excess > 0:
            self.app = _Crowded(self.app, self.pyllm)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._head = 0
            return
        self._head += len(data)
        # An answer may have come before the body that it refused.
        rest = self.pyllm.settings.max_body_bytes if cycle is not None and cycle.more_body else 0
        if self._head > _MOST_HEAD + rest and not self._transport.is_closing():
            self._transport.write(_TOO_LARGE)
            self._transport.close()

    def on_response_complete(self) -> None:
        """An answer is complete, as far as uvicorn is concerned."""
        self._since, self._head = self.loop.time(), 0
        super().on_response_complete()  # type: ignore[misc]  # every protocol of uvicorn has it

    def _look(self) -> None:
        settings, now = self.pyllm.settings, self.loop.time()
        unsent = self._transport.get_write_buffer_size()
        answering = self.cycle is not None and not self.cycle.response_complete and not self._transport.is_closing()
        # While an answer is made, its endpoint sees to the limits.
        if answering or unsent != self._unsent:
            self._since = now
        self._unsent = unsent
        limit = settings.timeout if unsent else min(settings.timeout, settings.head_timeout)
        if now - self._since >= limit:
            self._transport.abort()
        else:
            self._timer = self.loop.call_later(self._pause, self._look)


class _Crowded:
    """Rejects connections above the limit with 503 and Retry-After; health checks are always answered."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self.state.settings
        path = scope.get("path", "").removeprefix(settings.api_prefix)
        if scope["type"] != "http" or path in PUBLIC:
            await self.app(scope, receive, send)
            return
        self.state.metrics.http_requests.labels("other", "503").inc()
        error = unavailable(f"there are {settings.max_connections} connections already", settings.retry_after)
        error.headers["Connection"] = "close"
        await error.response({**scope, "path": path})(scope, receive, send)
