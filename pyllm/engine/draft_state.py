"""Parts of drafting in an engine: a draft, the drafts of a sequence, and the sequences that drafters follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyllm.core.speculative import Drafter
from pyllm.core.speculative_pace import Pace
from pyllm.engine.radix_tree import common_length
from pyllm.speculation.params import SpeculationParams
from pyllm.types import Speculation

if TYPE_CHECKING:
    from pyllm.engine.sequence import Sequence
    from pyllm.speculation.speculator import Speculator

Ids: TypeAlias = NDArray[np.int32]


class Draft:
    """Tokens that are drafted behind a sequence, and verified together.

    Args:
        tokens: Ids, int32, shape (n,), n >= 1.

    Attributes:
        index: Index of the first one in its batch.
        place: Its row of ``context.logits``.
        n_accepted: How many of them were accepted.
    """

    def __init__(self, tokens: Ids) -> None:
        self.tokens = tokens
        self.index = self.place = -1
        self.n_accepted = 0


class DraftState:
    """The drafts of one sequence: whether there are any, their lengths and their statistics.

    Args:
        params: How to draft.
    """

    def __init__(self, params: SpeculationParams) -> None:
        self.params = params
        self.off = False  # after an error the sequence goes on without drafts
        self.waits = False  # the draft model is still in prefill
        self.total = Speculation(0, 0, 0)
        # The time of a step depends on the number of its sequences.
        self.paces: dict[int, Pace] = {}

    def pace(self, n_sequences: int, n_max: int) -> Pace:
        """The controller of draft lengths in steps of so many sequences."""
        if n_sequences not in self.paces:
            self.paces[n_sequences] = Pace(n_max, adaptive=self.params.adaptive)
        return self.paces[n_sequences]

    def report(self) -> Speculation:
        """The statistics of its drafts so far."""
        return self.total + Speculation(0, 0, 0, sum(pace.paused for pace in self.paces.values()))


class DrafterSlot:
    """A drafter, and the sequence that it drafts for."""

    def __init__(self, speculator: Speculator) -> None:
        self.speculator = speculator
        self.sequence: Sequence | None = None
        # The sequence whose tokens this drafter has seen, and these tokens.
        self.drafter: Drafter | None = None
        self.followed: Sequence | None = None
        self.known: Ids = np.empty(0, np.int32)

    def follow(self, sequence: Sequence, drafter: Drafter, most: int) -> bool:
        """Show the drafter up to `most` further tokens of a sequence; whether it has seen all but the last one."""
        ids = sequence.ids[:-1]
        n_known = len(self.known)
        if sequence is not self.followed or drafter is not self.drafter:
            common = common_length(self.known, ids) if drafter is self.drafter else 0
            self.followed, self.drafter = sequence, drafter
            self.known = ids[: common + most].copy()
            drafter.begin(self.known)
        elif n_known < len(ids):
            fresh = ids[n_known : n_known + most]
            for token in fresh.tolist():
                drafter.accept(token)
            self.known = np.concatenate([self.known, fresh])
        return len(self.known) == len(ids)

    def forget(self) -> None:
        """Use nothing of what the drafter has seen."""
        self.sequence = self.followed = self.drafter = None
        self.known = np.empty(0, np.int32)


class FeatureTracker:
    """Follows a drafter that drafts from the hidden states of the model, and the tokens that it has seen.

    It follows one sequence at a time: one that begins while it is alone. Where a sequence begins as the last one, it
    needs to see the rest only.
    """

    def __init__(self, slot: DrafterSlot) -> None:
        self.slot = slot
        self.seen: Ids = np.empty(0, np.int32)

    def has_seen(self, ids: Ids) -> bool:
        """Whether it has seen these tokens; more of them do not matter."""
        return np.array_equal(self.seen[: len(ids)], ids)

    def see(self, drafter: Drafter, start: int, tokens: Ids) -> None:
        """Tokens from `start` on have been computed, as the first ones of a batch."""
        seen = self.seen[:start]
        self.seen = seen[:0]  # after an error nothing counts
        drafter.observe(tokens, start)
        self.seen = np.concatenate([seen, tokens])


__all__ = ["Draft", "DraftState", "DrafterSlot", "FeatureTracker", "Ids"]
