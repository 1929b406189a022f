"""Whether a value fits the plain keywords of a schema: enough to sort out the values of an enum."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def is_valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value fits type, limits and pattern of a schema; of other keywords nothing is asked."""
    types = schema.get("type")
    if types is not None and not any(_is(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return fits and ("pattern" not in schema or re.search(schema["pattern"], value, re.ASCII) is not None)
    return True


def _is(value: Any, name: Any) -> bool:
    if name == "integer":
        return not isinstance(value, bool) and (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        )
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
    return name in kinds and isinstance(value, kinds[name])
