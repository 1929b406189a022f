"""Models that guess the next tokens, for the model to check several at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import InvalidArgumentError


class LlamaDraftModel(ABC):
    """Guesses how a text goes on. The text is the same whatever it guesses; right guesses save time."""

    @abstractmethod
    def __call__(self, input_ids: NDArray[np.int32], /, **kwargs: Any) -> NDArray[np.int32]:
        """Tokens that may follow.

        Args:
            input_ids: All tokens so far, int32, shape (n,).

        Returns:
            NDArray[np.int32]: As many as it likes, also none.
        """


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Guesses that the text goes on as it did after the same few tokens before.

    Args:
        max_ngram_size: How many tokens must be the same; fewer are tried when so many are not found.
        num_pred_tokens: How many tokens to guess.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        if max_ngram_size < 1 or num_pred_tokens < 1:
            raise InvalidArgumentError(
                f"max_ngram_size and num_pred_tokens must be at least 1, not {max_ngram_size} and {num_pred_tokens}"
            )
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    @staticmethod
    def find_candidate_pred_tokens(
        input_ids: NDArray[np.int32], max_ngram_size: int, num_pred_tokens: int
    ) -> NDArray[np.int32]:
        """What followed the newest earlier place where the text ended as it ends now."""
        ids = np.asarray(input_ids, np.int32)
        for size in range(min(max_ngram_size, len(ids) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
            places = np.flatnonzero((windows == ids[-size:]).all(axis=1))
            if len(places):
                start = int(places[-1]) + size
                return ids[start : start + num_pred_tokens]
        return np.empty(0, np.int32)

    def __call__(self, input_ids: NDArray[np.int32], /, **kwargs: Any) -> NDArray[np.int32]:
        """See :meth:`find_candidate_pred_tokens`."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)


__all__ = ["LlamaDraftModel", "LlamaPromptLookupDecoding"]
