"""A chat on the engine: messages become a prompt, and the texts that come are read as messages again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.chat.messages import Messages
from pyllm.chat.reading import Reading
from pyllm.chat.request import ChatRequest
from pyllm.server.chat.protocol import ChatAsk
from pyllm.server.errors import as_api_error, json_response
from pyllm.server.generation import Generation
from pyllm.server.log import note
from pyllm.server.sse import DONE, EventStream, event
from pyllm.server.state import ServerState


async def serve(request: Request, state: ServerState, ask: ChatAsk) -> Response:
    """Start what was asked for; the response, or the beginning of a stream."""
    generation, reading = await start_chat(state, ask.messages, ask.arguments, stream=ask.stream, **ask.extra)
    if ask.stream:
        events = _events(request, generation, reading, state.alias, ask.include_usage)
        return EventStream(events, state.settings, generation.cancel)
    (completion,) = await generation.finish()
    note(request, **generation.report())
    answer = (await asyncio.to_thread(reading.completion, completion)).to_dict()
    return json_response({**answer, "model": state.alias})


async def start_chat(
    state: ServerState, messages: Messages, arguments: dict[str, Any], *, stream: bool, **extra: Any
) -> tuple[Generation, Reading]:
    """Start to answer a chat.

    Args:
        state: The server's.
        messages: The chat so far.
        arguments: Those of :meth:`pyllm.Llama.create_chat_completion`.
        stream: Whether pieces are wanted as they come.
        **extra: What the engine is asked with besides.

    Returns:
        tuple: What is being generated, and what reads it.

    Raises:
        APIError: It was refused.
    """
    engine, generation = state.engine, Generation(state)
    try:
        # An engine has all that a chat asks a Llama for: model, vocab, context.
        chat = await asyncio.to_thread(ChatRequest, engine, messages, arguments)  # type: ignore[arg-type]
        await generation.start([chat.ids], {**chat.completion_arguments, **extra}, stream=stream)
    except Exception as error:
        raise as_api_error(error, param="messages", retry_after=state.settings.retry_after) from error
    return generation, Reading(chat)


async def _events(
    request: Request, generation: Generation, reading: Reading, alias: str, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    more: dict[str, Any] = {"model": alias} | ({"usage": None} if include_usage else {})
    last: dict[str, Any] = {}
    try:
        async with contextlib.aclosing(generation.events()) as events:
            async for _, chunk in events:
                read = reading.chunk(chunk)
                if read is None:
                    continue
                last = read.to_dict()
                last.pop("usage", None)
                (choice,) = last["choices"]
                if choice["finish_reason"] is not None and choice["delta"]:
                    # Clients look at the end of a stream for why it ended, and not for more of the text.
                    yield event({**last, "choices": [{**choice, "finish_reason": None}]} | more)
                    last["choices"] = [{**choice, "delta": {}, "logprobs": None}]
                yield event(last | more)
        if include_usage:
            yield event({**last, "choices": [], "model": alias, "usage": generation.usage().to_dict()})
        yield DONE
    finally:
        note(request, **generation.report())
