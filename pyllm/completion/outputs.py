"""Text deltas and finished sequences, and the chunks and completions that callers get of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyllm.types import Choice, Chunk, Completion, FinishReason, Logprobs, Speculation, Timings, Usage

if TYPE_CHECKING:
    from pyllm.completion.logprobs import LogprobsCollector
    from pyllm.completion.request import CompletionRequest


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of one choice that has become final, and its tokens since the last delta."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class FinishedSequence:
    """A finished sequence, and the mean log-probability of its tokens, where these were collected."""

    choice: Choice
    mean_logprob: float


def finished(
    request: CompletionRequest,
    index: int,
    text: str,
    tokens: tuple[int, ...],
    reason: FinishReason,
    stopped: object,
    collector: LogprobsCollector | None,
    *,
    complete: bool,
) -> FinishedSequence:
    """The result of a sequence.

    Args:
        request: What was asked for.
        index: Its number in the request.
        text: Its text.
        tokens: The generated tokens.
        reason: Why it ended.
        stopped: The stop string that ended it, or None.
        collector: The collector of its log-probabilities, or None.
        complete: Whether the model itself has ended it.
    """
    choice = Choice(
        text=text,
        tokens=tokens,
        finish_reason=reason,
        seed=request.seed_of(index),
        index=index,
        stop=str(stopped) if stopped is not None else None,
        logprobs=collector.all() if collector is not None and request.logprobs is not None else None,
        parser=request.parser(text, complete=complete),
    )
    return FinishedSequence(choice, 0.0 if collector is None else collector.mean)


def new_logprobs(request: CompletionRequest, collector: LogprobsCollector | None) -> Logprobs | None:
    """The log-probabilities since the last call, where they were asked for."""
    return collector.take() if collector is not None and request.logprobs is not None else None


def as_chunk(request: CompletionRequest, delta: TextDelta, completion: Completion | None) -> Chunk:
    """The chunk of a delta."""
    return Chunk(
        text=delta.text,
        tokens=delta.tokens,
        finish_reason=delta.finish_reason,
        completion=completion,
        index=delta.index,
        logprobs=delta.logprobs,
        model=request.model,
        id=request.id,
        created=request.created,
    )


def as_completion(
    request: CompletionRequest,
    sequences: list[FinishedSequence],
    cached: int,
    prompt_ms: float,
    generation_ms: float,
    speculation: Speculation | None = None,
) -> Completion:
    """The completion of finished sequences: all of them, or the best."""
    n_generated = sum(len(one.choice.tokens) for one in sequences)
    best = sequences
    if len(sequences) > request.n:
        best = sorted(sequences, key=lambda one: -one.mean_logprob)[: request.n]
    return Completion(
        choices=tuple(replace(one.choice, index=i) for i, one in enumerate(best)),
        usage=Usage(len(request.ids), n_generated, cached),
        timings=Timings(prompt_ms, generation_ms, n_generated),
        speculation=speculation,
        model=request.model,
        id=request.id,
        created=request.created,
    )
