"""How commands turn the model that was named into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.cli.output import human_size, progress_bar

if TYPE_CHECKING:
    from pyllm.hub.registry import KnownModel
    from pyllm.hub.source import Offer

MODEL_HELP = "A GGUF file, an alias, or a reference like owner/repo:Q4_K_M."


def find_model(name: str, *, yes: bool) -> Path:
    """The file that was named; a model that is not here is pulled after asking.

    Args:
        name: A path, an alias or a reference.
        yes: Pull without asking.

    Returns:
        The path of the file.

    Raises:
        ModelNotFoundError: It would have to be pulled, and nobody is there to be asked.
    """
    from pyllm import hub
    from pyllm.errors import ModelNotFoundError
    from pyllm.hub.huggingface import is_offline

    def agreed(model: KnownModel | Offer) -> bool:
        if is_offline():
            raise ModelNotFoundError(
                f"{model.alias} is not in the cache, and --offline or HF_HUB_OFFLINE forbids to download it"
            )
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ModelNotFoundError(
                f"{model.alias} is not in the cache and nobody can be asked; "
                f"run `pyllm pull {model.alias}` first, or add --yes"
            )
        size = human_size(model.download_size) if model.download_size else "it"
        return _confirm(f"{model.description} is not here. Download {size} (licence: {model.licence})?")

    def pull_with_bar(model: KnownModel | Offer) -> bool:
        if not agreed(model):
            return False
        with progress_bar() as progress:
            hub.pull(name, progress=progress)
        return True

    # The pull happens inside the question, so that its bar is gone before anything else is written.
    return hub.resolve(name, download=pull_with_bar)


def find_companions(arguments: dict[str, Any], *, yes: bool) -> dict[str, Any]:
    """Arguments of a Llama in which the draft model and adapters that were named are files; see :func:`find_model`."""
    found = dict(arguments)
    if "draft" in found:
        found["draft"] = find_model(found["draft"], yes=yes)
    if "lora" in found:
        found["lora"] = [(find_model(name, yes=yes), scale) for name, scale in found["lora"]]
    return found


def _confirm(question: str) -> bool:
    # typer.confirm writes a blank to stdout even when it is told to use stderr.
    while True:
        print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        answer = line.strip().lower()
        if not line:
            return False  # the terminal was closed
        if answer in ("", "y", "yes"):
            return True
        if answer in ("n", "no"):
            return False
