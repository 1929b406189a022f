"""Chats: OpenAI's chat completions, and the chat on the engine that the other APIs of chats use, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pyllm.chat.messages import ROLES, Messages
from pyllm.chat.reading import Reading
from pyllm.chat.request import ChatRequest
from pyllm.server.active_request import ActiveRequest, Progress, timings_so_far
from pyllm.server.completions import StreamFields, Usage, stream_options
from pyllm.server.constraints import constraint_arguments
from pyllm.server.errors import as_api_error, invalid, json_response
from pyllm.server.limits import read_json
from pyllm.server.log import note
from pyllm.server.native_answer import verbose
from pyllm.server.openapi import GENERATES, post
from pyllm.server.sampling import MOST_LOGPROBS, Sizes, apart, sampling_arguments
from pyllm.server.settings import Settings
from pyllm.server.sse import DONE, EventWriter, event, stream_response, until_gone
from pyllm.server.state import ServerState, build_info, state_of
from pyllm.server.wire import Schema, Wire, about, at_least, decode, expected_error, within
from pyllm.types import Chunk

_STRING: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


# Messages are read by pyllm.chat, which takes more shapes than a struct can say.
_TEXT_PART = _object({"type": {"enum": ["text", "input_text", "output_text"]}, "text": _STRING}, "type", "text")
_REFUSAL = _object({"type": {"const": "refusal"}, "refusal": _STRING}, "type", "refusal")
_NAME = _object({"name": _STRING}, "name")
_CALL = _object({"type": {"const": "function"}, "function": _NAME}, "function")
_PART: Schema = {"anyOf": [_TEXT_PART, _REFUSAL]}


class Message(Wire):
    """A message of a chat."""

    role: Annotated[str, about("", enum=list(ROLES))]
    content: Annotated[Any, about("", anyOf=[_STRING, {"type": "array", "items": _PART}, _NULL])] = None
    reasoning_content: str | None = None
    tool_calls: Annotated[Any, about("", type=["array", "null"], items=_CALL)] = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: Annotated[str | None, about("What an assistant without content said.")] = None
    function_call: Annotated[Any, about("A call in OpenAI's form before there were tools.", anyOf=[_NAME, _NULL])] = (
        None
    )


class Function(Wire):
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: Any = None


class Tool(Wire):
    """A tool: a function."""

    type: Annotated[str, about("", const="function")]
    function: Function


_NAMED: list[Schema] = [
    _object({"type": {"const": "function"}, "function": _NAME}, "type", "function"),
    _object({"type": {"const": "function"}, "name": _STRING}, "type", "name"),
]
_ALLOWED: dict[str, Schema] = {
    "mode": {"enum": ["auto", "required"]},
    "tools": {"type": "array", "items": {"anyOf": _NAMED}, "minItems": 1},
}
ToolChoice = Annotated[
    Any,
    about(
        "",
        anyOf=[
            {"enum": ["auto", "none", "required", None]},
            _object({"type": {"enum": ["auto", "none", "required"]}}, "type"),
            *_NAMED,
            _object(
                {"type": {"const": "allowed_tools"}, "allowed_tools": _object(_ALLOWED, "mode", "tools")},
                "type",
                "allowed_tools",
            ),
            _object({"type": {"const": "allowed_tools"}, **_ALLOWED}, "type", "mode", "tools"),
        ],
    ),
]


class ChatCompletionRequest(StreamFields, kw_only=True):
    """A request for a chat completion."""

    model: Annotated[str | None, about("The name of the model.")] = None
    messages: Annotated[
        list[Any],
        about("", expected="a list of messages", items={"$ref": "#/components/schemas/Message"}, minItems=1),
    ]
    tools: Annotated[
        list[Annotated[dict[str, Any], about("", expected="an object with type and function")]] | None,
        about("", expected="a list of tools", type=["array", "null"], items={"$ref": "#/components/schemas/Tool"}),
    ] = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: Annotated[bool | None, about("Whether there may be more than one call.")] = None
    functions: Annotated[
        Any,
        about(
            "OpenAI's form before there were tools; answered with function_call.",
            type=["array", "null"],
            items={"$ref": "#/components/schemas/Function"},
        ),
    ] = None
    function_call: Annotated[Any, about("", anyOf=[{"enum": ["auto", "none", None]}, _NAME])] = None
    logprobs: Annotated[bool | None, about("Whether to tell how likely the tokens were.")] = None
    top_logprobs: (
        Annotated[int, within(0, MOST_LOGPROBS, "How many of the likeliest tokens to name at each place.")] | None
    ) = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, about("What the template is given besides.")] = None
    reasoning_effort: str | None = None
    reasoning_format: str | None = None
    reasoning_budget: Annotated[int, at_least(-1, "Most tokens of reasoning; -1: any number.")] | None = None
    thinking_budget_tokens: Annotated[int, at_least(-1, "The same.")] | None = None
    enable_thinking: bool | None = None
    continue_final_message: Annotated[
        Any,
        about(
            "Whether the last message, the assistant's, goes on. By default it does.",
            enum=[True, False, "content", "reasoning", None],
        ),
    ] = None
    add_generation_prompt: bool | None = None

    def arguments(self, settings: Settings, sizes: Sizes) -> dict[str, Any]:
        """Arguments of :meth:`pyllm.Llama.create_chat_completion`, and those that only the engine knows.

        Args:
            settings: The server's.
            sizes: Those of the model.

        Raises:
            APIError: A value is out of range, or two exclude each other; the error names the parameter.
        """
        arguments = sampling_arguments(self, settings, sizes) | constraint_arguments(self)
        stream_options(self)
        arguments |= self._old_functions() or self._tools()
        arguments |= self._reasoning()
        if self.logprobs:
            arguments["logprobs"] = True
            if self.top_logprobs is not None:
                arguments["top_logprobs"] = self.top_logprobs
        elif self.top_logprobs:
            raise invalid("top_logprobs", "top_logprobs has no effect without logprobs: true")
        if self.add_generation_prompt is not None:
            arguments["add_generation_prompt"] = self.add_generation_prompt
        part = self.continue_final_message
        if part is not None:
            if part not in ("content", "reasoning") and not isinstance(part, bool):
                raise expected_error("continue_final_message", "true or false", part)
            arguments["continue_final_message"] = part
        return with_defaults(arguments, settings)

    @property
    def calls_functions(self) -> bool:
        """Whether calls are wanted in OpenAI's older form, as `function_call`."""
        return bool(self.functions) or self.function_call not in (None, "auto", "none")

    def _tools(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.tools:
            result["tools"] = self.tools
        if self.tool_choice is not None:
            result["tool_choice"] = self.tool_choice
        if self.parallel_tool_calls is not None and self.tools:
            result["parallel_tool_calls"] = self.parallel_tool_calls
        return result

    def _old_functions(self) -> dict[str, Any]:
        """The tools that stand for `functions` and `function_call`, OpenAI's older form."""
        if not self.calls_functions:
            return {}
        functions, choice = self.functions, self.function_call
        for older, newer in (("functions", "tools"), ("function_call", "tool_choice")):
            if getattr(self, newer) is not None:
                raise invalid(older, f"{older} is the older form of {newer}: leave out one of them")
        if not isinstance(functions, list) or not all(isinstance(one, dict) for one in functions):
            raise expected_error("functions", "a list of functions", functions)
        if isinstance(choice, dict):
            choice = {"type": "function", "function": choice}
        elif choice not in (None, "auto", "none"):
            raise expected_error("function_call", "'auto', 'none' or an object with the name of a function", choice)
        tools = [{"type": "function", "function": one} for one in functions]
        # Such an answer has room for one call.
        return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}

    def _reasoning(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        kwargs = self.chat_template_kwargs or {}
        if self.reasoning_effort is not None:
            # OpenAI's own models read it; of templates some do.
            kwargs = {"reasoning_effort": self.reasoning_effort, **kwargs}
            if self.reasoning_effort == "none":
                result["enable_thinking"] = False
        if kwargs:
            result["chat_template_kwargs"] = kwargs
        if self.enable_thinking is not None:
            result["enable_thinking"] = self.enable_thinking
        if self.reasoning_format is not None:
            result["reasoning_format"] = self.reasoning_format
        budget = self.thinking_budget_tokens if self.reasoning_budget is None else self.reasoning_budget
        if budget is not None and budget >= 0:
            result["reasoning_budget"] = budget
        return result


class FunctionCall(Wire):
    """The name and the arguments of a call."""

    name: str
    arguments: Annotated[str, about("JSON.")]


class ToolCall(Wire):
    """A call of a function."""

    id: str
    type: Annotated[str, about("", const="function")]
    function: FunctionCall


class TokenLogprob(Wire):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TokenLogprob):
    """A token of the answer, and the likeliest tokens at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Wire):
    """How likely the tokens of an answer were."""

    content: list[ChatLogprob]


class AssistantMessage(Wire):
    """The answer."""

    role: Annotated[str, about("", const="assistant")]
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Wire):
    """One of the answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Annotated[str, about("", enum=["stop", "length", "tool_calls", "function_call"])]


