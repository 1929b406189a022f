"""The parts of drafting in an engine: a draft, what is known of those of a text, and what has seen which text."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyllm.core.speculative import Drafter
from pyllm.core.speculative_pace import Pace
from pyllm.engine.prefix import common_length
from pyllm.speculation.params import SpeculationParams
from pyllm.types import Speculation

if TYPE_CHECKING:
    from pyllm.engine.texts import Text
    from pyllm.speculation.speculator import Speculator

Ids: TypeAlias = NDArray[np.int32]


class Draft:
    """A guess at how a text goes on.

    Args:
        tokens: Ids, int32, shape (n,), n >= 1.

    Attributes:
        index: Where the first of them is in the batch that they are computed with.
        place: The row of ``context.logits`` that belongs to it.
        n_accepted: How many of them were chosen.
    """

    def __init__(self, tokens: Ids) -> None:
        self.tokens = tokens
        self.index = self.place = -1
        self.n_accepted = 0


class Drafting:
    """What is known of the drafts of one text.

    Args:
        params: How they are made.
    """

    def __init__(self, params: SpeculationParams) -> None:
        self.params = params
        self.off = False  # an error has ended it; the text goes on without
        self.waits = False  # the draft model still reads what is there of the text
        self.total = Speculation(0, 0, 0)
        # What a step takes depends on how many texts are in it.
        self.paces: dict[int, Pace] = {}

    def pace(self, n_texts: int, n_max: int) -> Pace:
        """What decides how long drafts are in steps of so many texts."""
        if n_texts not in self.paces:
            self.paces[n_texts] = Pace(n_max, adaptive=self.params.adaptive)
        return self.paces[n_texts]

    def report(self) -> Speculation:
        """How drafts went so far."""
        return self.total + Speculation(0, 0, 0, sum(pace.paused for pace in self.paces.values()))


class Seat:
    """A drafter, and the text that it is for."""

    def __init__(self, speculator: Speculator) -> None:
        self.speculator = speculator
        self.text: Text | None = None
        # What has seen something, and of which text: all that it knows.
        self.drafter: Drafter | None = None
        self.followed: Text | None = None
        self.known: Ids = np.empty(0, np.int32)

    def follow(self, text: Text, drafter: Drafter, most: int) -> bool:
        """Let the drafter see all tokens of a text but its last one, or so many more; whether it has seen all."""
        ids = text.task.ids[:-1]
        n_known = len(self.known)
        if text is not self.followed or drafter is not self.drafter:
            common = common_length(self.known, ids) if drafter is self.drafter else 0
            self.followed, self.drafter = text, drafter
            self.known = ids[: common + most].copy()
            drafter.begin(self.known)
        elif n_known < len(ids):
            fresh = ids[n_known : n_known + most]
            for token in fresh.tolist():
                drafter.accept(token)
            self.known = np.concatenate([self.known, fresh])
        return len(self.known) == len(ids)

    def forget(self) -> None:
        """Believe nothing of what the drafter has seen."""
        self.text = self.followed = self.drafter = None
        self.known = np.empty(0, np.int32)


class Features:
    """What drafts from what the model has computed for each token of a text, and which tokens it has seen so far.

    It follows one text at a time: one that begins while it is alone. Of a text that goes on with what it has seen it
    needs to see the rest only.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.seen: Ids = np.empty(0, np.int32)

    def has_seen(self, ids: Ids) -> bool:
        """Whether it has seen these tokens; more of them do not matter."""
        return np.array_equal(self.seen[: len(ids)], ids)

    def see(self, drafter: Drafter, start: int, tokens: Ids) -> None:
        """Tokens from `start` on have been computed, as the first ones of a batch."""
        seen = self.seen[:start]
        self.seen = seen[:0]  # where that fails it knows nothing
        drafter.observe(tokens, start)
        self.seen = np.concatenate([seen, tokens])


__all__ = ["Draft", "Drafting", "Features", "Ids", "Seat"]
