"""What the name of a GGUF file says: its quantization, its place among the parts of a split model.

The rules are those of llama.cpp's own programs, so that the same words get the same file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyllm.errors import DownloadError

DEFAULT_TAGS = ("Q4_K_M", "Q8_0")
"""The quantizations that are taken where none is named, in this order; then comes the first file there is."""

_SUFFIX = ".gguf"
_PART = re.compile(r"^(.+)-([0-9]{5})-of-([0-9]{5})$", re.IGNORECASE)
_TAG = re.compile(r"[-.]([A-Z0-9_]+)$", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(?:I?Q\d|TQ\d|BF16|F16|F32|MXFP\d|NVFP\d)[A-Z0-9_]*", re.IGNORECASE)
# Files beside a model that are none by themselves: projectors, importance matrices, heads for drafting.
_COMPANIONS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class GGUFName:
    """A name, taken apart.

    Attributes:
        prefix: What stands before the number of the part and the suffix.
        tag: What ends the prefix, in upper case: usually the quantization, e.g. "Q4_K_M". May be empty.
        index: The number of the part, from 1.
        count: How many parts there are; 1 for a model in one file.
    """

    prefix: str
    tag: str
    index: int = 1
    count: int = 1


def split_name(path: str) -> GGUFName:
    """Take the name of a GGUF file apart.

    Args:
        path: The name, which may have folders in front.
    """
    prefix = path[: -len(_SUFFIX)] if path.endswith(_SUFFIX) else path
    index, count = 1, 1
    if part := _PART.match(prefix):
        prefix, index, count = part[1], int(part[2]), int(part[3])
    tag = _TAG.search(prefix)
    return GGUFName(prefix, tag[1].upper() if tag else "", index, count)


def is_model(path: str) -> bool:
    """Whether a file is a language model by its name, and not something that goes beside one."""
    name = path.rpartition("/")[2]
    return path.endswith(_SUFFIX) and not any(word in name for word in _COMPANIONS)


def is_safe(path: str) -> bool:
    """Whether a name that somebody else chose stays below the folder that it is put into, on every system."""
    parts = path.split("/")
    return bool(path) and not _UNSAFE.search(path) and all(part.strip(". ") for part in parts)


def choose(paths: Sequence[str], tag: str = "") -> str | None:
    """The model that a quantization means, or the one to take where none is named.

    Args:
        paths: The names of all files, in the order of the repository.
        tag: The quantization, in any case; or an empty string.

    Returns:
        The name of the file, of a split model its first part; None where there is no such file.
    """
    models = [path for path in paths if is_model(path) and split_name(path).index == 1]
    for wanted in (tag,) if tag else DEFAULT_TAGS:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        for path in models:
            if pattern.search(path):
                return path
    return models[0] if models and not tag else None


def part_names(path: str) -> list[str]:
    """The names of all parts of the model that this is the first part of; for a whole file its own.

    Raises:
        DownloadError: The name speaks of more parts than any model has.
    """
    name = split_name(path)
    if name.count <= 1:
        return [path]
    if name.count > _MAX_PARTS:
        raise DownloadError(f"{path} speaks of {name.count:,} parts; at most {_MAX_PARTS:,} are believed")
    return [f"{name.prefix}-{number:05d}-of-{name.count:05d}{_SUFFIX}" for number in range(1, name.count + 1)]


def tags_of(paths: Iterable[str]) -> list[str]:
    """The quantizations among files, each once, in their order."""
    names = [split_name(path) for path in paths if is_model(path)]
    return list(dict.fromkeys(name.tag for name in names if _QUANTIZATION.fullmatch(name.tag)))


def nearest(name: str, known: Iterable[str], n: int = 5) -> list[str]:
    """Those of the known names that are most like this one, the nearest first; case does not matter."""
    spelled = {item.lower(): item for item in known}
    return [spelled[item] for item in difflib.get_close_matches(name.lower(), spelled, n=n, cutoff=0.3)]
