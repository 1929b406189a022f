"""From what a user calls a model to the path of a file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from pyllm.errors import ModelLoadError, ModelNotFoundError
from pyllm.hub import cache
from pyllm.hub.progress import Progress
from pyllm.hub.registry import ALIASES, KnownModel, lookup, unknown
from pyllm.hub.store import pull

_SUFFIX = ".gguf"


def resolve(
    model: str | os.PathLike[str],
    *,
    download: bool | Callable[[KnownModel], bool] = True,
    progress: Progress | None = None,
) -> Path:
    """The file that a path or an alias means.

    A file that exists wins over an alias of the same name.

    Args:
        model: A path, or the alias of a known model.
        download: Whether a model that is not in the cache is pulled; a callable is asked with the model.
        progress: Told about the download, see `pull`.

    Returns:
        The path of a file that exists.

    Raises:
        ModelNotFoundError: It is a path where nothing is, or a known model that is not cached and may not be pulled.
        ModelLoadError: It is a folder.
        UnknownModelError: It is neither a file nor an alias.
        DownloadError: The pull failed.
    """
    text = os.fspath(model)
    path = Path(text).expanduser()
    if text and path.is_file():
        return path
    if isinstance(model, str) and model.lower() in ALIASES:
        return _resolve_alias(lookup(model), download, progress)
    if text and path.is_dir():
        raise ModelLoadError(f"{path} is a folder, not a GGUF file{_listing(path)}")
    if text and path.exists():
        return path  # a pipe or a device: let the loader say what it thinks of it
    if not isinstance(model, str) or looks_like_path(model):
        raise ModelNotFoundError(_not_found(path))
    raise unknown(model)


def looks_like_path(text: str) -> bool:
    """Whether a string is meant as a path rather than as an alias."""
    separators = {"/", os.sep, os.altsep or os.sep}
    return text.startswith((".", "~")) or text.lower().endswith(_SUFFIX) or any(sep in text for sep in separators)


def _resolve_alias(known: KnownModel, download: bool | Callable[[KnownModel], bool], progress: Progress | None) -> Path:
    if cache.is_cached(known):
        return cache.model_path(known)
    allowed = download(known) if callable(download) else download
    if not allowed:
        raise ModelNotFoundError(f"{known.alias} is not in the cache; get it with: pyllm pull {known.alias}")
    return pull(known.alias, progress=progress)


def _not_found(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist: there is no folder {folder}"
    near = difflib.get_close_matches(path.name, _model_files(folder), n=3)
    if near:
        return f"{path} does not exist; near it in {folder}: {', '.join(near)}"
    return f"{path} does not exist{_listing(folder)}"


def _listing(folder: Path) -> str:
    files = _model_files(folder)
    if not files:
        return f"; there are no {_SUFFIX} files in {folder}"
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return f"; in {folder} there are: {', '.join(files[:5])}{more}"


def _model_files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(_SUFFIX))
    except OSError:
        return []
