"""The engine for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from pyllm.embedding.inputs import Text, Texts
from pyllm.embedding.types import EmbeddingResponse, RerankResult
from pyllm.engine.engine import Engine, Prompt
from pyllm.engine.request import Request
from pyllm.engine.request_stream import Event, LoopNotifier, RequestStream
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

    async def submit(self, prompt: Prompt, *, listener: Callable[[Event], None], **arguments: Any) -> Request:
        """Hand in a request; see :meth:`pyllm.engine.Engine.submit`. A task that is cancelled meanwhile cancels it.

        Args:
            prompt: Text or token ids.
            listener: Called in the event loop with each chunk, and with the exception that ends it.
            **arguments: Those of :meth:`pyllm.engine.Engine.submit`.

        Returns:
            Request: The request on its way.
        """
        loop = asyncio.get_running_loop()
        # Tokenizing a long prompt takes a while, in which the loop shall go on.
        submit = functools.partial(
            self.engine.submit, prompt, listener=RequestStream(LoopNotifier.of(loop), listener), **arguments
        )
        submitting = loop.run_in_executor(None, submit)
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The thread goes on all the same, and then nobody would know of the request.
            submitting.add_done_callback(_cancel)
            raise

    async def embed(self, input: Text | Texts, **arguments: Any) -> Any:
        """The vectors of texts; see :meth:`pyllm.Llama.embed`. A cancelled task cancels it within a step."""
        return await self.engine.aembed(input, **arguments)

    async def create_embedding(self, input: Text | Texts, **arguments: Any) -> EmbeddingResponse:
        """The same in the shape of OpenAI's API; see :meth:`pyllm.Llama.create_embedding`."""
        return await self.engine.acreate_embedding(input, **arguments)

    async def rerank(
        self, query: str | bytes, documents: Iterable[str | bytes], **arguments: Any
    ) -> list[RerankResult]:
        """Documents by how well they answer a query; see :meth:`pyllm.Llama.rerank`."""
        return await self.engine.arerank(query, documents, **arguments)

    async def _events(self, prompt: Prompt, stream: bool, arguments: dict[str, Any]) -> AsyncIterator[Chunk]:
        events: asyncio.Queue[Event] = asyncio.Queue()
        request = await self.submit(prompt, stream=stream, listener=events.put_nowait, **arguments)
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.completion is not None:
                    return
        finally:
            request.cancel()


def _cancel(submitting: asyncio.Future[Request]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
