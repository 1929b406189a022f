"""The generation of one HTTP request: one job of the engine for each prompt, read as one stream of events.

Besides: the progress of prefills for clients that want to know, and timings in llama-server's words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyllm.engine.engine import Prompt
from pyllm.engine.request import Request
from pyllm.engine.request_stream import Event
from pyllm.processors.base import copied
from pyllm.server.errors import APIError, unavailable
from pyllm.server.sampling import MOST_TEXTS
from pyllm.server.state import ServerState
from pyllm.types import Chunk, Completion, Speculation, Usage

# Tokens and their alternatives that wait for a client to read them: some tens of megabytes.
MOST_UNREAD = 1 << 18
# Seconds between two looks at prompts that are being read.
_INTERVAL = 0.1


class ActiveRequest:
    """The jobs of a request. They are cancelled when it ends, also by an error or a disconnect.

    Args:
        state: The server's.

    Attributes:
        jobs: One for each prompt.
        completions: Those that are complete, by the number of the prompt.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.jobs: list[Request] = []
        self.completions: dict[int, Completion] = {}
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._unread = 0
        self._overrun = False

    async def start(
        self,
        prompts: Sequence[Prompt],
        arguments: dict[str, Any],
        *,
        stream: bool,
        each: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Hand in all prompts.

        Args:
            prompts: The prompts.
            arguments: What the engine is asked with for all of them.
            stream: Whether pieces are wanted as they come.
            each: What it is asked with besides for each of them.

        Raises:
            Exception: One was refused; then none is computed.
        """
        client = self.state.client
        assert client is not None
        self.state.running.add(self)
        try:
            for i, prompt in enumerate(prompts):
                listener, more = partial(self._note, i), {} if each is None else each[i]
                if i and "logits_processor" in arguments:
                    # Each prompt has its own: they are computed at the same time.
                    own = [copied(one) for one in arguments["logits_processor"]]
                    arguments = {**arguments, "logits_processor": own}
                self.jobs.append(await client.submit(prompt, stream=stream, listener=listener, **arguments, **more))
        except BaseException:
            self.cancel()
            raise

    async def events(self) -> AsyncGenerator[tuple[int, Chunk], None]:
        """Chunks as they come, with the number of the prompt that each belongs to."""
        try:
            while len(self.completions) < len(self.jobs):
                number, event = await self._events.get()
                self._unread -= _size(event)
                if isinstance(event, BaseException):
                    raise event
                if event.finish_reason == "abort" and self._overrun:
                    raise APIError(408, "the answer was not read, and more of it is not kept", code="not_read")
                if event.finish_reason == "abort":
                    # The client is still there: the server was told to stop.
                    raise unavailable("the server is shutting down", self.state.settings.retry_after)
                if event.completion is not None:
                    self.completions[number] = event.completion
                    self.state.metrics.observe(self.jobs[number], event.completion)
                yield number, event
        finally:
            self.cancel()

    async def finish(self) -> list[Completion]:
        """All completions, in the order of the prompts."""
        async for _ in self.events():
            pass
        return [self.completions[i] for i in range(len(self.jobs))]

    def cancel(self) -> None:
        """Cancel jobs that still run; they end within a step."""
        self.state.running.discard(self)
        for job in self.jobs:
            job.cancel()

    def usage(self) -> Usage:
        """Token counts of all prompts together."""
        usages = [completion.usage for completion in self.completions.values()]
        return Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
        )

    def timings(self) -> dict[str, Any]:
        """How long all prompts took together; they have ended."""
        return timings_of(list(self.completions.values()))

    def report(self) -> dict[str, Any]:
        """Fields of the log line of the request."""
        usage, job = self.usage(), self.jobs[0]
        first = None if job.first_token is None else round(1000 * (job.first_token - job.submitted), 1)
        return {
            "id": job.id,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "first_token_ms": first,
            "complete": len(self.completions) == len(self.jobs),
        }

    def _note(self, number: int, event: Event) -> None:
        self._events.put_nowait((number, event))
        self._unread += _size(event)
        # The engine does not wait for slow clients: unread events are kept, up to a limit.
        if self._unread > MOST_UNREAD and not self._overrun:
            self._overrun = True
            self.cancel()


def _size(event: Event) -> int:
    if isinstance(event, BaseException):
        return 0
    logprobs = event.logprobs
    size = 1 + len(event.tokens) + (0 if logprobs is None else sum(len(top or ()) for top in logprobs.top_logprobs))
    # A whole text, or an echoed prompt, is one event: the client had no chance to read a part of it.
    return min(size, MOST_UNREAD // MOST_TEXTS)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prompt has been read.

    Attributes:
        total: Tokens of the prompt.
        cached: How many of them were computed already.
        processed: How many are computed now.
        time_ms: Milliseconds since it began to be read.
    """

    total: int
    cached: int
    processed: int
    time_ms: float

    def field(self) -> dict[str, Any]:
        """The field of an event that says it, in llama-server's words."""
        numbers = {
            "total": self.total,
            "cache": self.cached,
            "processed": self.processed,
            "time_ms": round(self.time_ms),
        }
        return {"prompt_progress": numbers}


def with_progress(active: ActiveRequest, *, wanted: bool) -> AsyncGenerator[tuple[int, Chunk | Progress], None]:
    """The events of a generation, and between them, until each text begins, how far its prompt has been read.

    The first report of a prompt says what was cached, and the last one that all of it has been read.

    Args:
        active: What is being generated.
        wanted: Whether there are reports at all.
    """
    # Reports need a task for each event, which other streams shall not pay for.
    return _reported(active) if wanted else active.events()


async def _reported(active: ActiveRequest) -> AsyncGenerator[tuple[int, Chunk | Progress], None]:
    events = active.events()
    readings = [_Reading(job) for job in active.jobs]
    pending: asyncio.Future[tuple[int, Chunk] | None] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.ensure_future(_next(events))
            reading = any(not one.ended for one in readings)
            await asyncio.wait({pending}, timeout=_INTERVAL if reading else None)
            if not pending.done():
                for number, one in enumerate(readings):
                    for report in one.look():
                        yield number, report
                continue
            found, pending = pending.result(), None
            if found is None:
                return
            number, chunk = found
            for report in readings[number].end():
                yield number, report
            yield number, chunk
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()


async def _next(events: AsyncGenerator[tuple[int, Chunk], None]) -> tuple[int, Chunk] | None:
    return await anext(events, None)


class _Reading:
    """The reports of one prompt so far."""

    def __init__(self, job: Request) -> None:
        self.job = job
        self.ended = False
        self._said: int | None = None

    def look(self) -> list[Progress]:
        """New reports during prefill."""
        if self.ended or self.job.started is None:
            return []
        return self._upto(min(self.job.sequences[0].n_computed, len(self.job.completion_request.ids)))

    def end(self) -> list[Progress]:
        """The last reports, once the text has begun."""
        if self.ended:
            return []
        self.ended = True
        return self._upto(len(self.job.completion_request.ids))

    def _upto(self, processed: int) -> list[Progress]:
        cached = self.job.sequences[0].n_cached
        found = [] if self._said is not None else [cached]
        if processed > (cached if self._said is None else self._said):
            found.append(processed)
        if found:
            self._said = found[-1]
        return [self._progress(cached, n) for n in found]

    def _progress(self, cached: int, processed: int) -> Progress:
        started = self.job.started
        time_ms = 0.0 if started is None else 1000 * (time.perf_counter() - started)
        return Progress(len(self.job.completion_request.ids), cached, processed, time_ms)


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
