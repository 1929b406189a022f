"""What a request for a chat completion says."""

from __future__ import annotations

from typing import Any

from pyllm.server.chat.defaults import with_defaults
from pyllm.server.completions.protocol import form_arguments, stream_options
from pyllm.server.errors import invalid
from pyllm.server.fields import Fields
from pyllm.server.sampling import MOST_LOGPROBS, Sizes, apart, sampling_arguments
from pyllm.server.settings import Settings


class ChatAsk:
    """A request, checked as far as it can be without the model.

    Args:
        body: The JSON object.
        settings: The server's.
        sizes: Those of the model.

    Attributes:
        messages: The messages.
        arguments: Those of :meth:`pyllm.Llama.create_chat_completion`.
        extra: What the engine is asked with besides.
        stream: Whether the answer is sent as it comes.
        include_usage: Whether the stream ends with the counts of tokens.
        timings_per_token: Whether every piece of a stream has the timings.
        return_progress: Whether a stream says how far the prompt has been read.
        verbose: Whether an answer that is no stream says all that is known of it.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any], settings: Settings, sizes: Sizes) -> None:
        fields = Fields(body)
        self.messages: list[dict[str, Any]] = fields.need("messages")
        if not isinstance(self.messages, list):
            raise fields.wrong("messages", "a list of messages")
        arguments = sampling_arguments(fields, settings, sizes)
        self.extra = apart(arguments)
        arguments |= form_arguments(fields)
        self.stream, self.include_usage = stream_options(fields)
        self.timings_per_token = fields.flag("timings_per_token")
        self.return_progress = fields.flag("return_progress")
        self.verbose = fields.flag("verbose")
        arguments |= _tools(fields)
        arguments |= _thinking(fields)
        if fields.flag("logprobs"):
            arguments["logprobs"] = True
            top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)
            if top is not None:
                arguments["top_logprobs"] = top
        elif fields.integer("top_logprobs", 0, MOST_LOGPROBS):
            raise invalid("top_logprobs", "top_logprobs has no effect without logprobs: true")
        for name in ("continue_final_message", "add_generation_prompt"):
            if name in fields:
                arguments[name] = fields.flag(name)
        self.arguments = with_defaults(arguments, settings)


def _tools(fields: Fields) -> dict[str, Any]:
    result: dict[str, Any] = {}
    tools = fields.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise fields.wrong("tools", "a list of tools")
    if tools:
        for i, tool in enumerate(tools):
            if not isinstance(tool, dict):
                raise invalid(f"tools[{i}]", f"tools[{i}] must be an object with type and function")
        result["tools"] = tools
    choice = fields.get("tool_choice")
    if choice is not None:
        if not isinstance(choice, (str, dict)):
            raise fields.wrong("tool_choice", "'auto', 'none', 'required', or an object that names a function")
        if isinstance(choice, dict):
            fields.object("tool_choice").object("function").need("name")
        if tools:
            result["tool_choice"] = choice
        elif choice not in ("auto", "none"):
            # The others say nothing without tools; clients send them all the same.
            raise invalid("tool_choice", f"tool_choice is {choice!r}, and there are no tools")
    if "parallel_tool_calls" in fields and tools:
        result["parallel_tool_calls"] = fields.flag("parallel_tool_calls")
    return result


def _thinking(fields: Fields) -> dict[str, Any]:
    result: dict[str, Any] = {}
    kwargs = fields.object("chat_template_kwargs").values
    effort = fields.text("reasoning_effort")
    if effort is not None:
        # OpenAI's own models read it; of templates some do.
        kwargs = {"reasoning_effort": effort, **kwargs}
        if effort == "none":
            result["enable_thinking"] = False
    if kwargs:
        result["chat_template_kwargs"] = kwargs
    if "enable_thinking" in fields:
        result["enable_thinking"] = fields.flag("enable_thinking")
    if "reasoning_format" in fields:
        result["reasoning_format"] = fields.text("reasoning_format")
    name = fields.first("reasoning_budget", "thinking_budget_tokens")
    budget = fields.integer(name, -1)
    if budget is not None and budget >= 0:
        result["reasoning_budget"] = budget
    return result
