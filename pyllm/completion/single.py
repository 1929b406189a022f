"""One text after a prompt, in sequence 0 of the context."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.logprobs import LogprobsCollector, score_prompt
from pyllm.completion.outputs import FinishedSequence, TextDelta, finished, new_logprobs
from pyllm.core.batch import Batch
from pyllm.core.generation import Generation
from pyllm.core.sampler import Sampler
from pyllm.errors import DecodeAborted, InvalidArgumentError, NoKVSlotError
from pyllm.processors.base import process, read_only, reset
from pyllm.sampling import accept_prompt
from pyllm.types import FinishReason, Speculation

if TYPE_CHECKING:
    from pyllm.completion.host import Call, CompletionHost
    from pyllm.completion.request import CompletionRequest


class SingleRun:
    """Generates one text.

    Args:
        host: The Llama, whose CallLock the call has.
        request: What was asked for.
        call: Says whether it was aborted.
        index: Which of the texts.
    """

    def __init__(self, host: CompletionHost, request: CompletionRequest, call: Call, index: int = 0) -> None:
        self.llama, self.request, self.call, self.index = host, request, call, index
        self.chain = request.first_chain if index == 0 else request.chain(index)
        self.collector = (
            None if request.records is None else LogprobsCollector(self.llama.vocab, request.records, request.special)
        )
        self.text = [request.prompt_text]
        self.cached = 0
        self.prompt_ms = self.generation_ms = 0.0
        self.ended: FinishReason | None = None
        self.shifted = False
        self.generation: Generation | None = None
        self.results: list[FinishedSequence] = []

    # ---- the prompt

    def _start(self) -> Generation | None:
        """Compute the prompt; None when it was aborted."""
        started = time.perf_counter()
        reset(self.request.processors)
        try:
            if self.call.aborted:
                raise DecodeAborted("aborted before it began")
            self.generation = self._encoded() if self.llama.model.has_encoder else self._prefilled()
        except DecodeAborted:
            if not self.call.aborted:
                raise
            self.ended = "abort"
            return None
        finally:
            self.prompt_ms = 1000 * (time.perf_counter() - started)
        if self.chain is not None:
            accept_prompt(self.chain, self.request.ids)
        return self.generation

    def _prefilled(self) -> Generation:
        llama, request = self.llama, self.request
        cache, ids = llama._cache, request.ids
        scores_prompt = request.echo and self.collector is not None
        if scores_prompt or not request.cache_prompt or self._drafts_from_features:
            cache.forget()
        self.cached = cache.reuse(ids, self.call.owner)
        start = self.cached
        if scores_prompt and self.collector is not None:
            cache.vacate()
            score_prompt(llama.context, ids, self.collector)
            self.collector.end_prompt(len(request.prompt_text))
            start = len(ids) - 1
        generation = self._new_generation(ids[:start])
        cache.prefill(generation, ids, start)
        return generation

    @property
    def _drafts_from_features(self) -> bool:
        speculator, params = self.llama._speculator.speculator, self.request.speculation
        return speculator is not None and params is not None and speculator.reads_features(params)

    def _new_generation(self, past: NDArray[np.int32]) -> Generation:
        """A text that goes on where the memory has these tokens."""
        request, speculator = self.request, self.llama._speculator.speculator
        options: dict[str, Any] = {"stop": request.stop, "special": request.special}
        if request.speculation is None or speculator is None or (len(past) and self._drafts_from_features):
            return Generation(self.llama.context, self._sampler(), **options)
        return speculator.generation(request.speculation, self._sampler(), past, request.limit, **options)

    def _encoded(self) -> Generation:
        # The prompt goes through the encoder, the answer begins with a token of its own.
        context, model = self.llama.context, self.llama.model
        context.memory.clear(data=False)
        if self.collector is not None:
            self.collector.end_prompt(len(self.request.prompt_text))
        generation = Generation(context, self._sampler(), stop=self.request.stop, special=self.request.special)
        context.encode(Batch.from_arrays(self.request.ids, outputs="all"))
        start = model.decoder_start_token
        if start is None:
            start = self.llama.vocab.bos
        if start is None:
            raise InvalidArgumentError("this model does not say with which token its answers begin")
        generation.prefill([start])
        return generation

    def _sampler(self) -> Sampler:
        sampler = self.request.sampler if self.chain is None else self.chain
        assert sampler is not None
        return sampler

    # ---- the text

    def finish(self) -> FinishedSequence:
        """Generate all of it; where nobody looks at the tokens in one go, and no Python runs in between."""
        request = self.request
        if request.processors or request.stopping_criteria or self.collector is not None:
            for _ in self.tokens():
                pass
        else:
            generation = self._start()
            if generation is not None:
                self._run(generation)
        return self.finished()

    def _run(self, generation: Generation) -> None:
        started = time.perf_counter()
        try:
            while True:
                try:
                    generation.run(self.request.limit - generation.n_generated)
                    break
                except NoKVSlotError:
                    if not self._make_room(generation):
                        break  # the context is full: the text ends here, by length
        except DecodeAborted:
            if not self.call.aborted:
                raise
        self.generation_ms += 1000 * (time.perf_counter() - started)
        if self.call.aborted and generation.n_generated < self.request.limit:
            self.ended = "abort"

    def tokens(self) -> Iterator[int]:
        """One token id after the other."""
        generation = self._start()
        if generation is None:
            return
        request, limit = self.request, self.request.limit
        watched = bool(request.processors or request.stopping_criteria)
        ids = request.ids
        if watched:
            ids = np.concatenate([ids, np.zeros(min(limit, self.llama.context.n_ctx), np.int32)])
        filled = len(request.ids)
        while generation.n_generated < limit and generation.finish_reason is None and self.ended is None:
            if self.call.aborted:
                self.ended = "abort"
                return
            if watched and filled == len(ids):
                ids = np.concatenate([ids, np.zeros_like(ids)])
            started = time.perf_counter()
            token = self._step(generation, ids[: filled + 1])
            self.generation_ms += 1000 * (time.perf_counter() - started)
            if token is None:
                return
            filled += 1
            yield token

    def _step(self, generation: Generation, ids: NDArray[np.int32]) -> int | None:
        """Generate one token; None when there is no more. Its id is written behind the others in `ids`."""
        request, raw, row = self.request, None, None
        watched = bool(request.processors or request.stopping_criteria)
        try:
            if watched or self.collector is not None:
                generation.decode_next()
                row = self.llama.context.logits[generation.row]
                # What the model said is reported, not what processors make of it.
                raw = row.copy() if self.collector is not None and request.processors else row
            if request.processors:
                process(request.processors, read_only(ids[:-1]), row)  # type: ignore[arg-type]
            token = generation.step()
        except NoKVSlotError:
            # Processors have not run yet: it is the decode before them that found no room.
            return self._step(generation, ids) if self._make_room(generation) else None
        except DecodeAborted:
            if not self.call.aborted:
                raise
            self.ended = "abort"
            return None
        if token is None:
            if self.collector is not None and raw is not None and request.scores_prompt:
                self.collector.add_end(raw)
            return None
        if self.collector is not None:
            self.collector.add(token, raw)
        if watched:
            ids[-1] = token
        if request.stopping_criteria:
            seen = read_only(ids)
            if any(bool(criterion(seen, row)) for criterion in request.stopping_criteria):  # type: ignore[arg-type]
                self.ended = "stop"
        return token

    def _make_room(self, generation: Generation) -> bool:
        """Whether the text can go on in a context that was full."""
        if self.llama._cache.make_room():
            return True
        shifted = self.request.overflow.shift(generation, self.request.ids)
        self.shifted = self.shifted or shifted
        return shifted

    def deltas(self) -> Iterator[TextDelta]:
        """Deltas of the text as they become final; the last one has the reason of the end."""
        since: list[int] = []
        if self.text[0]:
            yield TextDelta(self.index, self.text[0], ())
        for token in self.tokens():
            since.append(token)
            text = self.generation.stream.take() if self.generation is not None else ""
            if text:
                self.text.append(text)
                logprobs = None if self.collector is None else new_logprobs(self.request, self.collector)
                yield TextDelta(self.index, text, tuple(since), None, logprobs)
                since = []
        before = len(self.text)
        choice = self.finished().choice
        rest = "".join(self.text[before:])
        yield TextDelta(
            self.index, rest, tuple(since), choice.finish_reason, new_logprobs(self.request, self.collector)
        )

    @property
    def speculation(self) -> Speculation | None:
        """How drafts went; None where there were none to be made."""
        generation = self.generation
        if self.request.speculation is None:
            return None
        from pyllm.core.speculative_generation import SpeculativeGeneration  # most calls need nothing of it

        if not isinstance(generation, SpeculativeGeneration):
            return None
        return Speculation(generation.n_drafts, generation.n_drafted, generation.n_accepted, generation.n_paused)

    def remember(self) -> None:
        """Note what is in the KV cache now; also where the text was left before its end."""
        # After a shift the cache holds what was computed when it still saw what is gone: no prompt leads to that.
        if self.generation is not None and not self.llama.model.has_encoder and not self.shifted:
            self.generation.settle()
            self.llama._cache.remember(np.concatenate([self.request.ids, np.array(self.generation.tokens, np.int32)]))

    def finished(self) -> FinishedSequence:
        """The text, when it is complete."""
        generation, request = self.generation, self.request
        tokens: list[int] = []
        reason: FinishReason = self.ended or "length"
        stopped, complete = None, False
        if generation is not None:
            self.text.append(generation.stream.take(all=True))
            tokens = generation.tokens
            stopped = generation.stream.stopped
            if generation.finish_reason == "stop":
                reason, complete = "stop", stopped is None
            self.remember()
        text = "".join(self.text)
        if self.collector is not None and stopped is not None:
            self.collector.cut(len(text))
        whole = finished(request, self.index, text, tuple(tokens), reason, stopped, self.collector, complete=complete)
        self.results = [whole]
        return whole
