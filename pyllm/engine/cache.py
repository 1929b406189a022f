"""The sequences of a context: which requests run in them, which are kept for later prompts, and what they hold."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.host import HostCache
from pyllm.engine.ledger import Ledger
from pyllm.engine.prefix import PrefixTree
from pyllm.engine.scheduler import Admission, Task
from pyllm.errors import StateError


class Sequences(Protocol):
    """What the cache needs of a context's memory; :class:`pyllm.core.memory.Memory` is one."""

    def rm(self, seq_id: int, p0: int = ..., p1: int = ...) -> bool:
        """Remove positions of a sequence."""

    def cp(self, src: int, dst: int, p0: int = ..., p1: int = ...) -> None:
        """Let a sequence have positions of another one."""

    def pos_min(self, seq_id: int) -> int:
        """The smallest position of a sequence that is there."""

    def pos_max(self, seq_id: int) -> int:
        """The largest position of a sequence; -1 where it is empty."""


class SequenceCache:
    """Keeps count of the KV cache, and changes it.

    Args:
        memory: The memory of the context.
        n_cells: Its cells.
        host: Where texts go that have to leave it. None: nowhere.
        n_sequences: How many sequences the context has.
        n_each: Cells that each sequence has for itself. None: they share all, in a unified cache.
        window: Width of the model's sliding window in tokens; 0: it has none.
    """

    def __init__(
        self,
        memory: Sequences,
        n_cells: int,
        host: HostCache | None = None,
        *,
        n_sequences: int = 1,
        n_each: int | None = None,
        window: int = 0,
    ) -> None:
        self.memory = memory
        self.window = window
        self.host = host
        self.n_sequences = n_sequences
        self.ledger = Ledger(n_cells, n_each)
        self.tree = PrefixTree()
        self.idle: OrderedDict[int, None] = OrderedDict()

    def expect(self, admissions: Iterable[Admission]) -> None:
        """These requests are about to begin: what they will be given must not go, to make room for something else."""
        if self.host is not None:
            self.host.wanted = {each.host for each in admissions if each.host is not None}

    def start(self, task: Task, admission: Admission) -> None:
        """A request begins to run."""
        seq, source, n = admission.seq, admission.source, admission.n_reused
        if source is not None and not self._is_there(source, n):
            n = 0
        if source is not None and source != seq:
            self._copy(source, seq, n)
            self.ledger.copy(source, seq, n)
            if source in self.idle:
                self.idle.move_to_end(source)
        elif source is not None:
            del self.idle[seq]
            key, ids = self.tree.ids(seq)
            self._to_host(seq, ids, key, stays=n)
            self.memory.rm(seq, n, -1)
            self.ledger.truncate(seq, n)
        elif admission.host is not None:
            n = self._from_host(admission.host, seq, n)
        task.seq, task.n_computed = seq, n
        if task.shares:
            self.tree.insert(seq, task.ids, task.adapters)

    def computed(self, task: Task, n: int) -> None:
        """Tokens of a request are in the KV cache now."""
        assert task.seq is not None
        self.ledger.append(task.seq, n)
        task.n_computed += n

    def drafted(self, task: Task, n: int) -> None:
        """Drafted tokens behind those of a request are in the KV cache, until :meth:`settle`."""
        assert task.seq is not None
        self.ledger.append(task.seq, n)

    def settle(self, task: Task, n_accepted: int) -> None:
        """The first so many drafted tokens are those of the request, and the others go."""
        assert task.seq is not None
        task.n_computed += n_accepted
        if task.n_computed < self.ledger.length(task.seq):
            if not self.memory.rm(task.seq, task.n_computed, -1):
                # The rest of a long draft has overwritten what a sliding window reads here: all is computed again.
                self.memory.rm(task.seq, -1, -1)
                task.n_computed = 0
            self.ledger.truncate(task.seq, task.n_computed)

    def cut(self, task: Task) -> bool:
        """Remove from the KV cache what a decode that was aborted has left behind the tokens of a request.

        Returns:
            bool: Whether the request can go on from there. Where it cannot, the sequence is of no use any more.
        """
        assert task.seq is not None
        return self.memory.rm(task.seq, task.n_computed, -1) and self._is_there(task.seq, task.n_computed)

    def forget(self, task: Task) -> None:
        """A request stops running, and what its sequence holds is kept nowhere."""
        assert task.seq is not None
        self._remove(task.seq)
        task.seq, task.n_computed = None, 0

    def keep(self, task: Task) -> None:
        """A request has ended; what was computed stays for prompts that begin in the same way."""
        seq, ids = task.seq, task.ids[: task.n_computed]
        assert seq is not None
        task.seq = None
        if not task.shares or len(ids) == 0 or self._is_known(seq, ids, task.adapters):
            self._remove(seq)
            return
        self.tree.insert(seq, ids, task.adapters)
        self.idle[seq] = None

    def drop(self, task: Task) -> None:
        """A request stops running, and what was computed leaves the KV cache."""
        assert task.seq is not None
        if task.shares:
            self._to_host(task.seq, task.ids[: task.n_computed], task.adapters)
        self._remove(task.seq)
        task.seq, task.n_computed = None, 0

    def evict(self, seq: int) -> None:
        """Remove an idle sequence."""
        del self.idle[seq]
        key, ids = self.tree.ids(seq)
        self._to_host(seq, ids, key)
        self._remove(seq)

    def erase(self, seq: int) -> None:
        """Remove an idle sequence, and keep it nowhere."""
        del self.idle[seq]
        self._remove(seq)

    def find(self, ids: NDArray[np.int32], key: Hashable) -> int | None:
        """A sequence that holds these tokens and no others."""
        return next(
            (
                seq
                for length, seq in self.tree.matches(ids, key)
                if length == len(ids) == self.ledger.length(seq) == len(self.tree.ids(seq)[1])
            ),
            None,
        )

    @contextlib.contextmanager
    def holding(self, ids: NDArray[np.int32], key: Hashable, taken: Iterable[int | None]) -> Iterator[int | None]:
        """A sequence that holds these tokens and no others, for a moment; None where there is none.

        Args:
            ids: The tokens.
            key: Their adapters.
            taken: Sequences of texts that are being computed.
        """
        seq = self.find(ids, key)
        if seq is None and self.ledger.shares and self.host is not None and not self.host.whole:
            # The beginning of a longer text takes no cells of its own.
            source = next(
                (one for n, one in self.tree.matches(ids, key) if n == len(ids) <= self.ledger.length(one)), None
            )
            free = self._free_sequence(taken)
            if source is not None and free is not None and self._is_there(source, len(ids)):
                self._copy(source, free, len(ids))
                try:
                    yield free
                finally:
                    self.memory.rm(free, -1, -1)
                return
        yield seq

    def adopt(
        self, ids: NDArray[np.int32], key: Hashable, taken: Iterable[int | None], load: Callable[[int], None]
    ) -> None:
        """Make a text one that was computed here and has ended; idle sequences go where there is no room for it.

        Args:
            ids: Its tokens.
            key: Its adapters.
            taken: Sequences of texts that are being computed.
            load: Brings it into a sequence.

        Raises:
            StateError: There is no room for it.
            Exception: It could not be loaded; what the cache holds is as before, but for idle sequences.
        """
        if self._is_known(-1, ids, key):
            return
        seq = self._free_sequence(taken)
        while self.idle and (seq is None or self.ledger.free < len(ids)):
            oldest = next(iter(self.idle))
            self.evict(oldest)
            seq = oldest if seq is None else seq
        if seq is None or self.ledger.free < len(ids):
            raise StateError(
                f"there is no room for its {len(ids)} tokens: {self.ledger.free} cells of the KV cache are free, and "
                "texts that are being computed have the others"
            )
        try:
            load(seq)
        except BaseException:
            self.memory.rm(seq, -1, -1)
            raise
        self._came_back(seq, len(ids))
        self.tree.insert(seq, ids, key)
        self.idle[seq] = None

    def problems(self, running: Mapping[int, int]) -> list[str]:
        """Contradictions between what is counted and what the memory holds, as sentences.

        Args:
            running: The tokens in the KV cache of each sequence that is being computed.
        """
        ledger = self.ledger
        found = ledger.problems() + ([] if self.host is None else self.host.problems())
        for seq in self.idle:
            if seq in running:
                found.append(f"sequence {seq} runs, and is idle")
            if seq not in self.tree or len(self.tree.ids(seq)[1]) != ledger.length(seq):
                found.append(f"the prefix tree does not know the {ledger.length(seq)} tokens of idle sequence {seq}")
        for seq in {*ledger.sequences} - {*self.idle} - {*running}:
            found.append(f"sequence {seq} holds {ledger.length(seq)} cells, and belongs to no request")
        for seq in range(self.n_sequences):
            n = self.memory.pos_max(seq) + 1
            if n != ledger.length(seq) or n != running.get(seq, n):
                computed = f", and its request has computed {running[seq]}" if seq in running else ""
                found.append(
                    f"sequence {seq} has {n} tokens in llama.cpp's memory, {ledger.length(seq)} here{computed}"
                )
        return found

    def clear(self) -> None:
        """Remove all idle sequences."""
        for seq in list(self.idle):
            self.evict(seq)

    def _copy(self, source: int, seq: int, n: int) -> None:
        self.memory.cp(source, seq, 0, n)

    def _remove(self, seq: int) -> None:
        self.memory.rm(seq, -1, -1)
        self.ledger.remove(seq)
        self.tree.remove(seq)

    def _free_sequence(self, taken: Iterable[int | None]) -> int | None:
        used = {*self.ledger.sequences, *self.idle, *taken}
        return next((seq for seq in range(self.n_sequences) if seq not in used), None)

    def _to_host(self, seq: int, ids: NDArray[np.int32], key: Hashable, stays: int = 0) -> None:
        """Keep in the host's memory what a sequence has to itself, if that is much; its first tokens may stay."""
        if self.host is None:
            return
        shared = stays
        for length, other in self.tree.matches(ids, key):
            if other != seq:
                shared = max(shared, min(length, self.ledger.length(other)))
        if len(ids) - shared >= self.host.least:
            self.host.put(seq, ids, key)

    def _from_host(self, number: int, seq: int, n: int) -> int:
        """Bring n tokens back into a sequence; how many have come: all of them, or none."""
        if self.host is None or not self.host.load(number, seq):
            return 0
        if not self.memory.rm(seq, n, -1):
            self.memory.rm(seq, -1, -1)
            return 0
        self._came_back(seq, n)
        return n

    def _came_back(self, seq: int, n: int) -> None:
        """A saved state was loaded into a sequence. Of a sliding window it has only what its end looks at."""
        self.ledger.append(seq, n)
        if self.host is not None and self.host.whole:
            self.ledger.bind(seq, n)

    def _is_there(self, seq: int, n: int) -> bool:
        """Whether the first n tokens of a sequence can be gone on with.

        llama.cpp writes over cells that no window of a sequence reaches any more, and the window at an earlier token
        would have reached them.
        """
        return self.window == 0 or self.memory.pos_min(seq) <= max(0, n - self.window)

    def _is_known(self, seq: int, ids: NDArray[np.int32], key: Hashable) -> bool:
        """Whether another idle sequence holds all of this."""
        return any(
            length == len(ids) and other != seq and other in self.idle for length, other in self.tree.matches(ids, key)
        )


__all__ = ["SequenceCache", "Sequences"]
