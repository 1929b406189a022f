"""Several JSON schemas, all of which hold, as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyllm.structured.validity import same

# A key that holds what is to be joined without knowing how: as further parts of an "allOf".
_UNIONS = ("anyOf", "oneOf")


class MergeError(Exception):
    """They cannot be joined; `contradiction`: because no value fits both."""

    def __init__(self, message: str, *, contradiction: bool = False) -> None:
        super().__init__(message)
        self.contradiction = contradiction


def merge_schemas(parts: list[Any]) -> Any:
    """One schema for what is valid by all of them.

    Raises:
        MergeError: Nothing is, or it cannot be written as one schema.
    """
    result: Any = True
    for part in parts:
        result = _pair(result, part)
    return result


def _pair(a: Any, b: Any) -> Any:
    if a is False or b is False:
        raise MergeError("no value fits all parts: one is false", contradiction=True)
    if a is True:
        return b
    if b is True:
        return a
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        raise MergeError("a schema must be an object or a boolean")
    result = dict(a)
    for key, value in b.items():
        if key not in result or same(result[key], value):
            result[key] = value
        elif key in _MERGERS:
            result[key] = _MERGERS[key](result[key], value)
        elif key in _UNIONS:
            result.setdefault("allOf", [])
            result["allOf"] = [*result["allOf"], {key: value}]
        elif key in ("title", "description", "default", "examples", "$defs", "definitions", "deprecated"):
            continue
        else:
            raise MergeError(f"{key!r} is said twice, in ways that cannot be joined: {result[key]!r} and {value!r}")
    return _closed(a, b, result)


def _closed(a: Mapping[str, Any], b: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A property that one part names is one of the others' additional properties."""
    if "properties" not in result:
        return result
    properties = dict(result["properties"])
    for one, other in ((a, b), (b, a)):
        more = one.get("additionalProperties", True)
        if more is True:
            continue
        for name in other.get("properties", {}):
            if name not in one.get("properties", {}):
                if more is False and name in result.get("required", []):
                    raise MergeError(
                        f"the property {name!r} is required by one part and excluded by another", contradiction=True
                    )
                properties[name] = False if more is False else _pair(properties[name], more)
    return {**result, "properties": properties}


def _types(a: Any, b: Any) -> Any:
    first, second = ([a] if isinstance(a, str) else list(a)), ([b] if isinstance(b, str) else list(b))
    found = [name for name in first if name in second]
    if "integer" in first + second and "number" in first + second and "integer" not in found:
        found.append("integer")
    if not found:
        raise MergeError(f"no value is of type {a!r} and of type {b!r}", contradiction=True)
    return found[0] if len(found) == 1 else found


def _values(a: Any, b: Any) -> Any:
    found = [value for value in a if any(same(value, other) for other in b)]
    if not found:
        raise MergeError("no value is in both enums", contradiction=True)
    return found


def _const(a: Any, b: Any) -> Any:
    raise MergeError(f"a value cannot be {a!r} and {b!r}", contradiction=True)


def _properties(a: Any, b: Any) -> Any:
    return {**a, **{name: _pair(a[name], value) if name in a else value for name, value in b.items()}}


_MERGERS: dict[str, Callable[[Any, Any], Any]] = {
    "type": _types,
    "enum": _values,
    "const": _const,
    "properties": _properties,
    "required": lambda a, b: list(dict.fromkeys([*a, *b])),
    "allOf": lambda a, b: [*a, *b],
    "items": lambda a, b: _pair(a, b),
    "additionalProperties": lambda a, b: _pair(a, b) if a is not False and b is not False else False,
    "nullable": lambda a, b: a and b,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}
