"""How far prompts have been read, for streams whose clients want to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from pyllm.engine import Request
from pyllm.server.generation import Generation
from pyllm.types import Chunk

# Seconds between two looks at prompts that are being read.
_INTERVAL = 0.1


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


def with_progress(generation: Generation, *, wanted: bool) -> AsyncGenerator[tuple[int, Chunk | Progress], None]:
    """The events of a generation, and between them, until each text begins, how far its prompt has been read.

    The first report of a prompt says what was cached, and the last one that all of it has been read.

    Args:
        generation: What is being generated.
        wanted: Whether there are reports at all.
    """
    # Reports need a task for each event, which nobody else shall pay for.
    return _reported(generation) if wanted else generation.events()


async def _reported(generation: Generation) -> AsyncGenerator[tuple[int, Chunk | Progress], None]:
    events = generation.events()
    readings = [_Reading(job) for job in generation.jobs]
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
    """What has been said of a prompt."""

    def __init__(self, job: Request) -> None:
        self.job = job
        self.ended = False
        self._said: int | None = None

    def look(self) -> list[Progress]:
        """What is new while it is read."""
        if self.ended or self.job.started is None:
            return []
        return self._upto(min(self.job.sequences[0].n_computed, len(self.job.completion_request.ids)))

    def end(self) -> list[Progress]:
        """What is new once the text has begun."""
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
