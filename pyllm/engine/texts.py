"""One text of a request: what the scheduler, the sampler and the reader need of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.logprobs import Recorder, rows_at_once
from pyllm.completion.request import CompletionRequest
from pyllm.completion.row_text import RowText
from pyllm.core.context import Context
from pyllm.engine.drafting import Drafting
from pyllm.engine.scheduler import Task
from pyllm.processors.base import LogitsProcessor, copied, process, read_only, reset

# Tokens of prompts with logits in one step: each takes a row of floats as long as the vocabulary.
_MOST_ROWS = 256


class Text(RowText):
    """A text in the making.

    Args:
        request: What was asked for.
        index: Which of its texts.
        number: What no other text of the engine has; smaller ones arrived earlier.
        priority: Smaller ones go first.
        alone: Whether it is computed apart from others; see :mod:`pyllm.engine.lane`.

    Attributes:
        record: What notes the log-probabilities of the prompt, where they are asked for.
        drafting: What is known of its drafts, where it may have some.
        slot: The slot that it is or was computed in; -1: none so far.
        wanted_slot: The slot that was asked for, or None.
        watched: Whether Python looks at each row of logits.
    """

    def __init__(
        self, request: CompletionRequest, index: int, number: int, priority: int, *, alone: bool = False
    ) -> None:
        super().__init__(request, index)
        self.processors = own_processors(request, index)
        self.n_prompt = len(request.ids)
        self._buffer = np.empty(self.n_prompt + 64, np.int32)
        self._buffer[: self.n_prompt] = request.ids
        self.task = Task(number, self._buffer[: self.n_prompt], number, priority, shares=request.cache_prompt)
        self.alone = alone
        self.n_counted = 0
        self.cached = 0
        self.error: BaseException | None = None
        self.slot = -1
        self.wanted_slot: int | None = None
        self.record: PromptRecord | None = None
        self.drafting = None if alone or request.speculation is None else Drafting(request.speculation)
        self.watched = bool(self.processors or request.stopping_criteria or self.recorder is not None)

    def edit(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the processors on a row; the row to report log-probabilities from."""
        raw = logits.copy() if self.recorder is not None and self.processors else logits
        if self.processors:
            process(self.processors, self._ids(), logits)
        return raw

    def took(self, token: int, raw: NDArray[np.float32] | None, row: NDArray[np.float32] | None) -> None:
        """A token was chosen.

        Args:
            token: Which.
            raw: What the model said, where it is recorded.
            row: The row it was chosen from, for stopping criteria.
        """
        n = len(self.task.ids)
        if n == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(n, np.int32)])
        self._buffer[n] = token
        self.task.ids = self._buffer[: n + 1]
        self.chose(token, raw)
        # No generator expression: what one closes over outlives its frame where a criterion raises.
        for criterion in self.request.stopping_criteria:
            if criterion(self._ids(), row):  # type: ignore[arg-type]
                self.reason = "stop"

    @property
    def seq(self) -> int:
        """The sequence that it runs in."""
        assert self.task.seq is not None
        return self.task.seq

    @property
    def is_plain(self) -> bool:
        """Whether a step of it is the newest token and nothing else, once its prompt is computed."""
        return self.drafting is None and self.record is None and not self.alone

    @property
    def held(self) -> bool:
        """Whether it waits until another text of the request has read the prompt."""
        return self.record is not None and self.record.holds(self)

    def took_all(self) -> None:
        """Tokens were chosen that it was not told of one by one, and that nobody looked at."""
        tokens = self.row.tokens_from(len(self.tokens))
        start, end = len(self.task.ids), len(self.task.ids) + len(tokens)
        if end > len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(end, np.int32)])
        self._buffer[start:end] = tokens
        self.task.ids = self._buffer[:end]
        self.tokens.extend(tokens)
        self.chose(None, None)

    def ended(self, raw: NDArray[np.float32] | None) -> None:
        """The model has ended the text; where the prompt has log-probabilities, that token has one, too."""
        self.reason = "stop"
        if self.record is not None and self.recorder is not None and raw is not None:
            self.recorder.add_end(raw)

    def _ids(self) -> NDArray[np.int32]:
        return read_only(self.task.ids)


def own_processors(request: CompletionRequest, index: int) -> list[LogitsProcessor]:
    """The processors of one of several texts that are generated at once: those with a state need a copy each."""
    if request.n == request.best_of == 1:
        found = list(request.processors)
    else:
        found = [copied(processor) for processor in request.processors]
    reset(found)
    return found


class PromptRecord:
    """What the tokens of a prompt had, for all texts of a request.

    Args:
        texts: The texts; the first one reads the prompt.

    Attributes:
        complete: Whether all of the prompt has been noted.
    """

    def __init__(self, texts: list[Text]) -> None:
        self._texts = texts
        self._ids = texts[0].request.ids
        self.complete = False
        texts[0].task.scores = True
        for text in texts:
            text.record = self
        self._reader.begin_prompt(int(self._ids[0]))
        self._n_noted = 1
        self._check_complete()

    @staticmethod
    def begin(texts: list[Text]) -> None:
        """Give the texts of a request a record, if it asks for one."""
        if texts[0].request.scores_prompt:
            PromptRecord(texts)

    def holds(self, text: Text) -> bool:
        """Whether a text has to wait until the first one has read the prompt."""
        first = self._texts[0]
        return text is not first and not self.complete and first.reason is None

    def wanted(self, start: int, n: int) -> slice:
        """Which of n tokens of the prompt, from `start` on, need logits: those that predict one not yet noted."""
        return slice(max(self._n_noted - 1 - start, 0), max(min(n, len(self._ids) - 1 - start), 0))

    def note(self, start: int, n: int, context: Context, place: int) -> None:
        """Tokens were computed; the text has not been told yet.

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
        self._reader.add_prompt(self._ids[first:last], np.asarray(context.logits)[place : place + n_rows])
        self._n_noted = last
        self._check_complete()

    def _check_complete(self) -> None:
        if self._n_noted < len(self._ids):
            return
        self.complete = True
        self._reader.end_prompt(len(self._texts[0].request.prompt_text))
        first, *others = self._texts
        # What has to be computed again after a preemption needs no logits.
        first.task.scores = False
        for text in others:
            self._recorder_of(text).take_over(self._reader)

    @property
    def _reader(self) -> Recorder:
        return self._recorder_of(self._texts[0])

    @staticmethod
    def _recorder_of(text: Text) -> Recorder:
        assert text.recorder is not None
        return text.recorder


def rows_per_step(n_vocab: int) -> int:
    """How many tokens of prompts may have logits in one step."""
    return rows_at_once(_MOST_ROWS, n_vocab)
