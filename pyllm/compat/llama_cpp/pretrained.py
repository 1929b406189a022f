"""Files of the Hugging Face hub by patterns."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pyllm.errors import InvalidArgumentError
from pyllm.hub.huggingface import HubModel

_PATTERN = re.compile(r"[*?\[]")


def fetch(
    repo_id: str,
    patterns: Sequence[str],
    *,
    local_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Bring files of a repository here.

    Args:
        repo_id: Owner and name of the repository.
        patterns: Names or patterns, of which each fits one file.
        local_dir: Where to put them; None: the hub's own cache.
        cache_dir: Another cache.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        InvalidArgumentError: No file fits, or several do.
        UnknownModelError: There is no such repository or file, or not for everybody.
        DownloadError: The hub cannot be reached, or refuses.
    """
    model = HubModel.parse(f"hf:{repo_id}")
    if model is None or model.reference != repo_id:
        raise InvalidArgumentError(f"repo_id must be 'owner/name', not {repo_id!r}")
    # A name without a pattern needs no list: what is here already is found without asking anybody.
    files = model.names() if any(_PATTERN.search(pattern) for pattern in patterns) else []
    names = [_the_one(files, pattern, repo_id) if _PATTERN.search(pattern) else pattern for pattern in patterns]
    places = {
        name: os.fspath(folder)
        for name, folder in (("local_dir", local_dir), ("cache_dir", cache_dir))
        if folder is not None
    }
    return [model.download(name, **places) for name in names]


def _the_one(files: Sequence[str], pattern: str, repo_id: str) -> str:
    found = [name for name in files if fnmatch.fnmatch(name, pattern)]
    if len(found) == 1:
        return found[0]
    what = "several files fit" if found else "no file fits"
    choices = ", ".join(found or [name for name in files if name.endswith(".gguf")])
    raise InvalidArgumentError(f"{what} {pattern!r} in {repo_id}: {choices or 'it has no .gguf files'}")


__all__ = ["fetch"]
