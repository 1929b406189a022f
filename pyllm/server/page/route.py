"""The page at ``/``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.server.page.files import FILES, File


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
ROUTES = [Route(file.path, endpoint(file)) for file in FILES]
