"""The host tier of the prefix cache: sequences that left the KV cache, as bytes in host memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.radix_tree import RadixTree
from pyllm.errors import InvalidArgumentError, PyllmError
from pyllm.host_memory import host_memory

# Loading fewer tokens takes about as long as computing them.
LEAST_TOKENS = 64

_MOST_BYTES = 8 << 30


class States(Protocol):
    """What is needed of a context's state; :class:`pyllm.core.state.State` is one."""

    def size(self, seq_id: int) -> int:
        """Bytes of a sequence."""

    def save(self, seq_id: int) -> bytes:
        """A sequence as bytes."""

    def load(self, data: bytes, seq_id: int) -> None:
        """Load them into an empty sequence."""


class HostKVCache:
    """Sequences as bytes, up to a limit; the least recently used goes first.

    Args:
        state: The state of the context.
        limit: Bytes that they may take; 0: nothing is kept.
        whole: A sequence can be used as a whole only: the memory of the model cannot be cut, or a state has only the
            part of a sliding window that its end sees.
        least: Fewer tokens than these are not worth it.

    Attributes:
        tree: The tokens of all sequences, by their numbers.
        n_bytes: Bytes that they take.
        n_hits: How often one was loaded.
        wanted: Sequences that must stay, as they are about to be loaded.
    """

    def __init__(self, state: States, limit: int, *, whole: bool = False, least: int = LEAST_TOKENS) -> None:
        self._state = state
        self._numbers = 0
        self._data: OrderedDict[int, bytes] = OrderedDict()
        self.limit, self.least, self.whole = limit, least, whole
        self.tree = RadixTree()
        self.n_bytes = self.n_hits = 0
        self.wanted: set[int] = set()

    def __len__(self) -> int:
        return len(self._data)

    def use(self, state: States) -> None:
        """Save and load sequences of another context of the same model."""
        self._state = state

    def put(self, seq_id: int, ids: NDArray[np.int32], key: Hashable) -> None:
        """Keep a copy of a sequence, unless it is kept already. Without room it is dropped, and computed again later.

        Args:
            seq_id: The sequence.
            ids: All its tokens.
            key: What else they were computed with.
        """
        known = self._known(ids, key)
        if known is not None:
            self._data.move_to_end(known)
            return
        try:
            if self._state.size(seq_id) > self.limit:
                return
            data = self._state.save(seq_id)
        except (PyllmError, MemoryError):
            return
        if not self.whole:
            # Its prefixes need no bytes of their own any more.
            for length, number in list(self.tree.matches(ids, key)):
                if length == len(self.tree.ids(number)[1]) and number not in self.wanted:
                    self.remove(number)
        for number in list(self._data):
            if self.n_bytes + len(data) > self.limit and number not in self.wanted:
                self.remove(number)
        if self.n_bytes + len(data) <= self.limit:
            self._numbers += 1
            self._data[self._numbers] = data
            self.n_bytes += len(data)
            self.tree.insert(self._numbers, ids.copy(), key)

    def load(self, number: int, seq_id: int) -> bool:
        """Load a sequence into an empty seq_id; False when that is not possible. It stays here as well."""
        data = self._data.get(number)
        if data is None:
            return False
        try:
            self._state.load(data, seq_id)
        except (PyllmError, MemoryError):
            self.remove(number)
            return False
        self._data.move_to_end(number)
        self.n_hits += 1
        return True

    def find(self, ids: NDArray[np.int32], key: Hashable) -> int | None:
        """The sequence of these tokens and no others."""
        matches = self.tree.matches(ids, key)
        return next((one for length, one in matches if length == len(ids) == len(self.tree.ids(one)[1])), None)

    def data(self, number: int) -> bytes:
        """The bytes of a sequence."""
        return self._data[number]

    def remove(self, number: int) -> None:
        """Forget a sequence."""
        self.n_bytes -= len(self._data.pop(number))
        self.tree.remove(number)

    def clear(self) -> None:
        """Forget all."""
        for number in list(self._data):
            self.remove(number)

    def problems(self) -> list[str]:
        """Contradictions in what is kept, as sentences; an empty list where there is none."""
        found = []
        total = sum(len(data) for data in self._data.values())
        if total != self.n_bytes or total > self.limit:
            found.append(f"the host cache has {total} bytes, counts {self.n_bytes}, and may have {self.limit}")
        if len(self.tree) != len(self._data) or not all(number in self.tree for number in self._data):
            found.append(f"the host cache knows the tokens of {len(self.tree)} texts, and has {len(self._data)}")
        return found

    def _known(self, ids: NDArray[np.int32], key: Hashable) -> int | None:
        """A sequence that holds all of this."""
        for length, number in self.tree.matches(ids, key):
            if length < len(ids):
                break
            if not self.whole or len(self.tree.ids(number)[1]) == length:
                return number
        return None


def check_host_bytes(value: Any) -> int:
    """The bytes of host memory for sequences that leave the KV cache.

    Args:
        value: What was asked for. None: an eighth of what is free, 8 GiB at most.

    Raises:
        InvalidArgumentError: It is no number of bytes.
    """
    if value is None:
        available = host_memory().available
        return min(_MOST_BYTES, (8 << 30 if available is None else available) // 8)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgumentError(
            f"host_cache_bytes must be a number of bytes of at least 0, or None, not {value!r}",
            param="host_cache_bytes",
        )
    return value
