"""The beginning of a prompt, computed before anybody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllm.chat.messages import Messages
from pyllm.chat.request import ChatRequest
from pyllm.completion.session import CompletionSession
from pyllm.types import Usage

if TYPE_CHECKING:
    from pyllm.completion.host import CompletionHost

_ARGUMENTS = ("tools", "chat_template", "chat_template_kwargs", "enable_thinking")


def preload(llama: CompletionHost, prompt: str | Messages, arguments: dict[str, Any]) -> Usage:
    """See :meth:`pyllm.Llama.preload`."""
    if isinstance(prompt, str):
        if arguments:
            raise TypeError(f"a text has no {', '.join(arguments)}: these belong to messages")
        ids = llama.vocab.tokenize_array(prompt, add_special=True, parse_special=True)
    else:
        for name in arguments:
            if name not in _ARGUMENTS:
                from pyllm.params import unknown_argument

                raise unknown_argument(name, _ARGUMENTS, "preload()")
        ids = ChatRequest(llama, prompt, {**arguments, "add_generation_prompt": False}).ids
    with CompletionSession(llama, ids, {"max_tokens": 0, "cache_prompt": True}) as session:
        return session.finish().usage
