"""One sequence of a request: the state that the scheduler, the sampler and the reader of its text need."""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.logprobs import LogprobsCollector, rows_at_once
from pyllm.completion.outputs import FinishedSequence, TextDelta, finished, new_logprobs
from pyllm.completion.request import CompletionRequest
from pyllm.core.context import Context
from pyllm.core.rows import Row
from pyllm.engine.draft_state import DraftState
from pyllm.engine.scheduler import SequenceState
from pyllm.processors.base import LogitsProcessor, copied, process, read_only, reset
from pyllm.sampling import accept_prompt
from pyllm.types import FinishReason

# Tokens of prompts with logits in one step: each takes a row of floats as long as the vocabulary.
_MOST_ROWS = 256


class SequenceStatus(enum.Enum):
    """Where a sequence is between its request and its end."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class Sequence(SequenceState):
    """A sequence of a request, from its arrival to its end.

    Args:
        request: What was asked for.
        index: Its number in the request.
        number: Its number in the engine; smaller ones arrived earlier.
        priority: Smaller ones go first.
        alone: Whether it is computed apart from others; see :mod:`pyllm.engine.deterministic`.

    Attributes:
        request: What was asked for.
        index: Its number in the request.
        row: Its sampler state and its text.
        tokens: The generated tokens.
        reason: Why it ended; None: it goes on.
        limit: Most generated tokens.
        leader: The first sequence of the request; None for that one itself.
        shifted: Whether tokens were discarded; `ids` has the others.
        prompt_logprobs: The log-probabilities of the prompt, where they are asked for.
        drafts: The state of its drafts, where it may have some.
        slot: The slot that it is or was computed in; -1: none so far.
        wanted_slot: The slot that was asked for, or None.
        watched: Whether Python looks at each row of logits.
    """

    def __init__(
        self, request: CompletionRequest, index: int, number: int, priority: int, *, alone: bool = False
    ) -> None:
        chain = request.first_chain if index == 0 else request.chain(index)
        sampler = request.sampler if chain is None else chain
        assert sampler is not None
        if chain is not None:
            accept_prompt(chain, request.ids)
        self.request = request
        self.index = index
        self.row = Row(sampler, stop=request.stop, special=request.special)
        self.collector = (
            None if request.records is None else LogprobsCollector(request.vocab, request.records, request.special)
        )
        self.parts = [request.prompt_text]
        self.tokens: list[int] = []
        self.n_taken = 0
        self.reason: FinishReason | None = None
        self.limit = request.limit
        self.n_prompt = len(request.ids)
        self._buffer = np.empty(self.n_prompt + 64, np.int32)
        self._buffer[: self.n_prompt] = request.ids
        super().__init__(number, self._buffer[: self.n_prompt], number, priority, shares=request.cache_prompt)
        self.processors = own_processors(request, index)
        self.alone = alone
        self.leader: Sequence | None = None
        self.shifted = False
        self.n_counted = 0
        self.n_cached = 0
        self.error: BaseException | None = None
        self.slot = -1
        self.wanted_slot: int | None = None
        self.prompt_logprobs: PromptLogprobs | None = None
        self.drafts = None if alone or request.speculation is None else DraftState(request.speculation)
        self.watched = bool(self.processors or request.stopping_criteria or self.collector is not None)

    @property
    def status(self) -> SequenceStatus:
        """Where it is between its request and its end."""
        if self.reason is not None or self.error is not None:
            return SequenceStatus.FINISHED
        if self.seq_id is None:
            return SequenceStatus.PREEMPTED if self.slot >= 0 else SequenceStatus.WAITING
        return SequenceStatus.RUNNING if self.n_left <= 1 else SequenceStatus.PREFILLING

    def edit(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the processors on a row in place.

        Args:
            logits: The row, float32, shape (n_vocab,).

        Returns:
            The row before the processors where log-probabilities are collected, else `logits`.
        """
        raw = logits.copy() if self.collector is not None and self.processors else logits
        if self.processors:
            process(self.processors, self.all_ids, logits)
        return raw

    def append(self, token: int, raw: NDArray[np.float32] | None, row: NDArray[np.float32] | None) -> None:
        """Append a sampled token.

        Args:
            token: Its id.
            raw: The logits of the model, where log-probabilities are collected.
            row: The row that it was sampled from, for stopping criteria.
        """
        n = len(self.ids)
        if n == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(n, np.int32)])
        self._buffer[n] = token
        self.ids = self._buffer[: n + 1]
        self.sampled(token, raw)
        # No generator expression: what one closes over outlives its frame where a criterion raises.
        for criterion in self.request.stopping_criteria:
            if criterion(self.all_ids, row):  # type: ignore[arg-type]
                self.reason = "stop"

    def append_new(self) -> None:
        """Append the tokens that steps without Python have sampled."""
        tokens = self.row.tokens_from(len(self.tokens))
        start, end = len(self.ids), len(self.ids) + len(tokens)
        if end > len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(end, np.int32)])
        self._buffer[start:end] = tokens
        self.ids = self._buffer[:end]
        self.tokens.extend(tokens)
        self.sampled(None, None)

    def discard(self, keep: int, n: int) -> None:
        """Forget n computed tokens behind the first `keep`: later tokens do not see them. A context shift.

        What is computed depends on the forgotten tokens still, so that no other sequence can share it.
        """
        ids = np.concatenate([self.ids[:keep], self.ids[keep + n :]])
        self._buffer = np.concatenate([ids, np.empty(len(ids), np.int32)])
        self.ids = self._buffer[: len(ids)]
        self.n_computed = max(0, self.n_computed - n)
        self.shares, self.shifted = False, True

    @property
    def all_ids(self) -> NDArray[np.int32]:
        """The prompt and all generated tokens, read-only, for processors and stopping criteria."""
        if not self.shifted:
            return read_only(self.ids)
        return read_only(np.concatenate([self.request.ids, np.array(self.tokens, np.int32)]))

    def ended(self, raw: NDArray[np.float32] | None) -> None:
        """The model has ended it; where the prompt has log-probabilities, so has the token that ends it."""
        self.reason = "stop"
        if self.prompt_logprobs is not None and self.collector is not None and raw is not None:
            self.collector.add_end(raw)

    def sampled(self, token: int | None, logits: NDArray[np.float32] | None) -> None:
        """Note a sampled token.

        Args:
            token: Its id; None where the model has ended the sequence.
            logits: The logits of the model, where log-probabilities are collected.
        """
        if token is not None:
            self.tokens.append(token)
            if self.collector is not None:
                self.collector.add(token, logits)
        if self.row.finish_reason is not None:
            self.reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.reason = "length"

    def delta(self, *, ended: bool = True) -> TextDelta | None:
        """The text that has become final since the last call; the prompt comes first where it is echoed.

        Args:
            ended: Whether this may be the last delta. False: another one follows, even where the sequence has ended.
        """
        # The engine may go on meanwhile in another thread: it writes tokens before text, and the reason last.
        reason = self.reason if ended else None
        first = self.parts[0] if len(self.parts) == 1 else ""
        text = self.row.stream.take(all=reason is not None)
        if reason is None and not first and not text:
            return None
        self.parts.append(text)
        if self.collector is not None and self.row.stream.stopped is not None:
            self.collector.cut(sum(map(len, self.parts)))
        fresh = self.row.tokens_from(self.n_taken)
        self.n_taken += len(fresh)
        return TextDelta(self.index, first + text, fresh, reason, new_logprobs(self.request, self.collector))

    def finished(self) -> FinishedSequence:
        """The sequence, when it is complete and all of its text has been taken."""
        assert self.reason is not None
        stopped = self.row.stream.stopped
        return finished(
            self.request,
            self.index,
            "".join(self.parts),
            tuple(self.tokens),
            self.reason,
            stopped,
            self.collector,
            complete=self.reason == "stop" and self.row.finish_reason == "stop" and stopped is None,
        )

    @property
    def kv_seq_id(self) -> int:
        """Its sequence in the KV cache, while it has one."""
        assert self.seq_id is not None
        return self.seq_id

    @property
    def is_plain(self) -> bool:
        """Whether its steps compute the newest token and nothing else, once its prompt is computed."""
        return self.drafts is None and self.prompt_logprobs is None and not self.alone

    @property
    def held(self) -> bool:
        """Whether it waits for the prefill of the first sequence of the request, from which it forks."""
        leader = self.leader
        if leader is None or self.seq_id is not None or leader.reason is not None or leader.error is not None:
            return False
        return leader.row.n_generated == 0


