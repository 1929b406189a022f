"""How requests name LoRA adapters: by their numbers. No request makes the server read a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllm.server.errors import invalid
from pyllm.server.fields import Fields

_LARGEST = 3.0e38  # a float32 holds it


def lora_pairs(value: Any, paths: Sequence[str], name: str = "lora") -> list[tuple[str, float]]:
    """The paths and scales that a list of numbers and scales stands for.

    Args:
        value: Objects with ``id`` and ``scale``.
        paths: All adapters, by their numbers.
        name: What the list is called in errors; empty: it is the whole body.

    Raises:
        APIError: It is something else, or there is no such adapter.
    """
    what = name or "the body"
    if not isinstance(value, list):
        raise invalid(name or None, f"{what} must be a list of objects with id and scale")
    result: dict[str, float] = {}
    for i, one in enumerate(value):
        if not isinstance(one, dict):
            raise invalid(f"{name}[{i}]", f"{what}[{i}] must be an object with id and scale")
        fields = Fields(one, f"{name}[{i}].")
        for key in ("id", "scale"):
            fields.need(key)
        number, scale = fields.integer("id"), fields.number("scale")
        assert number is not None and scale is not None
        if not 0 <= number < len(paths):
            there = f"from 0 to {len(paths) - 1}" if paths else "one of none: the server was started without adapters"
            raise fields.wrong("id", there)
        if abs(scale) > _LARGEST:
            raise fields.wrong("scale", f"a number of at most {_LARGEST:g}")
        if paths[number] in result:
            raise invalid(f"{name}[{i}].id", f"{name}[{i}].id: adapter {number} is there twice")
        result[paths[number]] = float(scale)
    return list(result.items())
