"""The chat templates that llama.cpp knows by name, as Jinja.

llama.cpp writes these in C++, for text alone. Most write each message as its content between two fixed texts. Those
texts are read off what it writes for a few chats, and made a Jinja template, with which tools of structured output and
reasoning work as with any other. A name whose template does more than this is not offered.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.core.chat_template import apply_template, builtin_templates
from pyllm.errors import InvalidArgumentError

_ROLES = ("system", "user", "assistant")
# What no template writes by itself.
_MARK = "\ue000{}\ue001"
_CHATS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
    ("user", "assistant"),
    ("system", "user", "assistant"),
)
_CONTENTS = ("text", " blanks around \n", "two\nlines", "ümlaut {{ 5 }} <|x|>")


@functools.cache
def named_template(name: str) -> str | None:
    """The Jinja source of a template that llama.cpp knows by this name; None: it knows none, or cannot be put so."""
    if name not in builtin_templates():
        return None
    source = _derived(name)
    return source if source is not None and _same(name, source) else None


@functools.cache
def template_names() -> tuple[str, ...]:
    """The names that :func:`named_template` knows."""
    return tuple(name for name in builtin_templates() if named_template(name) is not None)


def _write(name: str, roles: Sequence[str], contents: Sequence[str] | None = None, *, add: bool = False) -> str | None:
    contents = [_MARK.format(i) for i in range(len(roles))] if contents is None else contents
    try:
        return apply_template(name, list(zip(roles, contents, strict=True)), add_assistant=add)
    except InvalidArgumentError:
        return None


def _pieces(name: str, roles: tuple[str, ...]) -> list[str] | None:
    """What is written between the contents of messages: one text more than there are messages."""
    rest = _write(name, roles)
    pieces = []
    for i in range(len(roles)):
        before, mark, rest = (rest or "").partition(_MARK.format(i))
        if not mark:
            return None
        pieces.append(before)
    return [*pieces, rest or ""]


def _derived(name: str) -> str | None:
    """A template in which what stands around a message depends on its role, and on that of the one before."""
    first: dict[str, str] = {}
    between: dict[str, str] = {}
    after: dict[str, str] = {}
    for chat in _CHATS:
        pieces = _pieces(name, chat)
        if pieces is None:
            return None
        first.setdefault(chat[0], pieces[0])
        after.setdefault(chat[-1], pieces[-1])
        for one, other, text in zip(chat, chat[1:], pieces[1:], strict=False):
            between.setdefault(f"{one} {other}", text)
    answer = {chat[-1]: _answer(name, chat) for chat in _CHATS}
    trims = {role: _trims(name, role) for role in _ROLES}
    around: dict[str, Mapping[str, object]] = {
        "first": first,
        "between": between,
        "after": after,
        "answer": answer,
        "trims": trims,
    }
    return (
        "".join(f"{{%- set {key} = {_quoted(texts)} -%}}" for key, texts in around.items())
        + "{%- for message in messages -%}"
        "{%- set pair = messages[loop.index0 - 1]['role'] + ' ' + message['role'] -%}"
        "{%- if message['role'] not in trims or (not loop.first and pair not in between) -%}"
        "{{- raise_exception('this template has no place for a message of ' + message['role'] + ' there') -}}"
        "{%- endif -%}"
        "{{- first[message['role']] if loop.first else between[pair] -}}"
        "{{- message['content'] | trim if trims[message['role']] else message['content'] -}}"
        "{%- endfor -%}"
        "{%- set last = messages[-1]['role'] -%}"
        "{{- after[last] -}}"
        "{%- if add_generation_prompt -%}{{- answer[last] -}}{%- endif -%}"
    )


def _answer(name: str, chat: tuple[str, ...]) -> str:
    """What is written behind a chat to start an answer."""
    return (_write(name, chat, add=True) or "").removeprefix(_write(name, chat) or _MARK)


def _trims(name: str, role: str) -> bool:
    """Whether blanks around the content of such a message are left out."""
    chat = next(chat for chat in _CHATS if role in chat)
    contents = [f" {_MARK} " if one == role else "x" for one in chat]
    return f" {_MARK} " not in (_write(name, chat, contents) or "")


def _quoted(texts: Mapping[str, object]) -> str:
    return json.dumps(texts, ensure_ascii=False)


def _same(name: str, source: str) -> bool:
    """Whether the template writes what llama.cpp writes."""
    from pyllm.core.chat import ChatTemplates

    templates = ChatTemplates(template=source)
    for roles, content, add in itertools.product(_CHATS, _CONTENTS, (False, True)):
        expected = _write(name, roles, [content] * len(roles), add=add)
        messages: list[Any] = [{"role": role, "content": content} for role in roles]
        if expected is None or templates.apply(messages, add_generation_prompt=add).prompt != expected:
            return False
    return True


__all__ = ["named_template", "template_names"]
