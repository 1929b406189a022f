"""Regular expressions of Python as grammars.

Python's own parser reads the expression, so its syntax, flags and errors are those of :mod:`re`. What a grammar cannot
express is an error that names the position: looking ahead or back, back references, word boundaries, and repetitions
and groups that never give back.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as sre_parser  # type: ignore[import-not-found]
from functools import lru_cache
from typing import Any

from pyllm.core.gbnf import MAX_REPETITIONS
from pyllm.errors import InvalidArgumentError
from pyllm.structured.expression import ANY, Alt, Cat, Chars, Node, Repeat, invert, text_node, to_rules
from pyllm.structured.grammar import Grammar

MAX_LENGTH = 16384

_AT_START = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
_AT_END = (sre.AT_END, sre.AT_END_STRING)
# Where a construct stands: Python's parser keeps no positions.
_TOKEN = re.compile(
    r"\\[bB]|\\[1-9]\d*|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?P=|\(\?<?[=!]|\(\?>|\(\?\(|[*+?}]\+|\^|\$|.", re.DOTALL
)
_WORDS = {
    "look": (("(?=", "(?!", "(?<=", "(?<!"), "looking ahead or back"),
    "back": (("(?P=", "\\1", "\\2", "\\3", "\\4", "\\5", "\\6", "\\7", "\\8", "\\9"), "a reference to a group"),
    "condition": (("(?(",), "a condition on a group"),
    "atomic": (("(?>",), "a group that never gives back"),
    "possessive": (("*+", "++", "?+", "}+"), "a repetition that never gives back"),
    "boundary": (("\\b", "\\B"), "a word boundary"),
    "start": (("^", "\\A"), "'^' behind the beginning"),
    "end": (("$", "\\Z"), "'$' before the end"),
}


def regex_grammar(pattern: str | re.Pattern[str]) -> Grammar:
    """A grammar for exactly the texts that match a regular expression from beginning to end.

    Args:
        pattern: The expression, or a compiled one, whose flags count.

    Raises:
        InvalidArgumentError: It is no regular expression, or cannot be expressed; the message names the position.
    """
    text, flags = _source(pattern)
    node = compile_regex(text, flags)
    return Grammar(to_rules({"root": node}), control_tokens=False)


def _source(pattern: Any) -> tuple[str, int]:
    if isinstance(pattern, re.Pattern):
        if not isinstance(pattern.pattern, str):
            raise InvalidArgumentError("regex is an expression for bytes; give one for text")
        return pattern.pattern, pattern.flags & ~re.UNICODE
    if not isinstance(pattern, str):
        raise InvalidArgumentError(f"regex must be text or a compiled expression, not {pattern!r}", param="regex")
    return pattern, 0


def compile_regex(pattern: str, flags: int = 0, *, search: bool = False, what: str = "regex") -> Node:
    """The expression as a tree.

    Args:
        pattern: The expression.
        flags: As of :func:`re.compile`.
        search: Let any text stand before and behind it, unless it is anchored, as patterns of JSON schemas do.
        what: What to call it in errors.
    """
    if len(pattern) > MAX_LENGTH:
        raise InvalidArgumentError(f"{what} may have {MAX_LENGTH} characters, not {len(pattern)}")
    try:
        tree = sre_parser.parse(pattern, flags)
    except re.error as cause:
        raise InvalidArgumentError(f"{what} is no regular expression: {cause}: {pattern!r}") from None
    except (RecursionError, OverflowError) as cause:
        raise InvalidArgumentError(f"{what} is too complicated: {cause}") from None
    compiler = _Compiler(pattern, what, search)
    try:
        return compiler.top(list(tree), tree.state.flags)
    except RecursionError:
        raise InvalidArgumentError(f"{what} is nested too deep") from None


class _Compiler:
    def __init__(self, pattern: str, what: str, search: bool) -> None:
        self.pattern, self.what, self.search = pattern, what, search

    def fail(self, kind: str) -> InvalidArgumentError:
        tokens, words = _WORDS[kind]
        positions = [m.start() for m in _TOKEN.finditer(self.pattern) if m[0].startswith(tokens)]
        if kind == "start":
            positions = [position for position in positions if position > 0] or positions
        where = f"at position {positions[0]}: " if positions else ""
        return InvalidArgumentError(
            f"{self.what}: {where}{words} cannot be expressed by a grammar: {self.pattern!r}", param=self.what
        )

    def top(self, items: list[Any], flags: int) -> Node:
        if self.search and len(items) == 1 and items[0][0] is sre.BRANCH:
            return Alt(tuple(self.top(list(branch), flags) for branch in items[0][1][1]))
        if not self.search:
            return self.sequence(items, flags, True, True)
        begin, end = 0, len(items)
        while begin < end and items[begin][0] is sre.AT and items[begin][1] in _AT_START:
            begin += 1
        while end > begin and items[end - 1][0] is sre.AT and items[end - 1][1] in _AT_END:
            end -= 1
        any_text = Repeat(ANY, 0, None)
        # Within a group the anchors may still be hidden: then the whole of it is taken to be anchored there.
        hidden_start = begin == 0 and self._hides(items[:1], _AT_START, 0)
        hidden_end = end == len(items) and self._hides(items[-1:], _AT_END, -1)
        body = self.sequence(items[begin:end], flags, begin > 0 or hidden_start, end < len(items) or hidden_end)
        before = () if begin > 0 or hidden_start else (any_text,)
        behind = () if end < len(items) or hidden_end else (any_text,)
        return Cat((*before, body, *behind))

    def _hides(self, items: list[Any], anchors: tuple[Any, ...], at: int) -> bool:
        """Whether all ways through a group begin (or end) with an anchor; an error where only some do."""
        if not items or items[0][0] is not sre.SUBPATTERN:
            return False
        inner = list(items[0][1][3])
        branches = [list(b) for b in inner[0][1][1]] if len(inner) == 1 and inner[0][0] is sre.BRANCH else [inner]
        found = [bool(b) and b[at][0] is sre.AT and b[at][1] in anchors for b in branches]
        if any(found) and not all(found):
            raise self.fail("start" if anchors is _AT_START else "end")
        return all(found)

    def sequence(self, items: list[Any], flags: int, at_start: bool, at_end: bool) -> Node:
        nodes: list[Node] = []
        for i, item in enumerate(items):
            first = at_start and all(other[0] is sre.AT for other in items[:i])
            last = at_end and all(other[0] is sre.AT for other in items[i + 1 :])
            nodes.append(self.item(item, flags, first, last))
        return nodes[0] if len(nodes) == 1 else Cat(tuple(nodes))

    def item(self, item: Any, flags: int, first: bool, last: bool) -> Node:
        op, value = item
        if op is sre.LITERAL and not flags & re.IGNORECASE:
            return text_node(chr(value))
        if op is sre.NOT_LITERAL and not flags & re.IGNORECASE:
            return Chars(invert(((value, value),)))
        if op is sre.ANY:
            return ANY if flags & re.DOTALL else Chars(invert(((10, 10),)))
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.IN):
            return Chars(_ranges(_class_text(op, value), flags))
        if op is sre.BRANCH:
            return Alt(tuple(self.sequence(list(branch), flags, first, last) for branch in value[1]))
        if op is sre.SUBPATTERN:
            _, add, remove, inner = value
            return self.sequence(list(inner), (flags | add) & ~remove, first, last)
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, inner = value
            limit = None if most is sre.MAXREPEAT else int(most)
            if max(int(least), limit or 0) > MAX_REPETITIONS:
                raise InvalidArgumentError(
                    f"{self.what} repeats something {max(int(least), limit or 0)} times, and {MAX_REPETITIONS} are "
                    f"possible: {self.pattern!r}"
                )
            once = limit == 1
            return Repeat(self.sequence(list(inner), flags, first and once, last and once), int(least), limit)
        if op is sre.AT:
            return self.anchor(value, flags, first, last)
        raise self.fail(
            {
                "ASSERT": "look",
                "ASSERT_NOT": "look",
                "GROUPREF": "back",
                "GROUPREF_EXISTS": "condition",
                "ATOMIC_GROUP": "atomic",
                "POSSESSIVE_REPEAT": "possessive",
            }[str(op)]
        )

    def anchor(self, value: Any, flags: int, first: bool, last: bool) -> Node:
        if value in _AT_START and first:
            return text_node("")
        if value in _AT_END and last:
            return text_node("")
        raise self.fail("start" if value in _AT_START else "end" if value in _AT_END else "boundary")


def _class_text(op: Any, value: Any) -> str:
    """A class of characters, written anew with nothing in it but code points and categories."""
    if op is sre.LITERAL:
        return f"[{_code(value)}]"
    if op is sre.NOT_LITERAL:
        return f"[^{_code(value)}]"
    parts: list[str] = []
    for kind, item in value:
        if kind is sre.NEGATE:
            parts.insert(0, "^")
        elif kind is sre.LITERAL:
            parts.append(_code(item))
        elif kind is sre.RANGE:
            parts.append(f"{_code(item[0])}-{_code(item[1])}")
        else:
            parts.append(_CATEGORIES[item])
    return "[" + "".join(parts) + "]"


def _code(value: int) -> str:
    return f"\\U{value:08x}"


_CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}


@lru_cache(maxsize=1)
def _all_characters() -> str:
    return "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))


@lru_cache(maxsize=256)
def _ranges(text: str, flags: int) -> tuple[tuple[int, int], ...]:
    """Which characters a class matches: found by trying all there are."""
    found: list[tuple[int, int]] = []
    flags &= re.IGNORECASE | re.ASCII
    for match in re.finditer(text + "+", _all_characters(), flags):
        low, high = ord(match[0][0]), ord(match[0][-1])
        # The surrogates are left out, and no gap.
        found += [(low, 0xD7FF), (0xE000, high)] if low < 0xD800 <= high else [(low, high)]
    return tuple(found)
