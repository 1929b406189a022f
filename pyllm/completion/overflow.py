"""What happens when a text needs more tokens than the context has room for: the rule is the caller's choice."""

from __future__ import annotations

import numbers
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.errors import InvalidArgumentError

OverflowRule = Literal["error", "shift", "truncate_middle"]
RULES: tuple[str, ...] = get_args(OverflowRule)

# A limit of tokens that no text reaches.
ENDLESS = 2**31 - 1

# What must stay free behind the tokens that are kept, so that dropping half of the rest makes progress.
_LEAST_ROOM = 8


class Overflow:
    """The rule of one call.

    Args:
        context: The context that the call computes in.
        rule: "error": a prompt that does not fit is an error, and a text ends where the context is full. "shift":
            when the context is full, the first `n_keep` tokens stay, half of the rest is forgotten, and the text
            goes on. "truncate_middle": of a prompt that does not fit with its answer, the first `n_keep` tokens
            and the end stay.
        n_keep: How many tokens of the beginning stay. None: the one that begins a text, where there is one. -1: all
            of the prompt.

    Raises:
        InvalidArgumentError: There is no such rule, n_keep is out of range, or the memory of the model cannot shift.
    """

    def __init__(self, context: Context, rule: Any = "error", n_keep: Any = None) -> None:
        if rule not in RULES:
            raise InvalidArgumentError(
                f"overflow must be one of {', '.join(map(repr, RULES))}, not {rule!r}", param="overflow"
            )
        if n_keep is not None:
            if isinstance(n_keep, bool) or not isinstance(n_keep, numbers.Integral) or n_keep < -1:
                raise InvalidArgumentError(
                    f"n_keep must be a number of tokens, None, or -1 for the whole prompt, not {n_keep!r}",
                    param="n_keep",
                )
            if rule == "error":
                raise InvalidArgumentError(
                    f"n_keep={n_keep} would have no effect: it belongs to overflow='shift' and 'truncate_middle'",
                    param="n_keep",
                )
        if rule != "error" and context.model.has_encoder:
            raise InvalidArgumentError(
                f"overflow={rule!r} is for models whose prompt stands before the answer", param="overflow"
            )
        if rule == "shift" and not context.memory.can_shift:
            raise InvalidArgumentError(
                "overflow='shift' cannot be used here: positions cannot be changed in the memory of this model with "
                "these settings (of a model with a sliding window they can with swa_full=True, and not with "
                "type_k='bf16')",
                param="overflow",
            )
        self.rule = rule
        self.n_keep: int | None = n_keep
        self.n_ctx = context.n_ctx_seq
        self._bos = context.model.vocab.bos

    def keep(self, ids: NDArray[np.int32]) -> int:
        """How many tokens of a prompt stay.

        Raises:
            InvalidArgumentError: So many that there is no room behind them.
        """
        if self.n_keep is None:
            return int(len(ids) > 0 and self._bos is not None and int(ids[0]) == self._bos)
        count = len(ids) if self.n_keep == -1 else min(self.n_keep, len(ids))
        most = self.n_ctx - _LEAST_ROOM
        if count > most:
            raise InvalidArgumentError(
                f"n_keep={self.n_keep} keeps {count} tokens of the prompt, and the context has room for {most}",
                param="n_keep",
            )
        return count

    def fit(self, ids: NDArray[np.int32], max_tokens: int | None) -> NDArray[np.int32]:
        """What of a prompt is computed: all of it where it fits."""
        if self.rule == "error":
            return ids
        keep = self.keep(ids)
        if self.rule == "shift":
            # As if it had been generated: each time the context is full, half of the rest goes.
            while len(ids) > self.n_ctx:
                over = (len(ids) - self.n_ctx) + (self.n_ctx - keep) // 2
                ids = np.concatenate([ids[:keep], ids[keep + min(over, len(ids) - keep - 1) :]])
            return ids
        room = self.n_ctx - answer_room(self.n_ctx, max_tokens)
        if len(ids) <= room:
            return ids
        tail = max(room - keep, _LEAST_ROOM)
        return np.concatenate([ids[:keep], ids[len(ids) - tail :]])

    @staticmethod
    def n_discarded(n_past: int, keep: int) -> int:
        """How many of the computed tokens behind the first `keep` a shift forgets; below 1: it makes no room."""
        return (n_past - keep) // 2

    def shift(self, generation: Generation, ids: NDArray[np.int32]) -> bool:
        """Make room in a context that is full; False when the rule is another."""
        if self.rule != "shift":
            return False
        keep = self.keep(ids)
        discard = self.n_discarded(generation.n_past, keep)
        if discard < 1:
            return False
        generation.shift(keep, discard)
        return True


def answer_room(n_ctx: int, max_tokens: int | None) -> int:
    """Tokens that a prompt which is shortened leaves for its answer: a quarter of the context, or `max_tokens`,
    which count for half of it at most."""
    return n_ctx // 4 if max_tokens is None else min(max_tokens, n_ctx // 2)
