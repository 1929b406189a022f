"""Chats in the shape of OpenAI's Responses API: ``/v1/responses``. Nothing is stored: a request has the whole chat."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response as HTTPResponse

from pyllm.chat.messages import content_text, plain_content
from pyllm.chat.reading import Reading
from pyllm.chat.types import ChatChoice, Delta, ToolCallDelta
from pyllm.server.active_request import ActiveRequest, Progress, timings_so_far
from pyllm.server.chat import TokenCount, ToolChoice, start_chat, with_defaults
from pyllm.server.chat import count_tokens as count_chat
from pyllm.server.constraints import constraint_arguments
from pyllm.server.errors import APIError, invalid, json_response
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.openapi import GENERATES, post
from pyllm.server.sampling import FewSamplingFields, Sizes, sampling_arguments
from pyllm.server.settings import Settings
from pyllm.server.sse import EventWriter, event, stream_response, until_gone
from pyllm.server.state import ServerState, state_of
from pyllm.server.wire import Schema, Wire, about, at_least, decode, expected_error
from pyllm.types import Chunk
from pyllm.types import Usage as Counts

# Items that tell what OpenAI's own servers did between a question and its answer: the answer has what came of it.
_SKIPPED = (
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "tool_search_call",
    "tool_search_output",
    "mcp_list_tools",
    "mcp_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "compaction",
)
# Tools that OpenAI's own servers carry out, or that only their models know.
_NOT_OFFERED = re.compile(
    r"web_search|file_search|code_interpreter|image_generation|tool_search|mcp|computer|local_shell|shell|apply_patch"
)

_ITEM: Schema = {
    "type": "object",
    "properties": {"type": {"type": ["string", "null"]}, "role": {"type": ["string", "null"]}, "content": {}},
}


class TextSettings(Wire):
    """Settings of the answer's text."""

    format: dict[str, Any] | None = None


class ReasoningSettings(Wire):
    """How much the model thinks before it answers."""

    effort: str | None = None


