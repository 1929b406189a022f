"""Models that Ollama has pulled: used where they lie, and never copied."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyllm.errors import DownloadError, InvalidArgumentError, ModelNotFoundError
from pyllm.hub.names import nearest
from pyllm.hub.progress import Progress
from pyllm.hub.source import Found, Offer

_SCHEME = "ollama:"
_MODEL_TYPE = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?")
_REGISTRY, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model by Ollama's name for it.

    Attributes:
        host: The registry.
        namespace: Who published it.
        model: Its name.
        tag: Which of its variants.
    """

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> OllamaModel | None:
        """The model that ``ollama:[[host/]namespace/]model[:tag]`` names; None where the text begins otherwise.

        Raises:
            InvalidArgumentError: It begins so, and does not go on so.
        """
        if not text.lower().startswith(_SCHEME):
            return None
        folders, _, last = text[len(_SCHEME) :].removeprefix("//").rpartition("/")
        model, _, tag = last.partition(":")
        parts = folders.split("/") if folders else []
        host, namespace = [_REGISTRY, _NAMESPACE, *parts][-2:] if len(parts) != 1 else [_REGISTRY, *parts]
        tag = tag or _TAG
        if len(parts) > 2 or not _HOST.fullmatch(host) or not all(map(_PART.fullmatch, (namespace, model, tag))):
            raise InvalidArgumentError(f"{text!r} is no name of Ollama's: ollama:model, or ollama:model:tag")
        return cls(host, namespace, model, tag)

    @property
    def reference(self) -> str:
        """The shortest name for it."""
        parts = [self.host, self.namespace, self.model]
        if self.host == _REGISTRY:
            del parts[: 2 if self.namespace == _NAMESPACE else 1]
        return f"{_SCHEME}{'/'.join(parts)}:{self.tag}"

    def cached(self) -> Path | None:
        """The file, where Ollama has it."""
        for store in stores():
            manifest = store / "manifests" / self.host / self.namespace / self.model / self.tag
            if manifest.is_file():
                return _blob(store, manifest)
        return None

    def offer(self) -> Offer:
        """Nothing: what Ollama does not have is for Ollama to pull.

        Raises:
            ModelNotFoundError: Always, with the names that are nearest.
        """
        name = self.reference.removeprefix(_SCHEME)
        known = [found.reference for found in found()]
        near = nearest(self.reference, known)
        there = f"; it has {', '.join(near or known[:5])}" if known else ""
        where = ", ".join(map(str, stores()))
        raise ModelNotFoundError(
            f"Ollama does not have {name} in {where}{there}; get it with: ollama pull {name}, "
            "or set OLLAMA_MODELS to where its models are"
        )

    def pull(self, progress: Progress, *, force: bool = False) -> Path:
        """The file, where Ollama has it; nothing is pulled.

        Raises:
            ModelNotFoundError: Ollama does not have it.
        """
        path = self.cached()
        if path is None:
            self.offer()
            raise AssertionError  # it has raised
        return path

    def remove(self) -> bool:
        """Nothing: the file belongs to Ollama.

        Raises:
            DownloadError: Always.
        """
        name = self.reference.removeprefix(_SCHEME)
        raise DownloadError(f"{name} belongs to Ollama and is removed with: ollama rm {name}")


def stores() -> list[Path]:
    """The folders in which Ollama may keep its models: ``OLLAMA_MODELS``, or those it has by default."""
    if folder := os.environ.get("OLLAMA_MODELS"):
        return [Path(folder).expanduser()]
    default = [Path.home() / ".ollama" / "models"]
    if sys.platform.startswith("linux"):
        # Where its installer lets the service run as a user of its own.
        default.append(Path("/usr/share/ollama/.ollama/models"))
    return default


def _blob(store: Path, manifest: Path) -> Path:
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_TYPE]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFoundError(f"Ollama's manifest {manifest} cannot be read: {error}") from error
    if not digests or not isinstance(digests[0], str) or not _DIGEST.fullmatch(digests[0]):
        raise ModelNotFoundError(f"Ollama's manifest {manifest} names no model")
    path = store / "blobs" / digests[0].replace(":", "-")
    if not path.is_file():
        raise ModelNotFoundError(f"Ollama's manifest {manifest} names {path}, which is not there; pull it again")
    return path


def _manifests() -> Iterator[tuple[Path, Path]]:
    for store in stores():
        folder = store / "manifests"
        try:
            yield from ((store, path) for path in sorted(folder.glob("*/*/*/*")) if path.is_file())
        except OSError:
            continue  # somebody else's


def found() -> list[Found]:
    """The models that Ollama has."""
    result = []
    for store, manifest in _manifests():
        model = OllamaModel(*manifest.parts[-4:])
        try:
            path = _blob(store, manifest)
        except ModelNotFoundError:
            continue
        size = path.stat().st_size
        result.append(Found(model.reference, "in Ollama's store", "see: ollama show --license", size, path))
    return result
