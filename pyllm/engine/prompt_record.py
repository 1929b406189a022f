"""Log-probabilities of a prompt: the first text of a request reads it with all logits, and the others wait for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.completion.logprobs import Recorder, rows_at_once
from pyllm.core.context import Context

if TYPE_CHECKING:
    from pyllm.engine.texts import Text

# Tokens of prompts with logits in one step: each takes a row of floats as long as the vocabulary.
_MOST_ROWS = 256


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
