"""What a request for a message says, and the chat of OpenAI's shape that it stands for."""

from __future__ import annotations

import json
import re
from typing import Any

from pyllm.server.chat.defaults import with_defaults
from pyllm.server.completions.protocol import GUIDED_FIELDS, form_arguments
from pyllm.server.errors import invalid
from pyllm.server.fields import Fields
from pyllm.server.messages.blocks import blocks_of, text_of
from pyllm.server.sampling import MOST_STOPS, Sizes, apart, sampling_arguments
from pyllm.server.settings import Settings

# A line that changes with every request of some clients: no prompt would begin like another one.
_BILLING = "x-anthropic-billing-header"
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# What Anthropic's own servers did or thought: the texts behind it have what came of it.
_SKIPPED = re.compile(r"redacted_thinking|server_tool_use|mcp_tool_use|\w+_tool_result|container_upload|compaction")


class MessageAsk:
    """A request, checked as far as it can be without the model.

    Args:
        body: The JSON object.
        settings: The server's.
        sizes: Those of the model.
        counts: Only the tokens of the prompt are asked for.

    Attributes:
        messages: The chat, in OpenAI's shape.
        arguments: Those of :meth:`pyllm.Llama.create_chat_completion`.
        stops: The texts at which the answer shall end.
        stream: Whether the answer is sent as it comes.

    Raises:
        APIError: Something is wrong; the error names the parameter.
    """

    def __init__(self, body: dict[str, Any], settings: Settings, sizes: Sizes, *, counts: bool = False) -> None:
        fields = Fields(body)
        if not counts:
            fields.need("max_tokens")
            fields.integer("max_tokens", 1)
        self.messages = _system(fields) + _messages(fields)
        self.stops = tuple(stop for stop in fields.texts("stop_sequences", most=MOST_STOPS) if stop)
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "id_slot", "lora")
        known = {name: body.get(name) for name in names}
        self.arguments = sampling_arguments(Fields(known), settings, sizes)
        self.extra = apart(self.arguments)
        if self.stops:
            self.arguments["stop"] = self.stops
        self.arguments |= _tools(fields)
        self.arguments |= form_arguments(Fields({name: body.get(name) for name in GUIDED_FIELDS} | _form(fields)))
        if fields.object("thinking").text("type") == "disabled":
            self.arguments["enable_thinking"] = False
        self.arguments = with_defaults(self.arguments, settings)
        self.stream = fields.flag("stream")


def _form(fields: Fields) -> dict[str, Any]:
    """The form of the answer, in OpenAI's shape."""
    config = fields.object("output_config")
    form = config.object("format") if "format" in config else fields.object("output_format")
    if not form.values:
        return {}
    if form.need("type") != "json_schema":
        raise form.wrong("type", "'json_schema'")
    schema = {"name": "answer", "schema": form.need("schema"), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _system(fields: Fields) -> list[dict[str, Any]]:
    value = fields.get("system")
    if value is None:
        return []
    texts = (
        [value] if isinstance(value, str) else [text_of(block, where) for where, block in blocks_of(value, "system")]
    )
    text = "\n".join(one for one in texts if one and not one.startswith(_BILLING))
    return [{"role": "system", "content": text}] if text else []


def _messages(fields: Fields) -> list[dict[str, Any]]:
    messages = fields.need("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.wrong("messages", "a list of messages that is not empty")
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
            result += read(blocks_of(content, f"{where}.content"), message["role"])
    return result


def _user(blocks: list[tuple[str, dict[str, Any]]], role: str) -> list[dict[str, Any]]:
    """Results of tools, and then what is said besides."""
    results, texts = [], []
    for where, block in blocks:
        if block.get("type") != "tool_result":
            texts.append(text_of(block, where))
            continue
        content = block.get("content") or ""
        if not isinstance(content, str):
            inner = f"{where}.content"
            content = "\n".join(text_of(one, at, of_tool=True) for at, one in blocks_of(content, inner))
        name = Fields(block, f"{where}.").text("tool_use_id") or ""
        results.append({"role": "tool", "tool_call_id": name, "content": content})
    return results + ([{"role": role, "content": "\n".join(texts)}] if texts or not results else [])


def _assistant(blocks: list[tuple[str, dict[str, Any]]], role: str) -> list[dict[str, Any]]:
    texts, thoughts, calls = [], [], []
    for where, block in blocks:
        fields = Fields(block, f"{where}.")
        kind = fields.get("type")
        if kind == "thinking":
            thoughts.append(fields.text("thinking") or "")
        elif kind == "tool_use":
            arguments = json.dumps(fields.object("input").values, ensure_ascii=False)
            function = {"name": fields.need("name"), "arguments": arguments}
            calls.append({"id": fields.text("id") or "", "type": "function", "function": function})
        elif not isinstance(kind, str) or not _SKIPPED.fullmatch(kind):
            texts.append(text_of(block, where))
    message: dict[str, Any] = {"role": role, "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _tools(fields: Fields) -> dict[str, Any]:
    tools = fields.get("tools")
    if tools is None:
        return {}
    if not isinstance(tools, list):
        raise fields.wrong("tools", "a list of tools")
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
    choice = fields.object("tool_choice")
    kind = choice.text("type") or "auto"
    result: dict[str, Any] = {"tools": offered}
    if kind == "tool":
        result["tool_choice"] = {"type": "function", "function": {"name": choice.need("name")}}
    elif kind in _CHOICES:
        result["tool_choice"] = _CHOICES[kind]
    else:
        raise choice.wrong("type", "'auto', 'any', 'none' or 'tool'")
    if choice.flag("disable_parallel_tool_use"):
        result["parallel_tool_calls"] = False
    return result
