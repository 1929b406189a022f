"""Wire types: requests and answers are declared once, as msgspec structs.

Decoding, range checks, the path of an error and the JSON schema in the OpenAPI document follow from the declaration. In
requests null is the same as an absent field, unknown fields are ignored, and 3.0 is an integer, as JSON Schema has it.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from msgspec import inspect as declared

from pyllm.server.errors import APIError, invalid

T = TypeVar("T")
Schema = dict[str, Any]

# Larger numbers are no numbers to the server: JSON knows numbers of any length.
LARGEST = 1e300
FINITE = Meta(ge=-LARGEST, le=LARGEST)
LARGEST_INTEGER = 2**63 - 1
TOKEN_MAX = 2**31 - 1
_IDS = list[Annotated[int, Meta(ge=0, le=TOKEN_MAX)]]

_LOCATION = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `(.+)`")
_MOST_SHOWN = 80


class Wire(msgspec.Struct, kw_only=True):
    """The base of all wire types."""


def about(description: str, *, expected: str | None = None, **schema: Any) -> Meta:
    """Metadata of a field.

    Args:
        description: Its description in the OpenAPI document; may be empty.
        expected: What error messages say that its value must be. None: made from its type.
        **schema: What its JSON schema has besides, or instead of what msgspec makes of the type.
    """
    extra = None if expected is None else {"expected": expected}
    return Meta(description=description or None, extra=extra, extra_json_schema=schema or None)


def at_least(low: int, description: str = "") -> Meta:
    """Metadata of an integer from a smallest value on; there are as many bits as C has for it."""
    return within(low, LARGEST_INTEGER, description)


def within(low: int, high: int, description: str = "") -> Meta:
    """Metadata of an integer between two others."""
    return Meta(ge=low, le=high, description=description or None)


def decode(kind: type[T], values: Any, where: str = "") -> T:
    """Make a request, or a part of one, from JSON.

    Args:
        kind: Its wire type.
        values: The JSON object.
        where: The name of the part in errors, such as "tools[0]"; empty: the whole body.

    Raises:
        APIError: A field is missing or wrong; the error names it (400).
    """
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if value is not None}
    while True:
        try:
            return msgspec.convert(values, kind)
        except msgspec.ValidationError as error:
            match = _LOCATION.fullmatch(str(error))
            assert match is not None
            what, path = match["what"], match["path"] or ""
            steps = [int(index) if index.isdecimal() else name or None for name, index in _STEP.findall(path)]
            value = _value(values, steps)
            if what.startswith("Expected `int") and isinstance(value, float) and value.is_integer():
                values = _replaced(values, steps, int(value))
                continue
            if steps and isinstance(steps[-1], int) and _is_scalar(_declared_at(kind, steps)):
                # A list of texts or numbers is wrong as a whole.
                steps, what = steps[:-1], "Expected `array`"
                value, path = _value(values, steps), path[: path.rindex("[")]
            raise _error(what, kind, steps, value, where + path if where else path.removeprefix(".")) from None


def expected_error(name: str, expected: str, value: Any) -> APIError:
    """The error for a field that holds something else.

    Args:
        name: The path of the field; empty: the whole body.
        expected: What it must be.
        value: What it is.
    """
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[: _MOST_SHOWN - 3]}..."
    return invalid(name or None, f"{name or 'the body'} must be {expected}, not {shown}")


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_decimal(value: Any) -> bool:
    """Whether it is a text of digits that stands for a number, and not for more digits than Python reads."""
    return isinstance(value, str) and value.strip().isdecimal() and len(value) <= 20


def is_ids(value: Any) -> bool:
    """Whether it is a list of numbers that can be token ids."""
    if not isinstance(value, list) or not value:
        return False
    try:
        # A prompt of a million ids is checked while streams wait: in C this takes a quarter of the time.
        msgspec.convert(value, _IDS)
    except msgspec.ValidationError:
        return False
    return True


def _value(values: Any, steps: list[Any]) -> Any:
    """The value at a path, or the dict that holds it: msgspec does not name the keys of dicts."""
    for step in steps:
        if step is None:
            return values
        values = values[step]
    return values


def _replaced(values: Any, steps: list[Any], value: Any) -> Any:
    """A copy with another value at a path."""
    if not steps:
        return value
    copy = values.copy()
    copy[steps[0]] = _replaced(values[steps[0]], steps[1:], value)
    return copy


def _error(what: str, kind: Any, steps: list[Any], value: Any, path: str) -> APIError:
    if missing := _MISSING.fullmatch(what):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return invalid(name, f"{name} is missing")
    node = _declared_at(kind, steps)
    if value is None and steps and isinstance(steps[-1], str):
        return invalid(path, f"{path} is missing")
    if " of length " in what:
        most = getattr(_member(node, type(value)), "max_length", None)
        if most is not None and len(value) > most:
            return invalid(path, f"{path} has {len(value)} {_plural(node)}; there may be {most}")
        phrase = _phrase(node)
        return expected_error(path, phrase if phrase.endswith("empty") else f"{phrase} that is not empty", value)
    number = _member(node, type(value))
    if isinstance(number, (declared.IntType, declared.FloatType)) and re.search(r"[<>]=", what) and is_number(value):
        low, high = number.ge, number.le
        if high == LARGEST_INTEGER:
            if value > high:
                return expected_error(path, "an integer of at most 64 bits", value)
            high = None
        limits = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        return expected_error(path, limits, value)
    return expected_error(path, _phrase(node), value)


@functools.cache
def _type_info(kind: Any) -> declared.Type:
    return declared.type_info(kind)


def _members(node: declared.Type) -> list[declared.Type]:
    """What a declaration allows, but for null."""
    if isinstance(node, declared.Metadata):
        return _members(node.type)
    if isinstance(node, declared.UnionType):
        return [each for one in node.types for each in _members(one)]
    return [] if isinstance(node, declared.NoneType) else [node]


def _member(node: declared.Type, kind: type) -> declared.Type | None:
    """Of what a declaration allows, that which a value of this kind is read as."""
    names: dict[type, tuple[type, ...]] = {
        str: (declared.StrType, declared.LiteralType),
        int: (declared.IntType, declared.FloatType),
        float: (declared.FloatType, declared.IntType),
        list: (declared.ListType,),
        dict: (declared.StructType, declared.DictType),
    }
    return next((one for one in _members(node) if isinstance(one, names.get(kind, ()))), None)


def _declared_at(kind: Any, steps: list[Any]) -> declared.Type:
    return _declared(_type_info(kind), steps)


def _declared(node: declared.Type, steps: list[Any]) -> declared.Type:
    """The declaration at a path."""
    for step in steps:
        found = _member(node, list if isinstance(step, int) else dict)
        if isinstance(found, declared.ListType):
            node = found.item_type
        elif isinstance(found, declared.StructType):
            node = next(field.type for field in found.fields if field.encode_name == step)
        elif isinstance(found, declared.DictType):
            node = found.value_type
    return node


def _is_scalar(node: declared.Type) -> bool:
    """Whether a declaration allows texts, numbers, true and false only."""
    scalars = (declared.StrType, declared.IntType, declared.FloatType, declared.BoolType, declared.LiteralType)
    return all(isinstance(one, scalars) for one in _members(node))


def _phrase(node: declared.Type) -> str:
    """What a value must be, in words."""
    if isinstance(node, declared.Metadata) and node.extra and "expected" in node.extra:
        return str(node.extra["expected"])
    found = [_phrase_of(one) for one in _members(node)]
    if len(found) > 1:
        found = ["a text" if one == "text" else one for one in found]
    return " or ".join(found)


def _phrase_of(node: declared.Type) -> str:
    if isinstance(node, declared.LiteralType):
        *others, last = (repr(value) for value in node.values)
        return f"{', '.join(others)} or {last}" if others else last
    if isinstance(node, declared.ListType):
        return f"a list of {_plural(node)}"
    names: dict[type, str] = {
        declared.BoolType: "true or false",
        declared.IntType: "an integer",
        declared.FloatType: "a number",
        declared.StrType: "text",
    }
    return names.get(type(node), "an object")


def _plural(node: declared.Type) -> str:
    """The items of a list, in words."""
    for one in _members(node):
        if isinstance(one, declared.ListType):
            names: dict[type, str] = {
                declared.IntType: "integers",
                declared.FloatType: "numbers",
                declared.StrType: "texts",
            }
            inner = _members(one.item_type)
            return names.get(type(inner[0]), "objects") if len(inner) == 1 else "values"
    return "characters"
