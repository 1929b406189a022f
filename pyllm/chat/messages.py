"""Messages as people give them, checked and made into plain dicts in OpenAI's shape."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.chat.types import Message
from pyllm.errors import InvalidArgumentError

# "function" is OpenAI's older name for "tool".
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SYSTEM_ROLES = ("system", "developer")
# The field that holds the text of a part, by the type of the part; those of OpenAI's two APIs.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}

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
            f"messages must be a list of messages, such as {{'role': 'user', 'content': 'Hello'}}, not {messages!r}",
            param="messages",
        )
    if not messages:
        raise InvalidArgumentError("messages is empty: there must be at least one message", param="messages")
    return [_plain(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain(message: Any, where: str) -> dict[str, Any]:
    if hasattr(message, "model_dump"):
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise InvalidArgumentError(f"{where} must be a message with role and content, not {message!r}", param=where)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidArgumentError(f"{where}: the role must be one of {', '.join(ROLES)}, not {role!r}", param=where)
    role = "tool" if role == "function" else role
    result: dict[str, Any] = {"role": role}
    calls = _calls(message, role, where)
    if calls:
        result["tool_calls"] = calls
    content = plain_content(message.get("content"), f"{where}.content", of_tool=role == "tool")
    if content is None and role == "assistant":
        content = message.get("refusal")
    if content is None and role not in ("assistant", "tool"):
        near = difflib.get_close_matches("content", [key for key in message if isinstance(key, str)], n=1)
        hint = f"; did you mean 'content' by {near[0]!r}?" if near and near[0] != "content" else ""
        raise InvalidArgumentError(f"{where}: a message of role {role!r} must have a content{hint}", param=where)
    if content is not None or not calls:
        result["content"] = "" if content is None else content
    # Other programs call it reasoning, or leave an empty one there.
    reasoning = message.get("reasoning_content") or (message.get("reasoning") if role == "assistant" else None)
    rest = {"reasoning_content": reasoning, "name": message.get("name"), "tool_call_id": message.get("tool_call_id")}
    for key, value in rest.items():
        if value is not None:
            if not isinstance(value, str):
                raise InvalidArgumentError(f"{where}.{key} must be text, not {value!r}", param=f"{where}.{key}")
            result[key] = value
    return result


def _calls(message: Mapping[Any, Any], role: str, where: str) -> list[dict[str, Any]]:
    """The calls of an assistant's message, in the form of today or in OpenAI's older one."""
    calls = message.get("tool_calls")
    older = message.get("function_call")
    if not calls and not older:
        return []
    if role != "assistant":
        raise InvalidArgumentError(
            f"{where}: only an assistant has tool_calls, not a message of role {role!r}", param=where
        )
    if not calls:
        return [_call({"function": older}, f"{where}.function_call")]
    if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
        raise InvalidArgumentError(f"{where}.tool_calls must be a list, not {calls!r}", param=f"{where}.tool_calls")
    return [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]


def plain_content(content: Any, where: str, *, of_tool: bool = False) -> str | list[dict[str, Any]] | None:
    """The content of a message: a text, or parts that are texts.

    Args:
        content: Text, None, or parts in the shapes of OpenAI's APIs.
        where: What errors call it.
        of_tool: It is the result of a tool. There a line of text takes the place of a picture or another part that is
            not text: a client cannot know before the call what comes back, and sends it again with every later turn.

    Raises:
        InvalidArgumentError: It is something else, or has a part that is not text.
    """
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise InvalidArgumentError(f"{where} must be text or a list of parts, not {content!r}", param=where)
    return [_part(part, f"{where}[{i}]", of_tool) for i, part in enumerate(content)]


def content_text(message: Mapping[str, Any]) -> str:
    """The content of a checked message as one text; empty where there is none."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _part(part: Any, where: str, of_tool: bool) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise InvalidArgumentError(
            f"{where} must be a part such as {{'type': 'text', 'text': …}}, not {part!r}", param=where
        )
    kind = part.get("type")
    field = _TEXTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        if of_tool and isinstance(kind, str):
            return {"type": "text", "text": left_out(kind)}
        raise InvalidArgumentError(
            f"{where} is of type {kind!r}: the type of a part must be 'text', text only", param=where
        )
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{where}.{field} must be text, not {text!r}", param=f"{where}.{field}")
    return {"type": "text", "text": text}


def left_out(kind: str) -> str:
    """The line that takes the place of a part of a tool's result."""
    return f"[A part of type {kind[:40]} was left out: this model reads text only.]"


