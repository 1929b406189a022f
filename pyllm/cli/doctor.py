"""``pyllm doctor`` and ``pyllm devices``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyllm.cli.output import set_verbose
from pyllm.cli.report import show

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log.")]


def doctor(json: _Json = False, verbose: _Verbose = False) -> None:
    """Show what this installation is, what it runs on and what is missing."""
    set_verbose(verbose)
    show("doctor", as_json=json)


def devices(
    rpc: Annotated[
        str | None,
        typer.Option("--rpc", envvar="LLAMA_ARG_RPC", metavar="HOST:PORT,...", help="RPC servers to list as well."),
    ] = None,
    json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """List the devices that models can be put on, and the backends that are not in use."""
    set_verbose(verbose)
    show("devices", as_json=json, servers=rpc)
