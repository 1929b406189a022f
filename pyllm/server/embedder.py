"""Vectors beside an engine: from the same model, in contexts of their own."""

from __future__ import annotations

from pyllm.embedding.methods import EmbeddingMethods
from pyllm.engine import Engine
from pyllm.params import ContextParams


class EngineEmbedder(EmbeddingMethods):
    """Makes vectors with the model of an engine, while that generates.

    Args:
        engine: The engine; close this before it.
        params: Settings of the contexts.
    """

    def __init__(self, engine: Engine, params: ContextParams | None = None) -> None:
        self.model = engine.model
        self.context = engine.context
        self.context_params = ContextParams() if params is None else params

    def close(self) -> None:
        """Free its contexts. Closing twice is allowed."""
        self._close_embedder()
