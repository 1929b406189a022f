"""What a Llama knows about speculation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.errors import InvalidArgumentError
from pyllm.params import ContextParams, ModelParams
from pyllm.speculation.params import SpeculationParams, arguments_for

if TYPE_CHECKING:
    from pyllm.speculation.speculator import Speculator


class SpeculationMethods:
    """The part of :class:`pyllm.Llama` that drafts."""

    context: Context
    model: Model
    model_params: ModelParams
    context_params: ContextParams
    _speculator: Speculator | None = None
    _arguments_for = staticmethod(arguments_for)

    def _start_speculation(self, draft: str | os.PathLike[str] | Model | None, default: Any) -> None:
        if draft is not None or (default is not None and default is not False):
            self._make_speculator(draft, default)

    def _make_speculator(self, draft: str | os.PathLike[str] | Model | None, default: Any) -> Speculator:
        from pyllm.speculation.speculator import Speculator  # only here: most calls draft nothing

        if draft is self.model:
            raise InvalidArgumentError("a model cannot draft for itself: it would only compute everything twice")
        if self.context_params.embeddings:
            raise InvalidArgumentError(
                "with embeddings=True nothing can be guessed ahead: every token has an output then. Leave it out; "
                "embed() has contexts of its own"
            )
        self._speculator = Speculator(self.context, draft, default, n_gpu_layers=self.model_params.n_gpu_layers)
        return self._speculator

    def _speculation(self, value: Any) -> SpeculationParams | None:
        """How a call drafts that was given this as `speculative=`."""
        speculator = self._speculator
        if value is None:
            return None if speculator is None else speculator.default
        if value is False:
            return None
        if self.model.has_encoder:
            raise InvalidArgumentError(
                "speculative: drafts are for models whose prompt stands before their text", param="speculative"
            )
        return (speculator or self._make_speculator(None, False)).params(value)

    def _abort_drafts(self) -> None:
        if self._speculator is not None:
            self._speculator.abort()

    def _clear_abort_of_drafts(self) -> None:
        if self._speculator is not None:
            self._speculator.clear_abort()

    def _close_speculator(self) -> None:
        if self._speculator is not None:
            self._speculator.close()
