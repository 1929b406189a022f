"""From answers of a chat to Anthropic's messages."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.chat.reading import Reading
from pyllm.chat.request import ChatRequest
from pyllm.chat.types import ChatChoice, Delta
from pyllm.server.chat.serving import start_chat
from pyllm.server.errors import as_api_error, json_response
from pyllm.server.generation import Generation
from pyllm.server.log import note
from pyllm.server.messages.protocol import MessageAsk
from pyllm.server.sse import EventStream, event
from pyllm.server.state import ServerState
from pyllm.types import Usage

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def serve(request: Request, state: ServerState, ask: MessageAsk) -> Response:
    """Start what was asked for; the response, or the beginning of a stream."""
    generation, reading = await start_chat(state, ask.messages, ask.arguments, stream=ask.stream, **ask.extra)
    if ask.stream:
        events = _events(request, generation, reading, ask, state.alias)
        return EventStream(
            events,
            state.settings,
            generation.cancel,
            failed=lambda error: event(error.to_anthropic(request.scope), "error"),
        )
    (completion,) = await generation.finish()
    note(request, **generation.report())
    answer = await asyncio.to_thread(reading.completion, completion)
    choice = answer.choices[0]
    head = _head(answer.id, state.alias)
    return json_response({**head, "content": _content(choice), **_end(choice, ask), "usage": _usage(answer.usage)})


async def count(state: ServerState, ask: MessageAsk) -> Response:
    """How many tokens the prompt has."""
    engine = state.engine
    try:
        chat = await asyncio.to_thread(ChatRequest, engine, ask.messages, ask.arguments)
    except Exception as error:
        raise as_api_error(error, param="messages") from error
    return json_response({"input_tokens": len(chat.ids)})


async def _events(
    request: Request, generation: Generation, reading: Reading, ask: MessageAsk, alias: str
) -> AsyncGenerator[bytes, None]:
    blocks = _Blocks()
    n_prompt = len(reading.request.ids)
    head = _head(f"chat{generation.jobs[0].id}", alias)
    start = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(Usage(n_prompt, 0))}
    try:
        yield _named({"type": "message_start", "message": start})
        async with contextlib.aclosing(generation.events()) as events:
            async for _, chunk in events:
                read = reading.chunk(chunk)
                if read is None:
                    continue
                for one in blocks.add(read.delta):
                    yield _named(one)
                if read.completion is not None:
                    for one in blocks.end():
                        yield _named(one)
                    usage = _usage(read.completion.usage)
                    yield _named(
                        {"type": "message_delta", "delta": _end(read.completion.choices[0], ask), "usage": usage}
                    )
        yield _named({"type": "message_stop"})
    finally:
        note(request, **generation.report())


class _Blocks:
    """The blocks of a message that grows: one is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._kind: str | None = None

    def add(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The events for what is new."""
        if delta.reasoning_content:
            yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning_content})
        if delta.content:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.content})
        for call in delta.tool_calls:
            if call.id is not None:
                block: dict[str, Any] = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                yield from self._open(f"tool {call.index}", block)
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def end(self) -> Iterator[dict[str, Any]]:
        """The events at the end; a message has one block at least."""
        if self._kind is None:
            yield from self._open("text", {"type": "text", "text": ""})
        yield {"type": "content_block_stop", "index": self._index}

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if kind == self._kind:
            return
        if self._kind is not None:
            yield {"type": "content_block_stop", "index": self._index}
        self._index, self._kind = self._index + 1, kind
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _head(name: str, alias: str) -> dict[str, Any]:
    name = f"msg_{name.rpartition('-')[2] or uuid.uuid4().hex}"
    return {"id": name, "type": "message", "role": "assistant", "model": alias}


def _content(choice: ChatChoice) -> list[dict[str, Any]]:
    message = choice.message
    blocks: list[dict[str, Any]] = []
    if message.reasoning_content:
        blocks.append({"type": "thinking", "thinking": message.reasoning_content, "signature": ""})
    if message.text or not message.tool_calls:
        blocks.append({"type": "text", "text": message.text})
    for call in message.tool_calls:
        try:
            arguments = call.arguments
        except ValueError:
            arguments = {}  # the answer was cut off in the middle of them, as stop_reason says
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks


def _end(choice: ChatChoice, ask: MessageAsk) -> dict[str, Any]:
    # Templates have stop texts of their own, which nobody asked for.
    if choice.stop is not None and choice.stop in ask.stops:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop}
    return {"stop_reason": _REASONS[choice.finish_reason], "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _named(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])
