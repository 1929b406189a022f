"""What the ways to generate hand on: pieces of texts, and finished ones."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.types import Choice, FinishReason, Logprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one choice that has become final, and the tokens since the last piece of it."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished text, and the mean log-probability of its tokens where that was noted."""

    choice: Choice
    mean_logprob: float
