"""The program ``pyllm``: within this process, which saves starting one each time; or as a user starts it."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = [sys.executable, "-m", "pyllm"]


def free_port() -> int:
    """A port of loopback that no program listens at just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Done:
    """What a run of the program has left."""

    stdout: str
    stderr: str
    returncode: int


def invoke(*arguments: object, input: str | bytes = "") -> Done:
    """Run the program within this process; what it does to the logging is undone."""
    from typer.testing import CliRunner

    from pyllm.cli import output
    from pyllm.cli.main import app

    loggers = [logging.getLogger(name) for name in ("pyllm", "pyllm.server", "uvicorn")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    try:
        done = CliRunner().invoke(app, [*map(str, arguments)], input=input, prog_name="pyllm")
    finally:
        output.set_verbose(False)
        # A handler that `serve` has set up writes to a stream which is closed now.
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.stdout, done.stderr, done.exit_code)


def start(*arguments: str | Path, input: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, in a process of its own; standard input is empty unless `input` is given."""
    return subprocess.run(  # type: ignore[call-overload]
        [*PROGRAM, *map(str, arguments)],
        input=input,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=550,
        **options,
    )
