"""Several texts after one prompt at once: its KV cache is shared, and every decode holds a token of each text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pyllm.completion.pieces import Finished, TextDelta
from pyllm.completion.sampled import SampledSequence
from pyllm.core.batch import Batch
from pyllm.core.rows import sample_rows
from pyllm.errors import DecodeAborted, NoKVSlotError
from pyllm.types import FinishReason

if TYPE_CHECKING:
    from pyllm.completion.host import Call, CompletionHost
    from pyllm.completion.request import CompletionRequest
    from pyllm.core.context import Context


def compute_prompt(host: CompletionHost, request: CompletionRequest, owner: str | None) -> int:
    """Compute the prompt in sequence 0, with the logits of its last token; the other sequences become empty.

    Returns:
        int: How many of its tokens had been computed before.

    Raises:
        DecodeAborted: The decode was aborted.
    """
    context, cache = host.context, host._cache
    if not request.cache_prompt:
        cache.forget()
    cached = cache.reuse(request.ids, owner)
    cache.vacate()
    for start in range(cached, len(request.ids), context.n_batch):
        part = request.ids[start : start + context.n_batch]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        last = start + len(part) == len(request.ids)
        context.decode(Batch.from_arrays(part, pos=positions, outputs="last" if last else "none"))
    return cached


class ParallelRun:
    """Generates all texts of a request at once.

    Args:
        host: The Llama, whose CallLock the call has.
        request: What was asked for.
        call: Says whether it was aborted.
    """

    def __init__(self, host: CompletionHost, request: CompletionRequest, call: Call) -> None:
        self.host, self.request, self.call = host, request, call
        self.context = host.context
        self.texts = [SampledSequence(request, index) for index in range(request.best_of)]
        self.cached = 0
        self.prompt_ms = self.generation_ms = 0.0

    @staticmethod
    def suits(request: CompletionRequest, context: Context) -> bool:
        """Whether the context has room for all texts at once, and nothing needs them one after another."""
        count, n_prompt, limit = request.best_of, len(request.ids), request.limit
        if count == 1 or count > context.n_seq_max or count > context.n_batch or limit == 0:
            return False
        # Processors may have a state, and a prompt with log-probabilities is computed in another way.
        if request.processors or request.stopping_criteria or request.echo or context.model.has_encoder:
            return False
        if request.overflow.rule == "shift":
            return False
        unified = context.n_ctx == context.n_ctx_seq
        return not unified or n_prompt + count * limit <= context.n_ctx

    @property
    def results(self) -> list[Finished]:
        """The texts, when all are complete."""
        return [text.finished() for text in self.texts]

    def finish(self) -> list[Finished]:
        """Generate all of them."""
        for _ in self.pieces():
            pass
        return self.results

    def pieces(self) -> Iterator[TextDelta]:
        """Pieces of the texts as they become final, of all texts in turn."""
        started = time.perf_counter()
        try:
            alive = self._start()
        finally:
            self.prompt_ms = 1000 * (time.perf_counter() - started)
        yield from self._pieces(self.texts)
        while alive:
            started = time.perf_counter()
            still = self._step(alive)
            self.generation_ms += 1000 * (time.perf_counter() - started)
            yield from self._pieces(alive)
            alive = still
        self._tidy()

    @staticmethod
    def _pieces(texts: list[SampledSequence]) -> Iterator[TextDelta]:
        for text in texts:
            piece = text.delta()
            if piece is not None:
                yield piece

    def _start(self) -> list[SampledSequence]:
        """Compute the prompt once, share it, and choose the first token of each text."""
        if self.call.aborted:
            return self._end(self.texts, "abort")
        try:
            self.cached = compute_prompt(self.host, self.request, self.call.owner)
        except DecodeAborted:
            if not self.call.aborted:
                raise
            return self._end(self.texts, "abort")
        for text in self.texts:
            if text.index > 0:
                self.context.memory.cp(0, text.index)
        return self._choose(self.texts, [-1] * len(self.texts))

    def _step(self, alive: list[SampledSequence]) -> list[SampledSequence]:
        """Decode a token of each text, and choose the next ones; those that go on are returned."""
        if self.call.aborted:
            return self._end(alive, "abort")
        n_prompt = len(self.request.ids)
        try:
            self.context.decode(
                Batch.from_arrays(
                    [text.tokens[-1] for text in alive],
                    pos=[n_prompt + len(text.tokens) - 1 for text in alive],
                    seq_ids=[text.index for text in alive],
                    outputs="all",
                )
            )
        except NoKVSlotError:
            return self._end(alive, "length")
        except DecodeAborted:
            if not self.call.aborted:
                raise
            return self._end(alive, "abort")
        return self._choose(alive, list(range(len(alive))))

    def _choose(self, texts: list[SampledSequence], rows: list[int]) -> list[SampledSequence]:
        """Choose a token for each text from a row of the last decode; those that go on are returned."""
        tokens = sample_rows(self.context, [text.row for text in texts], rows)
        for text, token, row in zip(texts, tokens, rows, strict=True):
            if text.row.error is not None:
                raise text.row.error
            text.sampled(token, None if text.collector is None else self.context.logits[row])
        return [text for text in texts if text.reason is None]

    @staticmethod
    def _end(texts: list[SampledSequence], reason: FinishReason) -> list[SampledSequence]:
        for text in texts:
            text.reason = text.reason or reason
        return []

    def _tidy(self) -> None:
        """Keep the first text for the next prompt, and remove the others."""
        if not self.call.aborted:
            self.context.memory.keep(0)
            first = np.array(self.texts[0].tokens, np.int32)
            self.host._cache.remember(np.concatenate([self.request.ids, first]))
