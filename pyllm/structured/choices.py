"""A list of choices as a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pyllm.core.gbnf import literal
from pyllm.errors import InvalidArgumentError
from pyllm.structured.grammar import Grammar


def choices_grammar(choices: Iterable[Any]) -> Grammar:
    """A grammar that allows exactly these texts.

    Args:
        choices: Texts. Numbers, booleans and None stand for what they are in JSON: ``True`` for the text ``true``.

    Raises:
        InvalidArgumentError: There are none, or one is something else.
    """
    if isinstance(choices, (str, bytes)) or not isinstance(choices, Iterable):
        raise InvalidArgumentError(f"choices must be a list of texts, not {choices!r}", param="choices")
    texts = list(dict.fromkeys(_text(choice) for choice in choices))
    if not texts:
        raise InvalidArgumentError("choices is empty: there must be at least one", param="choices")
    return Grammar("root ::= " + " | ".join(map(literal, texts)) + "\n", control_tokens=False)


def choice_value(choices: Iterable[Any], text: str) -> Any:
    """The choice that a text stands for."""
    for choice in choices:
        if _text(choice) == text:
            return choice
    raise ValueError(f"{text!r} is none of the choices")


def _text(choice: Any) -> str:
    if isinstance(choice, str):
        if "\0" in choice:
            raise InvalidArgumentError(f"a choice contains a NUL character: {choice!r}", param="choices")
        return choice
    if choice is None or isinstance(choice, (bool, int, float)):
        try:
            return json.dumps(choice, allow_nan=False)
        except ValueError:
            raise InvalidArgumentError(f"a choice must be a number of JSON, not {choice!r}", param="choices") from None
    raise InvalidArgumentError(f"a choice must be a text, a number, a boolean or None, not {choice!r}", param="choices")
