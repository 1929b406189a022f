"""The pieces that schemas are made of. In a request, null is what is not there."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

# Larger numbers are no numbers to the server.
_LARGEST = 1e300


def text(about: str = "", **more: Any) -> Schema:
    """A text, or null."""
    return _described({"type": ["string", "null"], **more}, about)


def flag(about: str = "") -> Schema:
    """True, false or null."""
    return _described({"type": ["boolean", "null"]}, about)


def integer(about: str = "", low: int | None = None, high: int | None = None) -> Schema:
    """A whole number, or null."""
    return _described({"type": ["integer", "null"], **_limits(low, high)}, about)


def number(about: str = "", low: float | None = None, high: float | None = None) -> Schema:
    """A number, or null."""
    limits = _limits(-_LARGEST if low is None else low, _LARGEST if high is None else high)
    return _described({"type": ["number", "null"], **limits}, about)


def choice(*values: str, about: str = "") -> Schema:
    """One of some texts, or null."""
    return _described({"enum": [*values, None]}, about)


def texts(about: str = "", **more: Any) -> Schema:
    """A text, several, or null."""
    one = {"type": "string", **more}
    return _described({"anyOf": [one, {"type": "array", "items": one}, {"type": "null"}]}, about)


def items(item: Schema, about: str = "", **more: Any) -> Schema:
    """A list, or null."""
    return _described({"type": ["array", "null"], "items": item, **more}, about)


def record(properties: dict[str, Schema], *needed: str, about: str = "") -> Schema:
    """An object with at least these fields."""
    result: Schema = {"type": "object", "properties": properties}
    return _described(result | ({"required": list(needed)} if needed else {}), about)


def maybe(schema: Schema, about: str = "") -> Schema:
    """The same, or null."""
    return _described({"anyOf": [schema, {"type": "null"}]}, about)


def answer(properties: dict[str, Schema], *optional: str) -> Schema:
    """An object with these fields, of which all are there but the optional ones."""
    return record(properties, *(name for name in properties if name not in optional))


def refer(name: str) -> Schema:
    """A schema among the components of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


# What stands in answers, where null says something.
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _limits(low: float | None, high: float | None) -> Schema:
    return ({} if low is None else {"minimum": low}) | ({} if high is None else {"maximum": high})


def _described(schema: Schema, about: str) -> Schema:
    return {**schema, "description": about} if about else schema
