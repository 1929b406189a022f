"""How commands get the texts they work on: as arguments, or line by line from standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer


def texts_or_lines(texts: list[str] | None, what: str) -> Iterator[str]:
    """The texts that were given, or else the lines of standard input, one after the other.

    Args:
        texts: The arguments.
        what: What is missing, for the message.

    Yields:
        str: Texts; a line without its end. Empty lines are left out.
    """
    if texts:
        yield from texts
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise typer.BadParameter(f"give {what}, or pipe them in, one in a line")
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise typer.BadParameter(f"line {number} of standard input is not UTF-8: {error}") from error
        if text.strip():
            yield text


def whole_input(text: str | None, what: str) -> str | bytes:
    """The text that was given, or else all of standard input, byte for byte.

    Args:
        text: The argument; "-" or None reads standard input.
        what: What is missing, for the message.
    """
    if text is not None and text != "-":
        return text
    if text is None and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter(f"give {what}, or pipe it in")
    return sys.stdin.buffer.read()
