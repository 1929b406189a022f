"""One text of a request: what the scheduler, the sampler and the reader need of it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.logprobs import Recorder
from pyllm.completion.pieces import Finished, Piece
from pyllm.completion.request import CompletionRequest
from pyllm.core.rows import Row
from pyllm.engine.scheduler import Task
from pyllm.errors import InvalidArgumentError
from pyllm.processors.base import LogitsProcessor, process, reset
from pyllm.sampling import accept_prompt
from pyllm.types import Choice, FinishReason


class Text:
    """A text in the making.

    Args:
        request: What was asked for.
        index: Which of its texts.
        number: What no other text of the engine has; smaller ones arrived earlier.
        priority: Smaller ones go first.
        alone: Whether it is computed apart from others; see :mod:`pyllm.engine.lane`.
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
        self.recorder = None if request.records is None else Recorder(request.vocab, request.records, request.special)
        self.processors = own_processors(request, index)
        self.n_prompt = len(request.ids)
        self._buffer = np.empty(self.n_prompt + 64, np.int32)
        self._buffer[: self.n_prompt] = request.ids
        self.task = Task(number, self._buffer[: self.n_prompt], number, priority, shares=request.cache_prompt)
        self.text = [request.prompt_text]
        self.since = 0
        self.reason: FinishReason | None = None
        self.alone = alone
        self.n_counted = 0
        self.cached = 0
        self.error: BaseException | None = None

    @property
    def watched(self) -> bool:
        """Whether Python looks at each row of logits."""
        return bool(self.processors or self.request.stopping_criteria or self.recorder is not None)

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
        if self.recorder is not None:
            self.recorder.add(token, raw)
        criteria = self.request.stopping_criteria
        # No generator expression: what one closes over outlives its frame where a criterion raises.
        for criterion in criteria:
            if criterion(self._ids(), row):  # type: ignore[arg-type]
                self.reason = "stop"
        if self.row.finish_reason is not None:
            self.reason = "stop"
        if self.reason is None and self.row.n_generated >= self.request.limit:
            self.reason = "length"

    def piece(self) -> Piece | None:
        """What has become final since the last time."""
        text = self.row.stream.take(all=self.reason is not None)
        if self.reason is None and not text and not (self.since == 0 and self.text[0]):
            return None
        first = self.text[0] if self.since == 0 and len(self.text) == 1 else ""
        self.text.append(text)
        if self.recorder is not None and self.row.stream.stopped is not None:
            self.recorder.cut(sum(map(len, self.text)))
        tokens = self.row.tokens
        fresh, self.since = tuple(tokens[self.since :]), len(tokens)
        logprobs = None
        if self.recorder is not None and self.request.logprobs is not None:
            logprobs = self.recorder.take()
        return Piece(self.index, first + text, fresh, self.reason, logprobs)

    def finished(self) -> Finished:
        """The text, when it is complete and all of it has been taken."""
        request, recorder, stopped = self.request, self.recorder, self.row.stream.stopped
        choice = Choice(
            text="".join(self.text),
            tokens=tuple(self.row.tokens),
            finish_reason=self.reason or "abort",
            seed=request.seed_of(self.index),
            index=self.index,
            stop=str(stopped) if stopped is not None else None,
            logprobs=recorder.all() if recorder is not None and request.logprobs is not None else None,
        )
        return Finished(choice, 0.0 if recorder is None else recorder.mean)

    def _ids(self) -> NDArray[np.int32]:
        view = self.task.ids.view()
        view.flags.writeable = False
        return view


def own_processors(request: CompletionRequest, index: int) -> list[LogitsProcessor]:
    """The processors of one of several texts that are generated at once: those with a state need a copy each."""
    if request.n == request.best_of == 1:
        found = list(request.processors)
    else:
        found = [_own(processor) for processor in request.processors]
    reset(found)
    return found


def _own(processor: Any) -> Any:
    if callable(getattr(processor, "clone", None)):
        return processor.clone()
    if not hasattr(processor, "reset"):
        return processor
    try:
        return copy.deepcopy(processor)
    except Exception as cause:
        raise InvalidArgumentError(
            f"the logits processor {processor!r} has a state, and several texts at once need one each: give it a "
            "method clone()"
        ) from cause
