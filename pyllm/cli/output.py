"""What commands write beside their result: notes, llama.cpp's log, progress. All of it goes to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllm.hub.progress import Progress

_PLAIN_STEPS = 10
_verbose = False


def note(text: str) -> None:
    """Write one line to stderr."""
    print(text and f"pyllm: {text}", file=sys.stderr, flush=True)


def set_verbose(verbose: bool) -> None:
    """Show llama.cpp's log on stderr, or keep it silent."""
    global _verbose
    _verbose = verbose
    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("pyllm")
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)


def is_verbose() -> bool:
    """Whether llama.cpp's log is shown."""
    return _verbose


def human_size(size: int) -> str:
    """A number of bytes for people, in decimal units as package indexes and disks use them."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress callback: a bar on a terminal, a few plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def report(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total or None, description=label)

        yield report


class _PlainProgress:
    """One line per label and per tenth of the way."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def __call__(self, done: int, total: int, label: str) -> None:
        step = done * _PLAIN_STEPS // total if total else 0
        if (label, step) != self._last:
            self._last = (label, step)
            note(f"{label}: {human_size(done)} of {human_size(total)}" if total else label)
