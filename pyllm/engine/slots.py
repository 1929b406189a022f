"""The places where texts are computed, as others see them: what is in each, and what the last text there has left."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.prefix import common_length
from pyllm.errors import InvalidArgumentError, PyllmError

if TYPE_CHECKING:
    from pyllm.completion.request import CompletionRequest
    from pyllm.engine.adapters import AdapterSet
    from pyllm.engine.texts import Text

# A prompt goes to the slot whose last text it goes on with, if so much of it is the same.
_SIMILAR = 0.1


class SlotBusyError(PyllmError, RuntimeError):
    """A text is being computed in the slot; ask again when it has ended."""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A look at one of the places where texts are computed.

    Attributes:
        id: Its number, from 0.
        running: Whether a text is computed there now.
        task: The number of that text, or of the last one; None: there was none.
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
class _Place:
    text: Text | None = None
    look: Slot | None = None  # at the last text, when it had ended
    ids: NDArray[np.int32] | None = None  # what it has left, and with which adapters
    adapters: Hashable = ()
    order: int = 0


class Slots:
    """Knows which text is in which slot. A text has one while it is computed, and what it leaves is known by it.

    The sequences of the KV cache are more than the slots, and requests find what is there in whichever slot it was
    computed: a slot is a name for it, by which it can be saved, restored and erased.

    Args:
        n: How many there are: as many as texts are computed at once.
    """

    def __init__(self, n: int) -> None:
        self._places = [_Place() for _ in range(n)]
        self._orders = 0

    def __len__(self) -> int:
        return len(self._places)

    def check(self, slot: int) -> int:
        """The number of a slot.

        Raises:
            InvalidArgumentError: There is none of that number.
        """
        if isinstance(slot, bool) or not isinstance(slot, int) or not 0 <= slot < len(self._places):
            raise InvalidArgumentError(
                f"slot must be a number from 0 to {len(self._places) - 1}, not {slot!r}", param="slot"
            )
        return slot

    def wanted(self, slot: int | None) -> int | None:
        """As :meth:`check`, where None and -1 stand for any."""
        return None if slot is None or (slot == -1 and not isinstance(slot, bool)) else self.check(slot)

    # ---- for the thread of the engine

    def begin(self, text: Text) -> None:
        """A text is computed from now on; it gets the slot that it names, if that is free, or one that suits it."""
        free = [i for i, place in enumerate(self._places) if place.text is None]
        assert free, "more texts run than there are slots"
        text.slot = text.wanted_slot if text.wanted_slot in free else self._suiting(free, text.task.ids)
        place = self._places[text.slot]
        place.text, place.look, place.ids = text, None, None

    def end(self, text: Text) -> None:
        """A text is not computed any more; called before its tokens leave its sequence."""
        place = self._places[text.slot] if 0 <= text.slot < len(self._places) else None
        if place is None or place.text is not text:
            return
        self._orders += 1
        place.look = _look(text.slot, text, running=False)
        place.text, place.order = None, self._orders
        place.ids = place.look.ids if text.task.shares and len(place.look.ids) else None
        place.adapters = text.task.adapters

    def held(self, slot: int) -> tuple[NDArray[np.int32], Hashable] | None:
        """The tokens that the last text of a slot has left, and its adapters; None where there are none."""
        place = self._places[slot]
        return None if place.ids is None else (place.ids, place.adapters)

    def is_running(self, slot: int) -> bool:
        """Whether a text is computed there."""
        return self._places[slot].text is not None

    def put(self, slot: int, ids: NDArray[np.int32], adapters: Hashable) -> None:
        """A slot holds this now, whatever it held."""
        place = self._places[slot]
        place.ids, place.adapters = ids, adapters
        place.look = Slot(slot, ids=ids)

    def erase(self, slot: int) -> None:
        """A slot holds nothing any more."""
        place = self._places[slot]
        place.ids = place.look = None

    def look(self) -> list[Slot]:
        """What is in each of them."""
        return [
            # The thread of the engine may end a text between two looks at it.
            _look(i, text, running=True) if (text := place.text) is not None else place.look or Slot(i)
            for i, place in enumerate(self._places)
        ]

    def problems(self, running: Iterable[Text]) -> list[str]:
        """Contradictions between the slots and the texts that are being computed, as sentences."""
        here = {place.text: i for i, place in enumerate(self._places) if place.text is not None}
        wanted = {text: text.slot for text in running}
        return [] if here == wanted else [f"slots {sorted(here.values())} are in use, not {sorted(wanted.values())}"]

    def _suiting(self, free: list[int], ids: NDArray[np.int32]) -> int:
        best, found = None, _SIMILAR * len(ids)
        for i in free:
            held = self._places[i].ids
            n = 0 if held is None else common_length(held, ids)
            if n > found:
                best, found = i, n
        return min(free, key=lambda i: self._places[i].order) if best is None else best


def _look(slot: int, text: Text, *, running: bool) -> Slot:
    task = text.task
    return Slot(
        id=slot,
        running=running,
        task=task.id,
        request=text.request,
        n_prompt=text.n_prompt,
        n_read=max(0, min(task.n_computed, text.n_prompt) - text.cached),
        n_cached=text.cached,
        n_generated=text.row.n_generated,
        ids=task.ids[: task.n_computed],
        adapters=cast("AdapterSet", task.adapters),
    )