class ResponseRequest(FewSamplingFields, kw_only=True):
    """A request for a response."""

    model: Annotated[str | None, about("The name of the model.")] = None
    input: Annotated[
        str | list[dict[str, Any]],
        about("", expected="a text, or a list of items", anyOf=[{"type": "string"}, {"type": "array", "items": _ITEM}]),
    ]
    instructions: Annotated[str | None, about("The system message.")] = None
    max_output_tokens: Annotated[int, at_least(1, "Most tokens of the answer.")] | None = None
    text: Annotated[TextSettings | None, about("The form of the answer.")] = None
    tools: Annotated[
        list[dict[str, Any]] | None,
        about("Of these, functions are offered; others are left out.", expected="a list of objects"),
    ] = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningSettings | None = None
    metadata: dict[str, Any] | None = None
    background: Annotated[bool | None, about("", enum=[False, None])] = None
    previous_response_id: Annotated[Any, about("Nothing is stored: send the whole chat.", type="null")] = None
    conversation: Annotated[Any, about("The same.", type="null")] = None
    stream: bool | None = None
    timings_per_token: Annotated[bool | None, about("Whether every piece has the timings.")] = None
    return_progress: Annotated[bool | None, about("Whether a stream says how far the prompt has been read.")] = None

    def chat(self) -> list[dict[str, Any]]:
        """The chat in the shape of chat completions.

        Raises:
            APIError: An item is wrong, or there is none; the error names it.
        """
        for name in ("previous_response_id", "conversation"):
            if getattr(self, name) is not None:
                raise invalid(name, f"{name} cannot be used: this server stores no responses; send the whole chat")
        if self.background:
            raise invalid("background", "background cannot be used: this server stores no responses")
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            items: list[dict[str, Any]] = []
            for i, item in enumerate(self.input):
                _add(items, item, f"input[{i}]")
            messages += items
        if not messages:
            raise invalid("input", "input has no message, and there are no instructions: nothing can be answered")
        return messages

    def arguments(self, settings: Settings, sizes: Sizes) -> dict[str, Any]:
        """Arguments of :meth:`pyllm.Llama.create_chat_completion`, and those that only the engine knows.

        Args:
            settings: The server's.
            sizes: Those of the model.

        Raises:
            APIError: A value is out of range, or two exclude each other; the error names the parameter.
        """
        arguments = sampling_arguments(self, settings, sizes, max_tokens=self.max_output_tokens)
        arguments |= constraint_arguments(self, self._response_format())
        arguments |= self._tools()
        effort = None if self.reasoning is None else self.reasoning.effort
        if effort is not None:
            arguments["chat_template_kwargs"] = {"reasoning_effort": effort}
            if effort == "none":
                arguments["enable_thinking"] = False
        return with_defaults(arguments, settings)

    @property
    def form(self) -> dict[str, Any]:
        """The form of the text, as the request has it."""
        return (self.text.format if self.text is not None else None) or {}

    def _response_format(self) -> dict[str, Any] | None:
        kind = self.form.get("type")
        if kind is None:
            return None
        if not isinstance(kind, str):
            raise expected_error("text.format.type", "text", kind)
        if kind == "text":
            return None
        if kind != "json_schema":
            return {"type": kind}
        if self.form.get("schema") is None:
            raise invalid("text.format.schema", "text.format.schema is missing")
        return {"type": kind, "json_schema": {name: self.form.get(name) for name in ("name", "schema", "strict")}}

    @property
    def namespaces(self) -> dict[str, tuple[str, str]]:
        """The namespace and the name of each function that has one, by the name that the model knows."""
        return {
            _joined_name(namespace, one.get("name")): (namespace, str(one.get("name")))
            for namespace, one in self._offered()
            if namespace is not None
        }

    def _offered(self) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """The functions among the tools, with their namespaces."""
        for i, tool in enumerate(self.tools or ()):
            within = tool.get("type") == "namespace"
            inner = tool.get("tools") if within else [tool]
            if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
                raise invalid(f"tools[{i}].tools", f"tools[{i}].tools must be a list of objects")
            namespace = tool.get("name") if within else None
            for one in inner:
                kind = one.get("type")
                # Clients send the others with every request.
                if not (isinstance(kind, str) and _NOT_OFFERED.match(kind)):
                    yield None if namespace is None else str(namespace), one

    def _tools(self) -> dict[str, Any]:
        offered = [
            {
                "type": one.get("type") or "function",
                "function": {
                    "name": _joined_name(namespace, one.get("name")),
                    "description": one.get("description") or "",
                    "parameters": one.get("parameters") or {"type": "object", "properties": {}},
                },
            }
            for namespace, one in self._offered()
        ]
        if not offered:
            return {}
        result: dict[str, Any] = {"tools": offered}
        choice = self.tool_choice
        if choice is not None:
            if isinstance(choice, dict) and choice.get("namespace"):
                choice = {**choice, "name": _joined_name(str(choice["namespace"]), choice.get("name"))}
            result["tool_choice"] = choice
        if self.parallel_tool_calls is not None:
            result["parallel_tool_calls"] = self.parallel_tool_calls
        return result

    @property
    def echoed(self) -> dict[str, Any]:
        """Fields of the request that the response repeats."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "temperature": self.temperature,
            "text": {"format": self.form or {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_p": self.top_p,
        }


class ResponseItem(Wire):
    """A part of the answer."""

    id: str
    type: Annotated[str, about("", enum=["message", "reasoning", "function_call"])]


class ResponseUsage(Wire):
    """Counts of tokens."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class IncompleteDetails(Wire):
    """Why the answer is not complete."""

    reason: str


class Response(Wire):
    """The answer."""

    id: str
    object: Annotated[str, about("", const="response")]
    created_at: int
    status: Annotated[str, about("", enum=["completed", "incomplete"])]
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[ResponseItem]
    usage: ResponseUsage


async def responses(request: Request) -> HTTPResponse:
    """Answer a chat."""
    state = state_of(request)
    body, sizes = await read_json(request, state.settings), state.sizes
    asked = decode(ResponseRequest, body)
    chat, arguments = asked.chat(), asked.arguments(state.settings, sizes)
    return await until_gone(request, _answer(request, state, asked, chat, arguments))


