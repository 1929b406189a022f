"""``pyllm list``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from pyllm.cli.output import human_size

_PIPE_WIDTH = 1000


def list_(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the known models, and all others that are here: of the Hugging Face hub, from the web, of Ollama."""
    from pyllm import hub

    models = hub.list_models()
    if json:
        from json import dumps

        print(dumps([{**asdict(model), "path": str(model.path)} for model in models], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("alias", "size", "cached", "what"):
        table.add_column(heading, no_wrap=heading != "what")
    table.add_column("path", overflow="fold")
    for model in models:
        default = " (default)" if model.alias == hub.DEFAULT_MODEL else ""
        table.add_row(
            model.alias,
            human_size(model.size),
            "yes" if model.cached else "no",
            f"{model.description}{default}",
            str(model.path) if model.cached else "",
        )
    # Lines in a pipe are for programs: one per model, whatever its length.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
