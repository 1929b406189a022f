"""What a Llama drafts with: the draft model and its context, and what was learnt about how much drafts bring."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.core.speculative import Drafter, check_vocabulary
from pyllm.core.speculative_generation import SpeculativeGeneration
from pyllm.core.speculative_pace import Pace
from pyllm.errors import ContextError, InvalidArgumentError
from pyllm.speculation.params import SpeculationParams, as_params

if TYPE_CHECKING:
    from pyllm.core.sampler import Sampler

MTP = "draft-mtp"


class Speculator:
    """Makes the drafts for the texts of one context, which come one after the other.

    Args:
        context: The context that writes the texts.
        draft: The draft model: a name or path as a Llama takes it, a Model, which stays open afterwards, or None.
        default: How to draft where a call says nothing: True, False, a name, or SpeculationParams; None: with the
            draft model where there is one.
        n_gpu_layers: Of the draft model, where it is loaded here.

    Raises:
        VocabularyMismatchError: The draft model has other tokens than the model.
        InvalidArgumentError: There is no such way to draft, or the model cannot check drafts.
    """

    def __init__(
        self,
        context: Context,
        draft: str | os.PathLike[str] | Model | None = None,
        default: Any = None,
        *,
        n_gpu_layers: int | None = None,
    ) -> None:
        self.context = context
        self._owns_model = draft is not None and not isinstance(draft, Model)
        self.model: Model | None = None
        self._draft_context: Context | None = None
        self._drafter: tuple[SpeculationParams, Drafter] | None = None
        self._paces: dict[SpeculationParams, Pace] = {}
        if isinstance(draft, Model):
            self.model = draft
        elif draft is not None:
            from pyllm import hub

            layers: dict[str, Any] = {} if n_gpu_layers is None else {"n_gpu_layers": n_gpu_layers}
            self.model = Model(hub.resolve(draft), **layers)
        try:
            if self.model is not None:
                check_vocabulary(context.model.vocab, self.model.vocab)
            self.default = self.params(self.model is not None if default is None else default)
            if self.default is not None:
                self.drafter_for(self.default)  # its errors are raised now
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free everything that was made here. Closing twice is allowed."""
        self._close_drafter()
        if self.model is not None and self._owns_model:
            self.model.close()

    def use(self, context: Context) -> None:
        """Draft for another context of the same model. Drafters are made anew when they are needed."""
        self._close_drafter()
        self.context = context

    def abort(self) -> None:
        """Abort what the draft model computes, or will compute next. Takes no lock."""
        context = self._draft_context
        if context is not None:
            context.abort()

    def clear_abort(self) -> None:
        """Take back an :meth:`abort` that met no computation."""
        if self._draft_context is not None:
            self._draft_context.clear_abort()

    def params(self, value: Any) -> SpeculationParams | None:
        """What `speculative=` of a call says; see :func:`pyllm.speculation.params.as_params`."""
        return as_params(value, has_draft=self.model is not None)

    def reads_features(self, params: SpeculationParams) -> bool:
        """Whether drafts are made from what the model computes for each token of the prompt, all of it."""
        return params.types is not None and MTP in params.types

    def generation(
        self,
        params: SpeculationParams,
        sampler: Sampler,
        past: NDArray[np.int32],
        limit: int,
        **options: Any,
    ) -> SpeculativeGeneration:
        """A text with drafts.

        Args:
            params: How to draft.
            sampler: What selects its tokens.
            past: The tokens that sequence 0 has already, int32, shape (n,).
            limit: How many tokens it will have at most.
            **options: As of :class:`pyllm.core.generation.Generation`.
        """
        drafter = self.drafter_for(params)
        pace = self._paces.get(params)
        if pace is None or not params.adaptive:
            pace = self._paces[params] = Pace(drafter.n_max, adaptive=params.adaptive)
        return SpeculativeGeneration(
            self.context, sampler, drafter=drafter, past=past, pace=pace, limit=limit, **options
        )

    def drafter_for(self, params: SpeculationParams) -> Drafter:
        """What drafts in this way; it replaces the one before, where that was another."""
        if self._drafter is not None and self._drafter[0] == params:
            return self._drafter[1]
        # A draft context follows one drafter at a time.
        kept = None
        if self._drafter is not None and self._same_context(self._drafter[0], params):
            kept, self._draft_context = self._draft_context, None
        self._close_drafter()
        if kept is not None:
            kept.memory.clear(data=False)
            self._draft_context = kept
        elif params.needs_model:
            self._draft_context = self._make_context(params)
        self._drafter = params, Drafter(self.context, self._draft_context, **params.options())
        return self._drafter[1]

    def _same_context(self, old: SpeculationParams, new: SpeculationParams) -> bool:
        """Whether a new drafter can go on with the context of the draft model."""
        features = self.reads_features(old) or self.reads_features(new)
        return old.needs_model and new.needs_model and not features

    def _make_context(self, params: SpeculationParams) -> Context:
        target = self.context
        model: Model | None = self.model
        options: dict[str, Any] = {}
        if self.reads_features(params):
            model, options = target.model, {"ctx_type": "mtp"}
            if model.n_layer_nextn == 0:
                raise InvalidArgumentError(
                    "this model has no layers for multi-token prediction (n_layer_nextn is 0), which 'mtp' drafts with"
                )
        assert model is not None
        options |= {
            "n_ctx": target.n_ctx_seq,
            "n_batch": target.n_batch,
            "n_ubatch": target.n_ubatch,
            "n_threads": target.n_threads,
            "n_threads_batch": target.n_threads_batch,
        }
        try:
            context = Context(model, **options)
            # They compute in turn: idle threads of one would take the processors from the other.
            if target.threadpool is not None:
                context.attach_threadpool(target.threadpool)
            return context
        except ContextError as cause:
            if not self.reads_features(params):
                raise
            raise InvalidArgumentError(
                "no context could be made of the layers for multi-token prediction; they are there only where the "
                "model was loaded with load_mtp=True"
            ) from cause

    def _close_drafter(self) -> None:
        if self._drafter is not None:
            self._drafter[1].close()
            self._drafter = None
        if self._draft_context is not None:
            self._draft_context.close()
            self._draft_context = None
