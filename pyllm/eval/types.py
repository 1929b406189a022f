"""What scoring gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyllm.core.vocab import Vocab


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """A text, scored token by token.

    The first token has no probability: nothing stands before it. Its entries are NaN, and -1 where they are integers.

    Attributes:
        tokens: int32, shape (n,).
        logprobs: Natural logarithm of the probability of each token after those before it: float32, shape (n,).
        ranks: How many tokens were more likely; 0 is the most likely one: int32, shape (n,).
        entropy: Of the distribution the token was drawn from, in nats: float32, shape (n,).
        top_tokens: The k most likely tokens at its place, best first: int32, shape (n, k).
        top_logprobs: Their log-probabilities: float32, shape (n, k).
        vocab: What turns the tokens into text.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    entropy: NDArray[np.float32]
    top_tokens: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    vocab: Vocab = field(repr=False)

    @classmethod
    def empty(cls, tokens: NDArray[np.int32], top_k: int, vocab: Vocab) -> TokenLogprobs:
        """For tokens that were not scored yet."""
        n = len(tokens)
        return cls(
            tokens,
            np.full(n, np.nan, np.float32),
            np.full(n, -1, np.int32),
            np.full(n, np.nan, np.float32),
            np.full((n, top_k), -1, np.int32),
            np.full((n, top_k), np.nan, np.float32),
            vocab,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def _repr_html_(self) -> str:
        from pyllm.viz import html  # only here: needed in notebooks alone

        return html.token_map(self)._repr_html_()

    @property
    def pieces(self) -> list[str]:
        """The text of each token; bytes that are no characters by themselves show as U+FFFD."""
        return [self.vocab.token_to_piece(int(token)).decode("utf-8", "replace") for token in self.tokens]

    @property
    def total(self) -> float:
        """Log-probability of the text after its first token."""
        return float(np.nansum(self.logprobs, dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN if there is but one token."""
        scored = len(self.tokens) - 1
        return math.exp(-self.total / scored) if scored > 0 else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """A continuation, scored after its prompt.

    Attributes:
        logprob: Log-probability of the whole continuation; 0 for an empty one.
        is_greedy: Whether each token was the most likely one: greedy sampling would have written it.
        n_tokens: Tokens of the continuation.
        token_logprobs: Their log-probabilities: float32, shape (n_tokens,).
    """

    logprob: float
    is_greedy: bool
    n_tokens: int
    token_logprobs: NDArray[np.float32]

    @property
    def mean(self) -> float:
        """Log-probability of a token on average: what lengths are compared by. 0 for an empty continuation."""
        return self.logprob / self.n_tokens if self.n_tokens else 0.0
