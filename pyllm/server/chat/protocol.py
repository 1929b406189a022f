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
        calls_functions: Whether calls are wanted in OpenAI's older form, as `function_call`.

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
        functions = _functions(fields)
        self.calls_functions = bool(functions)
        arguments |= functions or _tools(fields)
        arguments |= _thinking(fields)
        if fields.flag("logprobs"):
            arguments["logprobs"] = True
            top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)
            if top is not None:
                arguments["top_logprobs"] = top
        elif fields.integer("top_logprobs", 0, MOST_LOGPROBS):
            raise invalid("top_logprobs", "top_logprobs has no effect without logprobs: true")
        if "add_generation_prompt" in fields:
            arguments["add_generation_prompt"] = fields.flag("add_generation_prompt")
        if "continue_final_message" in fields:
            part = fields.get("continue_final_message")
            arguments["continue_final_message"] = (
                part if part in ("content", "reasoning") else fields.flag("continue_final_message")
            )
        self.arguments = with_defaults(arguments, settings)


def _tools(fields: Fields) -> dict[str, Any]:
    result: dict[str, Any] = {}
    tools = fields.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise fields.wrong("tools", "a list of tools")
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, dict):
            raise invalid(f"tools[{i}]", f"tools[{i}] must be an object with type and function")
    if tools:
        result["tools"] = tools
    if "tool_choice" in fields:
        result["tool_choice"] = fields.get("tool_choice")
    if "parallel_tool_calls" in fields and tools:
        result["parallel_tool_calls"] = fields.flag("parallel_tool_calls")
    return result


def _functions(fields: Fields) -> dict[str, Any]:
    """What `functions` and `function_call` stand for, which OpenAI has replaced by tools."""
    functions = fields.get("functions")
    choice = fields.get("function_call")
    if not functions and choice in (None, "auto", "none"):
        return {}
    for older, newer in (("functions", "tools"), ("function_call", "tool_choice")):
        if newer in fields:
            raise invalid(older, f"{older} is the older form of {newer}: leave out one of them")
    if not isinstance(functions, list) or not all(isinstance(one, dict) for one in functions):
        raise fields.wrong("functions", "a list of functions")
    if isinstance(choice, dict):
        choice = {"type": "function", "function": choice}
    elif choice not in (None, "auto", "none"):
        raise fields.wrong("function_call", "'auto', 'none' or an object with the name of a function")
    tools = [{"type": "function", "function": one} for one in functions]
    # Such an answer has room for one call.
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}


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
