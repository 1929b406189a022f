"""The Speculator of a Llama, made when a call first needs one: most calls draft nothing and import nothing of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.errors import InvalidArgumentError
from pyllm.params import ContextParams
from pyllm.speculation.params import SpeculationParams

if TYPE_CHECKING:
    from pyllm.speculation.speculator import Speculator


class LazySpeculator:
    """Makes a Speculator when it is first needed.

    Args:
        context: The context whose texts are drafted for.
        context_params: How it was made.
        n_gpu_layers: Of a draft model that is loaded here.

    Attributes:
        speculator: What drafts; None: nothing was drafted so far.
    """

    def __init__(self, context: Context, context_params: ContextParams, n_gpu_layers: int | None = None) -> None:
        self._context, self._context_params, self._n_gpu_layers = context, context_params, n_gpu_layers
        self.speculator: Speculator | None = None

    def start(self, draft: str | os.PathLike[str] | Model | None, default: Any) -> None:
        """Load the draft model, and check the default, where there is either."""
        if draft is not None or (default is not None and default is not False):
            self._make(draft, default)

    def params(self, value: Any) -> SpeculationParams | None:
        """How a call drafts that was given `value` as ``speculative=``; None: without drafts.

        Raises:
            InvalidArgumentError: There is no such way to draft, or the model cannot verify drafts.
        """
        if value is None:
            return None if self.speculator is None else self.speculator.default
        if value is False:
            return None
        if self._context.model.has_encoder:
            raise InvalidArgumentError(
                "speculative: drafts are for models whose prompt stands before their text", param="speculative"
            )
        return (self.speculator or self._make(None, False)).params(value)

    def abort(self) -> None:
        """Abort what the draft model computes, or will compute next. Takes no lock."""
        if self.speculator is not None:
            self.speculator.abort()

    def clear_abort(self) -> None:
        """Take back an :meth:`abort` that met no computation."""
        if self.speculator is not None:
            self.speculator.clear_abort()

    def close(self) -> None:
        """Free what was made. Closing twice is allowed."""
        if self.speculator is not None:
            self.speculator.close()

    def _make(self, draft: str | os.PathLike[str] | Model | None, default: Any) -> Speculator:
        from pyllm.speculation.speculator import Speculator  # only here: most calls draft nothing

        if draft is self._context.model:
            raise InvalidArgumentError("a model cannot draft for itself: it would only compute everything twice")
        if self._context_params.embeddings:
            raise InvalidArgumentError(
                "with embeddings=True nothing can be guessed ahead: every token has an output then. Leave it out; "
                "embed() has contexts of its own"
            )
        self.speculator = Speculator(self._context, draft, default, n_gpu_layers=self._n_gpu_layers)
        return self.speculator
