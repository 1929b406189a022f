"""The second tier of the prefix cache: texts that had to leave the KV cache, in the memory of the host."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.prefix import PrefixTree
from pyllm.errors import InvalidArgumentError, PyllmError
from pyllm.host_memory import host_memory

# To bring back fewer tokens would take about as long as to compute them.
LEAST_TOKENS = 64

_MOST_BYTES = 8 << 30


class States(Protocol):
    """What is needed of a context's state; :class:`pyllm.core.state.State` is one."""

    def size(self, seq_id: int) -> int:
        """Bytes of a sequence."""

    def save(self, seq_id: int) -> bytes:
        """A sequence as bytes."""

    def load(self, data: bytes, seq_id: int) -> None:
        """Make them a sequence again, which is empty before."""


class HostCache:
    """Texts as bytes; the one unused for longest goes first when they are too many.

    Args:
        state: The state of the context.
        limit: Bytes that they may take; 0: nothing is kept.
        whole: A text can be used as a whole only: the memory of the model cannot be cut, or its states have no more of
            a sliding window than their ends look at.
        least: Fewer tokens than these are not worth it.

    Attributes:
        tree: The tokens of all texts, by their numbers.
        n_bytes: Bytes that they take.
        n_hits: How often one was brought back.
        wanted: Texts that must not go now, as they are about to be brought back.
    """

    def __init__(self, state: States, limit: int, *, whole: bool = False, least: int = LEAST_TOKENS) -> None:
        self._state = state
        self._numbers = 0
        self._data: OrderedDict[int, bytes] = OrderedDict()
        self.limit, self.least, self.whole = limit, least, whole
        self.tree = PrefixTree()
        self.n_bytes = self.n_hits = 0
        self.wanted: set[int] = set()

    def __len__(self) -> int:
        return len(self._data)

    def put(self, seq: int, ids: NDArray[np.int32], key: Hashable) -> None:
        """Keep what a sequence holds, unless that is kept already; where it cannot be, nothing is lost but time.

        Args:
            seq: The sequence.
            ids: All its tokens.
            key: What else they were computed with.
        """
        known = self._known(ids, key)
        if known is not None:
            self._data.move_to_end(known)
            return
        try:
            if self._state.size(seq) > self.limit:
                return
            data = self._state.save(seq)
        except (PyllmError, MemoryError):
            return
        if not self.whole:
            # What it begins with needs no bytes of its own any more.
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

    def load(self, number: int, seq: int) -> bool:
        """Bring a text back into a sequence, which is empty; False when that is not possible. It stays here as well."""
        data = self._data.get(number)
        if data is None:
            return False
        try:
            self._state.load(data, seq)
        except (PyllmError, MemoryError):
            self.remove(number)
            return False
        self._data.move_to_end(number)
        self.n_hits += 1
        return True

    def find(self, ids: NDArray[np.int32], key: Hashable) -> int | None:
        """The text of these tokens and no others."""
        matches = self.tree.matches(ids, key)
        return next((one for length, one in matches if length == len(ids) == len(self.tree.ids(one)[1])), None)

    def data(self, number: int) -> bytes:
        """The bytes of a text."""
        return self._data[number]

    def remove(self, number: int) -> None:
        """Forget a text."""
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
        """A text that holds all of this."""
        for length, number in self.tree.matches(ids, key):
            if length < len(ids):
                break
            if not self.whole or len(self.tree.ids(number)[1]) == length:
                return number
        return None


def check_host_bytes(value: Any) -> int:
    """How many bytes of the host's memory an engine takes for texts.

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
