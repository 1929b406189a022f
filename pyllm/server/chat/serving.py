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
from pyllm.server.native.verbose import verbose
from pyllm.server.progress import Progress, with_progress
from pyllm.server.sse import DONE, EventStream, event
from pyllm.server.state import ServerState
from pyllm.server.timings import timings_so_far
from pyllm.server.version import build_info


async def serve(request: Request, state: ServerState, ask: ChatAsk) -> Response:
    """Start what was asked for; the response, or the beginning of a stream."""
    generation, reading = await start_chat(state, ask.messages, ask.arguments, stream=ask.stream, **ask.extra)
    if ask.stream:
        events = _events(request, generation, reading, state.alias, ask)
        return EventStream(events, state.settings, generation.cancel)
    (completion,) = await generation.finish()
    note(request, **generation.report())
    answer = (await asyncio.to_thread(reading.completion, completion)).to_dict()
    if ask.calls_functions:
        for choice in answer["choices"]:
            _with_function_call(choice, choice["message"])
    more = {"model": state.alias, "system_fingerprint": build_info(), "timings": generation.timings()}
    return json_response(answer | more | verbose(state, generation.jobs[0], completion, wanted=ask.verbose))


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
        chat = await asyncio.to_thread(ChatRequest, engine, messages, arguments)
        await generation.start([chat.ids], {**chat.completion_arguments, **extra}, stream=stream)
    except Exception as error:
        raise as_api_error(error, param="messages", retry_after=state.settings.retry_after) from error
    return generation, Reading(chat)


async def count(state: ServerState, messages: Messages, arguments: dict[str, Any]) -> Response:
    """How many tokens the prompt of a chat has."""
    engine = state.engine
    try:
        chat = await asyncio.to_thread(ChatRequest, engine, messages, arguments)
    except Exception as error:
        raise as_api_error(error, param="messages") from error
    return json_response({"object": "response.input_tokens", "input_tokens": len(chat.ids)})


async def _events(
    request: Request, generation: Generation, reading: Reading, alias: str, ask: ChatAsk
) -> AsyncGenerator[bytes, None]:
    head: dict[str, Any] = {"model": alias, "system_fingerprint": build_info()}
    more = head | ({"usage": None} if ask.include_usage else {})
    last: dict[str, Any] = {}
    n_tokens = 0
    try:
        async with contextlib.aclosing(with_progress(generation, wanted=ask.return_progress)) as events:
            async for _, chunk in events:
                if isinstance(chunk, Progress):
                    yield event(_reading(generation) | more | chunk.field())
                    continue
                n_tokens += len(chunk.tokens)
                read = reading.chunk(chunk)
                if read is None:
                    continue
                last = read.to_dict()
                last.pop("usage", None)
                (choice,) = last["choices"]
                if ask.calls_functions:
                    _with_function_call(choice, choice["delta"])
                if "role" in choice["delta"]:
                    # Who speaks comes before what is said.
                    delta = {"role": choice["delta"].pop("role"), "content": None}
                    yield event({**last, "choices": [_bare(choice, delta)]} | more)
                    if not choice["delta"].get("content"):
                        choice["delta"].pop("content", None)
                    if not choice["delta"] and choice["finish_reason"] is None:
                        continue
                if ask.timings_per_token:
                    more["timings"] = timings_so_far(generation.jobs[0], n_tokens)
                if choice["finish_reason"] is not None and choice["delta"]:
                    # Clients look at the end of a stream for why it ended, and not for more of the text.
                    yield event({**last, "choices": [{**choice, "finish_reason": None}]} | more)
                    last["choices"] = [{**choice, "delta": {}, "logprobs": None}]
                if chunk.completion is not None and not ask.include_usage:
                    more["timings"] = generation.timings()
                yield event(last | more)
        if ask.include_usage:
            numbers = {"usage": generation.usage().to_dict(), "timings": generation.timings()}
            yield event({**last, "choices": []} | head | numbers)
        yield DONE
    finally:
        note(request, **generation.report())


def _with_function_call(choice: dict[str, Any], message: dict[str, Any]) -> None:
    """Put a call where OpenAI had it before there were tools."""
    calls = message.pop("tool_calls", None)
    if calls:
        message["function_call"] = calls[0]["function"]
    if choice["finish_reason"] == "tool_calls":
        choice["finish_reason"] = "function_call"


def _bare(choice: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    return {**choice, "delta": delta, "finish_reason": None, "logprobs": None}


def _reading(generation: Generation) -> dict[str, Any]:
    """A chunk that says nothing yet but who will speak."""
    (job,) = generation.jobs
    choice = {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None, "logprobs": None}
    head = {"id": f"chat{job.id}", "object": "chat.completion.chunk", "created": job.completion_request.created}
    return {**head, "choices": [choice]}
