"""Who may ask: API keys, and pages in browsers."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pyllm.server.errors import APIError
from pyllm.server.page.files import PATHS

# What a load balancer asks, which has no key, and the page, which asks a person for one.
PUBLIC = frozenset({"/health", "/v1/health", "/ready", *PATHS})


class Keys:
    """Some API keys.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, key: str) -> bool:
        """Whether it is one of them. That takes as long for every text of the same length."""
        digest, found = _digest(key), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


class PageMiddleware:
    """Refuses what a browser sends for any page without asking first whether that page may: POST that is no JSON.

    What is JSON a browser asks about, and whoever is no browser names no origin.

    Args:
        app: What requests pass to.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = Headers(scope=scope)
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if "origin" in headers and kind != "application/json":
                message = "from web pages requests need 'Content-Type: application/json'"
                await APIError(415, message, code="not_json").response(scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class KeyMiddleware:
    """Lets requests pass that have a key, as ``Authorization: Bearer …`` or as ``x-api-key``.

    Args:
        app: What they pass to.
        keys: The keys.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC or self.keys.allow(_key(Headers(scope=scope))):
            await self.app(scope, receive, send)
            return
        error = APIError(
            401,
            "this server needs an API key: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response(scope)(scope, receive, send)


def _key(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" and value else headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    # Digests are equally long: a comparison tells nothing about lengths either.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
