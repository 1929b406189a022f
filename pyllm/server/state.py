"""What all requests to a server share: the engine, the settings, and whether it still takes requests."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from pyllm.engine import AsyncEngine, Engine
from pyllm.server.errors import APIError, unavailable
from pyllm.server.metrics import ServerMetrics
from pyllm.server.sampling import Sizes
from pyllm.server.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request

    from pyllm.core.model import Model
    from pyllm.embedding.methods import EmbeddingMethods
    from pyllm.server.generation import Generation


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
        embedding: How many requests for vectors are computed at once.
    """

    def __init__(self, engine: Engine | None, embedder: EmbeddingMethods | None, settings: Settings) -> None:
        self._engine = engine
        self._embedder = embedder
        self.client = None if engine is None else AsyncEngine(engine)
        self.settings = settings
        owner: Any = engine if engine is not None else embedder
        self.model: Model = owner.model
        self.alias = settings.alias or os.path.basename(self.model.path)
        self.created = int(time.time())
        self.draining = False
        self.running: set[Generation] = set()
        # They wait for each other anyway, and must not do so in all the threads that others need.
        self.embedding = asyncio.Semaphore(2)
        self.metrics = ServerMetrics(engine)

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
        return not self.draining and not (self._engine is not None and self._engine.closed)

    @property
    def engine(self) -> Engine:
        """What generates texts.

        Raises:
            APIError: Nothing does (501), or the server is shutting down (503).
        """
        self.check_ready()
        if self._engine is None:
            raise APIError(501, f"the model {self.alias!r} makes vectors, and no texts", code="unsupported")
        return self._engine

    @property
    def sizes(self) -> Sizes:
        """Sizes of the model; it raises as :attr:`engine` does."""
        return Sizes(self.engine.context.n_ctx_seq, self.model.n_vocab)

    @property
    def embedder(self) -> EmbeddingMethods:
        """What makes vectors; it raises as :attr:`engine` does."""
        self.check_ready()
        if self._embedder is None:
            message = f"the model {self.alias!r} was not started for vectors: start the server with --embeddings"
            raise APIError(501, message, code="unsupported")
        return self._embedder

    def check_ready(self) -> None:
        """Raise the error that refuses requests while the server shuts down."""
        if not self.ready:
            raise unavailable("the server is shutting down", self.settings.retry_after)

    @property
    def idle(self) -> bool:
        """Whether nothing is being generated."""
        return all(job.done for generation in self.running for job in generation.jobs)

    def cancel_all(self) -> None:
        """End everything that is being generated."""
        for generation in list(self.running):
            generation.cancel()


def state_of(request: Request) -> ServerState:
    """The state of the application that a request came to."""
    return request.app.state.pyllm  # type: ignore[no-any-return]
