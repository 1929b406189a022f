"""Where requests are computed that must not depend on what else runs: one after another, in a context of its own.

Sums are rounded by the shape of a batch and by the place of a token in the KV cache, and in a busy batch both depend on
others. Here both are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable

from pyllm.core.context import Context
from pyllm.engine.runner import Runner
from pyllm.engine.texts import Text

# Prompts are read in portions of always this size, whatever else there is to do.
PORTION = 64


class Lane:
    """Runs one text at a time.

    Args:
        make_context: Makes its context, when the first text comes.
    """

    def __init__(self, make_context: Callable[[], Context]) -> None:
        self._make_context = make_context
        self._runner: Runner | None = None
        self._current: Text | None = None

    def choose(self, texts: list[Text]) -> Text:
        """The text that is computed until it ends.

        Args:
            texts: Those that wait or run here, not empty.
        """
        if self._current is None:
            self._current = min(texts, key=lambda text: text.task.rank)
        return self._current

    def step(self) -> tuple[int, bool]:
        """Compute the next portion of the chosen text.

        Returns:
            tuple: How many of its tokens were computed, and whether one was chosen after them.
        """
        text = self._current
        assert text is not None
        if self._runner is None:
            self._runner = Runner(self._make_context())
        if text.task.seq is None:
            self._runner.context.memory.clear(data=False)
            text.task.seq = 0
        n = min(text.task.n_left, PORTION)
        ready = self._runner.decode([(text, n)])
        text.task.n_computed += n
        self._runner.sample(ready)
        return n, bool(ready.texts)

    def abort(self) -> None:
        """Abort the decode that runs, or the next one; the text that it is for must not be gone on with."""
        if self._runner is not None:
            self._runner.context.abort()

    def clear_abort(self) -> None:
        """Take back an abort that came while nothing was computed."""
        if self._runner is not None:
            self._runner.context.clear_abort()

    def forget(self, text: Text) -> None:
        """A text has ended."""
        text.task.seq = None
        if text is self._current:
            self._current = None

    def close(self) -> None:
        """Free its context."""
        if self._runner is not None:
            self._runner.context.close()
