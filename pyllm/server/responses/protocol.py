"""What a request for a response says, and the chat that it stands for."""

from __future__ import annotations

from typing import Any

from pyllm.server.chat.defaults import with_defaults
from pyllm.server.completions.protocol import form_arguments
from pyllm.server.errors import invalid
from pyllm.server.fields import Fields
from pyllm.server.sampling import Sizes, apart, sampling_arguments
from pyllm.server.settings import Settings

_TEXTS = ("input_text", "output_text", "text")


class ResponseAsk:
    """A request, checked as far as it can be without the model. Nothing is stored: every request has the whole chat.

    Args:
        body: The JSON object.
        settings: The server's.
        sizes: Those of the model.

    Attributes:
        messages: The chat, in the shape of chat completions.
        arguments: Those of :meth:`pyllm.Llama.create_chat_completion`.
        stream: Whether the answer is sent as it comes.
        timings_per_token: Whether every piece of a stream has the timings.
        return_progress: Whether a stream says how far the prompt has been read.
        echoed: What a response repeats of its request.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any], settings: Settings, sizes: Sizes) -> None:
        fields = Fields(body)
        for name in ("previous_response_id", "conversation"):
            if name in fields:
                raise invalid(name, f"{name} cannot be used: this server stores no responses; send the whole chat")
        if fields.flag("background"):
            raise invalid("background", "background cannot be used: this server stores no responses")
        instructions = fields.text("instructions")
        self.messages = ([{"role": "system", "content": instructions}] if instructions else []) + _input(fields)
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "id_slot", "lora")
        known = {name: body.get(name) for name in names}
        if "max_output_tokens" in fields:
            known["max_tokens"] = fields.integer("max_output_tokens", 1)
        self.arguments = sampling_arguments(Fields(known), settings, sizes)
        self.extra = apart(self.arguments)
        form = fields.object("text").object("format")
        if "type" in form:
            shaped = {"type": form.get("type")}
            if form.get("type") == "json_schema":
                shaped["json_schema"] = {name: form.get(name) for name in ("name", "schema", "strict")}
            self.arguments |= form_arguments(Fields({"response_format": shaped}))
        self.arguments |= _tools(fields)
        effort = fields.object("reasoning").text("effort")
        if effort is not None:
            self.arguments["chat_template_kwargs"] = {"reasoning_effort": effort}
            if effort == "none":
                self.arguments["enable_thinking"] = False
        self.arguments = with_defaults(self.arguments, settings)
        self.stream = fields.flag("stream")
        self.timings_per_token = fields.flag("timings_per_token")
        self.return_progress = fields.flag("return_progress")
        self.echoed = {
            "instructions": instructions,
            "max_output_tokens": fields.integer("max_output_tokens"),
            "metadata": fields.object("metadata").values,
            "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
            "previous_response_id": None,
            "temperature": fields.number("temperature"),
            "text": {"format": form.values or {"type": "text"}},
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": fields.get("tools") or [],
            "top_p": fields.number("top_p"),
        }


def _input(fields: Fields) -> list[dict[str, Any]]:
    items = fields.need("input")
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise fields.wrong("input", "a text, or a list of items that is not empty")
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        where = f"input[{i}]"
        if not isinstance(item, dict):
            raise invalid(where, f"{where} must be an object")
        _add(messages, Fields(item, f"{where}."), where)
    return messages


def _add(messages: list[dict[str, Any]], item: Fields, where: str) -> None:
    """Add an item to the messages; calls and thoughts belong to the assistant's message before or behind them."""
    kind = item.get("type") or "message"
    if kind == "message":
        message = {"role": item.need("role"), "content": _content(item.get("content"), f"{where}.content")}
        last = messages[-1] if messages else {}
        if message["role"] == "assistant" and last.get("content") is None and "reasoning_content" in last:
            last["content"] = message["content"]
        else:
            messages.append(message)
    elif kind == "function_call":
        function = {"name": item.need("name"), "arguments": item.text("arguments") or "{}"}
        call = {"id": item.text("call_id") or item.text("id") or "", "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.text("call_id") or "", "content": content})
    elif kind == "reasoning":
        parts = item.get("content") or []
        if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
            text = "".join(str(part.get("text", "")) for part in parts)
            if text:
                messages.append({"role": "assistant", "content": None, "reasoning_content": text})
    else:
        raise invalid(f"{where}.type", f"{where} is of type {str(kind)[:40]!r}, which this server does not know")


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(where, f"{where} must be text or a list of parts")
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            raise invalid(f"{where}[{i}]", f"{where}[{i}] must be a part of type 'input_text': text only")
    return "\n".join(part["text"] for part in value)


def _tools(fields: Fields) -> dict[str, Any]:
    tools = fields.get("tools")
    if tools is None:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise fields.wrong("tools", "a list of objects")
    # Others, such as searches of the web, are for OpenAI's own servers; clients send them wherever they ask.
    offered = [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description") or "",
                "parameters": tool.get("parameters") or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
        if tool.get("type") == "function"
    ]
    if not offered:
        return {}
    result: dict[str, Any] = {"tools": offered}
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        name = fields.object("tool_choice").need("name")
        choice = {"type": "function", "function": {"name": name}}
    if choice is not None:
        if not isinstance(choice, (str, dict)):
            raise fields.wrong("tool_choice", "'auto', 'none', 'required', or an object that names a function")
        result["tool_choice"] = choice
    if "parallel_tool_calls" in fields:
        result["parallel_tool_calls"] = fields.flag("parallel_tool_calls")
    return result
