"""The cache of huggingface_hub, read without that package.

Its layout is a public interface, which several programs share::

    models--owner--name/blobs/<etag>                          the bytes
    models--owner--name/snapshots/<commit>/<name of file>     links to them, or copies
    models--owner--name/refs/<branch or tag>                  the commit that it was at last
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyllm.hub.names import is_safe

_PREFIX = "models--"
_SUFFIX = ".gguf"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubCache:
    """What the cache has of one repository.

    Attributes:
        root: The folder of the whole cache.
        repo: The repository, "owner/name".
    """

    root: Path
    repo: str

    @classmethod
    def all(cls, root: Path) -> Iterator[HubCache]:
        """Everything in a cache."""
        if not root.is_dir():
            return
        for folder in sorted(root.glob(f"{_PREFIX}*--*")):
            yield cls(root, folder.name.removeprefix(_PREFIX).replace("--", "/", 1))

    @property
    def folder(self) -> Path:
        """Where the repository lies."""
        return self.root / (_PREFIX + self.repo.replace("/", "--"))

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or a tag was at when it was last asked for; None where it never was."""
        if _COMMIT.fullmatch(revision):
            return revision
        if not is_safe(revision):
            return None
        try:
            text = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return text if _COMMIT.fullmatch(text) else None

    def revisions(self) -> list[str]:
        """Branches and tags that were asked for, and commits that none of them is at."""
        refs = self.folder / "refs"
        names = sorted(path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file())
        commits = {self.commit(name) for name in names}
        return names + [commit for commit in self._commits() if commit not in commits]

    def files(self, revision: str | None) -> dict[str, Path]:
        """The GGUF files of a revision, by name; of all commits with None.

        A link whose bytes were deleted is none.
        """
        commit = self.commit(revision) if revision is not None else None
        commits = self._commits() if revision is None else [commit] if commit else []
        found = {}
        for one in commits:
            snapshot = self.folder / "snapshots" / one
            for path in sorted(snapshot.rglob(f"*{_SUFFIX}")):
                if path.is_file():
                    found[path.relative_to(snapshot).as_posix()] = path
        return found

    def remove(self, names: Iterable[str]) -> bool:
        """Delete files by name from all commits, and the bytes that nothing else uses.

        Returns:
            bool: Whether one of them was there.
        """
        wanted, blobs = set(names), set()
        for commit in self._commits():
            snapshot = self.folder / "snapshots" / commit
            for path in sorted(snapshot.rglob(f"*{_SUFFIX}")):
                if path.relative_to(snapshot).as_posix() in wanted:
                    blobs.add(path.resolve())
                    path.unlink()
        used = {path.resolve() for path in (self.folder / "snapshots").rglob("*") if path.is_file()}
        for blob in blobs - used:
            # A link that leads elsewhere was not made by the hub's programs.
            if blob.parent == (self.folder / "blobs").resolve():
                blob.unlink(missing_ok=True)
        if blobs and not used:
            shutil.rmtree(self.folder)
        return bool(blobs)

    def _commits(self) -> list[str]:
        folder = self.folder / "snapshots"
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
