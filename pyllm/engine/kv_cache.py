"""The sequences of a context: which requests run in them, which are kept for later prompts, and what they hold."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.checkpoints import Checkpoints, restore
from pyllm.core.context import Context
from pyllm.engine.host_kv_cache import HostKVCache
from pyllm.engine.kv_cells import KVCellAllocator
from pyllm.engine.radix_tree import RadixTree
from pyllm.engine.scheduler import Admission, SequenceState
from pyllm.errors import StateError


class Sequences(Protocol):
    """What the cache needs of a context's memory; :class:`pyllm.core.memory.Memory` is one."""

    def rm(self, seq_id: int, p0: int = ..., p1: int = ...) -> bool:
        """Remove positions of a sequence."""

    def cp(self, src: int, dst: int, p0: int = ..., p1: int = ...) -> None:
        """Let a sequence have positions of another one."""

    def add(self, seq_id: int, delta: int, p0: int = ..., p1: int = ...) -> None:
        """Add a number to positions of a sequence."""

    def pos_min(self, seq_id: int) -> int:
        """The smallest position of a sequence that is there."""

    def pos_max(self, seq_id: int) -> int:
        """The largest position of a sequence; -1 where it is empty."""


class KVCacheManager:
    """Keeps count of the KV cache, and changes it.

    Args:
        memory: The memory of the context.
        n_cells: Its cells.
        host: Where sequences go that have to leave it. None: nowhere.
        n_sequences: How many sequences the context has.
        n_each: Cells that each sequence has for itself. None: they share all, in a unified cache.
        window: Width of the model's sliding window in tokens; 0: it has none.
        context: Where checkpoints are taken, of a memory that cannot be cut. None: there are none.
    """

    def __init__(
        self,
        memory: Sequences,
        n_cells: int,
        host: HostKVCache | None = None,
        *,
        n_sequences: int = 1,
        n_each: int | None = None,
        window: int = 0,
        context: Context | None = None,
    ) -> None:
        self.memory = memory
        self.window = window
        self.host = host
        self.n_sequences = n_sequences
        self.cells = KVCellAllocator(n_cells, n_each)
        self.tree = RadixTree()
        self._context = context
        self._checkpoints: dict[int, Checkpoints] = {}
        # Each sequence has its share of what the host tier may take.
        self._checkpoint_bytes = 0 if host is None else host.limit // (n_sequences + 1)
        self.idle: OrderedDict[int, None] = OrderedDict()

    def expect(self, admissions: Iterable[Admission]) -> None:
        """These requests are about to begin: what they will be given must not go, to make room for something else."""
        if self.host is not None:
            self.host.wanted = {each.host for each in admissions if each.host is not None}

    def start(self, sequence: SequenceState, admission: Admission) -> None:
        """A request begins to run."""
        seq, source, n = admission.seq_id, admission.source, admission.n_reused
        if source is not None and not self._is_there(source, n):
            n = 0
        if source in self._checkpoints:
            # Those behind the prefix are of other tokens.
            self._checkpoints[seq] = self._checkpoints[source].until(n)
        if source is not None and source != seq:
            whole = self.cells.length(source)
            self._copy(source, seq, n)
            self.cells.copy(source, seq, n)
            if source in self.idle:
                self.idle.move_to_end(source)
            n = self._restored(seq, n, whole)
        elif source is not None:
            del self.idle[seq]
            key, ids = self.tree.ids(seq)
            self._to_host(seq, ids, key, stays=n)
            if self._context is None or n == 0:
                self.memory.rm(seq, n, -1)
            whole = self.cells.length(seq)
            self.cells.truncate(seq, n)
            n = self._restored(seq, n, whole)
        elif admission.host is not None:
            n = self._from_host(admission.host, seq, n)
        sequence.seq_id, sequence.n_computed, sequence.stops = seq, n, admission.stops
        if sequence.shares:
            self.tree.insert(seq, sequence.ids, sequence.adapters)

    def checkpoint(self, sequence: SequenceState) -> None:
        """Take a checkpoint of a running sequence, if it has come to a stop."""
        if self._context is None or sequence.n_computed not in sequence.stops or sequence.seq_id is None:
            return
        seq_id = sequence.seq_id
        before = self._checkpoints.get(seq_id, Checkpoints())
        taken = before.taken(self._context, sequence.n_computed, self._checkpoint_bytes, seq_id)
        self._checkpoints[seq_id] = taken
        self.cells.mark(seq_id, tuple(item.n for item in taken.items))

    def _restored(self, seq_id: int, n: int, whole: int) -> int:
        """Bring a sequence of `whole` tokens, which cannot be cut, back to its first n; how many it has then."""
        if self._context is None or n == 0 or n == whole:
            return n
        checkpoint = self._checkpoints.get(seq_id, Checkpoints()).best(n)
        if checkpoint is not None and checkpoint.n == n and restore(self._context, checkpoint, seq_id):
            return n
        self.memory.rm(seq_id, -1, -1)
        self.cells.remove(seq_id)
        self._checkpoints.pop(seq_id, None)
        return 0

    def begin(self, sequence: SequenceState, seq_id: int, n: int) -> None:
        """A sequence begins to run in a seq_id of the context that holds its first n tokens already."""
        self.cells.append(seq_id, n)
        sequence.seq_id, sequence.n_computed = seq_id, n
        if sequence.shares:
            self.tree.insert(seq_id, sequence.ids, sequence.adapters)

    def fork(self, source: SequenceState, sequence: SequenceState, taken: Iterable[int | None]) -> None:
        """A sequence begins to run with all computed tokens of another one; idle sequences go where none is free.

        Args:
            source: The other one.
            sequence: The sequence, which waits.
            taken: The seq_ids of running sequences. There are fewer than the context has.
        """
        assert source.seq_id is not None
        taken = list(taken)
        seq_id = self._free_sequence(taken)
        if seq_id is None:
            seq_id = next(iter(self.idle))
            self.evict(seq_id)
        self._copy(source.seq_id, seq_id, source.n_computed)
        self.cells.copy(source.seq_id, seq_id, source.n_computed)
        if source.seq_id in self._checkpoints:
            self._checkpoints[seq_id] = self._checkpoints[source.seq_id]
        sequence.seq_id, sequence.n_computed = seq_id, source.n_computed
        if sequence.shares:
            self.tree.insert(seq_id, sequence.ids, sequence.adapters)

    def computed(self, sequence: SequenceState, n: int) -> None:
        """Tokens of a request are in the KV cache now."""
        assert sequence.seq_id is not None
        self.cells.append(sequence.seq_id, n)
        sequence.n_computed += n

    def drafted(self, sequence: SequenceState, n: int) -> None:
        """Drafted tokens behind those of a request are in the KV cache, until :meth:`settle`."""
        assert sequence.seq_id is not None
        self.cells.append(sequence.seq_id, n)

    def settle(self, sequence: SequenceState, n_accepted: int) -> None:
        """The first so many drafted tokens are those of the request, and the others go."""
        assert sequence.seq_id is not None
        sequence.n_computed += n_accepted
        if sequence.n_computed < self.cells.length(sequence.seq_id):
            if not self.memory.rm(sequence.seq_id, sequence.n_computed, -1):
                # The rest of a long draft has overwritten what a sliding window reads here: all is computed again.
                self.memory.rm(sequence.seq_id, -1, -1)
                sequence.n_computed = 0
            self.cells.truncate(sequence.seq_id, sequence.n_computed)

    def shift(self, sequence: SequenceState, keep: int, n: int) -> bool:
        """Take n tokens behind the first `keep` out of a running sequence, and move those behind them.

        Returns:
            bool: Whether that was possible: positions of cells that sequences share cannot change, nor those of a
            sliding window. If not, nothing has changed.
        """
        assert sequence.seq_id is not None
        seq_id, length = sequence.seq_id, self.cells.length(sequence.seq_id)
        if self.window or self.cells.private(seq_id) < length or not self.memory.rm(seq_id, keep, keep + n):
            return False
        self.memory.add(seq_id, -n, keep + n, -1)
        self.cells.truncate(seq_id, length - n)
        self.tree.remove(seq_id)
        return True

    def cut(self, sequence: SequenceState) -> bool:
        """Remove from the KV cache what a decode that was aborted has left behind the tokens of a request.

        Returns:
            bool: Whether the request can go on from there. Where it cannot, the sequence is of no use any more.
        """
        assert sequence.seq_id is not None
        return self.memory.rm(sequence.seq_id, sequence.n_computed, -1) and self._is_there(
            sequence.seq_id, sequence.n_computed
        )

    def forget(self, sequence: SequenceState) -> None:
        """A request stops running, and what its sequence holds is kept nowhere."""
        assert sequence.seq_id is not None
        self._remove(sequence.seq_id)
        sequence.seq_id, sequence.n_computed = None, 0

    def keep(self, sequence: SequenceState) -> None:
        """A request has ended; what was computed stays for prompts that begin in the same way."""
        seq, ids = sequence.seq_id, sequence.ids[: sequence.n_computed]
        assert seq is not None
        sequence.seq_id = None
        if not sequence.shares or len(ids) == 0 or self._is_known(seq, ids, sequence.adapters):
            self._remove(seq)
            return
        self.tree.insert(seq, ids, sequence.adapters)
        self.idle[seq] = None

    def drop(self, sequence: SequenceState) -> None:
        """A request stops running, and what was computed leaves the KV cache."""
        assert sequence.seq_id is not None
        if sequence.shares:
            self._to_host(sequence.seq_id, sequence.ids[: sequence.n_computed], sequence.adapters)
        self._remove(sequence.seq_id)
        sequence.seq_id, sequence.n_computed = None, 0

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
                if length == len(ids) == self.cells.length(seq) == len(self.tree.ids(seq)[1])
            ),
            None,
        )

    @contextlib.contextmanager
    def holding(self, ids: NDArray[np.int32], key: Hashable, taken: Iterable[int | None]) -> Iterator[int | None]:
        """A sequence that holds these tokens and no others, for a moment; None where there is none.

        Args:
            ids: The tokens.
            key: Their adapters.
            taken: Sequences of sequences that are being computed.
        """
        seq = self.find(ids, key)
        if seq is None and self.cells.shares and self.host is not None and not self.host.whole:
            # The beginning of a longer sequence takes no cells of its own.
            source = next(
                (one for n, one in self.tree.matches(ids, key) if n == len(ids) <= self.cells.length(one)), None
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
        """Make a sequence one that was computed here and has ended; idle sequences go where there is no room for it.

        Args:
            ids: Its tokens.
            key: Its adapters.
            taken: Sequences of sequences that are being computed.
            load: Brings it into a sequence.

        Raises:
            StateError: There is no room for it.
            Exception: It could not be loaded; what the cache holds is as before, but for idle sequences.
        """
        if self._is_known(-1, ids, key):
            return
        seq = self._free_sequence(taken)
        while self.idle and (seq is None or self.cells.free < len(ids)):
            oldest = next(iter(self.idle))
            self.evict(oldest)
            seq = oldest if seq is None else seq
        if seq is None or self.cells.free < len(ids):
            raise StateError(
                f"there is no room for its {len(ids)} tokens: {self.cells.free} cells of the KV cache are free, and "
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
        cells = self.cells
        found = cells.problems() + ([] if self.host is None else self.host.problems())
        for seq in self.idle:
            if seq in running:
                found.append(f"sequence {seq} runs, and is idle")
            if seq not in self.tree or len(self.tree.ids(seq)[1]) != cells.length(seq):
                found.append(f"the radix tree does not know the {cells.length(seq)} tokens of idle sequence {seq}")
        for seq in {*cells.seq_ids} - {*self.idle} - {*running}:
            found.append(f"sequence {seq} holds {cells.length(seq)} cells, and belongs to no request")
        for seq in range(self.n_sequences):
            n = self.memory.pos_max(seq) + 1
            if n != cells.length(seq) or n != running.get(seq, n):
                computed = f", and its request has computed {running[seq]}" if seq in running else ""
                found.append(f"sequence {seq} has {n} tokens in llama.cpp's memory, {cells.length(seq)} here{computed}")
        return found

    def clear(self) -> None:
        """Remove all idle sequences."""
        for seq in list(self.idle):
            self.evict(seq)

    def _copy(self, source: int, seq: int, n: int) -> None:
        """Copy the first n tokens; of a memory that cannot be cut all, to go back to a checkpoint then."""
        if self._context is None:
            self.memory.cp(source, seq, 0, n)
        else:
            self.memory.cp(source, seq)

    def _remove(self, seq: int) -> None:
        self.memory.rm(seq, -1, -1)
        self.cells.remove(seq)
        self.tree.remove(seq)
        self._checkpoints.pop(seq, None)

    def _free_sequence(self, taken: Iterable[int | None]) -> int | None:
        used = {*self.cells.seq_ids, *self.idle, *taken}
        return next((seq for seq in range(self.n_sequences) if seq not in used), None)

    def _to_host(self, seq: int, ids: NDArray[np.int32], key: Hashable, stays: int = 0) -> None:
        """Keep in the host's memory what a sequence has to itself, if that is much; its first tokens may stay."""
        if self.host is None:
            return
        shared = stays
        for length, other in self.tree.matches(ids, key):
            if other != seq:
                shared = max(shared, min(length, self.cells.length(other)))
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
        self.cells.append(seq, n)
        if self.host is not None and self.host.whole:
            self.cells.bind(seq, n)

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


__all__ = ["KVCacheManager", "Sequences"]
