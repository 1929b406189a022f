"""Which model answers a request, where a server has several."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeGuard

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pyllm.server.errors import as_api_error, invalid
from pyllm.server.limits import READ, read_json
from pyllm.server.log import note
from pyllm.server.pool import Models
from pyllm.server.sse import until_gone
from pyllm.server.state import CHOSEN

# What is read with GET and is about one model; all that is sent with POST is, but for models themselves.
_ABOUT_ONE = frozenset({"/props", "/slots", "/lora-adapters", "/tokenizer_info"})
# What takes no object, so that only the query can name a model.
_NO_OBJECT = frozenset({"/lora-adapters"})
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def choosing(routes: Iterable[BaseRoute], models: Models) -> list[BaseRoute]:
    """The same routes, where those that are about one model find the one that a request names."""
    return [_choosing(route, models) if _is_about_one(route) else route for route in routes]


def _is_about_one(route: BaseRoute) -> TypeGuard[Route]:
    if not isinstance(route, Route) or route.path.startswith("/models"):
        return False
    return route.path in _ABOUT_ONE or "POST" in (route.methods or ())


def _choosing(route: Route, models: Models) -> Route:
    result = copy.copy(route)  # those of the module are for all applications
    result.app = _Choosing(route.app, models)
    return result


class _Choosing:
    """Holds the model for as long as a request is answered, stream and all."""

    def __init__(self, app: ASGIApp, models: Models) -> None:
        self.app = app
        self.models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        lease = None
        try:
            try:
                loads = _FLAGS.get(request.query_params.get("autoload", ""))
                lease = self.models.lease(await _name(request, self.models), loads=loads)
                note(request, model=lease.entry.name)
                # Waiting for a disconnect consumes the body.
                watched = request.method != "POST" or READ in scope
                scope[CHOSEN] = await (until_gone(request, lease.enter()) if watched else lease.enter())
            except Exception as error:
                await as_api_error(error).response(scope)(scope, receive, send)
                return
            await self.app(scope, receive, send)
        finally:
            if lease is not None:
                lease.exit()


async def _name(request: Request, models: Models) -> str | None:
    """The model that a request names: in its query, or in the object that it sends."""
    name = request.query_params.get("model")
    if name is None and request.method == "POST" and request.url.path not in _NO_OBJECT:
        headers = request.headers
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return None
        # Endpoints find it there.
        request.scope[READ] = found = await read_json(request, models.settings)
        name = found.get("model")
    if name is not None and not isinstance(name, str):
        raise invalid("model", "model must be text: the name of a model")
    return name
