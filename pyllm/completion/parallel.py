"""Several texts after one prompt at once: its KV cache is shared, and every decode holds a token of each text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pyllm.completion.logprobs import Recorder, is_shown
from pyllm.completion.pieces import Finished, Piece
from pyllm.core.batch import Batch
from pyllm.core.text_stream import TextStream
from pyllm.errors import DecodeAborted, NoKVSlotError
from pyllm.sampling import accept_prompt
from pyllm.types import Choice, FinishReason

if TYPE_CHECKING:
    from pyllm.completion.session import CompletionSession


class _Text:
    """One of the texts; its index is its sequence."""

    def __init__(self, session: CompletionSession, index: int) -> None:
        request = session.request
        self.index = index
        self.request = request
        self.chain = request.first_chain if index == 0 else request.chain(index)
        self.stream = TextStream(request.stop)
        self.recorder = (
            None if request.records is None else Recorder(session.llama.vocab, request.records, request.special)
        )
        self.text: list[str] = []
        self.tokens: list[int] = []
        self.since = 0
        self.reason: FinishReason | None = None

    def piece(self) -> Piece | None:
        """What has become final since the last time."""
        text = self.stream.take(all=self.reason is not None)
        if self.reason is None and not text:
            return None
        self.text.append(text)
        if self.recorder is not None and self.stream.stopped is not None:
            self.recorder.cut(sum(map(len, self.text)))
        tokens, self.since = tuple(self.tokens[self.since :]), len(self.tokens)
        noted = self.recorder is not None and self.request.logprobs is not None
        logprobs = self.recorder.take() if noted and self.recorder is not None else None
        return Piece(self.index, text, tokens, self.reason, logprobs)

    def finished(self) -> Finished:
        """The text, when it is complete."""
        stopped, recorder = self.stream.stopped, self.recorder
        choice = Choice(
            text="".join(self.text),
            tokens=tuple(self.tokens),
            finish_reason=self.reason or "length",
            seed=self.request.seed_of(self.index),
            index=self.index,
            stop=str(stopped) if stopped is not None else None,
            logprobs=recorder.all() if recorder is not None and self.request.logprobs is not None else None,
            parser=self.request.parser("".join(self.text), complete=self.reason == "stop" and stopped is None),
        )
        return Finished(choice, 0.0 if recorder is None else recorder.mean)


class ParallelRun:
    """Generates all texts of a request at once.

    Args:
        session: The request, the Llama that is held for it, and whether it was aborted.
    """

    def __init__(self, session: CompletionSession) -> None:
        self.session = session
        self.context = session.llama.context
        self.texts = [_Text(session, index) for index in range(session.request.best_of)]
        self.cached = 0
        self.prompt_ms = self.generation_ms = 0.0

    @staticmethod
    def suits(session: CompletionSession) -> bool:
        """Whether the context has room for all texts at once, and nothing needs them one after another."""
        request, context = session.request, session.llama.context
        count, n_prompt, limit = request.best_of, len(request.ids), request.limit
        if count == 1 or count > context.n_seq_max or count > context.n_batch or limit == 0:
            return False
        # Processors may have a state, and a prompt with log-probabilities is computed in another way.
        if request.processors or request.stopping_criteria or request.echo or session.llama.model.has_encoder:
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

    def pieces(self) -> Iterator[Piece]:
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
    def _pieces(texts: list[_Text]) -> Iterator[Piece]:
        for text in texts:
            piece = text.piece()
            if piece is not None:
                yield piece

    def _start(self) -> list[_Text]:
        """Compute the prompt once, share it, and choose the first token of each text."""
        request, context, cache = self.session.request, self.context, self.session.llama._cache
        if self.session.aborted:
            return self._end(self.texts, "abort")
        if not request.cache_prompt:
            cache.forget()
        self.cached = cache.reuse(request.ids, self.session.owner)
        cache.vacate()
        try:
            for start in range(self.cached, len(request.ids), context.n_batch):
                part = request.ids[start : start + context.n_batch]
                positions = np.arange(start, start + len(part), dtype=np.int32)
                last = start + len(part) == len(request.ids)
                context.decode(Batch.from_arrays(part, pos=positions, outputs="last" if last else "none"))
        except DecodeAborted:
            if not self.session.aborted:
                raise
            return self._end(self.texts, "abort")
        for text in self.texts:
            if text.index > 0:
                context.memory.cp(0, text.index)
            if text.chain is not None:
                accept_prompt(text.chain, request.ids)
        return [text for text in self.texts if self._choose(text, -1)]

    def _step(self, alive: list[_Text]) -> list[_Text]:
        """Decode a token of each text, and choose the next ones; those that go on are returned."""
        if self.session.aborted:
            return self._end(alive, "abort")
        n_prompt = len(self.session.request.ids)
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
            if not self.session.aborted:
                raise
            return self._end(alive, "abort")
        return [text for i, text in enumerate(alive) if self._choose(text, i)]

    def _choose(self, text: _Text, row: int) -> bool:
        assert text.chain is not None
        vocab = self.session.llama.vocab
        # Sampler.sample accepts what it has chosen.
        token = text.chain.sample(self.context, row)
        if vocab.is_eog(token):
            text.reason = "stop"
            return False
        text.tokens.append(token)
        if text.recorder is not None:
            text.recorder.add(token, self.context.logits[row])
        if text.stream.append(vocab.token_to_piece(token, special=is_shown(text.request.special, token))):
            text.reason = "stop"
        elif len(text.tokens) >= self.session.request.limit:
            text.reason = "length"
        return text.reason is None

    @staticmethod
    def _end(texts: list[_Text], reason: FinishReason) -> list[_Text]:
        for text in texts:
            text.reason = text.reason or reason
        return []

    def _tidy(self) -> None:
        """Keep the first text for the next prompt, and remove the others."""
        if not self.session.aborted:
            self.context.memory.keep(0)
            first = np.array(self.texts[0].tokens, np.int32)
            self.session.llama._cache.remember(np.concatenate([self.session.request.ids, first]))
