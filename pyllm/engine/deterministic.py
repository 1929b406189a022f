"""Deterministic requests: computed one after another in a context of their own, whatever else runs.

The rounding of sums depends on the shape of a batch and on the cells of the KV cache, and in a shared batch both depend
on other requests. Here both are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable

from pyllm.core.context import Context
from pyllm.engine.model_runner import ModelRunner
from pyllm.engine.sequence import Sequence

# Tokens of a prefill portion: always the same, whatever else there is to do.
PORTION = 64


class DeterministicRunner:
    """Runs one sequence at a time.

    Args:
        make_context: Makes its context, when the first sequence comes.
    """

    def __init__(self, make_context: Callable[[], Context]) -> None:
        self._make_context = make_context
        self._runner: ModelRunner | None = None
        self._current: Sequence | None = None

    def choose(self, sequences: list[Sequence]) -> Sequence:
        """The sequence that is computed until it ends.

        Args:
            sequences: Those that wait or run here, not empty.
        """
        if self._current is None:
            self._current = min(sequences, key=lambda sequence: sequence.rank)
        return self._current

    def step(self) -> tuple[int, bool]:
        """Compute the next portion of the chosen sequence.

        Returns:
            tuple: How many of its tokens were computed, and whether one was sampled after them.
        """
        sequence = self._current
        assert sequence is not None
        if self._runner is None:
            self._runner = ModelRunner(self._make_context())
        if sequence.seq_id is None:
            self._runner.context.memory.clear(data=False)
            sequence.seq_id = 0
        n = min(sequence.n_left, PORTION)
        ready = self._runner.decode([(sequence, n)])
        sequence.n_computed += n
        self._runner.sample(ready)
        return n, bool(ready.sequences)

    def abort(self) -> None:
        """Abort the running decode, or the next one; its sequence cannot go on after that."""
        if self._runner is not None:
            self._runner.context.abort()

    def clear_abort(self) -> None:
        """Take back an abort that came while nothing was computed."""
        if self._runner is not None:
            self._runner.context.clear_abort()

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        sequence.seq_id = None
        if sequence is self._current:
            self._current = None

    def discard_context(self) -> None:
        """Free the context; the next step makes a new one."""
        if self._runner is not None:
            self._runner.context.close()
            self._runner = None

    close = discard_context
