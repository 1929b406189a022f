"""Conversations and tools for the tests of chat templates."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from pyllm.core.chat import ChatTemplates

FOLDER = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models"
TEMPLATES = sorted(path.stem for path in (FOLDER / "templates").glob("*.jinja"))


@cache
def templates(name: str) -> ChatTemplates:
    """A template of llama.cpp's sources by its name."""
    text = (FOLDER / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplates(template=text, bos="<s>", eos="</s>")


def tools(x: str = "") -> list[dict[str, Any]]:
    """Two tools; `x` is put into every text that a template may write."""
    return [
        {
            "type": "function",
            "function": {
                "name": f"get_weather{x}",
                "description": f"The weather.{x}",
                "parameters": {
                    "type": "object",
                    "properties": {
                        f"city{x}": {"type": "string", "description": f"Where{x}"},
                        "days": {"type": "integer", "description": "How long"},
                    },
                    "required": [f"city{x}"],
                },
            },
        },
        {
            "type": "function",
            "function": {
                "name": "add",
                "description": "Adds.",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "required": ["a", "b"],
                },
            },
        },
    ]


def conversations(x: str = "") -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Messages and tools by what they try; `x` is put into every text."""
    user = {"role": "user", "content": f"How is {x} the weather?"}
    system = {"role": "system", "content": f"{x}Be brief."}
    answer = {"role": "assistant", "content": f"Fine.{x}"}
    thought = {"role": "assistant", "content": f"Fine.{x}", "reasoning_content": f"Let me see.{x}"}
    arguments = json.dumps({f"city{x}": f"Paris{x}", "more": [f"{x}", {f"{x}key": 1}]})
    call = {"id": "call12345", "type": "function", "function": {"name": f"get_weather{x}", "arguments": arguments}}
    calls = {"role": "assistant", "content": f"{x}", "tool_calls": [call]}
    content = json.dumps({f"sky{x}": f"blue{x}"})
    result = {"role": "tool", "tool_call_id": "call12345", "name": f"get_weather{x}", "content": content}
    parts = [{"type": "text", "text": f"one{x}"}, {"type": "text", "text": f"{x}two"}]
    return {
        "user": ([user], None),
        "system": ([system, user], None),
        "turns": ([user, answer, user], None),
        "reasoning": ([user, thought, user], None),
        "parts": ([{"role": "user", "content": parts}], None),
        "tools": ([user], tools(x)),
        "results": ([user, calls, result], tools(x)),
    }
