"""The sequences of a context: which requests run in them, which are kept for later prompts, and what they hold."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.ledger import Ledger
from pyllm.engine.prefix import PrefixTree
from pyllm.engine.scheduler import Admission, Task


class Sequences(Protocol):
    """What the cache needs of a context's memory; :class:`pyllm.core.memory.Memory` is one."""

    def rm(self, seq_id: int, p0: int = ..., p1: int = ...) -> bool:
        """Remove positions of a sequence."""

    def cp(self, src: int, dst: int, p0: int = ..., p1: int = ...) -> None:
        """Let a sequence have positions of another one."""


class SequenceCache:
    """Keeps count of the KV cache, and changes it.

    Args:
        memory: The memory of the context.
        n_cells: Its cells.
    """

    def __init__(self, memory: Sequences, n_cells: int) -> None:
        self.memory = memory
        self.ledger = Ledger(n_cells)
        self.tree = PrefixTree()
        self.idle: OrderedDict[int, None] = OrderedDict()

    def start(self, task: Task, admission: Admission) -> None:
        """A request begins to run."""
        seq, source, n = admission.seq, admission.source, admission.n_reused
        if source is not None and source != seq:
            self.memory.cp(source, seq, 0, n)
            self.ledger.copy(source, seq, n)
            if source in self.idle:
                self.idle.move_to_end(source)
        elif source is not None:
            del self.idle[seq]
            self.memory.rm(seq, n, -1)
            self.ledger.truncate(seq, n)
        task.seq, task.n_computed = seq, n
        if task.shares:
            self.tree.insert(seq, task.ids)

    def computed(self, task: Task, n: int) -> None:
        """Tokens of a request are in the KV cache now."""
        assert task.seq is not None
        self.ledger.append(task.seq, n)
        task.n_computed += n

    def keep(self, task: Task) -> None:
        """A request has ended; what was computed stays for prompts that begin in the same way."""
        seq, ids = task.seq, task.ids[: task.n_computed]
        assert seq is not None
        task.seq = None
        if not task.shares or len(ids) == 0 or self._is_known(seq, ids):
            self._remove(seq)
            return
        self.tree.insert(seq, ids)
        self.idle[seq] = None

    def drop(self, task: Task) -> None:
        """A request stops running, and what was computed is gone."""
        assert task.seq is not None
        self._remove(task.seq)
        task.seq, task.n_computed = None, 0

    def evict(self, seq: int) -> None:
        """Remove an idle sequence."""
        del self.idle[seq]
        self._remove(seq)

    def clear(self) -> None:
        """Remove all idle sequences."""
        for seq in list(self.idle):
            self.evict(seq)

    def _remove(self, seq: int) -> None:
        self.memory.rm(seq, -1, -1)
        self.ledger.remove(seq)
        self.tree.remove(seq)

    def _is_known(self, seq: int, ids: NDArray[np.int32]) -> bool:
        """Whether another idle sequence holds all of this."""
        return any(
            length == len(ids) and other != seq and other in self.idle for length, other in self.tree.matches(ids)
        )


__all__ = ["SequenceCache", "Sequences"]
