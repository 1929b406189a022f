"""How results look in a notebook: their text and a line about them, as HTML that stands by itself.

What a model wrote is escaped: none of it becomes markup. The colours are those of the page, light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyllm.types import Completion

_TEXT = '<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere">{}</div>'
_NOTE = '<div style="opacity:.7;font-size:85%">{}</div>'


def completion(result: Completion) -> str:
    """A text completion: its texts, and how they came about."""
    return _whole(result, result.choices, [_TEXT.format(escape(choice.text)) for choice in result.choices])


def chat(result: Any) -> str:
    """A ChatCompletion: reasoning folded up, content, and calls of tools."""
    return _whole(result, result.choices, [_answer(choice) for choice in result.choices])


def _answer(choice: Any) -> str:
    message, parts = choice.message, []
    if message.reasoning_content:
        thought = _TEXT.format(escape(message.reasoning_content))
        parts.append(f'<details style="opacity:.8"><summary>reasoning</summary>{thought}</details>')
    if message.text:
        parts.append(_TEXT.format(escape(message.text)))
    for call in message.tool_calls:
        parts.append(_TEXT.format(f"<code>{escape(call.name)}({escape(call.function.arguments)})</code>"))
    return "".join(parts)


def _whole(result: Any, choices: Sequence[Any], texts: list[str]) -> str:
    several = len(choices) > 1
    parts = []
    for choice, text in zip(choices, texts, strict=True):
        what = f"{choice.index}: " if several else ""
        parts.append(f"{text}{_NOTE.format(f'{what}{len(choice.tokens)} tokens, {choice.finish_reason}')}")
    usage, speed = result.usage, result.timings.tokens_per_second
    notes = [escape(result.model), f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"]
    if speed:
        notes.append(f"{speed:.1f} tokens/s")
    return f'<div class="pyllm">{"".join(parts)}{_NOTE.format(" · ".join(note for note in notes if note))}</div>'


__all__ = ["chat", "completion"]
