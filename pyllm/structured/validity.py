"""Whether a JSON value is valid by a schema: what sorts out the values of an enum."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# From a "$ref" to the schema it leads to.
Target = Callable[[str], Any]


def is_valid(value: Any, schema: Any, target: Target) -> bool:
    """Whether a value is valid by a schema; formats, which say what a text is for, are not asked about.

    Args:
        value: The value, as :func:`json.loads` gives it.
        schema: The schema, likewise.
        target: What finds the schema of a ``$ref``.

    Raises:
        TypeError: A keyword has a value that it cannot have.
        re.error: A pattern is no regular expression.
    """
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not is_valid(value, target(schema["$ref"]), target):
        return False
    if not all(is_valid(value, part, target) for part in schema.get("allOf", [])):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(is_valid(value, part, target) for part in schema[key]):
            return False
    if value is None and schema.get("nullable") is True:
        return True
    types = schema.get("type")
    if types is not None and not any(_is(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    if "const" in schema and not same(value, schema["const"]):
        return False
    if "enum" in schema and not any(same(value, other) for other in schema["enum"]):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value, schema)
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return fits and ("pattern" not in schema or re.search(schema["pattern"], value, re.ASCII) is not None)
    if isinstance(value, list):
        return _array(value, schema, target)
    return not isinstance(value, dict) or _object(value, schema, target)


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same in JSON, where ``true`` is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    return bool(a == b)


def _number(value: float, schema: Mapping[str, Any]) -> bool:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    open_low, open_high = schema.get("exclusiveMinimum", False), schema.get("exclusiveMaximum", False)
    # In draft 4 these are booleans, which speak of the limits beside them.
    above = (value > low if open_low else value >= low) if isinstance(open_low, bool) else low <= value > open_low
    below = (value < high if open_high else value <= high) if isinstance(open_high, bool) else high >= value < open_high
    return bool(above and below)


def _array(value: list[Any], schema: Mapping[str, Any], target: Target) -> bool:
    first, items = schema.get("prefixItems", []), schema.get("items", True)
    if isinstance(items, list):
        first, items = items, schema.get("additionalItems", True)
    return (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        and all(is_valid(item, part, target) for item, part in zip(value, first, strict=False))
        and all(is_valid(item, items, target) for item in value[len(first) :])
    )


def _object(value: dict[str, Any], schema: Mapping[str, Any], target: Target) -> bool:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    return (
        schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value))
        and all(name in value for name in schema.get("required", []))
        and all(is_valid(item, properties.get(name, more), target) for name, item in value.items())
    )


def _is(value: Any, name: Any) -> bool:
    if name == "integer":
        return not isinstance(value, bool) and (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        )
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
    return name in kinds and isinstance(value, kinds[name])
