"""States to go back to, for models whose memory cannot be cut: recurrent ones, and those with a sliding window."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.core.context import Context
from pyllm.core.state import StateFlags
from pyllm.errors import PyllmError

# Of one text. A conversation goes back to where its last prompts began, and hardly ever further.
MOST = 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the memory holds after the first `n` tokens of a text, as far as a cut cannot bring it back."""

    n: int
    data: bytes


class Checkpoints:
    """The checkpoints of one text, oldest first. Never changed in place: texts with the same beginning share them."""

    def __init__(self, items: tuple[Checkpoint, ...] = ()) -> None:
        self.items = items

    @property
    def n_bytes(self) -> int:
        """How much memory they take."""
        return sum(len(item.data) for item in self.items)

    def best(self, n: int) -> Checkpoint | None:
        """The last one that is no longer than `n` tokens."""
        return next((item for item in reversed(self.items) if item.n <= n), None)

    def until(self, n: int) -> Checkpoints:
        """Those that are still true of a text whose first `n` tokens are the same."""
        return Checkpoints(tuple(item for item in self.items if item.n <= n))

    def taken(self, context: Context, n: int, limit: int, seq_id: int = 0) -> Checkpoints:
        """With one more, of a sequence as it is now, which holds `n` tokens; at most :data:`MOST` of them.

        Args:
            context: The context.
            n: How many tokens.
            limit: Bytes that all of them may take; the oldest go first.
            seq_id: The sequence.
        """
        if any(item.n == n for item in self.items):
            return self
        try:
            data = context.state.save(seq_id, flags=StateFlags.PARTIAL_ONLY)
        except PyllmError:
            return self  # nothing is lost but time
        items = sorted((*self.items, Checkpoint(n, data)), key=lambda item: item.n)
        while len(items) > MOST:
            # The one whose neighbour before is nearest. The first stands for the beginning that many texts share.
            gaps = [(items[i].n - items[i - 1].n, i) for i in range(1, len(items) - 1)]
            del items[min(gaps)[1]]
        while items and sum(len(item.data) for item in items) > limit:
            del items[0]
        return Checkpoints(tuple(items))


def restore(context: Context, checkpoint: Checkpoint, seq_id: int = 0) -> bool:
    """Bring a sequence back to a checkpoint of the text it holds; False when that is not possible."""
    try:
        context.state.load(checkpoint.data, seq_id, flags=StateFlags.PARTIAL_ONLY)
        return context.memory.rm(seq_id, checkpoint.n) and context.memory.pos_max(seq_id) == checkpoint.n - 1
    except PyllmError:
        return False