class ChatCompletion(Wire):
    """A chat completion."""

    id: str
    object: Annotated[str, about("", const="chat.completion")]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TokenCount(Wire):
    """The number of tokens of a prompt."""

    input_tokens: int


async def chat_completions(request: Request) -> Response:
    """Answer a chat."""
    state = state_of(request)
    body, sizes = await read_json(request, state.settings), state.sizes
    asked = decode(ChatCompletionRequest, body)
    arguments = asked.arguments(state.settings, sizes)
    return await until_gone(request, _answer(request, state, asked, arguments))


async def input_tokens(request: Request) -> Response:
    """Count the tokens of a chat."""
    state = state_of(request)
    body, sizes = await read_json(request, state.settings), state.sizes
    asked = decode(ChatCompletionRequest, body)
    arguments = asked.arguments(state.settings, sizes)
    return await until_gone(request, count_tokens(state, asked.messages, arguments))


async def _answer(
    request: Request, state: ServerState, asked: ChatCompletionRequest, arguments: dict[str, Any]
) -> Response:
    active, reading = await start_chat(state, asked.messages, arguments, stream=bool(asked.stream))
    if asked.stream:
        writer = _ChatWriter(active, reading, state.alias, asked)
        return stream_response(request, active, writer, state.settings, progress=asked.return_progress)
    (completion,) = await active.finish()
    note(request, **active.report())
    answer = (await asyncio.to_thread(reading.completion, completion)).to_dict()
    if asked.calls_functions:
        for choice in answer["choices"]:
            _with_function_call(choice, choice["message"])
    more = {"model": state.alias, "system_fingerprint": build_info(), "timings": active.timings()}
    return json_response(answer | more | verbose(state, active.jobs[0], completion, wanted=bool(asked.verbose)))


