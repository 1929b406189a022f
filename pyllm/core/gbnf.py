"""GBNF as llama.cpp reads it: checked before llama.cpp does, with line and column; and how to write its literals.

llama.cpp's own parser writes what it finds wrong to stderr, and with the rest of the text instead of a position.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pyllm.errors import GrammarError

# As in llama.cpp's parser.
MAX_REPETITIONS = 2000
MAX_NESTING = 256
MAX_RULES = 8192

Symbol = str | int | None

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_DIGITS = re.compile(r"[0-9]+")
_TOKEN_ID = re.compile(r"<\[([0-9]+)\]>")
_TOKEN_TEXT = re.compile(r"<[^>\0]*>")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", **{c: c for c in '\\"[]-'}}
_HEX = {"x": 2, "u": 4, "U": 8}
_HEX_DIGITS = re.compile(r"[0-9a-fA-F]+")
_LITERAL_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def literal(text: str) -> str:
    """A text as a literal of GBNF."""
    return '"' + "".join(_LITERAL_ESCAPES.get(c) or (c if c >= " " else f"\\x{ord(c):02X}") for c in text) + '"'


@dataclass
class Rules:
    """What a grammar consists of.

    Attributes:
        rules: By name: alternatives, each a list of the symbols in it: names of rules, or None for a character or
            token. Parts in parentheses and repetitions are rules of their own, under numbers.
        places: Where each name is used or defined first: offset in the text.
        names_tokens: Whether it names tokens, as in ``<[42]>`` or ``!<think>``.
        excludes_wide: Whether a negated class such as ``[^é]`` names characters above 127.
    """

    rules: dict[str | int, list[list[Symbol]]] = field(default_factory=dict)
    places: dict[str | int, int] = field(default_factory=dict)
    names_tokens: bool = False
    excludes_wide: bool = False


# The same grammar is used for many texts.
_checked: dict[tuple[str, str], Rules] = {}
_MOST_CHECKED = 64


def check(text: str, root: str = "root") -> Rules:
    """Parse a grammar.

    Args:
        text: The grammar.
        root: The rule to begin with.

    Returns:
        Rules: What it consists of; shared, not to be changed.

    Raises:
        GrammarError: llama.cpp could not use it; the message names line and column.
    """
    found = _checked.get((text, root))
    if found is None:
        found = _check(text, root)
        if len(_checked) >= _MOST_CHECKED:
            _checked.clear()
        _checked[text, root] = found
    return found


def _check(text: str, root: str) -> Rules:
    parser = _Parser(text)
    parser.parse()
    parsed = parser.result
    for name, place in parsed.places.items():
        if name not in parsed.rules:
            parser.fail(place, f"there is no rule {name!r}")
    if root not in parsed.rules:
        raise GrammarError(
            f"the grammar cannot be used: it has no rule {root!r} to begin with, only "
            + ", ".join(sorted(str(name) for name in parsed.rules if isinstance(name, str))[:8])
            if parsed.rules
            else "the grammar is empty"
        )
    _check_left_recursion(parser)
    return parsed


class _Frame:
    """The right side of a rule, or what stands in parentheses, in the making."""

    def __init__(self, start: int, n_before: int = 0, name: int = 0) -> None:
        self.start, self.n_before, self.name = start, n_before, name
        self.alternatives: list[list[Symbol]] = []
        self.begin()

    def begin(self) -> None:
        """Begin another alternative."""
        self.alternatives.append([])
        # Where the last item begins, and how many rules of llama.cpp's it takes.
        self.last, self.weight = 0, 1

    def add(self, symbols: list[Symbol], weight: int = 1) -> None:
        """Add an item."""
        self.last, self.weight = len(self.alternatives[-1]), weight
        self.alternatives[-1] += symbols


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.result = Rules()
        self.pos = 0
        self.n_generated = 0
        self.names: set[str] = set()

    def fail(self, pos: int, message: str) -> None:
        line = self.text.count("\n", 0, pos) + 1
        column = pos - self.text.rfind("\n", 0, pos)
        raise GrammarError(f"the grammar cannot be used: line {line}, column {column}: {message}")

    def parse(self) -> None:
        if "\0" in self.text:
            self.fail(self.text.index("\0"), "there is a NUL character")
        self.skip(True)
        if self.pos == len(self.text):
            raise GrammarError("the grammar is empty")
        n_rules = 0
        while self.pos < len(self.text):
            n_rules += 1
            if n_rules > MAX_RULES:
                self.fail(self.pos, f"there are more than {MAX_RULES} rules")
            self.rule()

    def skip(self, newline_ok: bool) -> None:
        match = (_SPACE_AND_LINES if newline_ok else _SPACE).match(self.text, self.pos)
        assert match is not None
        self.pos = match.end()

    def peek(self) -> str:
        return self.text[self.pos] if self.pos < len(self.text) else ""

    def found(self) -> str:
        if self.pos == len(self.text):
            return "the text ends"
        return f"there is {self.text[self.pos]!r}"

    def use(self, name: str) -> None:
        self.result.places.setdefault(name, self.pos)
        self.names.add(name)

    def generate(self) -> int:
        self.n_generated += 1
        return self.n_generated

    @property
    def n_symbols(self) -> int:
        return len(self.names) + self.n_generated

    def rule(self) -> None:
        match = _NAME.match(self.text, self.pos)
        if match is None:
            self.fail(self.pos, f"the name of a rule must stand here (letters, digits and '-'), and {self.found()}")
            return
        name = match[0]
        self.use(name)
        self.result.places[name] = self.pos
        self.pos = match.end()
        self.skip(False)
        if not self.text.startswith("::=", self.pos):
            self.fail(self.pos, f"'::=' must stand behind the name {name!r}, and {self.found()}")
        self.pos += 3
        self.skip(True)
        self.result.rules[name] = self.alternatives()
        if self.peek() == "\r":
            self.pos += 2 if self.text.startswith("\r\n", self.pos) else 1
        elif self.peek() == "\n":
            self.pos += 1
        elif self.peek():
            self.fail(self.pos, f"the rule {name!r} must end here, and {self.found()}")
        self.skip(True)

    def alternatives(self) -> list[list[Symbol]]:
        """The right side of a rule. Parentheses may be deep: no recursion."""
        frames = [_Frame(self.pos)]
        while c := self.peek():
            frame, nested = frames[-1], len(frames) > 1
            if c == "(":
                if len(frames) > MAX_NESTING:
                    self.fail(self.pos, f"parentheses are nested more than {MAX_NESTING} deep")
                frames.append(_Frame(self.pos, self.n_symbols, self.generate()))
                self.pos += 1
                self.skip(True)
            elif c == "|":
                frame.begin()
                self.pos += 1
                self.skip(True)
            elif c == ")" and nested:
                frames.pop()
                self.result.places[frame.name] = frame.start
                self.result.rules[frame.name] = frame.alternatives
                frames[-1].add([frame.name], max(1, self.n_symbols - frame.n_before))
                self.pos += 1
                self.skip(len(frames) > 1)
            elif c in "*+?{":
                self.repetition(frame, nested)
            elif (symbols := self.item(c)) is not None:
                frame.add(symbols)
                self.skip(nested)
            else:
                break
        if len(frames) > 1:
            self.fail(
                self.pos, f"a ')' must stand here, for the '(' at {self.place(frames[-1].start)}, and {self.found()}"
            )
        return frames[0].alternatives

    def item(self, c: str) -> list[Symbol] | None:
        """What stands here: a text, a class, a token, any character, or the name of a rule; else None."""
        if c == '"':
            return self.string()
        if c == "[":
            return self.char_class()
        if c in "<!":
            self.token()
            return [None]
        if c == ".":
            self.pos += 1
            return [None]
        match = _NAME.match(self.text, self.pos)
        if match is None:
            return None
        self.use(match[0])
        self.pos = match.end()
        return [match[0]]

    def string(self) -> list[Symbol]:
        start = self.pos
        self.pos += 1
        n = 0
        while self.peek() != '"':
            if not self.peek():
                self.fail(start, "the text that begins here has no closing '\"'")
            self.char()
            n += 1
        self.pos += 1
        return [None] * n

    def char_class(self) -> list[Symbol]:
        start = self.pos
        self.pos += 1
        negated = self.peek() == "^"
        self.pos += negated
        wide, empty = False, True
        while self.peek() != "]":
            if not self.peek():
                self.fail(start, "the class that begins here has no closing ']'")
            at = self.pos
            low = high = self.char()
            if self.peek() == "-" and self.text[self.pos + 1 : self.pos + 2] not in ("]", ""):
                self.pos += 1
                high = self.char()
                if high < low:
                    self.fail(at, f"the range {self.text[at : self.pos]} ends before it begins")
            wide = wide or high > 127
            empty = False
        self.pos += 1
        self.result.excludes_wide |= negated and wide
        # llama.cpp makes nothing of a class without characters.
        return [] if empty else [None]

    def char(self) -> int:
        c = self.peek()
        if c != "\\":
            self.pos += 1
            return ord(c)
        kind = self.text[self.pos + 1 : self.pos + 2]
        if kind in _HEX:
            digits = self.text[self.pos + 2 : self.pos + 2 + _HEX[kind]]
            if len(digits) < _HEX[kind] or not _HEX_DIGITS.fullmatch(digits):
                self.fail(self.pos, f"'\\{kind}' takes {_HEX[kind]} hexadecimal digits, not {digits!r}")
            self.pos += 2 + _HEX[kind]
            value = int(digits, 16)
            if value > 0x10FFFF:
                self.fail(self.pos - 2 - _HEX[kind], f"there is no character \\{kind}{digits}")
            return value
        if not kind or kind not in _ESCAPES:
            self.fail(self.pos, f"there is no escape '\\{kind}', only \\x \\u \\U \\t \\r \\n \\\\ \\\" \\[ \\] \\-")
        self.pos += 2
        return ord(_ESCAPES[kind])

    def token(self) -> None:
        self.pos += self.peek() == "!"
        start = self.pos
        match = _TOKEN_ID.match(self.text, start) or (
            None if self.text.startswith("<[", start) else _TOKEN_TEXT.match(self.text, start)
        )
        if match is None or (match.re is _TOKEN_ID and int(match[1]) > 2**31 - 1):
            self.fail(start, "a token must stand here, as <[42]> or <its text>")
            return
        self.result.names_tokens = True
        self.pos = match.end()

    def place(self, pos: int) -> str:
        return f"line {self.text.count(chr(10), 0, pos) + 1}, column {pos - self.text.rfind(chr(10), 0, pos)}"

    def repetition(self, frame: _Frame, nested: bool) -> None:
        start = self.pos
        least, most = self.counts(nested)
        symbols = frame.alternatives[-1]
        item = symbols[frame.last :]
        if not item:
            self.fail(start, f"there is nothing to repeat before {self.text[start]!r}")
        if most is not None and most < least:
            self.fail(start, f"the repetition {self.text[start : self.pos].strip()} ends before it begins")
        if least > MAX_REPETITIONS:
            self.fail(start, f"at most {MAX_REPETITIONS} repetitions are possible, not {least}")
        if most is not None and most > MAX_REPETITIONS:
            most = None  # llama.cpp takes it for no limit
        total = most if most else least if least else 1
        frame.weight *= total
        if frame.weight > MAX_REPETITIONS:
            self.fail(
                start,
                f"repeating this so often would take {frame.weight} rules, and llama.cpp takes {MAX_REPETITIONS}",
            )
        del symbols[frame.last :]
        symbols += item * least
        n_optional = 1 if most is None else most - least
        if n_optional:
            # S{,2} as llama.cpp builds it: S2 ::= S S1 | ε, S1 ::= S | ε. One of these is enough to know its traits.
            name = self.generate()
            self.n_generated += n_optional - 1
            self.result.places[name] = start
            self.result.rules[name] = [[*item, name] if most is None else item, []]
            symbols.append(name)

    def counts(self, nested: bool) -> tuple[int, int | None]:
        c = self.peek()
        self.pos += 1
        self.skip(nested)
        if c != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        least = self.integer("the number of repetitions")
        most: int | None = least
        if self.peek() == ",":
            self.pos += 1
            self.skip(nested)
            most = self.integer("a number") if _DIGITS.match(self.text, self.pos) else None
            self.skip(nested)
        if self.peek() != "}":
            self.fail(self.pos, f"the repetition must be closed by '}}' here, and {self.found()}")
        self.pos += 1
        self.skip(nested)
        return least, most

    def integer(self, what: str) -> int:
        match = _DIGITS.match(self.text, self.pos)
        if match is None:
            self.fail(self.pos, f"{what} must stand here, and {self.found()}")
            return 0
        if len(match[0]) > 9:
            self.fail(self.pos, f"at most {MAX_REPETITIONS} repetitions are possible, not {match[0]}")
        self.pos = match.end()
        self.skip(False)
        return int(match[0])


def _nullable(rules: Rules) -> set[str | int]:
    """The rules that the empty text follows."""
    empty: set[str | int] = set()
    changed = True
    while changed:
        changed = False
        for name, alternatives in rules.rules.items():
            if name not in empty and any(all(symbol in empty for symbol in item) for item in alternatives):
                empty.add(name)
                changed = True
    return empty


def _check_left_recursion(parser: _Parser) -> None:
    """Refuse what llama.cpp refuses, and what it does not and would never come to an end with.

    It looks only past parts that are empty by an alternative of their own. Where the rest of a rule still stands behind
    the reference back to it, its stacks grow without end; a reference at the end of a rule leaves nothing behind.
    """
    rules, empty = parser.result, _nullable(parser.result)
    seen_by_it: dict[str | int, list[str | int]] = {}
    firsts: dict[str | int, list[str | int]] = {}
    not_last: list[tuple[str | int, str | int]] = []
    for name, alternatives in rules.rules.items():
        seen_by_it[name], firsts[name] = [], []
        for item in alternatives:
            seen = True
            for i, symbol in enumerate(item):
                if symbol is None:
                    break
                firsts[name].append(symbol)
                if i + 1 < len(item):
                    not_last.append((name, symbol))
                if seen:
                    seen_by_it[name].append(symbol)
                    seen = any(not other for other in rules.rules[symbol])
                if symbol not in empty:
                    break
    refused = _components(seen_by_it)
    edges = [(name, symbol) for name, symbols in seen_by_it.items() for symbol in symbols]
    circles = [symbol for name, symbol in edges if refused[name] == refused[symbol]]
    grown = _components(firsts)
    circles += [symbol for name, symbol in not_last if grown[name] == grown[symbol]]
    if circles:
        parser.fail(
            rules.places[circles[0]],
            f"{_say(circles[0])} begins with itself (left recursion), which llama.cpp cannot do"
            + (": what is repeated here may be empty" if isinstance(circles[0], int) else ""),
        )


def _components(graph: dict[str | int, list[str | int]]) -> dict[str | int, int]:
    """Number the nodes so that two have the same number where each can be reached from the other (Tarjan)."""
    index: dict[str | int, int] = {}
    low: dict[str | int, int] = {}
    number: dict[str | int, int] = {}
    path: list[str | int] = []
    for start in graph:
        stack: list[tuple[str | int, int]] = [] if start in index else [(start, 0)]
        while stack:
            name, i = stack.pop()
            if i == 0:
                index[name] = low[name] = len(index)
                path.append(name)
            elif graph[name][i - 1] not in number:
                low[name] = min(low[name], low[graph[name][i - 1]])
            while i < len(graph[name]) and graph[name][i] in index:
                if graph[name][i] not in number:
                    low[name] = min(low[name], index[graph[name][i]])
                i += 1
            if i < len(graph[name]):
                stack += [(name, i + 1), (graph[name][i], 0)]
            elif low[name] == index[name]:
                while True:
                    member = path.pop()
                    number[member] = index[name]
                    if member == name:
                        break
    return number


def endless(rules: Rules, root: str = "root") -> list[str]:
    """The rules that no text can ever complete; none where the root can be completed."""
    ends: set[str | int | None] = {None}
    changed = True
    while changed:
        changed = False
        for name, alternatives in rules.rules.items():
            if name not in ends and any(all(symbol in ends for symbol in item) for item in alternatives):
                ends.add(name)
                changed = True
    return [] if root in ends else [name for name in rules.rules if name not in ends and isinstance(name, str)]


def _say(name: str | int) -> str:
    return f"the rule {name!r}" if isinstance(name, str) else "this part"
