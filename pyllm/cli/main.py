"""The program: its commands, and how errors leave it."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pyllm.cli.chat import chat
from pyllm.cli.command import Command
from pyllm.cli.doctor import devices, doctor
from pyllm.cli.embed import embed
from pyllm.cli.inspect import inspect
from pyllm.cli.list import list_
from pyllm.cli.output import is_verbose, note
from pyllm.cli.pull import pull
from pyllm.cli.rerank import rerank
from pyllm.cli.rm import rm
from pyllm.cli.rpc_server import rpc_server
from pyllm.cli.run import run
from pyllm.cli.serve import serve
from pyllm.cli.tokenize import tokenize
from pyllm.errors import PyllmError

_FAILED = 1
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_BROKEN_PIPE = 141  # 128 + SIGPIPE


class _Group(TyperGroup):
    """Turns what a command raises into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except PyllmError as error:
            note(f"error: {_message(error)}")
            raise typer.Exit(_FAILED) from error
        except KeyboardInterrupt:
            note("")
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            _drop_output()  # nobody reads any more
            raise typer.Exit(_BROKEN_PIPE) from None
        except OSError as error:  # of standard output mostly: a disk that is full
            note(f"error: {error}")
            _drop_output()
            raise typer.Exit(_FAILED) from error
        return result


def _drop_output() -> None:
    # Python flushes stdout once again as it ends; let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: PyllmError) -> str:
    # str() of the error has llama.cpp's log below the message; with --verbose that log was shown as it came.
    return f"{error.message} (--verbose shows llama.cpp's log)" if error.log and not is_verbose() else error.message


def _show_version(wanted: bool) -> None:
    if wanted:
        from pyllm.version import __version__

        print(f"pyllm {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="pyllm",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(run)
app.command(cls=Command)(chat)
app.command(cls=Command)(pull)
app.command("list", cls=Command)(list_)
app.command(cls=Command)(rm)
app.command(cls=Command)(serve)
app.command("rpc-server", cls=Command)(rpc_server)
app.command(cls=Command)(embed)
app.command(cls=Command)(rerank)
app.command(cls=Command)(tokenize)
app.command(cls=Command)(inspect)
app.command(cls=Command)(devices)
app.command(cls=Command)(doctor)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run language models with llama.cpp."""


def main() -> None:
    """Run the program with the arguments of this process."""
    for stream in (sys.stdout, sys.stderr):
        # Generated text is any Unicode, whatever the code page of the terminal is.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    app(prog_name="pyllm")
