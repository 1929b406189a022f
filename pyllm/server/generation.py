"""What one HTTP request has the engine generate: one job for each of its prompts, read as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from pyllm.engine.engine import Prompt
from pyllm.engine.request import Request
from pyllm.engine.request_stream import Event
from pyllm.processors.base import copied
from pyllm.server.errors import APIError, unavailable
from pyllm.server.sampling import MOST_TEXTS
from pyllm.server.state import ServerState
from pyllm.server.timings import timings_of
from pyllm.types import Chunk, Completion, Usage

# Tokens and their alternatives that wait for a client to read them: some tens of megabytes.
MOST_UNREAD = 1 << 18


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

    def timings(self) -> dict[str, Any]:
        """How long all prompts took together; they have ended."""
        return timings_of(list(self.completions.values()))

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
        self._unread += _size(event)
        # The engine waits for nobody: what a client does not read is kept, but not without end.
        if self._unread > MOST_UNREAD and not self._overrun:
            self._overrun = True
            self.cancel()


def _size(event: Event) -> int:
    if isinstance(event, BaseException):
        return 0
    logprobs = event.logprobs
    size = 1 + len(event.tokens) + (0 if logprobs is None else sum(len(top or ()) for top in logprobs.top_logprobs))
    # A whole text, or an echoed prompt, comes at once: so far nobody could have read it.
    return min(size, MOST_UNREAD // MOST_TEXTS)