# ---- the chat on the engine


def with_defaults(arguments: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The arguments of a chat completion, with those of the server where a request has none.

    Args:
        arguments: What a request says.
        settings: The server's.
    """
    result = {**settings.chat, **arguments}
    kwargs = {**settings.chat.get("chat_template_kwargs", {}), **arguments.get("chat_template_kwargs", {})}
    if kwargs:
        result["chat_template_kwargs"] = kwargs
    if settings.chat_template is not None:
        result["chat_template"] = settings.chat_template
    return result


async def start_chat(
    state: ServerState, messages: Messages, arguments: dict[str, Any], *, stream: bool
) -> tuple[ActiveRequest, Reading]:
    """Start to answer a chat.

    Args:
        state: The server's.
        messages: The chat so far.
        arguments: Those of :meth:`pyllm.Llama.create_chat_completion`, and those that only the engine knows.
        stream: Whether pieces are wanted as they come.

    Returns:
        tuple: What is being generated, and what reads it.

    Raises:
        APIError: It was refused.
    """
    engine, active = state.engine, ActiveRequest(state)
    of_engine = apart(arguments)
    try:
        # An engine has all that a chat asks a Llama for: model, vocab, context.
        chat = await asyncio.to_thread(ChatRequest, engine, messages, arguments)
        await active.start([chat.ids], {**chat.completion_arguments, **of_engine}, stream=stream)
    except Exception as error:
        raise as_api_error(error, param="messages", retry_after=state.settings.retry_after) from error
    return active, Reading(chat)


async def prompt_tokens(state: ServerState, messages: Messages, arguments: dict[str, Any]) -> int:
    """How many tokens the prompt of a chat has."""
    engine = state.engine
    apart(arguments)
    try:
        chat = await asyncio.to_thread(ChatRequest, engine, messages, arguments)
    except Exception as error:
        raise as_api_error(error, param="messages") from error
    return len(chat.ids)


async def count_tokens(state: ServerState, messages: Messages, arguments: dict[str, Any]) -> Response:
    """Answer how many tokens the prompt of a chat has."""
    n_tokens = await prompt_tokens(state, messages, arguments)
    return json_response({"object": "response.input_tokens", "input_tokens": n_tokens})


# ---- the stream


class _ChatWriter(EventWriter):
    """Writes the chunks of a chat completion."""

    def __init__(self, active: ActiveRequest, reading: Reading, alias: str, asked: ChatCompletionRequest) -> None:
        self._active, self._reading, self._asked = active, reading, asked
        _, self._include_usage = stream_options(asked)
        self._head: dict[str, Any] = {"model": alias, "system_fingerprint": build_info()}
        self._more = self._head | ({"usage": None} if self._include_usage else {})
        self._last: dict[str, Any] = {}
        self._n_tokens = 0
        self._functions = asked.calls_functions

    def progress(self, number: int, progress: Progress) -> Iterator[bytes]:
        """A chunk with a role and no content."""
        (job,) = self._active.jobs
        choice = {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None, "logprobs": None}
        head = {"id": f"chat{job.id}", "object": "chat.completion.chunk", "created": job.completion_request.created}
        yield event({**head, "choices": [choice]} | self._more | progress.field())

    def chunk(self, number: int, chunk: Chunk) -> Iterator[bytes]:
        """The delta; the role comes before it, and the finish reason behind it."""
        self._n_tokens += len(chunk.tokens)
        read, more = self._reading.chunk(chunk), self._more
        if read is None:
            return
        last = self._last = read.to_dict()
        last.pop("usage", None)
        (choice,) = last["choices"]
        if self._functions:
            _with_function_call(choice, choice["delta"])
        if "role" in choice["delta"]:
            delta = {"role": choice["delta"].pop("role"), "content": None}
            yield event({**last, "choices": [_bare(choice, delta)]} | more)
            if not choice["delta"].get("content"):
                choice["delta"].pop("content", None)
            if not choice["delta"] and choice["finish_reason"] is None:
                return
        if self._asked.timings_per_token:
            more["timings"] = timings_so_far(self._active.jobs[0], self._n_tokens)
        if choice["finish_reason"] is not None and choice["delta"]:
            # Clients look at the end of a stream for why it ended, and not for more of the text.
            yield event({**last, "choices": [{**choice, "finish_reason": None}]} | more)
            last["choices"] = [{**choice, "delta": {}, "logprobs": None}]
        if chunk.completion is not None and not self._include_usage:
            more["timings"] = self._active.timings()
        yield event(last | more)

    def end(self) -> Iterator[bytes]:
        """The counts of tokens where they were asked for, and OpenAI's mark."""
        if self._include_usage:
            numbers = {"usage": self._active.usage().to_dict(), "timings": self._active.timings()}
            yield event({**self._last, "choices": []} | self._head | numbers)
        yield DONE


def _with_function_call(choice: dict[str, Any], message: dict[str, Any]) -> None:
    """Put a call where OpenAI had it before there were tools."""
    calls = message.pop("tool_calls", None)
    if calls:
        message["function_call"] = calls[0]["function"]
    if choice["finish_reason"] == "tool_calls":
        choice["finish_reason"] = "function_call"


def _bare(choice: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    return {**choice, "delta": delta, "finish_reason": None, "logprobs": None}


TAKES_CHAT: dict[str, Any] = {"takes": ChatCompletionRequest, "refers": (Message, Tool, Function)}
_CHAT: dict[str, Any] = {"tag": "chats", "gives": ChatCompletion, "streams": True, "refuses": GENERATES, **TAKES_CHAT}
_COUNT: dict[str, Any] = {"tag": "chats", "gives": TokenCount, "refuses": (501, 503), **TAKES_CHAT}
ROUTES = [
    post("/v1/chat/completions", chat_completions, **_CHAT),
    post("/chat/completions", chat_completions, **_CHAT),
    post("/v1/chat/completions/input_tokens", input_tokens, **_COUNT),
    post("/chat/completions/input_tokens", input_tokens, **_COUNT),
]
