"""Rules for numbers and strings of JSON schemas, beyond what llama.cpp's converter knows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pyllm.core.gbnf import MAX_REPETITIONS
from pyllm.errors import InvalidArgumentError
from pyllm.structured.expression import Cat, Chars, Node, Repeat, Text, to_rules
from pyllm.structured.formats import FORMATS, FREE_FORMATS
from pyllm.structured.numbers import integers, numbers
from pyllm.structured.regex import compile_regex

# One character of a JSON string, or its escape; two halves of a surrogate pair are one, and one half is none.
CHARACTER = (
    r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" ([0-9A-CEFa-cef] [0-9A-Fa-f] [0-9A-Fa-f] [0-9A-Fa-f]'
    r" | [Dd] [0-7] [0-9A-Fa-f] [0-9A-Fa-f]"
    r' | [Dd] [89ABab] [0-9A-Fa-f] [0-9A-Fa-f] "\\u" [Dd] [C-Fc-f] [0-9A-Fa-f] [0-9A-Fa-f]))'
)
MAX_LENGTH = 20000
# Stands for the name of the rule.
NAME = "\0"


class LeafError(Exception):
    """A keyword has a wrong value; `cannot`: or a right one that no grammar can express."""

    def __init__(self, key: str, message: str, *, cannot: bool = False) -> None:
        super().__init__(message)
        self.key = key
        self.cannot = cannot


def leaf_rules(kind: str, schema: dict[str, Any]) -> str:
    """Rules for an integer, number or string, the first under the name :data:`NAME`.

    Raises:
        LeafError: A keyword has a value that it cannot have.
    """
    return _KINDS[kind](schema)


def _integer(schema: dict[str, Any]) -> str:
    low, high = _limit(schema, "minimum", -1), _limit(schema, "maximum", 1)
    first = None if low is None else _whole(low[0], low[1], up=True)
    last = None if high is None else _whole(high[0], high[1], up=False)
    try:
        return to_rules({NAME: integers(first, last)}, prefix=f"{NAME}-")
    except ValueError as cause:
        raise LeafError("minimum", str(cause)) from None


def _whole(value: Decimal, is_open: bool, *, up: bool) -> int:
    """The first integer within a limit."""
    nearest = int(value.to_integral_value(rounding="ROUND_CEILING" if up else "ROUND_FLOOR"))
    return nearest + (1 if up else -1) if is_open and nearest == value else nearest


def _number(schema: dict[str, Any]) -> str:
    low, high = _limit(schema, "minimum", -1), _limit(schema, "maximum", 1)
    try:
        node = numbers(
            None if low is None else low[0],
            None if high is None else high[0],
            open_low=low is not None and low[1],
            open_high=high is not None and high[1],
        )
        return to_rules({NAME: node}, prefix=f"{NAME}-")
    except ValueError as cause:
        raise LeafError("minimum", str(cause)) from None


def _limit(schema: dict[str, Any], key: str, sign: int) -> tuple[Decimal, bool] | None:
    """The stricter of the two limits on one side, and whether it is excluded itself."""
    exclusive = "exclusive" + key[0].upper() + key[1:]
    found: list[tuple[Decimal, bool]] = []
    for name in (key, exclusive):
        value = schema.get(name)
        if value is None:
            continue
        if isinstance(value, bool) and name == exclusive:
            # As in JSON schemas of draft 4: it speaks of the limit beside it.
            found = [(limit, value) for limit, _ in found]
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 10**300 or value != value:
            raise LeafError(name, f"must be a number, not {json.dumps(value)}")
        found.append((Decimal(repr(value)), name == exclusive))
    return min(found, key=lambda limit: (limit[0] * sign, not limit[1])) if found else None


def _string(schema: dict[str, Any]) -> str:
    least, most = _length(schema, "minLength") or 0, _length(schema, "maxLength")
    if most is not None and most < least:
        raise LeafError("maxLength", f"must be at least minLength={least}, not {most}")
    pattern, kind = schema.get("pattern"), schema.get("format")
    if kind is not None and not isinstance(kind, str):
        raise LeafError("format", f"must be text, not {json.dumps(kind)}")
    if kind in FREE_FORMATS:
        kind = None
    if kind is not None and kind not in FORMATS:
        raise LeafError("format", f"there is the format {kind!r}, and known are {', '.join(FORMATS)}", cannot=True)
    if pattern is not None and kind is not None:
        raise LeafError("pattern", f"there is a pattern beside the format {kind!r}", cannot=True)
    if pattern is None and kind is None:
        return f'{NAME} ::= "\\"" {_repeated(least, most)} "\\""\n'
    node = _pattern(pattern) if pattern is not None else _format(str(kind))
    if least or most is not None:
        node = _limited(node, least, most)
    try:
        return to_rules({NAME: node}, json=True, prefix=f"{NAME}-")
    except ValueError:
        raise LeafError("pattern", f"no text matches {pattern!r}") from None


def _length(schema: dict[str, Any], key: str) -> int | None:
    value = schema.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise LeafError(key, f"must be an integer of at least 0, not {json.dumps(value)}")
    if value is not None and value > MAX_LENGTH:
        raise LeafError(key, f"{key}={value} is more than {MAX_LENGTH}", cannot=True)
    return value


def _repeated(least: int, most: int | None) -> str:
    """So many characters; llama.cpp repeats nothing more often than a limit at once."""
    parts = []
    while least > MAX_REPETITIONS:
        parts.append(f"char{{{MAX_REPETITIONS}}}")
        least -= MAX_REPETITIONS
        most = None if most is None else most - MAX_REPETITIONS
    if most is None or most <= MAX_REPETITIONS:
        parts.append(f"char{{{least},{'' if most is None else most}}}")
        return " ".join(parts)
    if least:
        parts.append(f"char{{{least}}}")
    return " ".join([*parts, _at_most(most - least)])


def _at_most(most: int) -> str:
    """Up to so many characters, and at each of them few ways to go on."""
    if most <= MAX_REPETITIONS:
        return f"char{{0,{most}}}"
    return f"(char{{0,{MAX_REPETITIONS - 1}}} | char{{{MAX_REPETITIONS}}} {_at_most(most - MAX_REPETITIONS)})"


def _pattern(pattern: Any) -> Node:
    if not isinstance(pattern, str):
        raise LeafError("pattern", f"must be text, not {json.dumps(pattern)}")
    try:
        re.compile(pattern)
    except re.error as cause:
        raise LeafError("pattern", f"is no regular expression: {cause}: {pattern!r}") from None
    try:
        # In the language of JSON schemas \d and \w are ASCII.
        return compile_regex(pattern, re.ASCII, search=True, what="it")
    except InvalidArgumentError as cause:
        raise LeafError("pattern", f"there is a pattern ({cause})", cannot=True) from None


@lru_cache(maxsize=64)
def _format(name: str) -> Node:
    return compile_regex(FORMATS[name], re.ASCII)


def _limited(node: Node, least: int, most: int | None) -> Node:
    """A repetition of one class with limits on the length of it; of other patterns the length is not known."""
    while isinstance(node, Cat):
        parts = [part for part in node.items if part not in (Text(""), Cat(()))]
        if len(parts) != 1:
            break
        node = parts[0]
    if not isinstance(node, Repeat) or not isinstance(node.item, Chars):
        raise LeafError(
            "minLength" if least else "maxLength", "there is a length beside a pattern or format", cannot=True
        )
    low = max(node.least, least)
    limits = [limit for limit in (node.most, most) if limit is not None]
    high = min(limits) if limits else None
    if high is not None and high < low:
        raise LeafError("pattern", "no text matches the pattern and has that length")
    return Repeat(node.item, low, high)


_KINDS: dict[str, Callable[[dict[str, Any]], str]] = {"integer": _integer, "number": _number, "string": _string}
