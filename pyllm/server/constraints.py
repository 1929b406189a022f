"""Structured output: response_format, json_schema and grammar, and vLLM's names for them."""

from __future__ import annotations

import json
from typing import Annotated, Any

from msgspec import Meta

from pyllm.server.errors import invalid
from pyllm.server.wire import Wire, about, expected_error

# vLLM's fields that would change the text and are not supported.
_UNSUPPORTED = ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties")

_SCHEMA = about(
    "A JSON schema, or its JSON as text.", expected="a JSON schema", type=["object", "boolean", "string", "null"]
)
Schema = Annotated[Any, _SCHEMA]
Filled = Annotated[
    Annotated[str, Meta(min_length=1)] | None, about("", expected="text that is not empty", type=["string", "null"])
]
Choices = Annotated[
    Annotated[list[str], Meta(min_length=1)] | None,
    about("", expected="a list of texts that is not empty"),
]


class ResponseFormat(Wire):
    """The form of a text, as in OpenAI's API."""

    type: Annotated[str, about("", enum=["text", "json_object", "json_schema"])]
    json_schema: dict[str, Any] | None = None
    schema: Annotated[Any, about("The schema itself, as llama-server takes it.")] = None


class StructuredOutputs(Wire):
    """vLLM's object for the form of a text."""

    json: Schema = None
    regex: Filled = None
    choice: Choices = None
    grammar: Filled = None
    json_object: bool | None = None
    structural_tag: Any = None
    whitespace_pattern: Any = None
    disable_any_whitespace: Any = None
    disable_additional_properties: Any = None


class GuidedFields(Wire, kw_only=True):
    """vLLM's fields for the form of a text, of now and of before."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema = None
    guided_regex: Filled = None
    guided_choice: Choices = None
    guided_grammar: Filled = None
    guided_json_object: bool | None = None
    guided_structural_tag: Any = None
    guided_whitespace_pattern: Any = None
    guided_disable_any_whitespace: Any = None
    guided_disable_additional_properties: Any = None


class ConstraintFields(GuidedFields, kw_only=True):
    """All fields for the form of a text."""

    response_format: Annotated[ResponseFormat | None, about("The form of the text, as in OpenAI's API.")] = None
    json_schema: Annotated[
        Any,
        about("A JSON schema that the text fits.", expected="a JSON schema", type=["object", "boolean", "null"]),
    ] = None
    grammar: Annotated[str | None, about("A grammar in GBNF that the text follows.")] = None


def constraint_arguments(fields: GuidedFields, response_format: dict[str, Any] | None = None) -> dict[str, Any]:
    """The argument of a completion that constrains its text; none where there is no constraint.

    Args:
        fields: The request.
        response_format: What the API has in another place, in OpenAI's shape.

    Raises:
        APIError: There are several, or one is wrong.
    """
    found: list[tuple[str, str, Any]] = []  # the field, the argument of a completion, its value
    if response_format is not None:
        found.append(("response_format", "response_format", response_format))
    if isinstance(fields, ConstraintFields):
        if fields.response_format is not None:
            form = _openai_form(fields.response_format)
            if form["type"] != "text":
                found.append(("response_format", "response_format", form))
        if fields.json_schema is not None:
            found.append(("json_schema", "json_schema", _schema("json_schema", fields.json_schema)))
        if fields.grammar:
            found.append(("grammar", "grammar", fields.grammar))
    for source, prefix, where in (
        (fields, "guided_", "guided_"),
        (fields.structured_outputs or StructuredOutputs(), "", "structured_outputs."),
    ):
        found += _guided(source, prefix, where)
    if len(found) > 1:
        (first, *_), (second, *_) = found[:2]
        raise invalid(second, f"a text can have one form: leave out {first} or {second}")
    return {name: value for _, name, value in found}


def _openai_form(form: ResponseFormat) -> dict[str, Any]:
    """In OpenAI's shape, which has the schema in an object with a name; llama-server takes it as it is, too."""
    wrapped = form.json_schema
    if form.type == "json_schema":
        if wrapped is None and form.schema is not None:
            wrapped = {"schema": form.schema}
        if wrapped is None:
            raise invalid("response_format.json_schema", "response_format.json_schema is missing")
        if wrapped.get("schema") is None:
            name = "response_format.json_schema.schema"
            raise invalid(name, f"{name} is missing")
    elif form.type == "json_object" and form.schema:
        return {"type": "json_schema", "json_schema": {"schema": form.schema}}
    return {"type": form.type} | ({} if wrapped is None else {"json_schema": wrapped})


def _guided(source: Wire, prefix: str, where: str) -> list[tuple[str, str, Any]]:
    def value_of(name: str) -> Any:
        return getattr(source, prefix + name)

    for name in _UNSUPPORTED:
        if value_of(name):
            raise invalid(where + name, f"{where}{name} cannot be used here: leave it out")
    found: list[tuple[str, str, Any]] = []
    if value_of("json") is not None:
        found.append((f"{where}json", "json_schema", _schema(f"{where}json", value_of("json"))))
    for name, ours in (("regex", "regex"), ("choice", "choices"), ("grammar", "grammar")):
        if value_of(name) is not None:
            found.append((where + name, ours, value_of(name)))
    if value_of("json_object"):
        found.append((f"{where}json_object", "response_format", {"type": "json_object"}))
    return found


def _schema(name: str, value: Any) -> Any:
    """A JSON schema; vLLM's clients may send it as text."""
    found = value
    if isinstance(value, str) and name != "json_schema":
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if not isinstance(found, (dict, bool)):
        raise expected_error(name, "a JSON schema", value)
    return found
