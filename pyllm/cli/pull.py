"""``pyllm pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyllm.cli.output import note, progress_bar


def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Aliases, as `pyllm list` shows them.")],
    force: Annotated[bool, typer.Option("--force", help="Download again what is already there.")] = False,
) -> None:
    """Download models into the cache and print where they are."""
    from pyllm import hub

    models = [hub.lookup(name) for name in names]  # an unknown name fails before anything is downloaded
    for model in models:
        note(f"{model.alias}: {model.description}; licence: {model.licence}")
        with progress_bar() as progress:
            path = hub.pull(model.alias, progress=progress, force=force)
        print(path, flush=True)
