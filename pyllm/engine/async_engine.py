"""The engine for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pyllm.engine.engine import Engine, Prompt
from pyllm.engine.job import Event
from pyllm.types import Chunk, Completion


class AsyncEngine:
    """An :class:`pyllm.engine.Engine` whose requests are awaited.

    Args:
        engine: The engine. It stays open when this is gone.

    Example:
        >>> async for chunk in AsyncEngine(engine).stream("Once upon a time", max_tokens=32):
        ...     print(chunk.text, end="")
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def complete(self, prompt: Prompt, **arguments: Any) -> Completion:
        """One request from beginning to end. A cancelled task cancels it within a step."""
        async for event in self._events(prompt, False, arguments):
            if event.completion is not None:
                return event.completion
        raise AssertionError("a request ends with a completion or an error")

    def stream(self, prompt: Prompt, **arguments: Any) -> AsyncIterator[Chunk]:
        """Its chunks as they come. A cancelled task, or a loop that is left, cancels it within a step."""
        return self._events(prompt, True, arguments)

    async def _events(self, prompt: Prompt, stream: bool, arguments: dict[str, Any]) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def listener(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:
                job.cancel()  # the loop is closed: nobody will read it

        # Tokenizing a long prompt takes a while, in which the loop shall go on.
        job = await asyncio.to_thread(self.engine.submit, prompt, stream=stream, listener=listener, **arguments)
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.completion is not None:
                    return
        finally:
            job.cancel()
