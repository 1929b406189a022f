"""Calls of tools for models whose template knows none: the system message explains them, a grammar keeps their form.

The form is ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. llama.cpp writes the grammar for it and reads the
answers, from a small template of our own that is used for nothing else.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from pyllm.chat.messages import SYSTEM_ROLES, content_text
from pyllm.chat.tools import Tool
from pyllm.core.chat import ChatPrompt, ChatTemplates
from pyllm.structured import Grammar

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_MOST_CALLS = 16
_TEMPLATE = """
{%- if tools %}{{- 'Functions: ' }}{{ tools | tojson }}{{ '\\n' }}{% endif %}
{%- for message in messages %}
    {{- '### ' + message.role + '\\n' }}
    {%- if message.content %}{{ message.content }}{% endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}{{ '}</tool_call>' }}
    {%- endfor %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"""
_EXPLANATION = """You can call functions. Each line describes one:
{tools}
To call a function, answer with its name and its arguments, in this form:
<tool_call>{{"name": "function name", "arguments": {{"argument name": "value"}}}}</tool_call>
What it returns comes back between <tool_response> and </tool_response>. Answer directly where no function helps."""


def explained(messages: list[dict[str, Any]], tools: list[Tool]) -> list[dict[str, Any]]:
    """Messages for a template without tools: what tools there are, their calls and results are texts in them.

    Args:
        messages: Checked ones.
        tools: What is offered.
    """
    result: list[dict[str, Any]] = []
    if tools:
        lines = "\n".join(json.dumps(tool.to_dict()["function"], ensure_ascii=False) for tool in tools)
        text = _EXPLANATION.format(tools=lines)
        if messages[0]["role"] in SYSTEM_ROLES:
            first, messages = messages[0], messages[1:]
            result.append({**first, "content": f"{content_text(first)}\n\n{text}"})
        else:
            result.append({"role": "system", "content": text})
    after_result = False
    for message in messages:
        text, is_result = content_text(message), message["role"] == "tool"
        if is_result:
            text = f"<tool_response>{text}</tool_response>"
        # Many templates want user and assistant to alternate.
        if after_result and (is_result or message["role"] == "user"):
            result[-1]["content"] += f"\n{text}"
        elif is_result:
            result.append({"role": "user", "content": text})
        elif message.get("tool_calls"):
            calls = "\n".join(_call_text(call) for call in message["tool_calls"])
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            result.append({**rest, "content": f"{text}\n{calls}" if text else calls})
        else:
            result.append(message)
        after_result = is_result
    return result


class GenericCalls:
    """The grammar of calls, and how to find them in an answer.

    Args:
        tools: Those that may be called.
        required: There must be a call.
        parallel: There may be several.
    """

    def __init__(self, tools: list[Tool], *, required: bool, parallel: bool) -> None:
        text = json.dumps([tool.to_dict() for tool in tools], ensure_ascii=False)
        self._prompt = _prompt(text, parallel)
        # The rule for a single call, without the commas that llama.cpp allows between several in one pair of tags.
        rules = _prompt(text, False).grammar
        root = f'tool-call ("\\n"? tool-call){{0,{_MOST_CALLS - 1}}}' if parallel else "tool-call"
        rules = re.sub(r"^root ::= .*$", lambda _: f"root ::= {root}", rules, count=1, flags=re.MULTILINE)
        self.grammar = Grammar(rules) if required else Grammar(rules, trigger_patterns=(OPEN,))

    def parse(self, text: str, *, partial: bool, ids: list[str]) -> dict[str, Any]:
        """The message that a text stands for."""
        return self._prompt.parse(text, partial=partial, ids=ids)


@lru_cache(maxsize=1)
def _templates() -> ChatTemplates:
    return ChatTemplates(None, template=_TEMPLATE)


@lru_cache(maxsize=32)
def _prompt(tools: str, parallel: bool) -> ChatPrompt:
    return _templates().apply(
        [{"role": "user", "content": "x"}],
        tools=json.loads(tools),
        tool_choice="required",
        parallel_tool_calls=parallel,
    )


def _call_text(call: dict[str, Any]) -> str:
    function = call["function"]
    return f'{OPEN}{{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}{CLOSE}'
