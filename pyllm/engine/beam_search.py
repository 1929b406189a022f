"""Beam searches of an engine: one after another, beside all other requests, in a context of their own."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from pyllm.completion.beams import BeamDecoder, cells_needed
from pyllm.completion.outputs import FinishedSequence, TextDelta
from pyllm.completion.request import CompletionRequest
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.engine.sequence import Sequence
from pyllm.params import ContextParams
from pyllm.types import FinishReason

if TYPE_CHECKING:
    from pyllm.engine.adapters import AdapterSet

# Tokens of a prompt that are computed in one step, so that the other requests get their next tokens soon.
_PORTION = 256
# llama.cpp rounds the number of cells up to a multiple of this.
_CELLS = 256


class BeamSequence(Sequence):
    """One of the sequences that a beam search gives. It has all of itself when the search ends, and nothing before.

    Args:
        request: What was asked for.
        index: Which of its sequences, the best first.
        number: What no other sequence of the engine has.
        priority: Smaller ones go first.
    """

    def __init__(self, request: CompletionRequest, index: int, number: int, priority: int) -> None:
        super().__init__(request, index, number, priority, alone=True)
        self._result: FinishedSequence | None = None

    @property
    def is_found(self) -> bool:
        """Whether the search has given it."""
        return self._result is not None

    @property
    def outcome(self) -> FinishReason:
        """Why it ended."""
        return "abort" if self._result is None else self._result.choice.finish_reason

    def found(self, result: FinishedSequence) -> None:
        """The search has ended, with this sequence."""
        self._result, self.tokens = result, list(result.choice.tokens)

    def delta(self, *, ended: bool = True) -> TextDelta | None:
        """All of the sequence, when it has ended."""
        if not ended or self.reason is None:
            return None
        if self._result is None:
            return TextDelta(self.index, self.request.prompt_text, (), self.reason)
        choice = self._result.choice
        return TextDelta(self.index, choice.text, choice.tokens, self.reason)

    def finished(self) -> FinishedSequence:
        """The sequence, when it is complete."""
        return super().finished() if self._result is None else self._result


class BeamSearchRunner:
    """Carries out one beam search at a time.

    Args:
        make_context: Makes a context with these sizes.

    Attributes:
        n_chosen: Tokens that the current search has chosen for each beam.
    """

    def __init__(self, make_context: Callable[[ContextParams], Context]) -> None:
        self._make_context = make_context
        self._context: Context | None = None
        self._decoder: BeamDecoder | None = None
        self._current: CompletionRequest | None = None
        self.n_chosen = 0

    def choose(self, sequences: abc.Sequence[BeamSequence]) -> BeamSequence:
        """A sequence of the search that is carried out until it ends.

        Args:
            sequences: Those that wait or run here, not empty.
        """
        sequence = next((sequence for sequence in sequences if sequence.request is self._current), None)
        if sequence is None:
            sequence = min(sequences, key=lambda sequence: sequence.rank)
            self._current, self._decoder, self.n_chosen = sequence.request, None, 0
        return sequence

    def step(self, sequences: abc.Sequence[BeamSequence]) -> int:
        """Compute the next portion of the prompt, or the next token of each beam, of the chosen search.

        Args:
            sequences: All sequences of its request.

        Returns:
            int: Tokens of the prompt that were computed.

        Raises:
            Exception: There is no memory for its context, or what a processor or a stopping criterion raises.
        """
        request = sequences[0].request
        if self._decoder is None:
            self._decoder = BeamDecoder(request, self._prepared(request, sequences[0].adapters))
        context = self._decoder.context
        start = sequences[0].n_computed
        part = request.ids[start : start + min(_PORTION, context.n_batch)]
        if len(part):
            for sequence in sequences:
                sequence.seq_id = 0  # it runs
                sequence.n_computed = start + len(part)
            last = start + len(part) == len(request.ids)
            positions = np.arange(start, start + len(part), dtype=np.int32)
            context.decode(Batch.from_arrays(part, pos=positions, outputs="last" if last else "none"))
            if not last:
                return len(part)
            self._decoder.begin()
        else:
            self._decoder.step()
        self.n_chosen += 1
        if self._decoder.search.done:
            for sequence, result in zip(sequences, self._decoder.results(), strict=True):
                sequence.found(result)
        return len(part)

    def forget(self, sequence: BeamSequence) -> None:
        """A sequence has ended."""
        sequence.seq_id = None
        if sequence.request is self._current:
            self._current = self._decoder = None

    def discard_context(self) -> None:
        """Free the context; the next search makes a new one."""
        self._decoder = None
        if self._context is not None:
            self._context.close()
            self._context = None

    close = discard_context

    def _prepared(self, request: CompletionRequest, adapters: object) -> Context:
        """An empty context with room for a search: that of the last one, or a new one where it is too small."""
        assert request.beams is not None
        count, cells = request.beams.num_beams, cells_needed(request)
        context = self._context
        if context is None or context.n_seq_max < count or context.n_ctx < cells:
            if context is not None:
                self._context = None
                context.close()
            # In a unified cache beams share what they have in common. With all of a sliding window's cells none is
            # missing when a beam branches.
            n_ctx = -(-cells // _CELLS) * _CELLS
            sizes = ContextParams(n_ctx=n_ctx, n_seq_max=count, kv_unified=True, swa_full=True)
            self._context = context = self._make_context(sizes)
        context.memory.clear(data=False)
        context.set_adapters(cast("AdapterSet", adapters))
        return context
