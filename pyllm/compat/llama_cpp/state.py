"""What has been computed, to go on from there later."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class LlamaState:
    """The KV cache of a text and what belongs to it.

    Attributes:
        input_ids: The tokens in it, int32, shape (n_tokens,).
        scores: Rows of logits: of the last token, shape (1, n_vocab), or with ``logits_all`` of all,
            shape (n_tokens, n_vocab); or of none.
        n_tokens: How many tokens.
        llama_state: The KV cache as bytes, sealed: another model refuses it.
        llama_state_size: Their number.
        seed: The seed of the Llama.
    """

    def __init__(
        self,
        input_ids: NDArray[np.int32],
        scores: NDArray[np.float32],
        n_tokens: int,
        llama_state: bytes,
        llama_state_size: int,
        seed: int,
    ) -> None:
        self.input_ids = np.array(input_ids[:n_tokens], np.int32)
        self.scores = np.array(scores, np.float32)
        self.n_tokens = int(n_tokens)
        self.llama_state = bytes(llama_state)
        self.llama_state_size = int(llama_state_size)
        self.seed = int(seed)

    @property
    def nbytes(self) -> int:
        """All the memory that it takes."""
        return self.input_ids.nbytes + self.scores.nbytes + len(self.llama_state)

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, LlamaState)
            and np.array_equal(self.input_ids, other.input_ids)
            and self.llama_state == other.llama_state
        )

    __hash__ = None  # type: ignore[assignment]


__all__ = ["LlamaState"]
