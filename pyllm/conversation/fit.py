"""Which messages of a long chat are told to the model, when not all of them fit."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyllm.completion.overflow import answer_room

if TYPE_CHECKING:
    from pyllm.completion.host import GenerationHost

Messages = Sequence[Mapping[str, Any]]


def begins_exchange(messages: Messages) -> list[int]:
    """Where the chat can begin after the system's messages: at each message of a user."""
    return [i for i, message in enumerate(messages) if message["role"] == "user"]


def system_length(messages: Messages) -> int:
    """How many messages of the system stand at the beginning."""
    n = 0
    while n < len(messages) and messages[n]["role"] in ("system", "developer"):
        n += 1
    return n


def fit_messages(
    messages: Messages, count: Callable[[list[Mapping[str, Any]]], int], room: int, *, first: int = 0, spare: int = 0
) -> int:
    """Leave out the oldest exchanges until a chat fits. What the system says, and the newest exchange, always stay.

    Args:
        messages: All of them.
        count: How many tokens the prompt of some messages has.
        room: How many it may have.
        first: Where the chat began last time. It begins there again as long as that fits, so that the prompt stays
            the beginning of the next one.
        spare: When more has to be left out, then so much that this many tokens are free again.

    Returns:
        int: The index of the first message that stays after those of the system.
    """
    begin = system_length(messages)
    system = list(messages[:begin])
    starts = [i for i in begins_exchange(messages) if i > begin]
    first = first if first in starts else begin
    if count([*system, *messages[first:]]) <= room:
        return first
    later = [i for i in starts if i > first]
    if not later:
        return first
    # The first place from where it fits: to ask at each of them would take longer than the answer.
    low, high = 0, len(later) - 1
    while low < high:
        middle = (low + high) // 2
        if count([*system, *messages[later[middle] :]]) <= room - spare:
            high = middle
        else:
            low = middle + 1
    return later[low]


def told_messages(host: GenerationHost, messages: Any, arguments: dict[str, Any]) -> Any:
    """The messages of one chat completion: all of them, unless it is asked with an `overflow` that leaves some out.

    Args:
        host: The Llama that it asks.
        messages: All of them.
        arguments: See :meth:`pyllm.Llama.create_chat_completion`.
    """
    if arguments.get("overflow", "error") not in ("shift", "truncate_middle"):
        return messages
    from pyllm.chat.messages import plain_messages
    from pyllm.chat.request import ChatRequest

    plain = plain_messages(messages)
    first = fit_messages(
        plain,
        lambda some: len(ChatRequest(host, some, dict(arguments)).ids),
        prompt_room(host, arguments),
    )
    return [*plain[: system_length(plain)], *plain[first:]]


def prompt_room(host: GenerationHost, arguments: Mapping[str, Any]) -> int:
    """Tokens that a prompt may have so that its answer has room."""
    n_ctx = host.context.n_ctx_seq
    limit = arguments.get("max_tokens")
    return n_ctx - answer_room(n_ctx, int(limit) if isinstance(limit, numbers.Integral) and int(limit) >= 0 else None)
