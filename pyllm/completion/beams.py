"""Beam search: keep the likeliest beginnings of a text, and go on with all of them at once.

The rules, and what the numbers mean, are those of Hugging Face transformers: sequences and scores are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.beam_params import BeamParams
from pyllm.completion.outputs import FinishedSequence, as_completion, finished
from pyllm.core.batch import Batch
from pyllm.core.text_stream import TextStream
from pyllm.errors import DecodeAborted, InvalidArgumentError, SamplerError
from pyllm.processors.base import process, read_only
from pyllm.types import Completion, FinishReason

if TYPE_CHECKING:
    from pyllm.completion.host import Call, CompletionHost
    from pyllm.completion.request import CompletionRequest
    from pyllm.core.context import Context


@dataclass(frozen=True, slots=True)
class Beam:
    """A text, or the beginning of one.

    Attributes:
        tokens: Its tokens, behind the prompt; the one that ends the text is among them.
        score: The sum of their log-probabilities; of a finished text divided as `length_penalty` says.
        text: The bytes that they stand for.
        reason: Why it ended; None: it goes on.
    """

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    text: bytes = b""
    reason: FinishReason | None = None


class BeamSearch:
    """The search itself, which knows no model: log-probabilities come in, beginnings go out.

    Args:
        params: How to search.
        limit: Most tokens of a text.
        end: Gives for the tokens of a beginning, and the beam that it goes on from, its bytes and why it ends there.
        n_ends: Tokens that end a text.

    Attributes:
        running: The beginnings that are kept, the likeliest first. There may be fewer than `num_beams` where no more
            are possible.
        finished: The best finished texts, the best first; at most `num_beams`.
        done: Whether the search is over.
    """

    def __init__(
        self,
        params: BeamParams,
        limit: int,
        end: Callable[[Beam, int, int], tuple[bytes, FinishReason | None]],
        n_ends: int,
    ) -> None:
        self.params, self.limit = params, limit
        self.running = [Beam()]
        self.finished: list[Beam] = []
        self.done = False
        self._end = end
        # So many, because each token that ends a text may be the best one of each beam.
        self._n_candidates = max(2, 1 + n_ends) * params.num_beams

    def advance(self, log_probs: NDArray[np.float32]) -> list[int]:
        """Go on by one token.

        Args:
            log_probs: Of each running beginning the log-probabilities of the next token, float32, shape
                (len(running), n_vocab).

        Returns:
            list[int]: For each beginning that runs now the index of the one that it goes on from.
        """
        n_beams, penalty = self.params.num_beams, self.params.length_penalty
        totals = log_probs + np.array([[beam.score] for beam in self.running], np.float32)
        beams: list[Beam] = []
        parents: list[int] = []
        length = len(self.running[0].tokens) + 1
        for rank, index in enumerate(_largest(totals.ravel(), self._n_candidates)):
            if len(beams) == n_beams and rank >= n_beams:
                break
            parent, token = divmod(int(index), log_probs.shape[1])
            score = float(totals[parent, token])
            if score == -math.inf:
                break  # a processor forbids it, and all that follow
            before = self.running[parent]
            text, reason = self._end(before, parent, token)
            if reason is None and length == self.limit:
                reason = "length"
            beam = Beam((*before.tokens, token), score, text, reason)
            if reason is None:
                if len(beams) < n_beams:
                    beams.append(beam)
                    parents.append(parent)
            elif rank < n_beams:  # those behind are there only to have enough that go on
                self.finished.append(replace(beam, score=score / length**penalty))
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[n_beams:]
        self.running = beams
        self.done = not beams or (len(self.finished) == n_beams and not self._can_improve(length))
        return parents

    def _can_improve(self, length: int) -> bool:
        """Whether a beginning may still become better than the worst finished text."""
        early, penalty = self.params.early_stopping, self.params.length_penalty
        if early is True:
            return False
        best_length = self.limit if early == "never" and penalty > 0 else length
        return bool(self.running[0].score / best_length**penalty > self.finished[-1].score)

    def interrupt(self) -> None:
        """End the search; the beginnings that are kept count as texts."""
        length = max(1, len(self.running[0].tokens)) if self.running else 1
        scores = [beam.score / length**self.params.length_penalty for beam in self.running]
        cut = [replace(beam, score=score, reason="abort") for beam, score in zip(self.running, scores, strict=True)]
        self.finished = sorted([*self.finished, *cut], key=lambda beam: -beam.score)[: self.params.num_beams]
        self.running, self.done = [], True


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the largest values, the largest first; of equal ones the first."""
    count = min(count, len(values))
    found = np.argpartition(values, len(values) - count)[len(values) - count :]
    return found[np.lexsort((found, -values[found]))]


