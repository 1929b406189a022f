"""State shared by all requests to a server: engine, settings, and whether it is shutting down."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from typing import TYPE_CHECKING, Any

from pyllm.core.backend import llama_commit
from pyllm.engine import AsyncEngine, Engine
from pyllm.server.errors import APIError, unavailable
from pyllm.server.metrics import ServerMetrics
from pyllm.server.sampling import Sizes
from pyllm.server.settings import Settings
from pyllm.version import __version__

if TYPE_CHECKING:
    from starlette.requests import Request

    from pyllm.core.model import Model
    from pyllm.embedding.methods import EmbeddingMethods
    from pyllm.server.active_request import ActiveRequest


class ServerState:
    """One for each application; endpoints find it with :func:`state_of`.

    Args:
        engine: Generates texts. None: there is no such endpoint.
        embedder: Makes vectors. None: there is no such endpoint.
        settings: The settings.

    Attributes:
        alias: The name of the model.
        model: The model.
        created: When the server was made, in seconds since 1970.
        draining: Whether it was told to stop: running requests end, new ones are refused.
        running: What is being generated.
        embedding: How many requests for vectors are computed at once, where no engine has a queue for them.
        computing: How many requests for vectors have not ended.
    """

    def __init__(self, engine: Engine | None, embedder: EmbeddingMethods | None, settings: Settings) -> None:
        metrics = ServerMetrics(engine)
        if engine is not None:
            # One engine may do both, or make vectors only.
            embedder = engine if embedder is None and engine.embeds else embedder
            engine = engine if engine.generates else None
        self._engine = engine
        self._embedder = embedder
        self.client = None if engine is None else AsyncEngine(engine)
        self.settings = settings
        owner: Any = engine if engine is not None else embedder
        self.model: Model = owner.model
        self.alias = settings.alias or os.path.basename(self.model.path)
        self.created = int(time.time())
        self.draining = False
        self.running: set[ActiveRequest] = set()
        # They wait for each other anyway, and must not do so in all the threads that others need.
        self.embedding = asyncio.Semaphore(2)
        self.computing = 0
        self.metrics = metrics

    @property
    def generates(self) -> bool:
        """Whether the model can be asked for texts."""
        return self._engine is not None

    @property
    def embeds(self) -> bool:
        """Whether the model can be asked for vectors."""
        return self._embedder is not None

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be taken."""
        closed = any(isinstance(one, Engine) and one.closed for one in (self._engine, self._embedder))
        return not self.draining and not closed

    @property
    def engine(self) -> Engine:
        """What generates texts.

        Raises:
            APIError: Nothing does (400), or the server is shutting down (503).
        """
        self.check_ready()
        if self._engine is None:
            # No server error: clients would ask again.
            message = f"the model {self.alias!r} only embeds: it writes no texts; ask it at /v1/embeddings"
            raise APIError(400, message, code="unsupported")
        return self._engine

    @property
    def sizes(self) -> Sizes:
        """Sizes of the model; it raises as :attr:`engine` does."""
        engine = self.engine
        adapters = tuple(one.path for one in engine.adapters)
        return Sizes(engine.context.n_ctx_seq, self.model.n_vocab, self._eog, engine.n_parallel, adapters)

    @functools.cached_property
    def _eog(self) -> tuple[int, ...]:
        return tuple(self.model.vocab.eog_tokens)

    @property
    def embedder(self) -> EmbeddingMethods:
        """What makes vectors.

        Raises:
            APIError: Nothing does (400), or the server is shutting down (503).
        """
        self.check_ready()
        if self._embedder is None:
            # Not 501: clients ask again after a status of the server's, as if it could become another one.
            message = (
                f"the model {self.alias!r} was not started for embeddings: start the server with --embeddings, "
                "or serve a model that was made for them"
            )
            raise APIError(400, message, param="model", code="unsupported", kind="not_supported_error")
        return self._embedder

    def check_ready(self) -> None:
        """Raise the error that refuses requests while the server shuts down."""
        if not self.ready:
            raise unavailable("the server is shutting down", self.settings.retry_after)

    @property
    def idle(self) -> bool:
        """Whether nothing is being generated or computed, and what was generated has been read."""
        return not self.running and not self.computing

    def cancel_all(self) -> None:
        """End everything that is being generated."""
        for active in list(self.running):
            active.cancel()


# Where a request finds the model that it named, when the server has several.
CHOSEN = "pyllm_model"


def state_of(request: Request) -> ServerState:
    """The state of the application that a request came to; where that has several models, of the one it named."""
    return request.scope.get(CHOSEN) or request.app.state.pyllm  # type: ignore[no-any-return]


@functools.cache
def build_info() -> str:
    """llama.cpp's commit as llama-server names its builds, and pyllm's version."""
    # A number of a build has only what was built in llama.cpp's own repository.
    return f"b0-{llama_commit()}-pyllm-{__version__}"