def own_processors(request: CompletionRequest, index: int) -> list[LogitsProcessor]:
    """The processors of one of several sequences that are generated at once: those with a state need a copy each."""
    if request.n == request.best_of == 1:
        found = list(request.processors)
    else:
        found = [copied(processor) for processor in request.processors]
    reset(found)
    return found


class PromptLogprobs:
    """Log-probabilities of a prompt, for all sequences of a request: the first one scores it, the others wait.

    Args:
        sequences: The sequences of the request.

    Attributes:
        complete: Whether the whole prompt is scored.
    """

    def __init__(self, sequences: list[Sequence]) -> None:
        self._sequences = sequences
        self._ids = sequences[0].request.ids
        self.complete = False
        sequences[0].scores = True
        for sequence in sequences:
            sequence.prompt_logprobs = self
        self._first.begin_prompt(int(self._ids[0]))
        self._n_scored = 1
        self._check_complete()

    @staticmethod
    def begin(sequences: list[Sequence]) -> None:
        """Score the prompt of a request, if it asks for that."""
        if sequences[0].request.scores_prompt:
            PromptLogprobs(sequences)

    def wanted(self, start: int, n: int) -> slice:
        """Which of n tokens of the prompt, from `start` on, need logits: those that predict a token not yet scored."""
        return slice(max(self._n_scored - 1 - start, 0), max(min(n, len(self._ids) - 1 - start), 0))

    def score(self, start: int, n: int, context: Context, place: int) -> None:
        """Score computed tokens, before they count for the sequence.

        Args:
            start: The first of them.
            n: How many.
            context: Where the logits are of those that :meth:`wanted` named.
            place: The first of their rows.
        """
        wanted = self.wanted(start, n)
        n_rows = wanted.stop - wanted.start
        if n_rows <= 0:
            return
        first, last = start + wanted.start + 1, start + wanted.stop + 1
        self._first.add_prompt(self._ids[first:last], np.asarray(context.logits)[place : place + n_rows])
        self._n_scored = last
        self._check_complete()

    def _check_complete(self) -> None:
        if self._n_scored < len(self._ids):
            return
        self.complete = True
        self._first.end_prompt(len(self._sequences[0].request.prompt_text))
        first, *others = self._sequences
        # What has to be computed again after a preemption needs no logits.
        first.scores = False
        for sequence in others:
            self._collector_of(sequence).take_over(self._first)

    @property
    def _first(self) -> LogprobsCollector:
        return self._collector_of(self._sequences[0])

    @staticmethod
    def _collector_of(sequence: Sequence) -> LogprobsCollector:
        assert sequence.collector is not None
        return sequence.collector


def rows_per_step(n_vocab: int) -> int:
    """How many tokens of prompts may have logits in one step."""
    return rows_at_once(_MOST_ROWS, n_vocab)
