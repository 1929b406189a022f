"""The page for people: chats, and the token inspector. Its files are read once, and need nothing from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response

from pyllm.server.openapi import get

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}

# Where everything but the page itself is found; relative to it, so that a proxy can move both.
FOLDER = "ui"

# Nothing is loaded from, sent to or shown by anybody else, and what a model writes cannot become a script.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        # No text becomes markup but through the sanitizer.
        "require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser keeps them, and asks each time whether they are still the same.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class File:
    """A file of the page.

    Attributes:
        name: Its name in the package, with the folders that it lies in.
    """

    name: str

    @property
    def path(self) -> str:
        """Where it is served."""
        return "/" if self.name == "index.html" else f"/{FOLDER}/{self.name}"

    @property
    def media_type(self) -> str:
        """Its media type, with the encoding of text."""
        return _TYPES[self.name[self.name.rindex(".") :]]

    @cached_property
    def content(self) -> bytes:
        """What is in it."""
        return files(__package__).joinpath(self.name).read_bytes()

    @cached_property
    def headers(self) -> dict[str, str]:
        """The headers of a response that has it."""
        return {
            "Content-Type": self.media_type,
            "ETag": f'"{hashlib.sha256(self.content).hexdigest()[:32]}"',
            **HEADERS,
        }


def _names(folder: Traversable, path: str = "") -> Iterator[str]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _names(entry, f"{path}{entry.name}/")
        elif entry.name.endswith(tuple(_TYPES)):
            yield path + entry.name


FILES = tuple(map(File, _names(files(__package__))))
PATHS = frozenset(file.path for file in FILES)


def endpoint(file: File) -> Callable[[Request], Awaitable[Response]]:
    """What answers with a file, or says that a browser has it already."""

    async def page(request: Request) -> Response:
        """A file of the page."""
        if _has(request.headers.get("if-none-match", ""), file.headers["ETag"]):
            headers = {name: value for name, value in file.headers.items() if name != "Content-Type"}
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=file.headers)

    return page


def _has(told: str, tag: str) -> bool:
    tags = [one.strip().removeprefix("W/") for one in told.split(",")]
    return tag in tags or "*" in tags


# A path for each file: there is nothing that a made-up path could reach.
ROUTES = [
    get(file.path, endpoint(file), tag="page", media=file.media_type.partition(";")[0], cached=True) for file in FILES
]