def _call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, Mapping) and call.get("type") == "custom" and isinstance(call.get("custom"), Mapping):
        # What another server's model wrote for a tool whose input is one text.
        custom = call["custom"]
        function = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
        call = {"id": call.get("id"), "function": function}
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise InvalidArgumentError(f"{where} must be a call with id, type and function, not {call!r}", param=where)
    if call.get("type", "function") != "function":
        raise InvalidArgumentError(f"{where}: the type of a call must be 'function', not {call['type']!r}", param=where)
    function = call["function"]
    name, arguments = function.get("name"), function.get("arguments", "{}")
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(f"{where}.function.name must be text, not {name!r}", param=f"{where}.function.name")
    if isinstance(arguments, Mapping):
        try:
            arguments = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{where}.function.arguments cannot be written as JSON: {error}") from None
    elif not isinstance(arguments, str):
        raise InvalidArgumentError(
            f"{where}.function.arguments must be JSON text, not {arguments!r}", param=f"{where}.function.arguments"
        )
    arguments = arguments if arguments.strip() else "{}"
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        # A call that max_tokens cut off: templates want the arguments as an object.
        closed = closed_json(arguments)
        if closed is None:
            raise InvalidArgumentError(f"{where}.function.arguments is no JSON: {error}: {arguments!r}") from None
        arguments, parsed = closed, {}
    if not isinstance(parsed, dict):
        raise InvalidArgumentError(
            f"{where}.function.arguments must be the JSON of an object, not {arguments!r}",
            param=f"{where}.function.arguments",
        )
    result = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        if not isinstance(call["id"], str):
            raise InvalidArgumentError(f"{where}.id must be text, not {call['id']!r}", param=f"{where}.id")
        result["id"] = call["id"]
    return result


_TOKEN = re.compile(r'\s*+("(?:[^"\\]|\\.)*+"|[][{}:,]|[^]["{}:,\s]++)', re.DOTALL)
# A text that has not ended, without an escape or half of a surrogate pair that its end cut off.
_CHARACTER = r"[^\"\\]|\\(?:[^u]|u(?![dD][89abAB])[0-9a-fA-F]{4}|u[dD][89abAB]..\\u[dD][c-fC-F]..)"
_OPEN_TEXT = re.compile(rf'\s*+("(?:{_CHARACTER})*)', re.DOTALL)
_WORD = r"(?:[-+.eE\d]*+|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?)"
# What may stand behind the last value that is complete: the beginning of a further one, and its name.
_BEGUN = re.compile(rf'\s*+,?+\s*+(?:"(?:[^"\\]|\\.)*+(?:\\|"\s*+(?::\s*+{_WORD})?)?|{_WORD})\s*+', re.DOTALL)
_DEEPEST = 200


def closed_json(text: str) -> str | None:
    """The beginning of a JSON object, closed where it ends; what is not complete of its last value is left out.

    Texts keep what there is of them: ``{"city": "Os`` becomes ``{"city": "Os"}``.

    Args:
        text: JSON that ends early.

    Returns:
        str | None: JSON of an object; None where the text is not the beginning of one.
    """
    closers: list[str] = []
    ends = [(0, "")]  # where a value was complete, and what closes all that is open there
    named, at = False, 0
    while match := _TOKEN.match(text, at):
        token, at = match[1], match.end()
        if token in ("{", "["):
            closers.append("}" if token == "{" else "]")
            named = token == "{"
        elif token in ("}", "]"):
            if not closers or closers.pop() != token:
                return None
            named = False
        elif token in (",", ":"):
            # Behind a comma in an object comes a name, and behind its colon a value.
            named = token == "," and closers[-1:] == ["}"]
            continue
        elif named:
            continue
        if len(closers) > _DEEPEST:
            return None
        ends = [*ends[-1:], (at, "".join(reversed(closers)))]
    rest = _OPEN_TEXT.match(text, at)
    if rest is not None and not named:
        return _object(f'{text[:at]}{rest[0]}"{"".join(reversed(closers))}')
    # A number or a word may be cut off, too: then the value before it is the last one.
    for at, tail in reversed(ends):
        found = _object(text[:at] + tail) if _BEGUN.fullmatch(text, at) else None
        if found is not None:
            return found
    return None


def _object(text: str) -> str | None:
    try:
        return text if isinstance(json.loads(text), dict) else None
    except (ValueError, RecursionError):
        return None
