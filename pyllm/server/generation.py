"""What one HTTP request has the engine generate: one job for each of its prompts, read as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from pyllm.engine.engine import Prompt
from pyllm.engine.job import Event, Job
from pyllm.server.errors import unavailable
from pyllm.server.state import ServerState
from pyllm.types import Chunk, Completion, Usage


class Generation:
    """The jobs of a request. When it is left, by whatever way, they are cancelled.

    Args:
        state: The server's.

    Attributes:
        jobs: One for each prompt.
        completions: Those that are complete, by the number of the prompt.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.jobs: list[Job] = []
        self.completions: dict[int, Completion] = {}
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def start(self, prompts: Sequence[Prompt], arguments: dict[str, Any], *, stream: bool) -> None:
        """Hand in all prompts.

        Raises:
            Exception: One was refused; then none is computed.
        """
        client = self.state.client
        assert client is not None
        self.state.running.add(self)
        try:
            for i, prompt in enumerate(prompts):
                listener = partial(self._note, i)
                self.jobs.append(await client.submit(prompt, stream=stream, listener=listener, **arguments))
        except BaseException:
            self.cancel()
            raise

    async def events(self) -> AsyncGenerator[tuple[int, Chunk], None]:
        """Chunks as they come, with the number of the prompt that each belongs to."""
        try:
            while len(self.completions) < len(self.jobs):
                number, event = await self._events.get()
                if isinstance(event, BaseException):
                    raise event
                if event.finish_reason == "abort":
                    # Whoever reads this has not gone away: the server was told to stop.
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
        """End what has not ended, within a step."""
        self.state.running.discard(self)
        for job in self.jobs:
            job.cancel()

    def usage(self) -> Usage:
        """What all prompts took together."""
        usages = [completion.usage for completion in self.completions.values()]
        return Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
        )

    def report(self) -> dict[str, Any]:
        """What the log says of it."""
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
