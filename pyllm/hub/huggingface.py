"""Models on the Hugging Face hub, in the cache that its other programs use too.

The package huggingface_hub answers where a file is, who may have it, and where it belongs in the cache. The bytes are
fetched here, because a transfer that was cut off must go on where it was.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyllm.errors import (
    DownloadError,
    InvalidArgumentError,
    ModelNotFoundError,
    PyllmError,
    UnknownModelError,
)
from pyllm.extras import missing
from pyllm.hub import cache, transfer
from pyllm.hub.hf_cache import HubCache
from pyllm.hub.names import choose, is_model, is_safe, nearest, part_names, tags_of
from pyllm.hub.progress import Progress, silent
from pyllm.hub.source import Found, Offer, check_digest

_SCHEMES = ("hf://", "hf:")
_WEB = ("huggingface.co", "www.huggingface.co", "hf.co")
_ID = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_REPO = re.compile(rf"(?P<repo>{_ID}/{_ID})(?:@(?P<revision>[^:@]+?))?(?::(?P<tag>[\w.-]+)|/(?P<file>[^:]+))?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DEFAULT_REVISION = "main"
_MAX_REPO = 96
_TIMEOUT_SECONDS = 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository.

    Attributes:
        name: Its name there, with folders.
        size: Its size in bytes; 0 where the hub does not say.
    """

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model in a repository of the Hugging Face hub.

    Attributes:
        repo: The repository, "owner/name".
        revision: Branch, tag or commit.
        tag: The quantization; an empty string where none was named.
        file: The file; an empty string where none was named.
    """

    repo: str
    revision: str = _DEFAULT_REVISION
    tag: str = ""
    file: str = ""

    @classmethod
    def parse(cls, text: str, *, bare: bool = True) -> HubModel | None:
        """The model that a reference names; None where it names none.

        Args:
            text: ``owner/repo``, ``owner/repo:QUANTIZATION`` or ``owner/repo/file.gguf``, with ``@revision`` behind the
                repository if it is not main, and perhaps with ``hf:`` or ``hf://`` in front; or an address on
                huggingface.co.
            bare: Whether it may do without ``hf:``.

        Raises:
            InvalidArgumentError: It begins with ``hf:`` and does not go on so.
        """
        if (found := _from_web(text)) is not None:
            return found
        scheme = next((scheme for scheme in _SCHEMES if text.lower().startswith(scheme)), "")
        match = _REPO.fullmatch(text[len(scheme) :]) if scheme or bare else None
        if match is not None and _is_repo(match["repo"]) and _sound(match["revision"], match["file"]):
            return cls(match["repo"], match["revision"] or _DEFAULT_REVISION, match["tag"] or "", match["file"] or "")
        if scheme:
            raise InvalidArgumentError(
                f"{text!r} names no model on the hub; it must be hf:owner/repo, hf:owner/repo:Q4_K_M or "
                "hf:owner/repo/file.gguf, with @revision behind the repository where it is not main"
            )
        return None

    @property
    def reference(self) -> str:
        """The shortest name for it."""
        revision = f"@{self.revision}" if self.revision != _DEFAULT_REVISION else ""
        return self.repo + revision + (f"/{self.file}" if self.file else f":{self.tag}" if self.tag else "")

    @property
    def _cache(self) -> HubCache:
        return HubCache(cache_folder(), self.repo)

    def _choose(self, names: list[str]) -> str | None:
        if self.file:
            return self.file if self.file in names else None
        return choose(names, self.tag)

    def cached(self) -> Path | None:
        """The file in the cache, with all its parts; of a split model the first."""
        files = self._cache.files(self.revision)
        name = self._choose(sorted(files))
        return files[name] if name is not None and _parts_here(name, files) else None

    def offer(self) -> Offer:
        """What a pull would bring; asks the hub."""
        files, licence = self._ask()
        parts = self._parts(files)
        size = sum(file.size for file in parts)
        return Offer(self.reference, f"{parts[0].name} of {self.repo}", licence, size)

    def pull(self, progress: Progress, *, force: bool = False) -> Path:
        """Bring the newest file of the revision here. Where the hub cannot be reached, what is here must do.

        Raises:
            MissingDependencyError: huggingface_hub is not installed.
            UnknownModelError: There is no such repository, revision or file, or not for everybody.
            ModelNotFoundError: It is not here, and ``HF_HUB_OFFLINE`` is set.
            DownloadError: The hub cannot be reached, or refuses.
            ChecksumError: What came is not what the hub has.
        """
        if is_offline():
            path = self.cached()
            if path is None or force:
                raise ModelNotFoundError(
                    f"{self.reference} is not in {cache_folder()}, and HF_HUB_OFFLINE is set; it has "
                    f"{', '.join(tags_of(self._cache.files(self.revision))) or 'nothing of it'}"
                )
            return path
        try:
            files, _ = self._ask()
        except DownloadError:
            if not force and (path := self.cached()):
                return path
            raise
        parts = self._parts(files)
        total = sum(part.size for part in parts)
        done, paths = 0, []
        label = f"downloading {self.reference}"
        for part in parts:
            start = done

            def report(bytes_done: int, _: int, start: int = start) -> None:
                progress(start + bytes_done, total, label)

            paths.append(self._pull_part(part, report, progress, force=force))
            done += part.size
        return paths[0]

    def names(self) -> list[str]:
        """The names of all files of the revision; asks the hub."""
        return [file.name for file in self._ask()[0]]

    def download(self, name: str, **places: str) -> Path:
        """Bring one file of the repository here, whatever it is.

        Args:
            name: Its name there.
            **places: Where to put it: `local_dir` or `cache_dir` of huggingface_hub. Without any a GGUF file is taken
                from the hub's own cache, and a transfer that was cut off goes on.
        """
        if not places and name.endswith(".gguf"):
            model = HubModel(self.repo, self.revision, file=name)
            return model.cached() or model.pull(silent)
        hub = _import()
        with _hub_errors(self):
            found = hub.hf_hub_download(self.repo, name, revision=self.revision, endpoint=_endpoint(), **places)
        return Path(found)

    def remove(self) -> bool:
        """Delete its files from the cache; without quantization and file, all GGUF files of the repository."""
        files = self._cache.files(None)
        if self.file or self.tag:
            name = self._choose(sorted(files))
            names = part_names(name) if name else []
        else:
            names = list(files)
        with cache.disk_errors(cache_folder(), f"remove {self.reference}", 0):
            return self._cache.remove(names)

    def _ask(self) -> tuple[list[HubFile], str]:
        """The files of the repository, and its licence."""
        hub = _import()
        with _hub_errors(self):
            api = hub.HfApi(endpoint=_endpoint())
            info = api.model_info(self.repo, revision=self.revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
            files = [HubFile(entry.rfilename, entry.size or 0) for entry in info.siblings or ()]
            licence = (getattr(info, "card_data", None) or {}).get("license") or "see its page on the hub"
            return files, str(licence)

    def _parts(self, files: list[HubFile]) -> list[HubFile]:
        """The files of the model among those of the repository."""
        # Names are chosen by whoever made the repository, and become names on this disk.
        by_name = {file.name: file for file in files if is_safe(file.name)}
        name = self._choose(list(by_name))
        if name is None:
            raise self._unknown([file.name for file in files])
        names = part_names(name)
        missing = [part for part in names if part not in by_name]
        if missing:
            raise UnknownModelError(
                f"{self.repo} has {len(names) - len(missing)} of the {len(names)} parts of {name}; "
                f"{missing[0]} is not there"
            )
        return [by_name[part] for part in names]

    def _unknown(self, names: list[str]) -> UnknownModelError:
        models = [name for name in names if is_model(name) and is_safe(name)]
        tags = tags_of(models)
        if not models:
            return UnknownModelError(f"{self.repo} has no GGUF files; a repository that has usually ends in -GGUF")
        if self.file:
            near = nearest(self.file, models) or models[:5]
            return UnknownModelError(f"{self.repo} has no file {self.file!r}; it has {', '.join(near)}")
        near = nearest(self.tag, tags)
        rest = [tag for tag in tags if tag not in near]
        hint = f"did you mean {near[0]}? " if near else ""
        return UnknownModelError(
            f"{self.repo} has no {self.tag!r}; {hint}it has {', '.join([*near, *rest] or models[:5])}"
        )

    def _pull_part(self, part: HubFile, report: Callable[[int, int], None], progress: Progress, *, force: bool) -> Path:
        hub = _import()
        with _hub_errors(self):
            url = hub.hf_hub_url(self.repo, part.name, revision=self.revision, endpoint=_endpoint())
            token = hub.get_token()
            metadata = hub.get_hf_file_metadata(url, token=token or False, timeout=_TIMEOUT_SECONDS)
        if not metadata.etag or not metadata.commit_hash or not is_safe(metadata.etag) or "/" in metadata.etag:
            raise DownloadError(f"{url} does not say which file it is: no ETag, no commit; is HF_ENDPOINT a hub?")
        blob = self._cache.folder / "blobs" / metadata.etag
        what = f"download {part.name} of {self.repo}"
        key = f"hf-{self.repo.replace('/', '--')}-{metadata.etag[:40]}"
        with cache.locked_key(key, self.reference, progress), cache.disk_errors(blob.parent, what, metadata.size or 0):
            if force or not blob.is_file():
                blob.parent.mkdir(parents=True, exist_ok=True)
                partial = blob.with_name(f"{blob.name}.pyllm-partial")
                have = partial.stat().st_size if partial.is_file() else 0
                cache.require_room(blob.parent, what, (metadata.size or 0) - have)
                location = metadata.location
                ours = urllib.parse.urlsplit(location).netloc == urllib.parse.urlsplit(url).netloc
                headers = {"Authorization": f"Bearer {token}"} if token and ours else {}
                digest = metadata.etag if _DIGEST.fullmatch(metadata.etag) else None
                remote = transfer.Remote(location, metadata.size, headers, verified=digest is not None)
                transfer.fetch(remote, partial, report)
                if digest is not None:
                    check_digest(partial, digest, part.name, progress)
                cache.sync(partial)
                partial.replace(blob)
                partial.with_name(partial.name + ".etag").unlink(missing_ok=True)
            # The file is there; this puts its name beside it, as huggingface_hub does it on this platform.
            with _hub_errors(self):
                path = hub.hf_hub_download(
                    self.repo,
                    part.name,
                    revision=self.revision,
                    cache_dir=cache_folder(),
                    endpoint=_endpoint(),
                    token=token or False,
                )
        report(part.size, part.size)
        return Path(path)


def _from_web(text: str) -> HubModel | None:
    """The model at an address of the hub's web site."""
    if not text.lower().startswith(("https://", "http://")):
        return None
    parts = urllib.parse.urlsplit(text)
    hosts = {*_WEB, urllib.parse.urlsplit(_endpoint() or "https://huggingface.co").netloc}
    if parts.netloc.lower() not in hosts or parts.fragment:
        return None  # with a digest it is a file like others
    names = [urllib.parse.unquote(name) for name in parts.path.strip("/").split("/")]
    repo, rest = "/".join(names[:2]), names[2:]
    if not re.fullmatch(rf"{_ID}/{_ID}", repo):
        raise InvalidArgumentError(
            f"{text} is not the address of a model on the hub: https://huggingface.co/owner/repo"
        )
    if not rest:
        return HubModel(repo)
    if rest[0] == "tree" and len(rest) == 2:
        return HubModel(repo, rest[1])
    if rest[0] in ("blob", "resolve", "raw") and len(rest) >= 3 and _sound(rest[1], "/".join(rest[2:])):
        return HubModel(repo, rest[1], file="/".join(rest[2:]))
    raise InvalidArgumentError(f"{text} is neither the address of a repository nor that of a file in one")


