"""The arguments that ask for a form, and the grammar and the parser they stand for."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyllm.errors import InvalidArgumentError
from pyllm.structured.choices import choice_value, choices_grammar
from pyllm.structured.grammar import Grammar
from pyllm.structured.models import schema_and_parser
from pyllm.structured.regex import regex_grammar
from pyllm.structured.schema import schema_grammar

# What asks for a form, beside `grammar`, which is a sampling parameter.
FORM_ARGUMENTS = ("json_schema", "response_format", "regex", "choices")
_FORMATS = ("text", "json_object", "json_schema")


@dataclass(frozen=True)
class Form:
    """The form that a text must have.

    Attributes:
        grammar: The grammar that holds it to the form.
        schema: The JSON schema, as JSON; ``{}`` is any JSON; None where it is no JSON.
        parser: From a complete text to the value it stands for.
    """

    grammar: Grammar
    schema: str | None
    parser: Callable[[str], Any] | None

    def parse(self, text: str) -> Any:
        """The value that a complete text stands for; None where the form has none but the text itself."""
        return None if self.parser is None else self.parser(text)


def grammar_of(
    *,
    grammar: str | Grammar | None = None,
    json_schema: Any = None,
    response_format: Mapping[str, Any] | None = None,
    regex: str | re.Pattern[str] | None = None,
    choices: Iterable[Any] | None = None,
) -> Grammar | None:
    """The grammar that one of these arguments stands for; None where none asks for a form.

    Args:
        grammar: GBNF, or a Grammar.
        json_schema: See :func:`pyllm.structured.json_schema_of`.
        response_format: As in OpenAI's API: ``{"type": "text"}``, ``{"type": "json_object"}`` or ``{"type":
            "json_schema", "json_schema": {"name": …, "strict": …, "schema": …}}``. With ``"strict": False`` what a
            grammar cannot express is a warning and not an error.
        regex: A regular expression of Python that the whole text matches.
        choices: See :func:`pyllm.structured.choices_grammar`.

    Raises:
        InvalidArgumentError: More than one asks for a form, or one cannot be understood.
        GrammarError: The grammar cannot be parsed; the message names line and column.
    """
    form = form_of(
        grammar=grammar, json_schema=json_schema, response_format=response_format, regex=regex, choices=choices
    )
    return None if form is None else form.grammar


def form_of(
    *,
    grammar: str | Grammar | None = None,
    json_schema: Any = None,
    response_format: Mapping[str, Any] | None = None,
    regex: str | re.Pattern[str] | None = None,
    choices: Iterable[Any] | None = None,
) -> Form | None:
    """As :func:`grammar_of`, with the schema and the parser."""
    if response_format is not None and _kind(response_format) == "text":
        response_format = None
    arguments = {
        "grammar": grammar,
        "json_schema": json_schema,
        "response_format": response_format,
        "regex": regex,
        "choices": choices,
    }
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) > 1:
        raise InvalidArgumentError(f"a text can have one form: give only one of {', '.join(given)}")
    if grammar is not None:
        return Form(as_grammar(grammar), None, None)
    if json_schema is not None:
        return _of_schema(json_schema, strict=True)
    if response_format is not None:
        return _of_format(response_format)
    if regex is not None:
        return Form(regex_grammar(regex), None, None)
    if choices is not None:
        listed = isinstance(choices, Iterable) and not isinstance(choices, (str, bytes))
        options = list(choices) if listed else choices
        return Form(choices_grammar(options), None, functools.partial(choice_value, options))
    return None


def as_grammar(value: str | Grammar) -> Grammar:
    """A Grammar as it is, a text as one that holds from the first token; checked."""
    if not isinstance(value, (str, Grammar)):
        raise InvalidArgumentError(
            f"grammar must be GBNF, or a pyllm.structured.Grammar, not {value!r}", param="grammar"
        )
    result = value if isinstance(value, Grammar) else Grammar(value)
    result.check()
    return result


def _of_schema(source: Any, *, strict: bool) -> Form:
    schema, parser = schema_and_parser(source)
    return Form(schema_grammar(schema, strict=strict), json.dumps(schema, ensure_ascii=False), parser)


def _of_format(value: Mapping[str, Any]) -> Form:
    if value["type"] == "json_object":
        # "schema" beside it is what llama.cpp's server and llama-cpp-python understand.
        schema = value.get("schema")
        _check_keys(value, ("type", "schema"))
        return _of_schema({"type": "object"} if schema is None else schema, strict=True)
    _check_keys(value, ("type", "json_schema"))
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping):
        raise InvalidArgumentError(
            f'response_format of type "json_schema" needs "json_schema": {{"name": …, "schema": …}}, not {inner!r}',
            param="response_format",
        )
    if "schema" not in inner:
        raise InvalidArgumentError(
            f'response_format["json_schema"] has no "schema", only {sorted(inner)}', param="response_format"
        )
    strict = inner.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidArgumentError(
            f'response_format["json_schema"]["strict"] must be a boolean, not {strict!r}', param="response_format"
        )
    return _of_schema(inner["schema"], strict=bool(strict))


def _kind(value: Any) -> str:
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(
            f'response_format must be a dict such as {{"type": "json_object"}}, not {value!r}', param="response_format"
        )
    kind = value.get("type")
    if kind not in _FORMATS:
        raise InvalidArgumentError(
            f'response_format["type"] must be one of {", ".join(_FORMATS)}, not {kind!r}', param="response_format"
        )
    return str(kind)


def _check_keys(value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            raise InvalidArgumentError(
                f"response_format of type {value['type']!r} has no {key!r}, only {known}", param="response_format"
            )
