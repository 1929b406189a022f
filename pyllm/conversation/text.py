"""The tokens of a text that grows turn by turn, and which of them the model is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(slots=True)
class TextHistory:
    """All turns of a text.

    Attributes:
        turns: Of each its tokens, what was given and what was generated, and its text.
        dropped: How many tokens behind the beginning the model is not told any more.
    """

    turns: list[tuple[Ids, str]] = field(default_factory=list)
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def text(self) -> str:
        """Everything that was given and generated."""
        return "".join(text for _, text in self.turns)

    @property
    def ids(self) -> Ids:
        """All tokens."""
        return np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in self.turns)])

    def prompt(self, added: Ids) -> Ids:
        """All tokens, and new ones behind them."""
        return np.concatenate([self.ids, added])

    def shortened(self, added: Ids, keep: int, most: int, wanted: int) -> Ids:
        """As :meth:`prompt`, without tokens behind the first `keep` where it would be longer than `most`.

        Once it has to be shortened it becomes as long as `wanted`, so that the next turns only add to it.
        """
        ids = self.prompt(added)
        keep = min(keep, len(ids))
        if len(ids) - self.dropped > most:
            self.dropped = max(0, len(ids) - min(wanted, most))
        # What is new is told in any case, as far as there is room for it.
        end = min(keep + self.dropped, len(ids))
        return np.concatenate([ids[:keep], ids[end:]])

    def add(self, given: Ids, generated: Ids, given_text: str, generated_text: str) -> None:
        """Another turn."""
        self.turns.append((np.concatenate([given, generated]), given_text + generated_text))

    def pop(self) -> None:
        """Forget the last turn."""
        self.turns.pop()
        self.dropped = min(self.dropped, max(0, len(self.ids) - 1))

    def copy(self) -> TextHistory:
        """The same, to go on in another way."""
        return TextHistory(list(self.turns), self.dropped)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"turns": [[ids.tolist(), text] for ids, text in self.turns], "dropped": self.dropped}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TextHistory:
        """From what :meth:`to_dict` gave."""
        return cls([(np.array(ids, np.int32), str(text)) for ids, text in data["turns"]], int(data["dropped"]))
