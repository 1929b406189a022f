"""Whose turn it is: requests with different adapters cannot be computed in one step, so that their sets take turns."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pyllm.engine.scheduler import Task

# A change of adapters makes llama.cpp build its graphs anew, which takes about as long as a short step.
STEPS = 4


class Turns:
    """Keeps order between sets of adapters.

    A set that has running requests gets `n_steps` steps in a row, then it goes to the end of the line. So none of k
    sets waits for more than (k - 1) · n_steps steps, however many others come.

    Args:
        n_steps: Steps in a row, while others wait for theirs.
    """

    def __init__(self, n_steps: int = STEPS) -> None:
        self.n_steps = n_steps
        self._line: dict[Hashable, None] = {}
        self._current: Hashable = ()
        self._count = 0

    def order(self, tasks: Sequence[Task]) -> list[Hashable]:
        """In which order a step tries the sets of these requests, which are all there are; empty where that is one.

        Only sets with running requests are among them: those of requests that wait come to run in anybody's step.
        """
        present = {task.adapters for task in tasks}
        if len(self._line) > len(present):
            self._line = {one: None for one in self._line if one in present}
        if len(present) < 2:
            return []
        running = sorted((task for task in tasks if task.seq is not None), key=lambda task: task.rank)
        sets = dict.fromkeys(task.adapters for task in running)
        self._line |= {one: None for one in sets if one not in self._line}
        ordered: list[Hashable] = [self._current] if self._current in sets and self._count < self.n_steps else []
        return ordered + [one for one in self._line if one in sets and one not in ordered]

    def served(self, adapters: Hashable) -> None:
        """A step was for this set."""
        if adapters != self._current:
            self._current, self._count = adapters, 0
        self._count += 1
        self._line.pop(adapters, None)
        self._line[adapters] = None
