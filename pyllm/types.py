"""What a generation gives back: plain, frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a request took, in milliseconds."""

    prompt_ms: float
    generation_ms: float
    completion_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, the prompt not counted."""
        return 1000 * self.completion_tokens / self.generation_ms if self.generation_ms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation.

    Attributes:
        text: The generated text, without stop string.
        tokens: Its token ids, in order. A token that ended the text is not among them.
        finish_reason: "stop": the model ended the text, or a stop string was found. "length": max_tokens were
            generated, or the context is full.
        stop: The stop string that was found, or None.
        seed: The seed that was used; the same one with the same parameters gives the same text again.
        usage: Counts of tokens.
        timings: Durations.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    stop: str | None = None
    timings: Timings = field(default=Timings(0.0, 0.0, 0), compare=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream.

    Attributes:
        text: Text that has become final: whole characters, and no part of a stop string. It may stem from
            several tokens.
        tokens: The ids generated since the last chunk.
        finish_reason: None, and in the last chunk "stop" or "length".
        completion: In the last chunk the whole of it, else None.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    completion: Completion | None = None

    def __str__(self) -> str:
        return self.text
