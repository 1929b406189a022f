"""``pyllm doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyllm.cli.output import set_verbose


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log.")] = False,
) -> None:
    """Show what this installation is, what it runs on and what is missing."""
    set_verbose(verbose)
    from pyllm.cli.report import show

    show(as_json=json)
