"""Access: API keys, host names, and requests from web pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pyllm.server.errors import APIError
from pyllm.server.page import PATHS

# Load balancers have no key, and the page asks its user for one.
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

    Browsers ask before they send JSON, and other programs send no ``Origin``.

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


class HostNames:
    """The names under which a server may be asked, in the header ``Host``.

    A page on the web can give its own name the address of this machine, and would then be of the same origin as the
    server (DNS rebinding). It cannot choose an address or "localhost" as its name: these are always allowed.

    Args:
        names: Names that are allowed besides; ".example.org" allows all below it, and "*" any. None: any, until
            :meth:`restrict` says otherwise.
    """

    def __init__(self, names: Iterable[str] | None) -> None:
        self._names = None if names is None else {_host_name(name) for name in names}

    def restrict(self, names: Iterable[str]) -> None:
        """Allow no names but these, where nothing was said before."""
        if self._names is None:
            self._names = {_host_name(name) for name in names}

    def allow(self, host: str) -> bool:
        """Whether requests may have this ``Host``; programs that are no browsers may leave it out."""
        names, name = self._names, _host_name(host)
        if names is None or "*" in names or name in ("", "localhost", *names) or name.endswith(".localhost"):
            return True
        if any(known.startswith(".") and name.endswith(known) for known in names):
            return True
        try:
            ipaddress.ip_address(name.strip("[]").partition("%")[0])
        except ValueError:
            return False
        return True


class HostMiddleware:
    """Refuses requests under a name that the server does not have.

    Args:
        app: What requests pass to.
        names: The names.
    """

    def __init__(self, app: ASGIApp, names: HostNames) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if self.names.allow(host):
            await self.app(scope, receive, send)
            return
        error = APIError(
            403,
            f"this server is not called {host[:200]!r}: a web page could have that name. If it is yours, start the "
            "server with --allowed-hosts and the name, or with an API key",
            code="host_not_allowed",
        )
        await error.response(scope)(scope, receive, send)


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


def _host_name(host: str) -> str:
    """A name without its port."""
    name, _, port = host.strip().rpartition(":")
    return (name if name and port.isdecimal() else host.strip()).lower().removesuffix(".")


def _digest(key: str) -> bytes:
    # Digests are equally long: a comparison tells nothing about lengths either.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
