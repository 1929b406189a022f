"""Run several decode steps without the GIL while no sequence needs Python (no processor, criterion or logprobs)."""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from pyllm.core.context import Context
from pyllm.core.round import Flag, Round
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from pyllm.engine.request import Request
    from pyllm.engine.request_stream import LoopNotifier, Reader
    from pyllm.engine.sequence import Sequence

# After so many milliseconds Python runs, so that the metrics are not older.
_MS = 100.0


class MultiStep:
    """Runs several steps of the same sequences without returning to Python.

    Args:
        context: The context that computes.
        work_available: When it is set, the steps end.
    """

    def __init__(self, context: Context, work_available: Flag) -> None:
        self._context, self._work_available = context, work_available
        self._steps: Round | None = None
        self._notifiers: list[LoopNotifier] = []
        self._refused = False

    def begin(self, sequences: abc.Sequence[Sequence], requests: Mapping[Sequence, Request]) -> bool:
        """Take these sequences, which stay the same until :meth:`end`; whether they can be computed here.

        Args:
            sequences: The sequences.
            requests: The requests that they belong to.
        """
        if self._steps is not None or self._refused:
            return not self._refused
        notifiers: dict[LoopNotifier, list[Reader]] = {}
        for sequence in sequences:
            request = requests[sequence]
            notifier = None if request.stream is None else request.stream.notifier
            if sequence.watched or (request.streamed and (notifier is None or notifier.wakeup_fd is None)):
                self._refused = True
                return False
            if request.streamed and notifier is not None:
                notifiers.setdefault(notifier, []).append((request.read, sequence))
        for notifier, watched in notifiers.items():
            notifier.watch(self, watched)
        self._notifiers = list(notifiers)
        ordered = sorted(sequences, key=lambda sequence: sequence.kv_seq_id)
        try:
            self._steps = Round(
                self._context,
                [sequence.row for sequence in ordered],
                [sequence.kv_seq_id for sequence in ordered],
                [sequence.n_computed for sequence in ordered],
                [sequence.limit for sequence in ordered],
                stop=self._work_available,
                bells=[cast("int", notifier.wakeup_fd) for notifier in notifiers],
            )
        except PyllmError:
            # Two samplers are members of one chain, say.
            self.refuse()
        return not self._refused

    def run(self, most: int) -> None:
        """Compute up to so many steps."""
        assert self._steps is not None
        self._steps.run(most, _MS)

    @property
    def n_steps(self) -> int:
        """How many steps the last :meth:`run` has computed, also where it has failed."""
        assert self._steps is not None
        return self._steps.n_steps

    def refuse(self) -> None:
        """These sequences cannot be computed here, until :meth:`end`."""
        self.end()
        self._refused = True

    def end(self) -> None:
        """Other sequences follow."""
        self._steps, self._refused = None, False
        for notifier in self._notifiers:
            notifier.watch(self, ())
        self._notifiers = []
