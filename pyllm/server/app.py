"""The application: which endpoint is where, and what every request passes."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute

from pyllm.embedding.methods import EmbeddingMethods
from pyllm.engine import Engine
from pyllm.errors import InvalidArgumentError
from pyllm.server.auth import HostMiddleware, HostNames, KeyMiddleware, Keys, PageMiddleware
from pyllm.server.chat.route import ROUTES as CHAT
from pyllm.server.completions.route import ROUTES as COMPLETIONS
from pyllm.server.embeddings.route import ROUTES as EMBEDDINGS
from pyllm.server.errors import HANDLERS
from pyllm.server.health.route import METRICS
from pyllm.server.health.route import ROUTES as HEALTH
from pyllm.server.log import LogMiddleware
from pyllm.server.lora.route import ROUTES as LORA
from pyllm.server.messages.route import ROUTES as MESSAGES
from pyllm.server.models.dispatch import choosing
from pyllm.server.models.pool import Models
from pyllm.server.models.route import MANAGING
from pyllm.server.models.route import ROUTES as MODELS
from pyllm.server.native.route import ROUTES as NATIVE
from pyllm.server.openapi.route import ROUTES as OPENAPI
from pyllm.server.page.route import ROUTES as PAGE
from pyllm.server.prefix import PrefixMiddleware
from pyllm.server.responses.route import ROUTES as RESPONSES
from pyllm.server.settings import Settings
from pyllm.server.slots.route import ROUTES as SLOTS
from pyllm.server.state import ServerState
from pyllm.server.tokens.route import ROUTES as TOKENS

# What "localhost" stands for among origins: pages from this machine, from whatever port.
LOCAL_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


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
        engine: What generates texts. It stays open when the application is gone.
        settings: The settings; None: nobody needs a key, and there is no ``/metrics``.
        embedder: What makes vectors: a :class:`pyllm.Llama`, or whatever else embeds. None: nothing does.
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
    routes: list[BaseRoute] = [
        *HEALTH,
        *MODELS,
        *TOKENS,
        *COMPLETIONS,
        *CHAT,
        *MESSAGES,
        *RESPONSES,
        *EMBEDDINGS,
        *NATIVE,
    ]
    routes += [*SLOTS, *LORA]
    if settings.metrics:
        routes.append(METRICS)
    if settings.page:
        routes += PAGE
    routes += OPENAPI
    if models is not None:
        routes = choosing([*routes, *MANAGING], models)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    # A redirection would name a path without the prefix, which nobody finds.
    app.router.redirect_slashes = not settings.api_prefix
    app.state.pyllm = state
    app.state.host_names = host_names
    return app
