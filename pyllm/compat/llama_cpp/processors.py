"""Lists of logits processors and of stopping criteria, which are such functions themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], "NDArray[np.float32] | None"]
StoppingCriteria = Callable[[NDArray[np.int32], NDArray[np.float32]], bool]


class LogitsProcessorList(list[Any]):
    """Processors, called one after the other. One that returns None has edited the row in place."""

    def __call__(self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The row after all of them.

        Args:
            input_ids: All tokens so far, the prompt included, int32, shape (n,).
            scores: The row of logits, float32, shape (n_vocab,).
        """
        for processor in self:
            result = processor(input_ids, scores)
            if result is not None:
                scores = result
        return scores

    def reset(self) -> None:
        """Tell each that a new text begins."""
        for processor in self:
            method = getattr(processor, "reset", None)
            if callable(method):
                method()


class StoppingCriteriaList(list[Any]):
    """Criteria; the text ends when one of them says so."""

    def __call__(self, input_ids: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        """Whether the text is to end.

        Args:
            input_ids: All tokens so far, the newest included, int32, shape (n,).
            logits: The row that the newest was chosen from, float32, shape (n_vocab,).
        """
        return any(bool(criterion(input_ids, logits)) for criterion in self)


class MinTokensLogitsProcessor:
    """Forbids the end of the text before so many tokens were generated.

    Args:
        min_tokens: How many.
        token_eos: The token that ends a text.
    """

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The row, in which the token may be forbidden."""
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores

    def reset(self) -> None:
        """Count anew."""
        self.prompt_tokens = None


__all__ = [
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]
