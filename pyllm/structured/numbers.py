"""Numbers between limits, as trees of digits."""

from __future__ import annotations

from decimal import Decimal

from pyllm.structured.expression import NOTHING, Alt, Cat, Chars, Node, Repeat, Text, is_nullable, without_empty

# Digits of a number without a limit: more than a double can tell apart.
DIGITS = 16
_DIGIT = Chars(((0x30, 0x39),))


def integers(low: int | None, high: int | None) -> Node:
    """The integers from `low` to `high`, in JSON. None: no limit but :data:`DIGITS`.

    Raises:
        ValueError: There are none.
    """
    top = 10 ** max(DIGITS, *(len(str(abs(limit))) + 1 for limit in (low, high) if limit is not None), 0) - 1
    first, last = -top if low is None else low, top if high is None else high
    if first > last:
        raise ValueError(f"there is no integer from {first} to {last}")
    found: list[Node] = []
    if last >= 0:
        found.append(_magnitudes(max(first, 0), last))
    if first < 0:
        found.append(Cat((Text("-"), _magnitudes(max(1, -last), -first))))
    return Alt(tuple(found))


def numbers(low: Decimal | None, high: Decimal | None, *, open_low: bool, open_high: bool) -> Node:
    """The decimal numbers from `low` to `high`, in JSON, without exponents.

    Args:
        low: The lower limit, or None.
        high: The upper limit, or None.
        open_low: Whether the lower limit itself is excluded.
        open_high: Whether the upper limit itself is excluded.

    Raises:
        ValueError: There are none.
    """
    if low is not None and high is not None and (low > high or (low == high and (open_low or open_high))):
        raise ValueError(f"there is no number from {low} to {high}")
    # Both ends are written with so many digits that no double in between is rounded to the limit.
    whole = max((len(str(int(abs(limit)))) for limit in (low, high) if limit is not None), default=1)
    places = max(1, 15 - whole)
    found: list[Node] = []
    if high is None or high > 0 or (high == 0 and not open_high):
        start, is_open = (low, open_low) if low is not None and low > 0 else (Decimal(0), open_low and low == 0)
        found.append(_range(start, high, is_open, open_high, places))
    if low is None or low < 0:
        start, is_open = (-high, open_high) if high is not None and high < 0 else (Decimal(0), True)
        negative = _range(start, None if low is None else -low, is_open, open_low, places)
        found.append(Cat((Text("-"), negative)))
    return Alt(tuple(found))


def _magnitudes(low: int, high: int) -> Node:
    """Integers from 0 up, without leading zeros."""
    found = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        found.append(_same_length(str(first), str(last)))
    # Many lengths in a row, all of which are whole, are one repetition.
    return Alt(tuple(_joined_lengths(found, low, high)))


def _joined_lengths(found: list[Node], low: int, high: int) -> list[Node]:
    first = len(str(low))
    whole = [
        length
        for length in range(max(first, 2), len(str(high)) + 1)
        if low <= 10 ** (length - 1) and high >= 10**length - 1
    ]
    if len(whole) < 2:
        return found
    kept = [node for i, node in enumerate(found) if first + i not in whole]
    return [*kept, Cat((Chars(((0x31, 0x39),)), Repeat(_DIGIT, whole[0] - 1, whole[-1] - 1)))]


def _same_length(low: str, high: str) -> Node:
    if low == high:
        return Text(low)
    if low[0] == high[0]:
        return Cat((Text(low[0]), _same_length(low[1:], high[1:])))
    n = len(low) - 1
    first, last = int(low[0]), int(high[0])
    found: list[Node] = []
    if low[1:] != "0" * n:
        found.append(Cat((Text(low[0]), _same_length(low[1:], "9" * n))))
        first += 1
    tail = high[1:] != "9" * n
    last -= tail
    if first <= last:
        found.append(Cat((_digits(first, last), Repeat(_DIGIT, n, n))))
    if tail:
        found.append(Cat((Text(high[0]), _same_length("0" * n, high[1:]))))
    return Alt(tuple(found))


def _digits(low: int, high: int) -> Node:
    return Chars(((0x30 + low, 0x30 + high),)) if low <= high else NOTHING


def _range(low: Decimal, high: Decimal | None, open_low: bool, open_high: bool, places: int) -> Node:
    """Numbers from 0 up."""
    start, start_places = _parts(low)
    if high is None:
        high, open_high = Decimal(10 ** max(DIGITS, len(str(start)) + 1)), True
    end, end_places = _parts(high)
    found: list[Node] = []
    if start == end:
        return _number(Text(str(start)), _between(start_places, end_places, open_low, open_high, places))
    found.append(_number(Text(str(start)), _at_least(start_places, open_low, places)))
    if end - start > 1:
        found.append(_number(_magnitudes(start + 1, end - 1), Repeat(_DIGIT, 0, places)))
    found.append(_number(Text(str(end)), _at_most(end_places, open_high, places)))
    return Alt(tuple(found))


def _parts(value: Decimal) -> tuple[int, str]:
    text = format(value, "f")
    whole, _, places = text.partition(".")
    return int(whole), places.rstrip("0")


def _number(whole: Node, places: Node) -> Node:
    """An integer part and what may follow behind the point."""
    fraction = Cat((Text("."), without_empty(places)))
    return Cat((whole, Alt((fraction, Text(""))) if is_nullable(places) else fraction))


def _some(node: Node, empty: bool) -> Node:
    return Alt((node, Text(""))) if empty else node


def _at_least(limit: str, is_open: bool, places: int) -> Node:
    """Digits behind the point, of at least 0.limit."""
    if not limit:
        if not is_open:
            return Repeat(_DIGIT, 0, places)
        return Cat((Repeat(Text("0"), 0, places), _digits(1, 9), Repeat(_DIGIT, 0, places)))
    first, rest = int(limit[0]), limit[1:]
    return Alt(
        (
            Cat((_digits(first + 1, 9), Repeat(_DIGIT, 0, places))),
            Cat((Text(limit[0]), _at_least(rest, is_open, places))),
        )
    )


def _at_most(limit: str, is_open: bool, places: int) -> Node:
    """Digits behind the point, of at most 0.limit."""
    if not limit:
        return NOTHING if is_open else Repeat(Text("0"), 0, places)
    first, rest = int(limit[0]), limit[1:]
    found = Alt(
        (
            Cat((_digits(0, first - 1), Repeat(_DIGIT, 0, places))),
            Cat((Text(limit[0]), _at_most(rest, is_open, places))),
        )
    )
    return _some(found, True)


def _between(low: str, high: str, open_low: bool, open_high: bool, places: int) -> Node:
    """Digits behind the point, from 0.low to 0.high."""
    n = max(len(low), len(high))
    low, high = low.ljust(n, "0"), high.ljust(n, "0")
    if n == 0:
        return NOTHING if open_low or open_high else Repeat(Text("0"), 0, places)
    empty = not low.strip("0") and not open_low and (bool(high.strip("0")) or not open_high)
    if low[0] == high[0]:
        return _some(Cat((Text(low[0]), _between(low[1:], high[1:], open_low, open_high, places))), empty)
    found = Alt(
        (
            Cat((Text(low[0]), _at_least(low[1:].rstrip("0"), open_low, places))),
            Cat((_digits(int(low[0]) + 1, int(high[0]) - 1), Repeat(_DIGIT, 0, places))),
            Cat((Text(high[0]), _at_most(high[1:].rstrip("0"), open_high, places))),
        )
    )
    return _some(found, empty)
