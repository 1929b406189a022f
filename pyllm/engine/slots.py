"""The slots where sequences are computed, what each holds, and what `/slots` shows of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.radix_tree import common_length
from pyllm.errors import InvalidArgumentError, PyllmError

if TYPE_CHECKING:
    from pyllm.completion.request import CompletionRequest
    from pyllm.engine.adapters import AdapterSet
    from pyllm.engine.sequence import Sequence

# A prompt goes to the slot whose last sequence it goes on with, if so much of it is the same.
_SIMILAR = 0.1


class SlotBusyError(PyllmError, RuntimeError):
    """A sequence is being computed in the slot; ask again when it has ended."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotInfo:
    """A look at one of the places where sequences are computed.

    Attributes:
        id: Its number, from 0.
        running: Whether a sequence is computed there now.
        task: The number of that sequence, or of the last one; None: there was none.
        request: What was asked for, or None.
        n_prompt: Tokens of the prompt.
        n_read: How many of these were computed.
        n_cached: How many of these were there already.
        n_generated: Tokens generated.
        ids: What the slot holds: the tokens that were computed there, int32.
        adapters: The LoRA adapters that they were computed with, and their scales.
    """

    id: int
    running: bool = False
    task: int | None = None
    request: CompletionRequest | None = None
    n_prompt: int = 0
    n_read: int = 0
    n_cached: int = 0
    n_generated: int = 0
    ids: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    adapters: AdapterSet = ()


@dataclass(slots=True)
class Slot:
    """A place where one sequence at a time is computed.

    Attributes:
        sequence: The sequence that is computed there, or None.
        last: What the slot showed when its last sequence ended.
        ids: The tokens that the last sequence has left, or None.
        adapters: The adapters that they were computed with.
        order: Grows with each sequence that ends in a slot.
    """

    sequence: Sequence | None = None
    last: SlotInfo | None = None
    ids: NDArray[np.int32] | None = None
    adapters: Hashable = ()
    order: int = 0


class Slots:
    """The slots of an engine. A sequence has one while it is computed, and what it leaves is known by it.

    The KV cache has more sequences than there are slots, and requests find prefixes there whichever slot they were
    computed in. A slot is a name for what it holds, by which that can be saved, restored and erased.

    Args:
        n: How many there are: as many as sequences run at once.
    """

    def __init__(self, n: int) -> None:
        self._slots = [Slot() for _ in range(n)]
        self._orders = 0

    def __len__(self) -> int:
        return len(self._slots)

    def check(self, number: int) -> int:
        """The number of a slot.

        Raises:
            InvalidArgumentError: There is no such slot.
        """
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self._slots):
            raise InvalidArgumentError(
                f"slot must be a number from 0 to {len(self._slots) - 1}, not {number!r}", param="slot"
            )
        return number

    def wanted(self, number: int | None) -> int | None:
        """As :meth:`check`, where None and -1 stand for any slot."""
        return None if number is None or (number == -1 and not isinstance(number, bool)) else self.check(number)

    # ---- for the thread of the engine

    def begin(self, sequence: Sequence) -> None:
        """A sequence begins to run: in the slot that it asked for, if that is free, or in the best one."""
        free = [i for i, slot in enumerate(self._slots) if slot.sequence is None]
        assert free, "more sequences run than there are slots"
        sequence.slot = sequence.wanted_slot if sequence.wanted_slot in free else self._best(free, sequence.ids)
        slot = self._slots[sequence.slot]
        slot.sequence, slot.last, slot.ids = sequence, None, None

    def end(self, sequence: Sequence) -> None:
        """A sequence stops running; called before its tokens leave the KV cache."""
        slot = self._slots[sequence.slot] if 0 <= sequence.slot < len(self._slots) else None
        if slot is None or slot.sequence is not sequence:
            return
        self._orders += 1
        slot.last = _info(sequence.slot, sequence, running=False)
        slot.sequence, slot.order = None, self._orders
        slot.ids = slot.last.ids if sequence.shares and len(slot.last.ids) else None
        slot.adapters = sequence.adapters

    def held(self, number: int) -> tuple[NDArray[np.int32], Hashable] | None:
        """The tokens that the last sequence of a slot has left, and their adapters; None: there are none."""
        slot = self._slots[number]
        return None if slot.ids is None else (slot.ids, slot.adapters)

    def is_running(self, number: int) -> bool:
        """Whether a sequence is computed there."""
        return self._slots[number].sequence is not None

    def put(self, number: int, ids: NDArray[np.int32], adapters: Hashable) -> None:
        """A slot holds this now, whatever it held."""
        slot = self._slots[number]
        slot.ids, slot.adapters = ids, adapters
        slot.last = SlotInfo(number, ids=ids)

    def erase(self, number: int) -> None:
        """A slot holds nothing any more."""
        slot = self._slots[number]
        slot.ids = slot.last = None

    def info(self) -> list[SlotInfo]:
        """What is in each of them."""
        return [
            # The thread of the engine may end a sequence meanwhile.
            _info(i, sequence, running=True) if (sequence := slot.sequence) is not None else slot.last or SlotInfo(i)
            for i, slot in enumerate(self._slots)
        ]

    def problems(self, running: Iterable[Sequence]) -> list[str]:
        """Contradictions between the slots and the running sequences."""
        here = {slot.sequence: i for i, slot in enumerate(self._slots) if slot.sequence is not None}
        wanted = {sequence: sequence.slot for sequence in running}
        return [] if here == wanted else [f"slots {sorted(here.values())} are in use, not {sorted(wanted.values())}"]

    def _best(self, free: list[int], ids: NDArray[np.int32]) -> int:
        best, found = None, _SIMILAR * len(ids)
        for i in free:
            held = self._slots[i].ids
            n = 0 if held is None else common_length(held, ids)
            if n > found:
                best, found = i, n
        return min(free, key=lambda i: self._slots[i].order) if best is None else best


def _info(number: int, sequence: Sequence, *, running: bool) -> SlotInfo:
    return SlotInfo(
        id=number,
        running=running,
        task=sequence.id,
        request=sequence.request,
        n_prompt=sequence.n_prompt,
        n_read=max(0, min(sequence.n_computed, sequence.n_prompt) - sequence.n_cached),
        n_cached=sequence.n_cached,
        n_generated=sequence.row.n_generated,
        ids=sequence.ids[: sequence.n_computed],
        adapters=cast("AdapterSet", sequence.adapters),
    )
