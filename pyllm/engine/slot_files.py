"""What slots hold in files: saved, brought back and erased while the engine goes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pyllm.conversation import file
from pyllm.engine.slots import SlotBusyError, SlotInfo
from pyllm.errors import StateError

if TYPE_CHECKING:
    from pyllm.core.context import Context
    from pyllm.core.model import Model
    from pyllm.engine.adapters import Adapters, AdapterSet
    from pyllm.engine.core import EngineCore
    from pyllm.engine.signals import CallQueue
    from pyllm.params import ContextParams

Ids = NDArray[np.int32]

_KIND = "slot"


class SlotMethods:
    """The methods of an engine for slots."""

    model: Model
    context: Context
    _adapters: Adapters
    _calls: CallQueue
    _context_params: ContextParams
    _core: EngineCore

    def slots(self) -> list[SlotInfo]:
        """The places where sequences are computed, and what is in each. Deterministic requests are in none."""
        return self._core.slots.info()

    def save_slot(self, slot: int, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Write what the last sequence of a slot has left to a file: its tokens, their KV cache and a checksum.

        Args:
            slot: The number of the slot.
            path: The file; one that is there is replaced when the new one is complete.

        Returns:
            tuple: Tokens, and bytes of the file.

        Raises:
            SlotBusyError: A sequence is being computed there.
            StateError: It holds nothing, or what it held had to go for others.
            InvalidArgumentError: There is no such slot.
        """
        number = self._core.slots.check(slot)
        ids, adapters, state = self._calls.run(lambda: self._slot_state(number))
        saved = file.SavedText({}, ids, state)
        return len(ids), file.write(path, self._facts(adapters), _KIND, saved)

    def restore_slot(self, slot: int, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Bring back what :meth:`save_slot` has written. Requests whose prompts begin with it need not compute it.

        Args:
            slot: The number of the slot that holds it then.
            path: The file.

        Returns:
            tuple: Tokens, and bytes of the file.

        Raises:
            FileNotFoundError: There is no such file.
            SlotBusyError: A sequence is being computed there.
            StateError: It is damaged, was saved with another model, other settings or adapters, or there is no room.
            InvalidArgumentError: There is no such slot.
        """
        number = self._core.slots.check(slot)
        saved = file.parse(path)
        pairs = self._adapters.of_files(saved.header.get("adapters"))
        file.check(path, saved, self._facts(pairs), _KIND)
        name = os.fsdecode(path)
        if len(saved.tokens) == 0:
            raise StateError(f"{name!r} is damaged: it holds no tokens")

        def load(seq: int) -> None:
            self.context.state.load(saved.state, seq)
            last = self.context.memory.pos_max(seq)
            if last != len(saved.tokens) - 1:
                raise StateError(f"its state ends at position {last} and its {len(saved.tokens)} tokens do not")

        def restore() -> None:
            self._check_not_busy(number)
            adapters = self._adapters.ordered(pairs)
            self._core.cache.adopt(saved.tokens, adapters, self._taken(), load)
            self._core.slots.put(number, saved.tokens, adapters)

        try:
            self._calls.run(restore)
        except StateError as error:
            raise StateError(f"{name!r} cannot be restored: {error.message}", log=error.log) from error
        return len(saved.tokens), os.path.getsize(name)

    def erase_slot(self, slot: int) -> int:
        """Forget what the last sequence of a slot has left; other sequences keep what they have in common with it.

        Args:
            slot: The number of the slot.

        Returns:
            int: How many tokens it was.

        Raises:
            SlotBusyError: A sequence is being computed there.
            InvalidArgumentError: There is no such slot.
        """
        number = self._core.slots.check(slot)
        return self._calls.run(lambda: self._erase(number))

    # ---- in the thread of the engine

    def _slot_state(self, slot: int) -> tuple[Ids, AdapterSet, bytes]:
        self._check_not_busy(slot)
        held = self._core.slots.held(slot)
        if held is None:
            raise StateError(f"slot {slot} holds nothing")
        ids, adapters = held
        number = self._core.host.find(ids, adapters)
        with self._core.cache.holding(ids, adapters, self._taken()) as seq:
            if seq is not None:
                state = self.context.state.save(seq)
            elif number is not None:
                state = self._core.host.data(number)
            else:
                raise StateError(f"what slot {slot} held had to go for others")
        return ids, cast("AdapterSet", adapters), state

    def _erase(self, slot: int) -> int:
        self._check_not_busy(slot)
        held = self._core.slots.held(slot)
        self._core.slots.erase(slot)
        if held is None:
            return 0
        ids, adapters = held
        seq = self._core.cache.find(ids, adapters)
        if seq is not None and seq in self._core.cache.idle:
            self._core.cache.erase(seq)
        number = self._core.host.find(ids, adapters)
        if number is not None:
            self._core.host.remove(number)
        return len(ids)

    def _taken(self) -> list[int | None]:
        return [sequence.seq_id for sequence in self._core.sequences.values() if not sequence.alone]

    def _check_not_busy(self, slot: int) -> None:
        if self._core.slots.is_running(slot):
            raise SlotBusyError(f"a sequence is being computed in slot {slot}; try again when it has ended")

    def _facts(self, adapters: Any) -> file.ModelFacts:
        return file.ModelFacts.of(self.context, self._context_params, adapters)
