"""Reading the fields of a JSON object; what is wrong with one is an error that names it."""

from __future__ import annotations

import json
from typing import Any

from pyllm.server.errors import invalid

_LARGEST = 1e300
_LEAST = -(2**63)


class Fields:
    """The fields of a JSON object. Null is what is not there.

    Args:
        values: The object.
        where: What its fields are called in errors, such as "stream_options.".
    """

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        """Any value."""
        return self.values.get(name)

    def first(self, *names: str) -> str:
        """The first of these names that is there, or else the first of all."""
        return next((name for name in names if name in self), names[0])

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(self, name: str, low: int = _LEAST, high: int | None = None) -> int | None:
        """A whole number between two others; 3.0 is one too."""
        value = self.number(name)
        if value is None:
            return None
        if value != int(value):
            raise self.wrong(name, "an integer")
        if value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise self.wrong(name, limits)
        return int(value)

    def number(self, name: str) -> int | float | None:
        """A number."""
        value = self.values.get(name)
        if value is None:
            return None
        if not is_number(value):
            raise self.wrong(name, "a number")
        return value  # type: ignore[no-any-return]

    def text(self, name: str) -> str | None:
        """A text."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "text")
        return value

    def object(self, name: str) -> Fields:
        """The fields of an object in this one; none where it is not there."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.where}{name}.")

    def texts(self, name: str, *, most: int | None = None) -> tuple[str, ...]:
        """A text or several."""
        value = self.values.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, "a text or a list of texts")
        if most is not None and len(value) > most:
            raise invalid(self.where + name, f"{self.where}{name} has {len(value)} texts; there may be {most}")
        return tuple(value)

    def need(self, name: str) -> Any:
        """A value that must be there."""
        if name not in self:
            raise invalid(self.where + name, f"{self.where}{name} is missing")
        return self.values[name]

    def wrong(self, name: str, expected: str) -> Exception:
        """The error for a field that is something else."""
        value = json.dumps(self.values.get(name), ensure_ascii=False)
        shown = value if len(value) <= 80 else f"{value[:77]}..."
        return invalid(self.where + name, f"{self.where}{name} must be {expected}, not {shown}")


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    # JSON knows numbers of any length: 1e999 is infinite, and 10**999 is too large for arithmetic.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_decimal(value: Any) -> bool:
    """Whether it is a text of digits that stands for a number, and not for more digits than Python reads."""
    return isinstance(value, str) and value.strip().isdecimal() and len(value) <= 20


def is_ids(value: Any) -> bool:
    """Whether it is a list of numbers that can be token ids."""
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**31 for one in value)
