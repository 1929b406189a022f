"""Messages as people give them, checked and made into plain dicts in OpenAI's shape."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.chat.types import Message
from pyllm.errors import InvalidArgumentError

ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")

Messages = Sequence[Message | Mapping[str, Any]]


def plain_messages(messages: Messages) -> list[dict[str, Any]]:
    """Check messages, and make each a dict that holds only what is known.

    Args:
        messages: Mappings, :class:`pyllm.chat.types.Message` or pydantic objects in OpenAI's shape.

    Raises:
        InvalidArgumentError: Something is wrong with one; the error names it as ``messages[i]``.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidArgumentError(
            f"messages must be a list of messages, such as {{'role': 'user', 'content': 'Hello'}}, not {messages!r}"
        )
    if not messages:
        raise InvalidArgumentError("messages is empty: there must be at least one message")
    return [_plain(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain(message: Any, where: str) -> dict[str, Any]:
    if hasattr(message, "model_dump"):
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise InvalidArgumentError(f"{where} must be a message with role and content, not {message!r}")
    _check_keys(message, where)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidArgumentError(f"{where}: the role must be one of {', '.join(ROLES)}, not {role!r}")
    result: dict[str, Any] = {"role": role}
    calls = message.get("tool_calls")
    if calls:
        if role != "assistant":
            raise InvalidArgumentError(f"{where}: only an assistant has tool_calls, not a message of role {role!r}")
        if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
            raise InvalidArgumentError(f"{where}.tool_calls must be a list, not {calls!r}")
        result["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    reasoning = message.get("reasoning_content")
    content = _content(message.get("content"), where)
    if content is None and not (role == "assistant" and (calls or reasoning)):
        raise InvalidArgumentError(f"{where}: a message of role {role!r} must have a content")
    if content is not None or calls is None:
        result["content"] = "" if content is None else content
    for key in ("reasoning_content", "name", "tool_call_id"):
        value = message.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise InvalidArgumentError(f"{where}.{key} must be text, not {value!r}")
            result[key] = value
    return result


def _check_keys(message: Mapping[Any, Any], where: str) -> None:
    for key, value in message.items():
        # OpenAI's own messages carry fields that are empty here: refusal, annotations, audio.
        if key not in _KEYS and value is not None and value != [] and value != {}:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(_KEYS)}"
            raise InvalidArgumentError(f"{where} has a key {key!r} that means nothing here{hint}")


def _content(content: Any, where: str) -> str | list[dict[str, Any]] | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise InvalidArgumentError(f"{where}: the content must be text or a list of parts, not {content!r}")
    return [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise InvalidArgumentError(f"{where} must be a part such as {{'type': 'text', 'text': …}}, not {part!r}")
    kind = part.get("type")
    if kind in ("image_url", "input_audio", "image", "audio", "video", "video_url", "file"):
        raise InvalidArgumentError(f"{where} is of type {kind!r}: this chat takes text only")
    if kind != "text":
        raise InvalidArgumentError(f"{where}: the type of a part must be 'text', not {kind!r}")
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{where}.text must be text, not {text!r}")
    return {"type": "text", "text": text}


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise InvalidArgumentError(f"{where} must be a call with id, type and function, not {call!r}")
    if call.get("type", "function") != "function":
        raise InvalidArgumentError(f"{where}: the type of a call must be 'function', not {call['type']!r}")
    function = call["function"]
    name, arguments = function.get("name"), function.get("arguments", "{}")
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(f"{where}.function.name must be text, not {name!r}")
    if isinstance(arguments, Mapping):
        try:
            arguments = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{where}.function.arguments cannot be written as JSON: {error}") from None
    elif not isinstance(arguments, str):
        raise InvalidArgumentError(f"{where}.function.arguments must be JSON text, not {arguments!r}")
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{where}.function.arguments is no JSON: {error}: {arguments!r}") from None
    if not isinstance(parsed, dict):
        raise InvalidArgumentError(f"{where}.function.arguments must be the JSON of an object, not {arguments!r}")
    result = {"type": "function", "function": {"name": name, "arguments": arguments or "{}"}}
    if call.get("id") is not None:
        if not isinstance(call["id"], str):
            raise InvalidArgumentError(f"{where}.id must be text, not {call['id']!r}")
        result["id"] = call["id"]
    return result