def _is_repo(repo: str) -> bool:
    # The hub's own rules.
    return len(repo) <= _MAX_REPO and "--" not in repo and ".." not in repo


def _sound(revision: str | None, file: str | None) -> bool:
    return (revision is None or is_safe(revision)) and (file is None or (is_safe(file) and file.endswith(".gguf")))


def _import() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing("models on the Hugging Face hub need huggingface_hub", extra="hf") from error
    return huggingface_hub


def _endpoint() -> str | None:
    # huggingface_hub reads its environment once, when it is imported; ours is that of now.
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cache_folder() -> Path:
    """The cache of huggingface_hub: ``HF_HUB_CACHE``, ``HF_HOME`` with ``hub`` behind it, or its default."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(folder)).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(base, "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


@contextmanager
def _hub_errors(model: HubModel) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors of ours that say what to do."""
    from huggingface_hub import errors

    page = f"{_endpoint() or 'https://huggingface.co'}/{model.repo}"
    try:
        yield
    except PyllmError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{model.repo} is given to those who accepted its terms: do so at {page}, "
            "then set HF_TOKEN to a token of your account, or run: hf auth login",
            code=_status(error),
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownModelError(
            f"there is no repository {model.repo} on the hub, or it is private: then set HF_TOKEN to a token that may "
            "read it",
            code=_status(error),
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnknownModelError(f"{model.repo} has no revision {model.revision!r}", code=_status(error)) from error
    except errors.EntryNotFoundError as error:
        raise UnknownModelError(f"{model.repo} has no such file any more: {_short(error)}") from error
    except OSError as error:
        if error.filename is not None or error.errno is not None:
            raise  # of the disk
        raise _failed(model, error) from error
    except Exception as error:  # its HTTP library has been three by now, each with exceptions of its own
        raise _failed(model, error) from error


def _failed(model: HubModel, error: Exception) -> DownloadError:
    return DownloadError(f"the hub does not answer for {model.repo}: {_short(error)}", code=_status(error))


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _parts_here(name: str, files: Mapping[str, Path]) -> list[str]:
    """The names of all parts of a model; none where one is missing, or where there cannot be so many."""
    try:
        names = part_names(name)
    except DownloadError:
        return []
    return names if all(part in files for part in names) else []


def found() -> list[Found]:
    """The models in the hub's cache that are whole, one for each quantization."""
    result = []
    for store in HubCache.all(cache_folder()):
        for revision in store.revisions():
            files = store.files(revision)
            for name in sorted(files):
                parts = _parts_here(name, files)
                if not is_model(name) or parts[:1] != [name]:
                    continue
                size = sum(files[part].stat().st_size for part in parts)
                model = HubModel(store.repo, revision, file=name)
                for tag in tags_of([name]):
                    if choose(sorted(files), tag) == name:
                        model = HubModel(store.repo, revision, tag)
                result.append(Found(model.reference, name, "see its page on the hub", size, files[name]))
    return result
