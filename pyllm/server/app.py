"""The application: its APIs, and the middleware of all requests."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from pyllm.embedding.methods import EmbeddingMethods
from pyllm.engine import Engine
from pyllm.errors import InvalidArgumentError
from pyllm.server import (
    admin,
    chat,
    completions,
    embeddings,
    messages,
    native,
    page,
    responses,
    slots,
    tokens,
)
from pyllm.server.auth import HostMiddleware, HostNames, KeyMiddleware, Keys, PageMiddleware
from pyllm.server.dispatch import choosing
from pyllm.server.errors import HANDLERS, APIError
from pyllm.server.log import LogMiddleware
from pyllm.server.pool import Models
from pyllm.server.settings import Settings
from pyllm.server.state import ServerState

# The modules of the APIs; each has its routes.
APIS = (admin, tokens, completions, chat, messages, responses, embeddings, native, slots)
# The origin "localhost" stands for pages of this machine, from any port.
LOCAL_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


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


class _CrossOrigin(CORSMiddleware):
    """Starlette's middleware; a browser that asks for a page from elsewhere gets an answer without permission."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to what a browser asks before it sends a request for a page."""
        if not self.is_allowed_origin(request_headers["origin"]):
            return Response(headers={"Vary": "Origin"})
        return super().preflight_response(request_headers)


def make_app(
    engine: Engine | None = None,
    settings: Settings | None = None,
    *,
    embedder: EmbeddingMethods | None = None,
    models: Models | None = None,
) -> Starlette:
    """Make the ASGI application of a server.

    Args:
        engine: Generates texts. It stays open when the application is gone.
        settings: The settings; None: no key is needed, and there is no ``/metrics``.
        embedder: Makes vectors: a :class:`pyllm.Llama`, or an object with its methods. None: the engine, if it does.
        models: Several models, of which each request names one, instead of all the others; they have the settings.

    Returns:
        Starlette: The application; its ``state.pyllm`` is the :class:`pyllm.server.state.ServerState`, or `models`,
            and its ``state.host_names`` the :class:`pyllm.server.auth.HostNames`.

    Raises:
        InvalidArgumentError: There is neither engine nor embedder nor models, or models and something else.
    """
    state: ServerState | Models
    if models is not None:
        if engine is not None or embedder is not None or settings is not None:
            raise InvalidArgumentError("models have engines, embedders and settings of their own")
        state, settings = models, models.settings
    elif engine is None and embedder is None:
        raise InvalidArgumentError("a server needs an engine, an embedder, or both")
    else:
        settings = Settings() if settings is None else settings
        state = ServerState(engine, embedder, settings)
    middleware = [Middleware(LogMiddleware, state=state)]
    if settings.api_prefix:
        middleware.insert(0, Middleware(PrefixMiddleware, prefix=settings.api_prefix))
    host_names = HostNames(settings.allowed_hosts)
    middleware.append(Middleware(HostMiddleware, names=host_names))
    if settings.cors_origins:
        # Before the keys: a browser asks without one whether it may ask.
        middleware.append(
            Middleware(
                _CrossOrigin,
                allow_origins=list(settings.cors_origins),
                allow_origin_regex=LOCAL_ORIGINS if "localhost" in settings.cors_origins else None,
                allow_methods=list(settings.cors_methods),
                allow_headers=list(settings.cors_headers),
                allow_credentials=settings.cors_credentials,
            )
        )
    middleware.append(Middleware(PageMiddleware))
    keys = Keys(settings.api_keys)
    if keys:
        middleware.append(Middleware(KeyMiddleware, keys=keys))
    routes: list[BaseRoute] = [route for api in APIS for route in api.ROUTES]
    if settings.metrics:
        routes.append(admin.METRICS)
    if settings.page:
        routes += page.ROUTES
    if models is not None:
        routes = choosing([*routes, *admin.MANAGING], models)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    # A redirection would name a path without the prefix, which does not exist.
    app.router.redirect_slashes = not settings.api_prefix
    app.state.pyllm = state
    app.state.host_names = host_names
    return app
