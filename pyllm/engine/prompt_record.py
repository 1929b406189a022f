"""Log-probabilities of a prompt: the first text of a request reads it with all logits, and the others wait for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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

    def note(self, start: int, n: int, rows: NDArray[np.float32]) -> None:
        """Tokens were computed.

        Args:
            start: The first of them.
            n: How many.
            rows: The logits of those that :meth:`wanted` named, float32, shape (k, n_vocab).
        """
        wanted = self.wanted(start, n)
        first, last = start + wanted.start + 1, start + wanted.stop + 1
        self._reader.add_prompt(self._ids[first:last], rows)
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


def mark_scored(rows: list[tuple[Text, int]], outputs: NDArray[np.bool_]) -> None:
    """Ask for the logits that records need.

    Args:
        rows: The texts of a batch, and how many of their tokens are computed.
        outputs: Which tokens of the batch have logits, shape (n_tokens,); changed in place.
    """
    at = 0
    for text, n in rows:
        if text.record is not None and text.task.scores:
            outputs[at : at + n][text.record.wanted(text.task.n_computed, n)] = True
        at += n


def note_scored(rows: list[tuple[Text, int]], outputs: NDArray[np.bool_], context: Context) -> None:
    """Hand records the logits that :func:`mark_scored` asked for, before the texts are told that they were computed."""
    at = 0
    for text, n in rows:
        if text.record is not None and text.task.scores:
            start = text.task.n_computed
            wanted = text.record.wanted(start, n)
            if wanted.start < wanted.stop:
                first = int(np.count_nonzero(outputs[: at + wanted.start]))
                logits = np.asarray(context.logits)[first : first + wanted.stop - wanted.start]
                text.record.note(start, n, logits)
        at += n
