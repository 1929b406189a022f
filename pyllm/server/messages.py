"""Anthropic's messages: ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from pyllm.chat.messages import left_out
from pyllm.chat.reading import Reading
from pyllm.chat.types import ChatChoice, Delta
from pyllm.server.active_request import ActiveRequest
from pyllm.server.chat import TokenCount, prompt_tokens, start_chat, with_defaults
from pyllm.server.constraints import constraint_arguments
from pyllm.server.errors import APIError, as_api_error, invalid, json_response
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.openapi import GENERATES, post
from pyllm.server.sampling import FewSamplingFields, Sizes, Stops, as_texts, sampling_arguments
from pyllm.server.settings import Settings
from pyllm.server.sse import EventWriter, event, stream_response, until_gone
from pyllm.server.state import ServerState, state_of
from pyllm.server.wire import Schema, Wire, about, at_least, decode, expected_error
from pyllm.types import Chunk
from pyllm.types import Usage as Counts

# A line that changes with every request of some clients: no prompt would begin like another one.
_BILLING = "x-anthropic-billing-header"
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# What Anthropic's own servers did or thought: the texts behind it have what came of it.
_SKIPPED = re.compile(r"redacted_thinking|server_tool_use|mcp_tool_use|\w+_tool_result|container_upload|compaction")
# Where the text of a document can be; others are files, here or elsewhere.
_SOURCES = ("text", "content")
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

_STRING: Schema = {"type": "string"}
_BLOCK: Schema = {"type": "object", "properties": {"type": _STRING}, "required": ["type"]}
_BLOCKS: list[Schema] = [_STRING, {"type": "array", "items": _BLOCK}]


class InputMessage(Wire):
    """A message of a chat, in Anthropic's shape."""

    role: Annotated[str, about("", enum=["user", "assistant", "system"])]
    content: Annotated[Any, about("", anyOf=_BLOCKS)]


class MessageToolChoice(Wire):
    """Which tools are called."""

    type: Annotated[str | None, about("", enum=["auto", "any", "none", "tool", None])] = None
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Wire):
    """Whether the model thinks before it answers."""

    type: str | None = None


class OutputFormat(Wire):
    """The form of the answer."""

    type: Annotated[str, about("", const="json_schema")]
    schema: Any = None


class OutputConfig(Wire):
    """Settings of the answer."""

    format: OutputFormat | None = None


class MessagesTokenCountRequest(FewSamplingFields, kw_only=True):
    """A request that counts the tokens of a chat."""

    model: Annotated[str | None, about("The name of the model.")] = None
    messages: Annotated[
        list[Any],
        about(
            "",
            expected="a list of messages that is not empty",
            items={"$ref": "#/components/schemas/InputMessage"},
            minItems=1,
        ),
    ]
    system: Annotated[Any, about("", anyOf=[*_BLOCKS, {"type": "null"}])] = None
    tools: Annotated[
        Any,
        about(
            "Of these, functions are offered; others are left out.", type=["array", "null"], items={"type": "object"}
        ),
    ] = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    stop_sequences: Stops = None
    output_config: Annotated[OutputConfig | None, about("The form of the answer.")] = None
    output_format: Annotated[OutputFormat | None, about("The form of the answer, as it was called before.")] = None
    max_tokens: Annotated[int, at_least(1, "Most tokens of the answer.")] | None = None
    stream: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which the answer shall end."""
        return tuple(stop for stop in as_texts(self.stop_sequences) if stop)

    def chat(self) -> list[dict[str, Any]]:
        """The chat in OpenAI's shape.

        Raises:
            APIError: A message is wrong; the error names it.
        """
        return _system(self.system) + _messages(self.messages)

    def arguments(self, settings: Settings, sizes: Sizes) -> dict[str, Any]:
        """Arguments of :meth:`pyllm.Llama.create_chat_completion`, and those that only the engine knows.

        Args:
            settings: The server's.
            sizes: Those of the model.

        Raises:
            APIError: A value is out of range, or two exclude each other; the error names the parameter.
        """
        arguments = sampling_arguments(self, settings, sizes, max_tokens=self.max_tokens)
        if self.stops:
            arguments["stop"] = self.stops
        arguments |= _tools(self.tools, self.tool_choice or MessageToolChoice())
        arguments |= constraint_arguments(self, self._response_format())
        if self.thinking is not None and self.thinking.type == "disabled":
            arguments["enable_thinking"] = False
        return with_defaults(arguments, settings)

    def _response_format(self) -> dict[str, Any] | None:
        """The form of the answer, in OpenAI's shape."""
        form, where = self.output_format, "output_format"
        if self.output_config is not None and self.output_config.format is not None:
            form, where = self.output_config.format, "output_config.format"
        if form is None:
            return None
        if form.type != "json_schema":
            raise expected_error(f"{where}.type", "'json_schema'", form.type)
        if form.schema is None:
            raise invalid(f"{where}.schema", f"{where}.schema is missing")
        schema = {"name": "answer", "schema": form.schema, "strict": True}
        return {"type": "json_schema", "json_schema": schema}


