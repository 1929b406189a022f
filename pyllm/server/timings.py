"""How long requests took, in llama-server's words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pyllm.engine import Request
from pyllm.types import Completion, Speculation


def timings_of(completions: Sequence[Completion], *, n_generated: int | None = None) -> dict[str, Any]:
    """The timings of a request that has ended.

    Args:
        completions: Those of its prompts, which were computed at the same time.
        n_generated: Tokens to count as generated. None: all.
    """
    usages = [completion.usage for completion in completions]
    times = [completion.timings for completion in completions]
    cached = sum(usage.cached_tokens for usage in usages)
    if n_generated is None:
        n_generated = sum(usage.completion_tokens for usage in usages)
    timings = _timings(
        cached,
        sum(usage.prompt_tokens for usage in usages) - cached,
        max(one.prompt_ms for one in times),
        n_generated,
        max(one.generation_ms for one in times),
    )
    return timings | _drafted([completion.speculation for completion in completions])


def timings_so_far(job: Request, n_generated: int) -> dict[str, Any]:
    """The timings of a request that is running.

    Args:
        job: The request; its first token is there.
        n_generated: Tokens generated so far.
    """
    now = time.perf_counter()
    first = job.first_token or now
    started = job.started or first
    cached = job.sequences[0].n_cached
    timings = _timings(
        cached, len(job.completion_request.ids) - cached, 1000 * (first - started), n_generated, 1000 * (now - first)
    )
    return timings | _drafted([sequence.drafts.report() for sequence in job.sequences if sequence.drafts is not None])


def _drafted(reports: Sequence[Speculation | None]) -> dict[str, int]:
    drafted = sum(report.drafted for report in reports if report is not None)
    accepted = sum(report.accepted for report in reports if report is not None)
    return {"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}


def _timings(n_cached: int, n_prompt: int, prompt_ms: float, n_generated: int, generated_ms: float) -> dict[str, Any]:
    # The first token came with the prompt, and time counts from there.
    n_steps = max(0, n_generated - 1)
    return {
        "cache_n": n_cached,
        "prompt_n": n_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / n_prompt if n_prompt else 0.0,
        "prompt_per_second": 1000 * n_prompt / prompt_ms if prompt_ms > 0 else 0.0,
        "predicted_n": n_generated,
        "predicted_ms": generated_ms,
        "predicted_per_token_ms": generated_ms / n_steps if n_steps else 0.0,
        "predicted_per_second": 1000 * n_steps / generated_ms if generated_ms > 0 else 0.0,
    }
