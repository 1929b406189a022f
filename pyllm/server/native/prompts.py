"""Prompts as llama-server takes them: texts, token ids, both in one list, or objects with a text."""

from __future__ import annotations

from typing import Any

from pyllm.core.vocab import Vocab
from pyllm.engine.engine import Prompt
from pyllm.server.errors import APIError, invalid
from pyllm.server.fields import Fields

_WHAT = "a text, a list of token ids and texts, an object with prompt_string, or a list of these"


def read_prompts(fields: Fields, name: str = "prompt") -> list[Any]:
    """The prompts of a request, one or several.

    A list that has a number in it is one prompt; any other list has a prompt in each place.

    Args:
        fields: The request.
        name: The field.

    Returns:
        list: Texts, or lists of token ids and texts.

    Raises:
        APIError: Something else is there.
    """
    value = fields.need(name)
    if not isinstance(value, list) or any(map(_is_number, value)):
        return [_one(value, name)]
    if not value:
        raise invalid(name, f"{name} is an empty list")
    return [_one(each, f"{name}[{i}]") for i, each in enumerate(value)]


def as_prompt(vocab: Vocab, value: Any) -> Prompt:
    """What the engine is asked with for one of them.

    Args:
        vocab: The tokenizer of the model.
        value: A text, or a list of token ids and texts.
    """
    return value if isinstance(value, str) else mixed_ids(vocab, value, add_special=True, parse_special=True)


def mixed_ids(vocab: Vocab, value: str | list[Any], *, add_special: bool, parse_special: bool) -> list[int]:
    """The tokens of a text, or of token ids and texts one after another.

    Args:
        vocab: The tokenizer of the model.
        value: The text or the list.
        add_special: Whether a text at the beginning gets the tokens that begin a text.
        parse_special: Whether control tokens are read in texts.

    Raises:
        InvalidArgumentError: An id is none of the model.
    """
    parts = [value] if isinstance(value, str) else value
    ids: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            first = add_special and i == 0
            ids += vocab.tokenize(part, add_special=first, parse_special=parse_special)
        else:
            ids += vocab.as_token_array([part]).tolist()
    return ids


def check_mixed(value: Any, name: str, what: str = _WHAT) -> Any:
    """The value, if it is a text or a list of token ids and texts.

    Raises:
        APIError: It is something else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, str) or _is_id(part) for part in value):
        raise invalid(name, f"{name} must be {what}")
    return value


def _one(value: Any, name: str) -> Any:
    if isinstance(value, dict) and "prompt_string" in value:
        if value.get("multimodal_data"):
            raise APIError(501, f"{name}.multimodal_data: this server takes texts only", param=name, code="unsupported")
        return check_mixed(value["prompt_string"], f"{name}.prompt_string")
    found = check_mixed(value, name)
    if not found and isinstance(found, list):
        raise invalid(name, f"{name} is an empty list")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31
