"""How the bytes of a token are shown: nothing invisible, nothing that changes the text around it."""

from __future__ import annotations

import unicodedata

#: How the end of a line is shown.
NEWLINE = "⏎"

_SYMBOLS = {"\n": NEWLINE, "\t": "⇥", "\r": "␍", "\x00": "␀"}

# Control, format (which turns the direction of writing), surrogate, private, unassigned, line and paragraph breaks.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def visible(piece: bytes) -> str:
    r"""The text of a token, as it stands in a line: spaces stay, what cannot be seen gets a sign or its number.

    Bytes that are no whole character show as ``\xf0``.

    Args:
        piece: The bytes of the token, from :meth:`pyllm.core.vocab.Vocab.token_to_piece`.

    >>> visible(b"one\n"), visible(b"\xf0\x9f"), visible("\u202etxt".encode())
    ('one⏎', '\\xf0\\x9f', '⟨U+202E⟩txt')
    """
    return "".join(map(_shown, piece.decode("utf-8", "backslashreplace")))


def label(piece: bytes, longest: int = 24) -> str:
    """The text of a token that stands by itself: spaces show as ␣, long ones are cut.

    Args:
        piece: The bytes of the token.
        longest: Characters that are shown.

    >>> label(b" the")
    '␣the'
    """
    text = visible(piece).replace(" ", "␣")
    if not text:
        return "∅"
    if unicodedata.category(text[0]).startswith("M"):
        text = "◌" + text  # what a mark without a letter is written on
    return text if len(text) <= longest else text[: longest - 1] + "…"


def width(text: str) -> int:
    """How many columns a text takes in a font of fixed width."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _shown(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    category = unicodedata.category(character)
    if category in _HIDDEN or (category == "Zs" and character != " "):
        return f"⟨U+{ord(character):04X}⟩"
    return character


__all__ = ["NEWLINE", "label", "visible", "width"]
