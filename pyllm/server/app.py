"""The application: which endpoint is where, and what every request passes."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from pyllm.embedding.methods import EmbeddingMethods
from pyllm.engine import Engine
from pyllm.errors import InvalidArgumentError
from pyllm.server.auth import KeyMiddleware, Keys
from pyllm.server.chat.route import ROUTES as CHAT
from pyllm.server.completions.route import ROUTES as COMPLETIONS
from pyllm.server.embeddings.route import ROUTES as EMBEDDINGS
from pyllm.server.errors import HANDLERS
from pyllm.server.health.route import METRICS
from pyllm.server.health.route import ROUTES as HEALTH
from pyllm.server.log import LogMiddleware
from pyllm.server.messages.route import ROUTES as MESSAGES
from pyllm.server.models.route import ROUTES as MODELS
from pyllm.server.responses.route import ROUTES as RESPONSES
from pyllm.server.settings import Settings
from pyllm.server.state import ServerState
from pyllm.server.tokens.route import ROUTES as TOKENS


def make_app(
    engine: Engine | None = None, settings: Settings | None = None, *, embedder: EmbeddingMethods | None = None
) -> Starlette:
    """Make the ASGI application of a server.

    Args:
        engine: What generates texts. It stays open when the application is gone.
        settings: The settings; None: nobody needs a key, and there is no ``/metrics``.
        embedder: What makes vectors: a :class:`pyllm.Llama`, or whatever else embeds. None: nothing does.

    Returns:
        Starlette: The application; its ``state.pyllm`` is the :class:`pyllm.server.state.ServerState`.

    Raises:
        InvalidArgumentError: There is neither engine nor embedder.
    """
    if engine is None and embedder is None:
        raise InvalidArgumentError("a server needs an engine, an embedder, or both")
    settings = Settings() if settings is None else settings
    state = ServerState(engine, embedder, settings)
    middleware = [Middleware(LogMiddleware, state=state)]
    if settings.cors_origins:
        # Before the keys: a browser asks without one whether it may ask.
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        )
    keys = Keys(settings.api_keys)
    if keys:
        middleware.append(Middleware(KeyMiddleware, keys=keys))
    routes = [*HEALTH, *MODELS, *TOKENS, *COMPLETIONS, *CHAT, *MESSAGES, *RESPONSES, *EMBEDDINGS]
    if settings.metrics:
        routes.append(METRICS)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    app.state.pyllm = state
    return app
