"""From answers of a chat to OpenAI's responses."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.chat.reading import Reading
from pyllm.chat.types import ChatChoice, Delta
from pyllm.server.chat.serving import start_chat
from pyllm.server.errors import APIError, json_response
from pyllm.server.generation import Generation
from pyllm.server.log import note
from pyllm.server.progress import Progress, with_progress
from pyllm.server.responses.protocol import ResponseAsk
from pyllm.server.sse import EventStream, event
from pyllm.server.state import ServerState
from pyllm.server.timings import timings_so_far
from pyllm.types import Usage


async def serve(request: Request, state: ServerState, ask: ResponseAsk) -> Response:
    """Start what was asked for; the response, or the beginning of a stream."""
    generation, reading = await start_chat(state, ask.messages, ask.arguments, stream=ask.stream, **ask.extra)
    answer = _Answer(state.alias, ask)
    if ask.stream:
        events = _events(request, generation, reading, answer)
        return EventStream(events, state.settings, generation.cancel, failed=answer.failed)
    (completion,) = await generation.finish()
    note(request, **generation.report())
    choice = (await asyncio.to_thread(reading.completion, completion)).choices[0]
    for delta in _whole(choice):
        for _ in answer.add(delta):
            pass
    for _ in answer.close(choice.finish_reason):
        pass
    return json_response(answer.response(choice.finish_reason, completion.usage))


async def _events(
    request: Request, generation: Generation, reading: Reading, answer: _Answer
) -> AsyncGenerator[bytes, None]:
    n_tokens = 0
    try:
        yield answer.event("response.created", response=answer.response(None))
        yield answer.event("response.in_progress", response=answer.response(None))
        async with contextlib.aclosing(with_progress(generation, wanted=answer.ask.return_progress)) as events:
            async for _, chunk in events:
                if isinstance(chunk, Progress):
                    yield answer.event("response.in_progress", response=answer.response(None), **chunk.field())
                    continue
                n_tokens += len(chunk.tokens)
                read = reading.chunk(chunk)
                if read is None:
                    continue
                if answer.ask.timings_per_token:
                    answer.extra = {"timings": timings_so_far(generation.jobs[0], n_tokens)}
                for one in answer.add(read.delta):
                    yield one
                if read.completion is not None:
                    reason = read.finish_reason
                    for one in answer.close(reason):
                        yield one
                    name = "response.incomplete" if reason == "length" else "response.completed"
                    whole = answer.response(reason, read.completion.usage)
                    yield answer.event(name, response=whole, timings=generation.timings())
    finally:
        note(request, **generation.report())


def _whole(choice: ChatChoice) -> Iterator[Delta]:
    """An answer that is complete, as what a stream would have brought."""
    from pyllm.chat.types import ToolCallDelta

    message = choice.message
    yield Delta(None, "", message.reasoning_content or "")
    yield Delta(None, message.text)
    for i, call in enumerate(message.tool_calls):
        yield Delta(tool_calls=(ToolCallDelta(i, call.id, call.name, call.function.arguments),))


class _Answer:
    """A response that grows item by item, and the events that tell of it."""

    def __init__(self, alias: str, ask: ResponseAsk) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.alias = alias
        self.ask = ask
        self.output: list[dict[str, Any]] = []
        # What every piece of a text has besides.
        self.extra: dict[str, Any] = {}
        self._open: str | None = None
        self._text = ""
        self._number = 0

    def response(self, reason: str | None, usage: Usage | None = None, error: APIError | None = None) -> dict[str, Any]:
        """The response as it stands."""
        status = "failed" if error else "in_progress" if reason is None else "completed"
        cut = reason == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "incomplete" if cut else status,
            "error": None if error is None else {"code": "server_error", "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self.alias,
            "output": self.output,
            "store": False,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            **self.ask.echoed,
        }

    def event(self, name: str, /, **content: Any) -> bytes:
        """An event of the stream."""
        data = {"type": name, "sequence_number": self._number, **content}
        self._number += 1
        return event(data, name)

    def failed(self, error: APIError) -> bytes:
        """The event that ends the stream of a response that failed."""
        return self.event("response.failed", response=self.response(None, error=error))

    def add(self, delta: Delta) -> Iterator[bytes]:
        """What is new."""
        if delta.reasoning_content:
            item: dict[str, Any] = {"type": "reasoning", "summary": [], "content": []}
            yield from self._begin("reasoning", item, {"type": "reasoning_text", "text": ""})
            yield self._more("response.reasoning_text.delta", delta.reasoning_content, content_index=0)
        if delta.content:
            item = {"type": "message", "role": "assistant", "content": []}
            yield from self._begin("message", item, {"type": "output_text", "text": "", "annotations": []})
            yield self._more("response.output_text.delta", delta.content, content_index=0, logprobs=[])
        for call in delta.tool_calls:
            if call.id is not None:
                item = {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}
                if call.name in self.ask.namespaces:
                    item["namespace"], item["name"] = self.ask.namespaces[call.name]
                yield from self._begin(f"call {call.index}", item, None)
            if call.arguments:
                yield self._more("response.function_call_arguments.delta", call.arguments)

    def close(self, reason: str | None = None) -> Iterator[bytes]:
        """End the item that is open; the last one for a reason."""
        if self._open is None:
            return
        item, index, cut = self.output[-1], len(self.output) - 1, reason == "length"
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "function_call":
            item["arguments"] = self._text or ("" if cut else "{}")
            name = "response.function_call_arguments.done"
            yield self.event(name, **at, name=item["name"], arguments=item["arguments"])
        else:
            part = item["content"][0]
            part["text"] = self._text
            if item["type"] == "message":
                yield self.event("response.output_text.done", **at, content_index=0, text=self._text, logprobs=[])
            else:
                yield self.event("response.reasoning_text.done", **at, content_index=0, text=self._text)
            yield self.event("response.content_part.done", **at, content_index=0, part=part)
        item["status"] = "incomplete" if cut else "completed"
        yield self.event("response.output_item.done", output_index=index, item=item)
        self._open, self._text = None, ""

    def _begin(self, kind: str, item: dict[str, Any], part: dict[str, Any] | None) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self.close()
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[item["type"]]
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "status": "in_progress", **item}
        self.output.append(item)
        self._open = kind
        index = len(self.output) - 1
        yield self.event("response.output_item.added", output_index=index, item=item)
        if part is not None:
            item["content"].append(part)
            at = {"item_id": item["id"], "output_index": index, "content_index": 0}
            yield self.event("response.content_part.added", **at, part=part)

    def _more(self, name: str, text: str, **content: Any) -> bytes:
        self._text += text
        index = len(self.output) - 1
        content |= self.extra
        return self.event(name, item_id=self.output[-1]["id"], output_index=index, delta=text, **content)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
