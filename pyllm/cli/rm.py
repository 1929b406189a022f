"""``pyllm rm``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyllm.cli.output import note


def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Aliases and references, as `pyllm list` shows them.")
    ],
) -> None:
    """Delete models from the cache, and what interrupted pulls left of them."""
    from pyllm import hub

    missing = [name for name in names if not hub.is_reference(name)]
    if missing:
        raise typer.BadParameter(
            f"{missing[0]} is neither an alias nor a reference, as `pyllm list` shows them; "
            "a file of yours is yours to delete"
        )
    failed = False
    for name in names:
        if hub.remove(name):
            note(f"removed {name}")
        else:
            note(f"{name} was not there")
            failed = True
    if failed:
        raise typer.Exit(1)
