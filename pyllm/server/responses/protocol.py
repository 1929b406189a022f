"""What a request for a response says, and the chat that it stands for."""

from __future__ import annotations

import json
import re
from typing import Any

from pyllm.chat.messages import content_text, plain_content
from pyllm.server.chat.defaults import with_defaults
from pyllm.server.completions.protocol import GUIDED_FIELDS, form_arguments
from pyllm.server.errors import invalid
from pyllm.server.fields import Fields
from pyllm.server.sampling import Sizes, apart, sampling_arguments
from pyllm.server.settings import Settings

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
        namespaces: The namespace and the name of each function that has one, by the name that the model knows.
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
        if not self.messages:
            raise invalid("input", "input has no message, and there are no instructions: nothing can be answered")
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "id_slot", "lora")
        known = {name: body.get(name) for name in names}
        if "max_output_tokens" in fields:
            known["max_tokens"] = fields.integer("max_output_tokens", 1)
        self.arguments = sampling_arguments(Fields(known), settings, sizes)
        self.extra = apart(self.arguments)
        form = fields.object("text").object("format")
        forms: dict[str, Any] = {name: body.get(name) for name in GUIDED_FIELDS}
        if "type" in form:
            forms["response_format"] = {"type": form.get("type")}
            if form.get("type") == "json_schema":
                schema = {name: form.get(name) for name in ("name", "schema", "strict")}
                forms["response_format"]["json_schema"] = schema
        self.arguments |= form_arguments(Fields(forms))
        self.namespaces: dict[str, tuple[str, str]] = {}
        self.arguments |= _tools(fields, self.namespaces)
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
    if not isinstance(items, list):
        raise fields.wrong("input", "a text, or a list of items")
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
    elif kind in _SKIPPED:
        pass
    elif kind == "item_reference":
        text = f"{where} refers to an item, and this server stores none: send the item itself"
        raise invalid(f"{where}.type", text)
    elif isinstance(kind, str) and kind.endswith("_call_output"):
        content = _content(item.get("output"), f"{where}.output", of_tool=True)
        messages.append({"role": "tool", "tool_call_id": item.text("call_id") or "", "content": content})
    elif isinstance(kind, str) and kind.endswith("_call"):
        function = {"name": _called(item, kind), "arguments": _arguments(item, kind)}
        call = {"id": item.text("call_id") or item.text("id") or "", "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise item.wrong("content", "a list of parts")
        # Of others' thoughts there may be only what is encrypted.
        text = "".join(str(part.get("text", "")) for part in parts)
        if text:
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
    else:
        raise invalid(f"{where}.type", f"{where} is of type {str(kind)[:40]!r}, which this server does not know")


def _called(item: Fields, kind: str) -> Any:
    if kind == "function_call":
        return _joined_name(item.text("namespace"), item.need("name"))
    return str(item.need("name")) if kind == "custom_tool_call" else kind.removesuffix("_call")


def _arguments(item: Fields, kind: str) -> str:
    """The arguments of a call as JSON; calls of other kinds have a field of their own for what is to be done."""
    if kind == "function_call":
        arguments = item.text("arguments")
        return arguments or "{}"
    known = ("type", "id", "call_id", "status", "name", "namespace", "created_by")
    rest = {name: value for name, value in item.values.items() if name not in known and value is not None}
    return json.dumps(rest, ensure_ascii=False)


def _joined_name(namespace: str | None, name: Any) -> Any:
    return f"{namespace}__{name}" if namespace and isinstance(name, str) else name


def _content(value: Any, where: str, *, of_tool: bool = False) -> str:
    return content_text({"content": plain_content(value, where, of_tool=of_tool)})


def _tools(fields: Fields, names: dict[str, tuple[str, str]]) -> dict[str, Any]:
    tools = fields.get("tools")
    if tools is None:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise fields.wrong("tools", "a list of objects")
    offered: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        inner = tool.get("tools") if tool.get("type") == "namespace" else [tool]
        if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
            raise invalid(f"tools[{i}].tools", f"tools[{i}].tools must be a list of objects")
        namespace = tool.get("name") if tool.get("type") == "namespace" else None
        for one in inner:
            kind = one.get("type")
            # Clients send them wherever they ask.
            if isinstance(kind, str) and _NOT_OFFERED.match(kind):
                continue
            function = {
                "name": _joined_name(namespace, one.get("name")),
                "description": one.get("description") or "",
                "parameters": one.get("parameters") or {"type": "object", "properties": {}},
            }
            offered.append({"type": kind or "function", "function": function})
            if namespace is not None:
                names[function["name"]] = (str(namespace), str(one.get("name")))
    if not offered:
        return {}
    result: dict[str, Any] = {"tools": offered}
    if "tool_choice" in fields:
        choice = fields.get("tool_choice")
        if isinstance(choice, dict) and choice.get("namespace"):
            choice = {**choice, "name": _joined_name(str(choice["namespace"]), choice.get("name"))}
        result["tool_choice"] = choice
    if "parallel_tool_calls" in fields:
        result["parallel_tool_calls"] = fields.flag("parallel_tool_calls")
    return result
