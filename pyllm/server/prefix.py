"""A server whose paths all begin alike, behind a proxy that hands them on as they are."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pyllm.server.errors import APIError


class PrefixMiddleware:
    """Takes the prefix off each path. Paths without it are not found.

    Args:
        app: What requests pass to.
        prefix: The prefix: "/llm", without a slash at the end.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path == self.prefix:
            # What the page names is relative to it: without the slash it would be looked for outside.
            await RedirectResponse(f"{self.prefix}/")(scope, receive, send)
            return
        if not path.startswith(f"{self.prefix}/"):
            error = APIError(404, f"there is no {path} here: all paths begin with {self.prefix}")
            await error.response(scope)(scope, receive, send)
            return
        await self.app({**scope, "path": path[len(self.prefix) :]}, receive, send)
