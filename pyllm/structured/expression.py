"""Regular expressions as trees, and their way into GBNF, plain or inside JSON strings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pyllm.core.gbnf import literal

Ranges = tuple[tuple[int, int], ...]

_LAST = 0x10FFFF


@dataclass(frozen=True)
class Text:
    """A text as it stands."""

    text: str


@dataclass(frozen=True)
class Chars:
    """One character of these ranges of code points; both ends belong to them. No ranges match nothing."""

    ranges: Ranges


@dataclass(frozen=True)
class Cat:
    """One after the other."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """One of them."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`item` so often; None is no limit."""

    item: Node
    least: int
    most: int | None


Node = Text | Chars | Cat | Alt | Repeat

NOTHING = Chars(())


def invert(ranges: Ranges) -> Ranges:
    """All other characters; surrogates are none."""
    found, low = [], 0
    for start, end in (*merge((*ranges, (0xD800, 0xDFFF))), (_LAST + 1, _LAST + 1)):
        if start > low:
            found.append((low, start - 1))
        low = max(low, end + 1)
    return tuple(found)


def merge(ranges: Ranges) -> Ranges:
    """The same characters, in order and without overlaps."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    """The characters in both."""
    return tuple((max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b if max(x[0], y[0]) <= min(x[1], y[1]))


ANY = Chars(invert(()))


def other_texts(texts: tuple[str, ...]) -> Node:
    """All texts but these."""
    firsts: dict[str, list[str]] = {}
    for text in texts:
        if text:
            firsts.setdefault(text[0], []).append(text[1:])
    others = invert(tuple((ord(c), ord(c)) for c in firsts))
    found: list[Node] = [Cat((Chars(others), Repeat(ANY, 0, None)))]
    found += [Cat((Text(c), other_texts(tuple(rest)))) for c, rest in firsts.items()]
    return Alt(tuple(found) if "" in texts else (*found, Text("")))


def text_node(text: str) -> Text:
    """A text as a tree."""
    return Text(text)


def is_nullable(node: Node) -> bool:
    if isinstance(node, Text):
        return not node.text
    if isinstance(node, Cat):
        return all(map(is_nullable, node.items))
    if isinstance(node, Alt):
        return any(map(is_nullable, node.items))
    if isinstance(node, Repeat):
        return node.least == 0 or is_nullable(node.item)
    return False


def _is_empty(node: Node) -> bool:
    """Whether it matches nothing at all."""
    if isinstance(node, Chars):
        return not node.ranges
    if isinstance(node, Cat):
        return any(map(_is_empty, node.items))
    if isinstance(node, Alt):
        return all(map(_is_empty, node.items))
    return isinstance(node, Repeat) and node.least > 0 and _is_empty(node.item)


def without_empty(node: Node) -> Node:
    """The same texts but the empty one: what may be repeated without end."""
    if not is_nullable(node):
        return node
    if isinstance(node, Cat) and node.items:
        head, tail = node.items[0], node.items[1:]
        if not tail:
            return without_empty(head)
        rest = Cat(tail)
        return Alt((Cat((without_empty(head), *tail)), without_empty(rest)))
    if isinstance(node, Alt):
        return Alt(tuple(without_empty(item) for item in node.items))
    if isinstance(node, Repeat):
        if node.most == 0:
            return NOTHING
        return Repeat(without_empty(node.item), 1, node.most)
    return NOTHING


class _Writer:
    """Writes trees as rules.

    Args:
        json: Write what the texts look like inside the quotation marks of a JSON string.
        prefix: Of the names of rules for classes.
    """

    def __init__(self, json: bool, prefix: str) -> None:
        self.json = json
        self.prefix = prefix
        self.classes: dict[Ranges, str] = {}
        self.texts: dict[str, str] = {}

    def write(self, node: Node) -> str:
        """The right side of a rule, to be put in parentheses by whoever needs them."""
        if isinstance(node, Text):
            return literal(json.dumps(node.text, ensure_ascii=False)[1:-1] if self.json else node.text)
        if isinstance(node, Chars):
            return self.chars(node.ranges)
        if isinstance(node, Cat):
            return " ".join(self.inner(item) for item in _joined(node.items)) or '""'
        if isinstance(node, Alt):
            kept = [item for item in node.items if not _is_empty(item)]
            return " | ".join(self.inner(item) for item in kept)
        return self.repeat(node)

    def inner(self, node: Node) -> str:
        text = self.write(node)
        return f"({text})" if isinstance(node, Alt) else text

    def repeat(self, node: Repeat) -> str:
        item, least, most = node.item, node.least, node.most
        if most == 0 or (_is_empty(item) and least == 0):
            return '""'
        if is_nullable(item):
            item, least = without_empty(item), 0
            if _is_empty(item):
                return '""'
        text = self.write(item) if isinstance(item, Chars) else f"({self.write(item)})"
        if (least, most) == (1, 1):
            return text
        counts = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
        if least == most:
            return f"{text}{{{least}}}"
        return text + (counts or f"{{{least},{'' if most is None else most}}}")

    def chars(self, ranges: Ranges) -> str:
        if ranges not in self.classes:
            text = self._json_class(ranges) if self.json else _class(ranges)
            if len(text) < 64 and " " not in text:
                return text
            self.classes[ranges] = f"{self.prefix}{len(self.classes)}"
            self.texts[self.classes[ranges]] = text
        return self.classes[ranges]

    def rules(self) -> list[str]:
        return [f"{name} ::= {text}" for name, text in self.texts.items()]

    def _json_class(self, ranges: Ranges) -> str:
        special = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
        plain = intersect(ranges, invert(special))
        parts = [_class(plain)] if plain else []
        escapes = [chr(code) for low, high in intersect(ranges, special) for code in range(low, high + 1)]
        parts += [literal(json.dumps(c)[1:-1]) for c in escapes]
        return parts[0] if len(parts) == 1 else "(" + " | ".join(parts) + ")"


def _joined(items: tuple[Node, ...]) -> list[Node]:
    """The parts of a sequence with neighbouring texts made one."""
    found: list[Node] = []
    for item in items:
        for part in _joined(item.items) if isinstance(item, Cat) else [item]:
            last = found[-1] if found else None
            if isinstance(part, Text) and isinstance(last, Text):
                found[-1] = Text(last.text + part.text)
            elif part != Text("") and not (isinstance(part, Repeat) and part.most == 0):
                found.append(part)
    return found


@lru_cache(maxsize=256)
def _class(ranges: Ranges) -> str:
    others = invert(ranges)
    if not others:
        return "[\\x01-\\U0010FFFF]"
    # With wide characters in a negated class llama.cpp refuses the first bytes of many others.
    negated = len(others) <= len(ranges) and others[-1][1] < 128
    shown = others if negated else ranges
    body = "".join(_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in shown)
    return f"[{'^' if negated else ''}{body}]"


def _char(code: int) -> str:
    c = chr(code)
    if c.isascii() and c.isalnum():
        return c
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def to_rules(nodes: Mapping[str, Node], *, json: bool = False, prefix: str = "class-") -> str:
    """Rules by these names; with `json` each is a JSON string, quotation marks included.

    Raises:
        ValueError: One matches nothing.
    """
    writer = _Writer(json, prefix)
    lines = []
    for name, node in nodes.items():
        if _is_empty(node):
            raise ValueError("nothing can match")
        body = writer.write(node)
        lines.append(f'{name} ::= "\\"" ({body}) "\\""' if json else f"{name} ::= {body}")
    return "\n".join([*lines, *writer.rules()]) + "\n"
