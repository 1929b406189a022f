"""How the hub reports what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with the bytes done, the bytes in total (0 when unknown) and a short label of the current step.

An exception raised in it ends the pull; nothing half done stays visible.
"""


def silent(done: int, total: int, label: str) -> None:
    """Report nothing."""


class Scaled:
    """Reports one part of a longer transfer as a slice of the whole.

    Args:
        progress: The callback that is told.
        label: The label of the whole.
        start: The bytes of the whole that were done before this part.
        total: The bytes of the whole.
    """

    def __init__(self, progress: Progress, label: str, start: int, total: int) -> None:
        self._progress = progress
        self._label = label
        self._start = start
        self._total = total

    def __call__(self, done: int) -> None:
        """Report that `done` bytes of this part are there."""
        self._progress(min(self._start + done, self._total), self._total, self._label)
