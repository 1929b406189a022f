"""Where ``pyllm chat`` reads and writes: a terminal, or plain streams."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyllm.cli.chat_session import data_dir
from pyllm.cli.output import note
from pyllm.errors import InvalidArgumentError
from pyllm.extras import missing

if TYPE_CHECKING:
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyPressEvent

QUOTES = '"""'
_PROMPT = "> "
# What a model writes must not move the cursor, set the title or answer as the keyboard would.
_UNSAFE = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


class Screen:
    """Plain streams: lines from standard input, text to standard output, no control codes."""

    is_terminal = False

    def __init__(self) -> None:
        self._column_0 = True
        self.status: Callable[[], str] = str
        self.complete: Callable[[str], Iterable[str]] = lambda line: ()

    def read(self) -> str | None:
        """The next message, or None at the end; between two lines that are three quotes it may have several lines."""
        line = self._line()
        if line is None or not line.startswith(QUOTES):
            return line
        lines = [line]
        while (joined := block(lines)) is None:
            following = self._line()
            if following is None:
                raise InvalidArgumentError(f"the input ended before the closing {QUOTES}")
            lines.append(following)
        return joined

    def _line(self) -> str | None:
        if sys.stdin is None:
            return None
        try:
            raw = sys.stdin.buffer.readline().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"standard input is not UTF-8: {error}") from error
        return raw.removesuffix("\n").removesuffix("\r") if raw else None

    def write(self, text: str, *, dim: bool = False) -> None:
        """Show a piece of an answer at once; thinking is dim, and only shown on a terminal."""
        if dim:
            return
        self._put(text)

    def end(self) -> None:
        """End an answer's last line."""
        if not self._column_0:
            self._put("\n")

    def show(self, text: str) -> None:
        """Show what a command has to say."""
        self.end()
        self._put(text + "\n")

    def warn(self, text: str) -> None:
        """Say what went wrong."""
        self.end()
        note(text)

    def _put(self, text: str) -> None:
        if text:
            self._column_0 = text.endswith("\n")
            sys.stdout.write(text)
            sys.stdout.flush()


class Terminal(Screen):
    """A terminal, with a line editor."""

    is_terminal = True

    def __init__(self) -> None:
        super().__init__()
        self._session: Any = None
        self._is_dim = False
        self._colour = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def read(self) -> str | None:
        """The next message; None on Ctrl-D. Ctrl-C empties the line."""
        if self._session is None:
            self._session = self._make_session()
        while True:
            try:
                text: str = self._session.prompt()
            except KeyboardInterrupt:
                self.show("(Ctrl-D or /exit ends)")
                continue
            except EOFError:
                return None
            joined = block(text.split("\n"))
            return text if joined is None else joined

    def write(self, text: str, *, dim: bool = False) -> None:
        """Show a piece of an answer at once."""
        if self._colour and dim != self._is_dim:
            sys.stdout.write("\x1b[2m" if dim else "\x1b[0m")
            self._is_dim = dim
        self._put(text.translate(_UNSAFE))

    def end(self) -> None:
        """End an answer's last line."""
        self.write("")
        super().end()

    def toolbar(self) -> str:
        """The status line, no wider than the terminal."""
        text, width = self.status(), shutil.get_terminal_size().columns
        return text if len(text) < width else text[: max(0, width - 1)]

    def _make_session(self) -> Any:
        try:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.history import FileHistory, InMemoryHistory
        except ImportError as error:
            raise missing("pyllm chat needs prompt_toolkit", extra="cli") from error
        try:
            folder = data_dir()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "chat_history"
            os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
            history: Any = FileHistory(str(path))
        except OSError as error:
            self.warn(f"the input is not kept: {error}")
            history = InMemoryHistory()
        return PromptSession(
            _PROMPT,
            history=history,
            multiline=True,
            prompt_continuation=". ",
            key_bindings=_key_bindings(),
            completer=_completer(self),
            complete_while_typing=False,
            bottom_toolbar=self.toolbar,
        )


def open_screen() -> Screen:
    """A terminal where both ends of it are one, else plain streams."""
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        return Terminal()
    return Screen()


def block(lines: list[str]) -> str | None:
    """The text between three quotes and three quotes, or None while it is open or where there are none."""
    text = "\n".join(lines)
    stripped = text.rstrip()
    if not text.startswith(QUOTES) or len(stripped) < 2 * len(QUOTES) or not stripped.endswith(QUOTES):
        return None
    return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")


def _key_bindings() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text.startswith(QUOTES) and block(buffer.text.split("\n")) is None:
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _completer(screen: Screen) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: object) -> Iterable[Completion]:
            line = document.text_before_cursor
            word = line.rpartition(" ")[2]
            for candidate in screen.complete(line):
                yield Completion(candidate, start_position=-len(word))

    return Commands()
