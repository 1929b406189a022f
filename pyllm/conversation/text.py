"""The tokens of a text that grows turn by turn, and which of them the model is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Turn:
    """What was given and what was generated.

    Attributes:
        ids: The tokens of both.
        data: The text of both as UTF-8. A character may begin in one turn and end in the next.
        dropped: What :attr:`TextHistory.dropped` was before.
    """

    ids: Ids
    data: bytes
    dropped: int = 0


@dataclass(slots=True)
class TextHistory:
    """All turns of a text.

    Attributes:
        turns: The oldest first.
        dropped: How many tokens behind the beginning the model is not told any more.
    """

    turns: list[Turn] = field(default_factory=list)
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def text(self) -> str:
        """Everything that was given and generated."""
        return b"".join(turn.data for turn in self.turns).decode("utf-8", "replace")

    @property
    def ids(self) -> Ids:
        """All tokens."""
        return np.concatenate([np.empty(0, np.int32), *(turn.ids for turn in self.turns)])

    def prompt(self, added: Ids) -> Ids:
        """All tokens, and new ones behind them."""
        return np.concatenate([self.ids, added])

    def shortened(self, added: Ids, keep: int, most: int, wanted: int) -> tuple[Ids, int]:
        """As :meth:`prompt`, without tokens behind the first `keep` where it would be longer than `most`.

        Once it has to be shortened it becomes as long as `wanted`, so that the next turns only add to it.

        Returns:
            tuple: The tokens, and how many behind the beginning are missing.
        """
        ids = self.prompt(added)
        keep, dropped = min(keep, len(ids)), self.dropped
        if len(ids) - dropped > most:
            dropped = max(0, len(ids) - min(wanted, most))
        # What is new is told in any case, as far as there is room for it.
        end = min(keep + dropped, len(ids))
        return np.concatenate([ids[:keep], ids[end:]]), dropped

    def add(self, ids: Iterable[Ids], data: bytes, dropped: int) -> None:
        """Another turn, and how many tokens were missing when the model was asked."""
        self.turns.append(Turn(np.concatenate([np.empty(0, np.int32), *ids]), data, self.dropped))
        self.dropped = dropped

    def pop(self) -> None:
        """Forget the last turn."""
        self.dropped = self.turns.pop().dropped

    def copy(self) -> TextHistory:
        """The same, to go on in another way."""
        return TextHistory(list(self.turns), self.dropped)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON. Bytes that are no whole character are lone surrogates there."""
        turns = [[turn.ids.tolist(), turn.data.decode("utf-8", "surrogateescape"), turn.dropped] for turn in self.turns]
        return {"turns": turns, "dropped": self.dropped}

    @classmethod
    def from_dict(cls, data: dict[str, Any], n_vocab: int) -> TextHistory:
        """From what :meth:`to_dict` gave.

        Raises:
            ValueError: It is not that, or names tokens that are not among the `n_vocab` of the vocabulary. As do
                KeyError, TypeError and OverflowError.
        """
        made = cls(dropped=int(data["dropped"]))
        for ids, text, dropped in data["turns"]:
            array = np.array(ids, np.int32).reshape(-1)
            if not isinstance(text, str):
                raise TypeError(f"{text!r} is no text")
            if len(array) and not 0 <= array.min() <= array.max() < n_vocab:
                raise ValueError(f"there are tokens that are not among the {n_vocab} of the vocabulary")
            made.turns.append(Turn(array, text.encode("utf-8", "surrogateescape"), int(dropped)))
        if min([made.dropped, *(turn.dropped for turn in made.turns)]) < 0:
            raise ValueError("less than no tokens were dropped")
        return made


def tokens_behind(vocab: Vocab, text: str | bytes) -> Ids:
    """Tokens of a text that stands behind others.

    Some tokenizers put a space before everything that they are given, which is right at the beginning only.
    """
    data = text.encode() if isinstance(text, str) else bytes(text)
    ids = _tokens(vocab, data)
    if b"".join(_pieces(vocab, ids)) != b" " + data:
        return ids
    if data.startswith(b" "):
        return _tokens(vocab, data[1:])
    # Behind a line break there is none; and what it was made of is cut off again.
    begin = _tokens(vocab, b"\n")
    found = _tokens(vocab, b"\n" + data)
    behind = found[len(begin) :]
    if np.array_equal(found[: len(begin)], begin) and b"".join(_pieces(vocab, behind)) == data:
        return behind
    return ids


def generated(vocab: Vocab, tokens: Sequence[int], stop: str | None, shown: Iterable[int] | bool) -> tuple[Ids, bytes]:
    """What of a completion becomes part of a text: its tokens and its bytes, up to where a stop string began.

    Args:
        vocab: Their vocabulary.
        tokens: What was generated.
        stop: The stop string that ended it, or None.
        shown: Which control tokens count as text: all, none, or these ids.
    """
    ids = np.array(tokens, np.int32)
    if isinstance(shown, bool):
        pieces = _pieces(vocab, ids, special=shown)
    else:
        some = set(shown)
        pieces = [vocab.token_to_piece(token, special=token in some) for token in tokens]
    data = b"".join(pieces)
    end = -1 if stop is None else data.find(stop.encode())
    if end < 0:
        return ids, data
    n = length = 0
    while n < len(pieces) and length + len(pieces[n]) <= end:
        length += len(pieces[n])
        n += 1
    if length < end:
        return np.concatenate([ids[:n], tokens_behind(vocab, data[length:end])]), data[:end]
    return ids[:n], data[:end]


def _tokens(vocab: Vocab, data: bytes) -> Ids:
    return vocab.tokenize_array(data, add_special=False, parse_special=True)


def _pieces(vocab: Vocab, ids: Iterable[int], *, special: bool = True) -> list[bytes]:
    return [vocab.token_to_piece(int(token), special=special) for token in ids]
