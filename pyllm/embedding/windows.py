"""What becomes of a text that is longer than the model can read at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError, TextTooLongError

Overflow = Literal["error", "truncate", "mean"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is computed for some texts.

    Attributes:
        windows: Token ids of each window, int32; every text has at least one.
        owners: Which text a window belongs to, in ascending order.
        n_texts: How many texts there are.
    """

    windows: list[NDArray[np.int32]]
    owners: list[int]
    n_texts: int

    @property
    def n_tokens(self) -> int:
        """Tokens of all windows."""
        return sum(map(len, self.windows))

    def combined(self, vectors: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """From the vectors of the windows to those of the texts: means, weighted by the windows' lengths."""
        if len(vectors) == self.n_texts:
            return vectors
        result: list[NDArray[np.float32]] = []
        lengths = np.array([len(window) for window in self.windows], np.float64)
        for text in range(self.n_texts):
            first, last = np.searchsorted(self.owners, (text, text + 1))
            if last - first == 1:
                result.append(vectors[first])
                continue
            mean = np.average(np.stack(vectors[first:last]).astype(np.float64), axis=0, weights=lengths[first:last])
            result.append(mean.astype(np.float32))
        return result


def check_overflow(overflow: str, allowed: tuple[str, ...] = get_args(Overflow)) -> None:
    """Raise InvalidArgumentError unless this is one of the rules."""
    if overflow not in allowed:
        raise InvalidArgumentError(
            f"overflow={overflow!r} is not one of {', '.join(map(repr, allowed))}", param="overflow"
        )


def plan(
    texts: list[NDArray[np.int32]], vocab: Vocab, limit: int, overflow: Overflow, name: Callable[[int], str]
) -> Plan:
    """Cut texts to what can be computed at once.

    Args:
        texts: Token ids of each text.
        vocab: Their vocabulary.
        limit: Most tokens of a window.
        overflow: The rule for longer texts; see :meth:`pyllm.Llama.embed`.
        name: What to call a text in messages, by its place among them.

    Raises:
        TextTooLongError: A text is longer, and the rule is "error".
    """
    windows: list[NDArray[np.int32]] = []
    owners: list[int] = []
    for index, tokens in enumerate(texts):
        if len(tokens) <= limit:
            parts = [tokens]
        elif overflow == "error":
            raise TextTooLongError(
                f"{name(index)} has {len(tokens)} tokens, and at most {limit} can be computed at once; "
                "overflow='truncate' takes the beginning, overflow='mean' the mean of windows",
                index=index,
                n_tokens=len(tokens),
                limit=limit,
            )
        else:
            head, inner, tail = parts_of(tokens, vocab)
            room = room_in(limit, len(head) + len(tail))
            # Windows of about equal length: none is a remnant without sense.
            count = 1 if overflow == "truncate" else -(-len(inner) // room)
            inner = inner[:room] if overflow == "truncate" else inner
            parts = [np.concatenate((head, part, tail)) for part in np.array_split(inner, count)]
        windows += parts
        owners += [index] * len(parts)
    return Plan(windows, owners, len(texts))


def parts_of(tokens: NDArray[np.int32], vocab: Vocab) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """A text without the tokens that the model puts around it: what stands before, the text, what stands behind."""
    n_head = int(len(tokens) > 0 and tokens[0] == vocab.bos)
    n_tail = int(len(tokens) > n_head and tokens[-1] in (vocab.eos, vocab.sep))
    end = len(tokens) - n_tail
    return tokens[:n_head], tokens[n_head:end], tokens[end:]


def room_in(limit: int, n_around: int) -> int:
    """Tokens of a text that have room between those around it.

    Raises:
        InvalidArgumentError: None has.
    """
    if n_around >= limit:
        raise InvalidArgumentError(
            f"at most {limit} tokens can be computed at once, and {n_around} of them are put around every text"
        )
    return limit - n_around