class MessagesRequest(MessagesTokenCountRequest, kw_only=True):
    """A request for a message."""

    max_tokens: Annotated[int, at_least(1, "Most tokens of the answer.")]


class AnthropicErrorDetails(Wire):
    """What was wrong."""

    type: str
    message: str


class AnthropicError(Wire):
    """An error in the shape of Anthropic's API."""

    type: Annotated[str, about("", const="error")]
    error: AnthropicErrorDetails


class ContentBlock(Wire):
    """A part of the answer."""

    type: Annotated[str, about("", enum=["text", "thinking", "tool_use"])]


class MessageUsage(Wire):
    """Counts of tokens."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int


class AnthropicMessage(Wire):
    """The answer."""

    id: str
    type: Annotated[str, about("", const="message")]
    role: Annotated[str, about("", const="assistant")]
    model: str
    content: list[ContentBlock]
    stop_reason: Annotated[str, about("", enum=["end_turn", "max_tokens", "stop_sequence", "tool_use"])]
    stop_sequence: str | None
    usage: MessageUsage


async def messages(request: Request) -> Response:
    """Answer a chat."""
    state = state_of(request)
    try:
        body, sizes = await read_json(request, state.settings), state.sizes
        asked = decode(MessagesRequest, body)
        return await until_gone(request, _answer(request, state, asked, sizes))
    except Exception as error:
        return as_api_error(error, retry_after=state.settings.retry_after).response(request.scope)


async def count_tokens(request: Request) -> Response:
    """Count the tokens of a chat."""
    state = state_of(request)
    try:
        body, sizes = await read_json(request, state.settings), state.sizes
        asked = decode(MessagesTokenCountRequest, body)
        return await until_gone(request, _count(state, asked, sizes))
    except Exception as error:
        return as_api_error(error, retry_after=state.settings.retry_after).response(request.scope)


async def _answer(request: Request, state: ServerState, asked: MessagesRequest, sizes: Sizes) -> Response:
    chat, arguments = asked.chat(), asked.arguments(state.settings, sizes)
    active, reading = await start_chat(state, chat, arguments, stream=bool(asked.stream))
    if asked.stream:
        writer = _MessageWriter(request, active, reading, asked, state.alias)
        return stream_response(request, active, writer, state.settings)
    (completion,) = await active.finish()
    note(request, **active.report())
    answer = await asyncio.to_thread(reading.completion, completion)
    choice = answer.choices[0]
    head = _head(answer.id, state.alias)
    return json_response({**head, "content": _content(choice), **_end(choice, asked), "usage": _usage(answer.usage)})


async def _count(state: ServerState, asked: MessagesTokenCountRequest, sizes: Sizes) -> Response:
    chat, arguments = asked.chat(), asked.arguments(state.settings, sizes)
    return json_response({"input_tokens": await prompt_tokens(state, chat, arguments)})


# ---- from Anthropic's messages to OpenAI's


class _ToolUse(Wire, kw_only=True):
    id: str | None = None
    name: str
    input: dict[str, Any] | None = None


class _ToolResult(Wire):
    tool_use_id: str | None = None


class _Thought(Wire):
    thinking: str | None = None


class _SearchResult(Wire):
    content: Any
    title: str | None = None
    source: str | None = None


class _Source(Wire):
    type: str | None = None
    data: str | None = None
    content: Any = None


class _Document(Wire):
    source: _Source | None = None
    title: str | None = None
    context: str | None = None


def _system(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else [_text_of(block, at) for at, block in _blocks_of(value, "system")]
    text = "\n".join(one for one in texts if one and not one.startswith(_BILLING))
    return [{"role": "system", "content": text}] if text else []


def _messages(messages: list[Any]) -> list[dict[str, Any]]:
    if not messages:
        raise expected_error("messages", "a list of messages that is not empty", messages)
    result: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise invalid(where, f"{where} must be a message of role 'user' or 'assistant'")
        content = message.get("content")
        if isinstance(content, str):
            result.append({"role": message["role"], "content": content})
        else:
            read = _assistant if message["role"] == "assistant" else _user
            result += read(_blocks_of(content, f"{where}.content"), message["role"])
    return result


def _user(blocks: list[tuple[str, dict[str, Any]]], role: str) -> list[dict[str, Any]]:
    """Results of tools, and then the text besides."""
    results, texts = [], []
    for where, block in blocks:
        if block.get("type") != "tool_result":
            texts.append(_text_of(block, where))
            continue
        content = block.get("content") or ""
        if not isinstance(content, str):
            inner = f"{where}.content"
            content = "\n".join(_text_of(one, at, of_tool=True) for at, one in _blocks_of(content, inner))
        name = decode(_ToolResult, block, where).tool_use_id or ""
        results.append({"role": "tool", "tool_call_id": name, "content": content})
    return results + ([{"role": role, "content": "\n".join(texts)}] if texts or not results else [])


def _assistant(blocks: list[tuple[str, dict[str, Any]]], role: str) -> list[dict[str, Any]]:
    texts, thoughts, calls = [], [], []
    for where, block in blocks:
        kind = block.get("type")
        if kind == "thinking":
            thoughts.append(decode(_Thought, block, where).thinking or "")
        elif kind == "tool_use":
            use = decode(_ToolUse, block, where)
            function = {"name": use.name, "arguments": json.dumps(use.input or {}, ensure_ascii=False)}
            calls.append({"id": use.id or "", "type": "function", "function": function})
        elif not isinstance(kind, str) or not _SKIPPED.fullmatch(kind):
            texts.append(_text_of(block, where))
    message: dict[str, Any] = {"role": role, "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _tools(tools: Any, choice: MessageToolChoice) -> dict[str, Any]:
    if tools is None:
        return {}
    if not isinstance(tools, list):
        raise expected_error("tools", "a list of tools", tools)
    offered = []
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise invalid(f"tools[{i}]", f"tools[{i}] must be an object with name and input_schema")
        if tool.get("type") not in (None, "custom"):
            continue  # one that Anthropic's own servers would carry out
        function = {
            "name": tool.get("name"),
            "description": tool.get("description") or "",
            "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
        }
        offered.append({"type": "function", "function": function})
    if not offered:
        return {}
    kind = choice.type or "auto"
    result: dict[str, Any] = {"tools": offered}
    if kind == "tool":
        if choice.name is None:
            raise invalid("tool_choice.name", "tool_choice.name is missing")
        result["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif kind in _CHOICES:
        result["tool_choice"] = _CHOICES[kind]
    else:
        raise expected_error("tool_choice.type", "'auto', 'any', 'none' or 'tool'", kind)
    if choice.disable_parallel_tool_use:
        result["parallel_tool_calls"] = False
    return result


def _blocks_of(content: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """The blocks of a list, each with its name in errors."""
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise invalid(where, f"{where} must be text or a list of blocks")
    return [(f"{where}[{i}]", block) for i, block in enumerate(content)]


def _text_of(block: dict[str, Any], where: str, *, of_tool: bool = False) -> str:
    """The text that a block stands for.

    Args:
        block: The block: a text, a document, results of a search.
        where: Its name in errors.
        of_tool: Whether it is a part of a tool's result: a line says there what was left out, as no later turn of the
            chat can be without it.

    Raises:
        APIError: It stands for no text; or it is a document that is no plain text.
    """
    kind = block.get("type")
    if of_tool and isinstance(kind, str) and not _is_text(block):
        return left_out(kind)
    if kind == "document":
        return _document_text(decode(_Document, block, where), where, of_tool)
    if kind == "search_result":
        result = decode(_SearchResult, block, where)
        found = _blocks_of(result.content, f"{where}.content")
        texts = [_text_of(one, at, of_tool=of_tool) for at, one in found]
        return _marked("search_result", {"title": result.title, "source": result.source}, "\n".join(texts))
    if kind != "text" or not isinstance(block.get("text"), str):
        raise invalid(where, f"{where} must be a block of type 'text', not {str(kind)[:40]!r}: text only")
    text: str = block["text"]
    return text


def _is_text(block: dict[str, Any]) -> bool:
    """Whether it is of a kind that can be text."""
    source = block.get("source")
    if block["type"] == "document" and isinstance(source, dict):
        return source.get("type") in _SOURCES
    return block["type"] in ("text", "search_result", "document")


def _document_text(document: _Document, where: str, of_tool: bool) -> str:
    source = document.source or _Source()
    if source.type == "text":
        if source.data is None:
            raise invalid(f"{where}.source.data", f"{where}.source.data is missing")
        text = source.data
    elif source.type == "content":
        content = source.content
        if content is None:
            raise invalid(f"{where}.source.content", f"{where}.source.content is missing")
        if not isinstance(content, str):
            found = _blocks_of(content, f"{where}.source.content")
            content = "\n".join(_text_of(one, at, of_tool=of_tool) for at, one in found)
        text = content
    else:
        message = (
            f"{where}.source.type must be 'text' or 'content', not {str(source.type)[:40]!r}: this server reads no "
            "files, and fetches none"
        )
        raise invalid(f"{where}.source.type", message)
    return _marked("document", {"title": document.title, "context": document.context}, text)


def _marked(name: str, head: dict[str, str | None], text: str) -> str:
    """A text between tags, so that the model sees its kind, its beginning and its end."""
    lines = [f"<{key}>{value}</{key}>" for key, value in head.items() if value]
    return "\n".join([f"<{name}>", *lines, text, f"</{name}>"])


# ---- from the answer to Anthropic's message


class _MessageWriter(EventWriter):
    """Writes the blocks of a message."""

    def __init__(
        self, request: Request, active: ActiveRequest, reading: Reading, asked: MessagesRequest, alias: str
    ) -> None:
        self._scope, self._active, self._reading, self._asked, self._alias = (
            request.scope,
            active,
            reading,
            asked,
            alias,
        )
        self._blocks = _Blocks()

    def begin(self) -> Iterator[bytes]:
        """The message without content."""
        usage = _usage(Counts(len(self._reading.request.ids), 0))
        head = _head(f"chat{self._active.jobs[0].id}", self._alias)
        start = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _named({"type": "message_start", "message": start})

    def chunk(self, number: int, chunk: Chunk) -> Iterator[bytes]:
        """The events for a chunk."""
        read = self._reading.chunk(chunk)
        if read is None:
            return
        for one in self._blocks.add(read.delta):
            yield _named(one)
        if read.completion is not None:
            for one in self._blocks.end():
                yield _named(one)
            end = _end(read.completion.choices[0], self._asked)
            yield _named({"type": "message_delta", "delta": end, "usage": _usage(read.completion.usage)})

    def end(self) -> Iterator[bytes]:
        """Anthropic's mark."""
        yield _named({"type": "message_stop"})

    def failed(self, error: APIError) -> bytes:
        """In Anthropic's shape."""
        return event(error.to_anthropic(self._scope), "error")


class _Blocks:
    """The blocks of a message that grows: one is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._kind: str | None = None

    def add(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The events for a delta."""
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


def _end(choice: ChatChoice, asked: MessagesRequest) -> dict[str, Any]:
    # Templates have stop strings of their own, which the request did not ask for.
    if choice.stop is not None and choice.stop in asked.stops:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop}
    return {"stop_reason": _REASONS[choice.finish_reason], "stop_sequence": None}


def _usage(usage: Counts) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _named(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])


_ANTHROPIC: dict[str, Any] = {"tag": "chats", "error": AnthropicError, "refers": (InputMessage,)}
ROUTES = [
    post(
        "/v1/messages",
        messages,
        takes=MessagesRequest,
        gives=AnthropicMessage,
        streams=True,
        refuses=GENERATES,
        **_ANTHROPIC,
    ),
    post(
        "/v1/messages/count_tokens",
        count_tokens,
        takes=MessagesTokenCountRequest,
        gives=TokenCount,
        refuses=(501, 503),
        **_ANTHROPIC,
    ),
]
