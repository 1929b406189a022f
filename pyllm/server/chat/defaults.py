"""What chats are made with where a request says nothing."""

from __future__ import annotations

from typing import Any

from pyllm.server.settings import Settings


def with_defaults(arguments: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The arguments of a chat completion, with those of the server where a request has none.

    Args:
        arguments: What a request says.
        settings: The server's.
    """
    result = {**settings.chat, **arguments}
    kwargs = {**settings.chat.get("chat_template_kwargs", {}), **arguments.get("chat_template_kwargs", {})}
    if kwargs:
        result["chat_template_kwargs"] = kwargs
    if settings.chat_template is not None:
        result["chat_template"] = settings.chat_template
    return result
