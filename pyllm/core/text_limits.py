"""Limits on grammars and regular expressions, checked before llama.cpp parses them.

Its parsers, and std::regex behind its patterns, recurse as deep as the text asks them to, and a stack that overflows
ends the process. Grammars often come from strangers: a server takes them from requests.
"""

from __future__ import annotations

import re

from pyllm.errors import GrammarError, InvalidArgumentError

MAX_NESTING = 256
MAX_RULES = 8192
MAX_PATTERN = 4096

# String literals, character classes and comments: what stands in them is no syntax. Then what is to be counted.
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"?|\[(?:[^\]\\]|\\.)*\]?|#[^\n]*|(?P<open>\()|(?P<close>\))|(?P<rule>::=)'
    r"|\{\s*(?P<least>\d*)\s*(?P<comma>,?)\s*(?P<most>\d*)\s*\}",
    re.DOTALL,
)


def check_grammar(grammar: str) -> None:
    """Refuse a GBNF grammar that llama.cpp could not survive.

    Raises:
        GrammarError: Parentheses too deep, too many rules, or a repetition that ends before it begins; the message
            names line and column.
    """
    depth = rules = 0
    for match in _TOKEN.finditer(grammar):
        if match["open"]:
            depth += 1
        elif match["close"]:
            depth = max(0, depth - 1)
        elif match["rule"]:
            rules += 1
        if depth > MAX_NESTING:
            raise GrammarError(
                f"the grammar cannot be used: {_place(grammar, match)}: parentheses are nested more than "
                f"{MAX_NESTING} deep"
            )
        if rules > MAX_RULES:
            raise GrammarError(
                f"the grammar cannot be used: {_place(grammar, match)}: there are more than {MAX_RULES} rules"
            )
        least, most = match["least"], match["most"]
        if least and most and match["comma"] and int(most) < int(least):
            raise GrammarError(
                f"the grammar cannot be used: {_place(grammar, match)}: the repetition {match[0]} ends before it begins"
            )


def check_pattern(pattern: str | bytes, what: str) -> None:
    """Refuse a regular expression that std::regex could not survive.

    Raises:
        InvalidArgumentError: It is too long, or its groups are nested too deep.
    """
    text = pattern.decode("utf-8", "replace") if isinstance(pattern, bytes) else pattern
    depth = deepest = 0
    for character in re.sub(r"\\.", "", text, flags=re.DOTALL):
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if len(text) > MAX_PATTERN or deepest > MAX_NESTING:
        raise InvalidArgumentError(
            f"{what} may have {MAX_PATTERN} characters and groups nested {MAX_NESTING} deep, "
            f"not {len(text)} and {deepest}"
        )


def _place(text: str, match: re.Match[str]) -> str:
    line = text.count("\n", 0, match.start()) + 1
    column = match.start() - text.rfind("\n", 0, match.start())
    return f"line {line}, column {column}"