async def input_tokens(request: Request) -> HTTPResponse:
    """Count the tokens of a chat."""
    state = state_of(request)
    body, sizes = await read_json(request, state.settings), state.sizes
    asked = decode(ResponseRequest, body)
    chat, arguments = asked.chat(), asked.arguments(state.settings, sizes)
    return await until_gone(request, count_chat(state, chat, arguments))


async def _answer(
    request: Request,
    state: ServerState,
    asked: ResponseRequest,
    chat: list[dict[str, Any]],
    arguments: dict[str, Any],
) -> HTTPResponse:
    active, reading = await start_chat(state, chat, arguments, stream=bool(asked.stream))
    answer = _Answer(state.alias, asked)
    if asked.stream:
        writer = _ResponseWriter(active, reading, answer)
        return stream_response(request, active, writer, state.settings, progress=asked.return_progress)
    (completion,) = await active.finish()
    note(request, **active.report())
    choice = (await asyncio.to_thread(reading.completion, completion)).choices[0]
    for delta in _whole(choice):
        for _ in answer.add(delta):
            pass
    for _ in answer.close(choice.finish_reason):
        pass
    return json_response(answer.response(choice.finish_reason, completion.usage))


# ---- from items to messages


class _MessageItem(Wire):
    role: Any
    content: Any = None


class _CallOutputItem(Wire):
    call_id: str | None = None
    output: Any = None


class _CallItem(Wire):
    id: str | None = None
    call_id: str | None = None
    name: Any = None
    namespace: str | None = None
    arguments: Any = None


