"""What the ways to generate hand on: pieces of texts, and finished ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyllm.types import Choice, Chunk, Completion, FinishReason, Logprobs, Speculation, Timings, Usage

if TYPE_CHECKING:
    from pyllm.completion.logprobs import LogprobsCollector
    from pyllm.completion.request import CompletionRequest


@dataclass(frozen=True, slots=True)
class TextDelta:
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


def finished(
    request: CompletionRequest,
    index: int,
    text: str,
    tokens: tuple[int, ...],
    reason: FinishReason,
    stopped: object,
    recorder: LogprobsCollector | None,
    *,
    complete: bool,
) -> Finished:
    """A text when it is complete.

    Args:
        request: What was asked for.
        index: Which of its texts.
        text: All of it.
        tokens: Those that were generated.
        reason: Why it ended.
        stopped: The stop string that ended it, or None.
        recorder: What noted log-probabilities, where something did.
        complete: Whether the model itself has ended it.
    """
    choice = Choice(
        text=text,
        tokens=tokens,
        finish_reason=reason,
        seed=request.seed_of(index),
        index=index,
        stop=str(stopped) if stopped is not None else None,
        logprobs=recorder.all() if recorder is not None and request.logprobs is not None else None,
        parser=request.parser(text, complete=complete),
    )
    return Finished(choice, 0.0 if recorder is None else recorder.mean)


def noted(request: CompletionRequest, recorder: LogprobsCollector | None) -> Logprobs | None:
    """The log-probabilities since the last time, where they were asked for."""
    return recorder.take() if recorder is not None and request.logprobs is not None else None


def as_chunk(request: CompletionRequest, piece: TextDelta, completion: Completion | None) -> Chunk:
    """What a caller gets of a piece."""
    return Chunk(
        text=piece.text,
        tokens=piece.tokens,
        finish_reason=piece.finish_reason,
        completion=completion,
        index=piece.index,
        logprobs=piece.logprobs,
        model=request.model,
        id=request.id,
        created=request.created,
    )


def as_completion(
    request: CompletionRequest,
    texts: list[Finished],
    cached: int,
    prompt_ms: float,
    generation_ms: float,
    speculation: Speculation | None = None,
) -> Completion:
    """What a caller gets of finished texts: all of them, or the best."""
    n_generated = sum(len(one.choice.tokens) for one in texts)
    best = texts
    if len(texts) > request.n:
        best = sorted(texts, key=lambda one: -one.mean_logprob)[: request.n]
    return Completion(
        choices=tuple(replace(one.choice, index=i) for i, one in enumerate(best)),
        usage=Usage(len(request.ids), n_generated, cached),
        timings=Timings(prompt_ms, generation_ms, n_generated),
        speculation=speculation,
        model=request.model,
        id=request.id,
        created=request.created,
    )
