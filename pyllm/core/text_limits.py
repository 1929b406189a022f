"""Limits on regular expressions, checked before std::regex parses them.

It recurses as deep as the text asks it to, and a stack that overflows ends the process. For grammars see
:mod:`pyllm.core.gbnf`.
"""

from __future__ import annotations

import re

from pyllm.errors import InvalidArgumentError

MAX_NESTING = 256
MAX_PATTERN = 4096


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
