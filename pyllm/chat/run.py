"""Chats in which the model calls Python functions."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyllm.chat.messages import Messages
from pyllm.chat.tools import Tool, as_tools, check_choice
from pyllm.chat.types import ChatCompletion, Message
from pyllm.errors import InvalidArgumentError


@dataclass(frozen=True)
class ToolRun:
    """What came of a chat with tools.

    Attributes:
        completion: The last completion.
        messages: All messages: those that were given, answers with calls, results, and the last answer.
        rounds: How many answers had calls that were carried out.
    """

    completion: ChatCompletion
    messages: tuple[Message | Mapping[str, Any], ...]
    rounds: int

    @property
    def text(self) -> str:
        """The content of the last answer."""
        return self.completion.text

    def __str__(self) -> str:
        return self.text


def run_tools(
    complete: Callable[..., ChatCompletion],
    messages: Messages,
    tools: Sequence[Callable[..., Any] | Tool | Mapping[str, Any]],
    max_rounds: int,
    arguments: dict[str, Any],
) -> ToolRun:
    """See :meth:`pyllm.Llama.run_tools`.

    Args:
        complete: Answers messages, as :meth:`pyllm.Llama.create_chat_completion`.
        messages: The chat so far.
        tools: Python functions, and others.
        max_rounds: After so many answers with calls, the model has to answer without.
        arguments: Other arguments of `complete`.
    """
    if isinstance(max_rounds, bool) or not isinstance(max_rounds, numbers.Integral) or max_rounds < 1:
        raise InvalidArgumentError(
            f"max_rounds must be an integer of at least 1, not {max_rounds!r}", param="max_rounds"
        )
    for name in ("stream", "n", "best_of"):
        if name in arguments:
            raise InvalidArgumentError(f"run_tools() makes one answer after the other: {name} has no place there")
    offered = as_tools(tools)
    by_name = {tool.name: tool for tool in offered}
    choice = arguments.pop("tool_choice", "auto")
    check_choice(choice, offered)
    chat: list[Message | Mapping[str, Any]] = list(messages)
    rounds = 0
    while True:
        completion = complete(chat, tools=offered, tool_choice=choice, **arguments)
        chat.append(completion.message)
        calls = completion.tool_calls
        ours = all(call.name in by_name and by_name[call.name].function is not None for call in calls)
        if completion.finish_reason != "tool_calls" or not ours:
            return ToolRun(completion, tuple(chat), rounds)
        for call in calls:
            chat.append(Message("tool", by_name[call.name](call), name=call.name, tool_call_id=call.id))
        rounds += 1
        choice = "auto" if rounds < max_rounds else "none"