class BeamDecoder:
    """Carries a search out in the sequences 0 to ``num_beams - 1`` of a context, which are the search's own.

    What the beams have in common is in the KV cache once, where sequences share cells.

    Args:
        request: What was asked for.
        context: Where to compute; sequence 0 has, or will have, the prompt and nothing else.

    Raises:
        InvalidArgumentError: The context has too few sequences or cells.
    """

    def __init__(self, request: CompletionRequest, context: Context) -> None:
        assert request.beams is not None
        check_context(request, context)
        self.request, self.context = request, context
        self.search = BeamSearch(request.beams, request.limit, self._end, len(request.vocab.eog_tokens))
        self._sequences = [0]  # that of each running beam
        self._held: dict[int, tuple[int, ...]] = {0: ()}  # what each sequence has behind the prompt
        self._eog = set(request.vocab.eog_tokens)
        self._stops = tuple(stop.encode() if isinstance(stop, str) else stop for stop in request.stop)
        self._log_probs = np.empty((request.beams.num_beams, context.n_vocab), np.float32)

    def begin(self) -> None:
        """Choose the first tokens; the last decode has computed the end of the prompt.

        Raises:
            Exception: What a processor or a stopping criterion raises.
        """
        self._choose([self.context.n_outputs - 1])

    def step(self) -> None:
        """Compute the newest token of each beam, and choose the next ones.

        Raises:
            DecodeAborted: The decode was aborted.
            Exception: As of :meth:`begin`.
        """
        beams, n_prompt = self.search.running, len(self.request.ids)
        self.context.decode(
            Batch.from_arrays(
                [beam.tokens[-1] for beam in beams],
                pos=[n_prompt + len(beam.tokens) - 1 for beam in beams],
                seq_ids=self._sequences,
                outputs="all",
            )
        )
        self._held.update((seq, beam.tokens) for seq, beam in zip(self._sequences, beams, strict=True))
        self._choose(list(range(len(beams))))

    def held(self, seq_id: int) -> tuple[int, ...] | None:
        """The tokens behind the prompt in a sequence; None where it is empty."""
        return self._held.get(seq_id)

    def results(self) -> list[FinishedSequence]:
        """The texts that were asked for, the best first; fewer where the search was interrupted before there were more.

        Raises:
            SamplerError: The processors leave fewer texts.
        """
        found, n = self.search.finished, self.request.n
        if len(found) < n and not any(beam.reason == "abort" for beam in found):
            raise SamplerError(f"n={n} texts were asked for, and the logits processors leave {len(found)}")
        return [self._finished(index, beam) for index, beam in enumerate(found[:n])]

    # ---- inside

    def _choose(self, rows: list[int]) -> None:
        log_probs = self._log_probs[: len(rows)]
        for target, row in zip(log_probs, rows, strict=True):
            log_softmax(self.context.logits[row], target)
        if self.request.processors:
            for beam, row_of in zip(self.search.running, log_probs, strict=True):
                process(self.request.processors, self._ids(beam.tokens), row_of)
                _check_finite(row_of, "after the logits processors")
        parents = self.search.advance(log_probs)
        if not self.search.done:
            self._branch(parents)

    def _branch(self, parents: list[int]) -> None:
        """Give each beam a sequence with the tokens of the one that it goes on from.

        The first beam that goes on from another keeps its sequence. Each further one gets that of a beam which nothing
        goes on from, so that a copy never overwrites what another copy needs.
        """
        memory = self.context.memory
        wanted = [self._sequences[parent] for parent in parents]
        free = [seq for seq in range(self.search.params.num_beams) if seq not in wanted]
        given: list[int] = []
        for seq in wanted:
            if seq not in given:
                given.append(seq)
                continue
            target = free.pop(0)
            given.append(target)
            memory.rm(target)
            memory.cp(seq, target)
            self._held[target] = self._held[seq]
        for seq in free:  # no beam is left in these: their cells are free for others
            memory.rm(seq)
            self._held.pop(seq, None)
        self._sequences = given

    def _end(self, before: Beam, parent: int, token: int) -> tuple[bytes, FinishReason | None]:
        """The text with one more token, and why it ends there."""
        if token in self._eog:
            return before.text, "stop"
        special = self.request.special
        shown = special if isinstance(special, bool) else token in special
        piece = self.request.vocab.token_to_piece(token, special=shown)
        text = before.text + piece
        for stop in self._stops:
            if stop in text[max(0, len(before.text) - len(stop) + 1) :]:
                return text, "stop"
        if self.request.stopping_criteria:
            ids, row = self._ids((*before.tokens, token)), self._log_probs[parent]
            if any(bool(criterion(ids, row)) for criterion in self.request.stopping_criteria):
                return text, "stop"
        return text, None

    def _ids(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        return read_only(np.concatenate([self.request.ids, np.array(tokens, np.int32)]))

    def _finished(self, index: int, beam: Beam) -> FinishedSequence:
        assert beam.reason is not None
        complete = bool(beam.tokens) and beam.tokens[-1] in self._eog
        stream = TextStream(self.request.stop)
        stream.append(beam.text)
        text = self.request.prompt_text + stream.take(all=True)
        tokens = beam.tokens[:-1] if complete else beam.tokens
        whole = finished(self.request, index, text, tokens, beam.reason, stream.stopped, None, complete=complete)
        return replace(whole, choice=replace(whole.choice, score=beam.score))


def check_context(request: CompletionRequest, context: Context) -> None:
    """Refuse a context in which a search might find no room.

    Raises:
        InvalidArgumentError: It has too few sequences or cells.
    """
    assert request.beams is not None
    count = request.beams.num_beams
    for name, have in (("n_seq_max", context.n_seq_max), ("n_batch", context.n_batch)):
        if have < count:
            raise InvalidArgumentError(
                f"num_beams={count} needs a sequence for each beam, and the context has {name}={have}: make it with "
                f"{name}={count}, and n_ctx for all of them",
                param="num_beams",
            )
    cells = cells_needed(request)
    if context.n_ctx == context.n_ctx_seq and cells > context.n_ctx:
        raise InvalidArgumentError(
            f"num_beams={count} of up to {request.limit} tokens behind a prompt of {len(request.ids)} may need {cells} "
            f"cells of the KV cache, and n_ctx={context.n_ctx}: choose max_tokens of at most "
            f"{(context.n_ctx - len(request.ids)) // count + 1}, or a larger n_ctx",
            param="num_beams",
        )


def cells_needed(request: CompletionRequest) -> int:
    """Cells of the KV cache that the beams of a request need at most, where they share those of the prompt."""
    assert request.beams is not None
    return len(request.ids) + request.beams.num_beams * (request.limit - 1)


def log_softmax(logits: NDArray[np.float32], target: NDArray[np.float32]) -> None:
    """Write the log-probabilities of a row of logits into `target`.

    Raises:
        SamplerError: The largest logit is no finite number.
    """
    _check_finite(logits, "in the logits of the model")
    np.subtract(logits, np.max(logits), out=target)
    target -= np.float32(np.log(np.exp(target).sum(dtype=np.float64)))


def _check_finite(row: NDArray[np.float32], where: str) -> None:
    largest = float(np.max(row))  # NaN where any of them is
    if not math.isfinite(largest):
        raise SamplerError(f"the largest number {where} is {largest}: no token can be chosen")


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


class BeamRun:
    """Searches in the context of a Llama.

    Args:
        host: The Llama, whose CallLock the call has.
        request: What was asked for.
        call: Says whether it was aborted.
    """

    def __init__(self, host: CompletionHost, request: CompletionRequest, call: Call) -> None:
        self.host, self.request, self.call = host, request, call
        self.cached = 0
        self.prompt_ms = self.generation_ms = 0.0

    def finish(self) -> Completion:
        """The best texts, the best first."""
        call = self.call
        decoder = BeamDecoder(self.request, self.host.context)
        started = time.perf_counter()
        try:
            if not call.aborted:
                self.cached = compute_prompt(self.host, self.request, call.owner)
                decoder.begin()
            self.prompt_ms = 1000 * (time.perf_counter() - started)
            while not (decoder.search.done or call.aborted):
                decoder.step()
        except DecodeAborted:
            if not call.aborted:
                raise
        self.generation_ms = 1000 * (time.perf_counter() - started) - self.prompt_ms
        if not decoder.search.done:
            decoder.search.interrupt()
        self._tidy(decoder.held(0))
        return as_completion(self.request, decoder.results(), self.cached, self.prompt_ms, self.generation_ms)

    def _tidy(self, tokens: tuple[int, ...] | None) -> None:
        """Keep what sequence 0 has for the next prompt, and remove the others."""
        self.host.context.memory.keep(0)
        if tokens is not None and not self.call.aborted:
            self.host._cache.remember(np.concatenate([self.request.ids, np.array(tokens, np.int32)]))