def _add(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Add an item to the messages; calls and thoughts belong to the assistant's message before or behind them."""
    kind = item.get("type") or "message"
    if kind == "message":
        said = decode(_MessageItem, item, where)
        message = {"role": said.role, "content": _content(said.content, f"{where}.content")}
        last = messages[-1] if messages else {}
        if message["role"] == "assistant" and last.get("content") is None and "reasoning_content" in last:
            last["content"] = message["content"]
        else:
            messages.append(message)
    elif kind in _SKIPPED:
        pass
    elif kind == "item_reference":
        text = f"{where} refers to an item, and this server stores none: send the item itself"
        raise invalid(f"{where}.type", text)
    elif isinstance(kind, str) and kind.endswith("_call_output"):
        result = decode(_CallOutputItem, item, where)
        # The screenshot of a computer is an object.
        output = [result.output] if isinstance(result.output, dict) else result.output
        content = _content(output, f"{where}.output", of_tool=True)
        messages.append({"role": "tool", "tool_call_id": result.call_id or "", "content": content})
    elif isinstance(kind, str) and kind.endswith("_call"):
        call = decode(_CallItem, item, where)
        function = {"name": _called(call, kind, where), "arguments": _arguments(call, item, kind, where)}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        called = {"id": call.call_id or call.id or "", "type": "function", "function": function}
        messages[-1].setdefault("tool_calls", []).append(called)
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise expected_error(f"{where}.content", "a list of parts", item.get("content"))
        # Of others' thoughts there may be only what is encrypted.
        text = "".join(str(part.get("text", "")) for part in parts)
        if text:
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
    elif not isinstance(kind, str):
        raise expected_error(f"{where}.type", "text", kind)
    else:
        raise invalid(f"{where}.type", f"{where} is of type {kind[:40]!r}, which this server does not know")


def _called(call: _CallItem, kind: str, where: str) -> Any:
    if kind not in ("function_call", "custom_tool_call"):
        return kind.removesuffix("_call")
    if call.name is None:
        raise invalid(f"{where}.name", f"{where}.name is missing")
    return _joined_name(call.namespace, call.name) if kind == "function_call" else str(call.name)


def _arguments(call: _CallItem, item: dict[str, Any], kind: str, where: str) -> str:
    """The arguments of a call as JSON; calls of other kinds have fields of their own instead."""
    if kind == "function_call":
        arguments = call.arguments
        if arguments is not None and not isinstance(arguments, str):
            raise expected_error(f"{where}.arguments", "text", arguments)
        return arguments or "{}"
    known = ("type", "id", "call_id", "status", "name", "namespace", "created_by")
    rest = {name: value for name, value in item.items() if name not in known and value is not None}
    return json.dumps(rest, ensure_ascii=False)


def _joined_name(namespace: str | None, name: Any) -> Any:
    return f"{namespace}__{name}" if namespace and isinstance(name, str) else name


def _content(value: Any, where: str, *, of_tool: bool = False) -> str:
    return content_text({"content": plain_content(value, where, of_tool=of_tool)})


# ---- from the answer to items


class _ResponseWriter(EventWriter):
    """Writes the events of a response."""

    def __init__(self, active: ActiveRequest, reading: Reading, answer: _Answer) -> None:
        self._active, self._reading, self._answer = active, reading, answer
        self._n_tokens = 0

    def begin(self) -> Iterator[bytes]:
        """The response without output."""
        answer = self._answer
        yield answer.event("response.created", response=answer.response(None))
        yield answer.event("response.in_progress", response=answer.response(None))

    def progress(self, number: int, progress: Progress) -> Iterator[bytes]:
        """The same, with numbers."""
        answer = self._answer
        yield answer.event("response.in_progress", response=answer.response(None), **progress.field())

    def chunk(self, number: int, chunk: Chunk) -> Iterator[bytes]:
        """The events for a chunk."""
        answer = self._answer
        self._n_tokens += len(chunk.tokens)
        read = self._reading.chunk(chunk)
        if read is None:
            return
        if answer.asked.timings_per_token:
            answer.extra = {"timings": timings_so_far(self._active.jobs[0], self._n_tokens)}
        yield from answer.add(read.delta)
        if read.completion is not None:
            reason = read.finish_reason
            yield from answer.close(reason)
            name = "response.incomplete" if reason == "length" else "response.completed"
            whole = answer.response(reason, read.completion.usage)
            yield answer.event(name, response=whole, timings=self._active.timings())

    def failed(self, error: APIError) -> bytes:
        """The event of a response that failed."""
        return self._answer.failed(error)


def _whole(choice: ChatChoice) -> Iterator[Delta]:
    """An answer that is complete, as what a stream would have brought."""
    message = choice.message
    yield Delta(None, "", message.reasoning_content or "")
    yield Delta(None, message.text)
    for i, call in enumerate(message.tool_calls):
        yield Delta(tool_calls=(ToolCallDelta(i, call.id, call.name, call.function.arguments),))


class _Answer:
    """A response that grows item by item, and the events that tell of it."""

    def __init__(self, alias: str, asked: ResponseRequest) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.alias = alias
        self.asked = asked
        self._namespaces, self._echoed = asked.namespaces, asked.echoed
        self.output: list[dict[str, Any]] = []
        # What every piece of a text has besides.
        self.extra: dict[str, Any] = {}
        self._open: str | None = None
        self._text = ""
        self._number = 0

    def response(
        self, reason: str | None, usage: Counts | None = None, error: APIError | None = None
    ) -> dict[str, Any]:
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
            **self._echoed,
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
        """The events for a delta."""
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
                if call.name in self._namespaces:
                    item["namespace"], item["name"] = self._namespaces[call.name]
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


def _usage(usage: Counts) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }


_RESPONSE: dict[str, Any] = {
    "tag": "chats",
    "takes": ResponseRequest,
    "gives": Response,
    "streams": True,
    "refuses": GENERATES,
}
_COUNT: dict[str, Any] = {"tag": "chats", "takes": ResponseRequest, "gives": TokenCount, "refuses": (501, 503)}
ROUTES = [
    post("/v1/responses", responses, **_RESPONSE),
    post("/responses", responses, **_RESPONSE),
    post("/v1/responses/input_tokens", input_tokens, **_COUNT),
    post("/responses/input_tokens", input_tokens, **_COUNT),
]
