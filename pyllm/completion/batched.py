"""Several sequences after one prompt: an EngineCore in the context of a Llama, stepped by the thread of the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pyllm.errors import DecodeAborted

if TYPE_CHECKING:
    from pyllm.completion.host import Call, CompletionHost
    from pyllm.completion.request import CompletionRequest
    from pyllm.core.context import Context
    from pyllm.engine.core import EngineCore
    from pyllm.engine.request import Request
    from pyllm.types import Chunk, Completion


class BatchedRun:
    """Generates all sequences of a request, as many at once as the context has room for.

    Args:
        host: The Llama, whose CallLock the call has.
        request: What was asked for.
        call: Says whether it was aborted.
    """

    def __init__(self, host: CompletionHost, request: CompletionRequest, call: Call) -> None:
        self.host, self.request, self.call = host, request, call

    @staticmethod
    def suits(request: CompletionRequest, context: Context) -> bool:
        """Whether the request has several sequences that can be computed at once."""
        if request.best_of == 1 or context.n_seq_max == 1 or request.limit == 0 or request.beams is not None:
            return False
        # A processor has one state here, where each sequence of an Engine has a copy.
        if request.processors or request.stopping_criteria or context.model.has_encoder:
            return False
        return bool(request.overflow.rule != "shift")

    def finish(self) -> Completion:
        """Generate all of them."""
        *_, request = self._steps(streamed=False)
        return request.result(0)

    def chunks(self) -> Iterator[Chunk]:
        """Text as it becomes final, of all sequences in turn; the last chunk has the completion."""
        for request in self._steps(streamed=True):
            for event in request.take():
                if isinstance(event, BaseException):
                    raise event
                yield event

    def _steps(self, *, streamed: bool) -> Iterator[Request]:
        """Compute step by step; the request, after each step until it has ended."""
        from pyllm.engine.request import Request  # only here: most completions have one sequence

        host, asked, context = self.host, self.request, self.host.context
        cache = host._cache
        if not asked.cache_prompt:
            cache.forget()
        # With log-probabilities of the prompt every token of it is computed.
        n_cached = cache.reuse(asked.ids, self.call.owner)
        if asked.scores_prompt and n_cached:
            cache.forget()
            n_cached = cache.reuse(asked.ids, self.call.owner)
        # The sequences of the context are those of this request now.
        cache.vacate()
        core, request = _core(context), Request(asked, streamed=streamed)
        for sequence in request.sequences:
            # What is computed stays for the next prompt, whether or not this one reused something.
            sequence.shares, sequence.drafts = True, None
            sequence.adapters = context.adapters
        core.add_request(request, n_resident=n_cached)
        while not request.ended:
            if self.call.aborted:
                core.abort(request)
            else:
                try:
                    core.step()
                except DecodeAborted:
                    if not self.call.aborted:
                        raise
                    core.abort(request)
            if request.ended:
                self._keep(core, request)
            yield request

    def _keep(self, core: EngineCore, request: Request) -> None:
        """Leave the first sequence in sequence 0 for the next prompt, and nothing else."""
        memory, first = self.host.context.memory, request.sequences[0]
        ids = np.array(first.ids[: first.n_computed], np.int32)
        seq_id = None if self.call.aborted else core.cache.find(ids, first.adapters)
        if seq_id is not None and seq_id != 0 and core.cache.cells.shares:
            memory.rm(0)
            memory.cp(seq_id, 0)
            seq_id = 0
        memory.keep(0)
        if seq_id == 0:
            self.host._cache.remember(first.ids)


def _core(context: Context) -> EngineCore:
    from pyllm.engine.core import EngineCore
    from pyllm.engine.prefill_budget import PrefillBudget
    from pyllm.engine.signals import AbortableDecode

    return EngineCore(
        context,
        PrefillBudget(context.n_batch, None, context.n_batch),
        AbortableDecode(threading.Condition()),
        n_running=min(context.n_seq_max, context.n_batch),
        unified=context.n_ctx == context.n_ctx_seq,
    )
