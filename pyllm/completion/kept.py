"""Texts whose KV cache is kept for later: in a sequence of the context, or as bytes in the memory of the host."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.checkpoints import Checkpoints
from pyllm.core.context import Context
from pyllm.errors import InvalidArgumentError, PyllmError


@dataclass(slots=True)
class KeptText:
    """Tokens, and where their KV cache is.

    Attributes:
        owner: Name of the conversation it belongs to; None for calls that belong to none.
        tokens: What was computed, int32.
        settings: What else it depends on; see :meth:`pyllm.completion.cache.PromptCache.settings`.
        checkpoints: States of its beginnings.
        seq_id: Its sequence, or None.
        data: Its state as bytes, or None.
        ends: First and last position of it in the memory, by which changes by others are noticed.
    """

    owner: str | None
    tokens: NDArray[np.int32]
    settings: Any
    checkpoints: Checkpoints
    seq_id: int | None = None
    data: bytes | None = None
    ends: tuple[int, int] = (0, 0)

    @property
    def host_bytes(self) -> int:
        """How much memory of the host it takes."""
        return self.checkpoints.n_bytes + (0 if self.data is None else len(self.data))


class KeptTexts:
    """One text for each owner, the least recently used first. Sequence 0 is where calls compute: nothing is kept there.

    Args:
        context: The context.
        limit: Bytes of the host's memory that states may take together.
    """

    def __init__(self, context: Context, limit: int) -> None:
        self.context = context
        self.limit = _bytes(limit)
        self._texts: dict[str | None, KeptText] = {}

    def __iter__(self) -> Iterator[KeptText]:
        return iter(list(self._texts.values()))

    def get(self, owner: str | None) -> KeptText | None:
        """The text of an owner."""
        return self._texts.get(owner)

    def put(self, text: KeptText) -> None:
        """Keep a text in place of what its owner had."""
        self.drop(text.owner)
        self._texts[text.owner] = text
        self.trim()

    def drop(self, owner: str | None) -> None:
        """Free what an owner has."""
        text = self._texts.pop(owner, None)
        if text is not None and text.seq_id is not None and not self.context.closed:
            self.context.memory.rm(text.seq_id)

    def clear(self) -> None:
        """Free everything."""
        self._texts.clear()

    def touch(self, owner: str | None) -> None:
        """It was used just now."""
        if owner in self._texts:
            self._texts[owner] = self._texts.pop(owner)

    def park(self, text: KeptText) -> None:
        """Keep what sequence 0 holds; it holds it afterwards too."""
        self.drop(text.owner)
        free = self._free_sequence()
        if free is None:
            if not self._to_host(text, 0):
                return
        else:
            self.context.memory.cp(0, free)
            text.seq_id = free
        self.put(text)

    def make_room(self) -> bool:
        """Move the least recently used text from the context to the host; False when there is none."""
        for text in self:
            if text.seq_id is not None:
                seq_id, text.seq_id = text.seq_id, None
                if not self._to_host(text, seq_id):
                    del self._texts[text.owner]
                self.context.memory.rm(seq_id)
                self.trim()
                return True
        return False

    def restore(self, text: KeptText) -> bool:
        """Bring a text into sequence 0, which is empty; False when that is not possible, and then it is dropped."""
        memory = self.context.memory
        if text.seq_id is not None:
            memory.cp(text.seq_id, 0)
            return True
        while text.data is not None:
            try:
                self.context.state.load(text.data, 0)
            except PyllmError:
                # There may be no room for it; what is kept in the context can go.
                if self.make_room():
                    continue
                memory.rm(0)
                break
            return True
        self.drop(text.owner)
        return False

    def lose_sequences(self) -> None:
        """Somebody else has worked in the context: what is kept there cannot be believed any more."""
        for text in self:
            if text.seq_id is not None:
                del self._texts[text.owner]

    def trim(self, others: int = 0) -> None:
        """Keep to the limit: the least recently used is computed again when it is needed.

        Args:
            others: Bytes of the host that are needed elsewhere, and count too.
        """
        total = others + sum(text.host_bytes for text in self)
        for text in self:
            if total <= self.limit:
                return
            total -= text.host_bytes
            if text.data is not None:
                del self._texts[text.owner]
            text.checkpoints = Checkpoints()

    def problems(self, others: int = 0) -> list[str]:
        """Contradictions in what is kept, as sentences; an empty list where there is none.

        Args:
            others: Bytes of the host that are needed elsewhere, and count too.
        """
        texts = list(self)
        used = [text.seq_id for text in texts if text.seq_id is not None]
        found = [] if len(set(used)) == len(used) else [f"texts share the sequences {sorted(used)}"]
        if not all(0 < seq_id < self.context.n_seq_max for seq_id in used):
            found.append(f"texts are kept in the sequences {sorted(used)}, of {self.context.n_seq_max}")
        for text in texts:
            if (text.seq_id is None) == (text.data is None):
                found.append(
                    f"the text of {text.owner!r} is kept in {'no place' if text.data is None else 'two places'}"
                )
        if (total := others + sum(text.host_bytes for text in texts)) > self.limit:
            found.append(f"kept texts take {total} bytes of the host's memory, and may take {self.limit}")
        return found

    def _free_sequence(self) -> int | None:
        count = self.context.n_seq_max
        # In a cache that is not unified, a copy is made with the next decode only, of what is there by then.
        if count == 1 or self.context.n_ctx != self.context.n_ctx_seq:
            return None
        used = {text.seq_id for text in self}
        if len(used - {None}) == count - 1:
            self.make_room()
            used = {text.seq_id for text in self}
        free = next(seq_id for seq_id in range(1, count) if seq_id not in used)
        self.context.memory.rm(free)
        return free

    def _to_host(self, text: KeptText, seq_id: int) -> bool:
        try:
            text.data = self.context.state.save(seq_id)
        except (PyllmError, MemoryError):
            return False
        return True


def _bytes(limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, numbers.Integral) or limit < 0:
        raise InvalidArgumentError(
            f"conversation_bytes must be a number of bytes of at least 0, not {limit!r}", param="conversation_bytes"
        )
    return int(limit)
