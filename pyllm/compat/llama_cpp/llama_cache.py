"""Caches of computed prompts: what :meth:`Llama.set_cache` takes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pyllm.compat.llama_cpp.state import LlamaState

_MAGIC = b"pyllm LlamaState 1\n"
_HEADER = struct.Struct("<qqqqq")  # tokens, rows of logits, their length, bytes of the state, seed
_SUFFIX = ".llamastate"

Key = tuple[int, ...]


class BaseLlamaCache(ABC):
    """Keeps states by their tokens, and finds the one that shares most with a prompt.

    Args:
        capacity_bytes: The least recently used states go when there are more bytes than this, everything counted.
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Bytes in use."""

    @abstractmethod
    def _keys(self) -> Iterable[Key]:
        """The tokens of the states."""

    def _find_longest_prefix_key(self, key: Sequence[int]) -> Key | None:
        wanted = np.asarray(key, np.int64)
        best, longest = None, 0
        for candidate in self._keys():
            n = common_prefix(wanted, np.asarray(candidate, np.int64))
            if n > longest:
                best, longest = candidate, n
        return best

    @abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """The state that shares most tokens with the beginning of `key`; KeyError when none shares any."""

    @abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool: ...

    @abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None: ...


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two texts begin with in common."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


class LlamaRAMCache(BaseLlamaCache):
    """States in memory. Threads may share it."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[Key, LlamaState] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def cache_size(self) -> int:
        """Bytes in use, logits and token ids included."""
        with self._lock:
            return sum(state.nbytes for state in self.cache_state.values())

    def _keys(self) -> Iterable[Key]:
        return list(self.cache_state)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        with self._lock:
            found = self._find_longest_prefix_key(key)
            if found is None:
                raise KeyError("no state in the cache begins like this")
            self.cache_state.move_to_end(found)
            return self.cache_state[found]

    def __contains__(self, key: Sequence[int]) -> bool:
        with self._lock:
            return self._find_longest_prefix_key(key) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        with self._lock:
            whole = tuple(map(int, key))
            self.cache_state.pop(whole, None)
            self.cache_state[whole] = value
            while self.cache_state and self.cache_size > self.capacity_bytes:
                self.cache_state.popitem(last=False)


class LlamaDiskCache(BaseLlamaCache):
    """States in the files of a folder. Reading one leaves it there; damaged files are passed over.

    Args:
        cache_dir: The folder; it is made when the first state is kept.
        capacity_bytes: The files that were not used for longest go when there are more bytes than this.
    """

    def __init__(self, cache_dir: str | os.PathLike[str] = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self.cache_dir = Path(cache_dir)
        self._index: dict[Path, tuple[int, Key]] = {}  # path: (mtime when its tokens were read, tokens)

    @property
    def cache_size(self) -> int:
        """Bytes of the files."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[int, int, Path]]:
        """(time of last use, size, path) of each file, those unused for longest first."""
        found = []
        for path in self.cache_dir.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process has removed it
                info = path.stat()
                found.append((info.st_mtime_ns, info.st_size, path))
        return sorted(found)

    def _keys(self) -> Iterable[Key]:
        for mtime, _, path in self._files():
            known = self._index.get(path)
            if known is None or known[0] != mtime:
                tokens = _read_tokens(path)
                if tokens is None:
                    continue
                known = self._index[path] = (mtime, tokens)
            yield known[1]

    def _path(self, key: Key) -> Path:
        digest = hashlib.sha256(np.asarray(key, "<i4").tobytes()).hexdigest()
        return self.cache_dir / f"{digest[:40]}{_SUFFIX}"

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        found = self._find_longest_prefix_key(key)
        state = None if found is None else _read_state(self._path(found))
        if found is None or state is None:
            raise KeyError("no state in the cache begins like this")
        with contextlib.suppress(OSError):
            os.utime(self._path(found))
        return state

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._find_longest_prefix_key(key) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        whole = tuple(map(int, key))
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.cache_dir, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_packed(whole, value))
            os.replace(name, self._path(whole))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.capacity_bytes:
                break
            path.unlink(missing_ok=True)
            self._index.pop(path, None)
            total -= size


def _packed(key: Key, state: LlamaState) -> bytes:
    rows, width = state.scores.shape if state.scores.ndim == 2 else (0, 0)
    return b"".join(
        (
            _MAGIC,
            _HEADER.pack(len(key), rows, width, len(state.llama_state), state.seed),
            np.asarray(key, "<i4").tobytes(),
            np.asarray(state.scores, "<f4").tobytes() if rows else b"",
            state.llama_state,
        )
    )


def _read_tokens(path: Path) -> Key | None:
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            n, rows, width, size, _ = _HEADER.unpack(file.read(_HEADER.size))
            expected = len(_MAGIC) + _HEADER.size + 4 * (n + rows * width) + size
            if min(n, rows, width, size) < 0 or os.fstat(file.fileno()).st_size != expected:
                return None
            return tuple(np.frombuffer(file.read(4 * n), "<i4").tolist())
    except (OSError, struct.error, ValueError):
        return None


def _read_state(path: Path) -> LlamaState | None:
    tokens = _read_tokens(path)
    if tokens is None:
        return None
    try:
        data = path.read_bytes()
        n, rows, width, size, seed = _HEADER.unpack_from(data, len(_MAGIC))
        start = len(_MAGIC) + _HEADER.size + 4 * n
        scores = np.frombuffer(data, "<f4", rows * width, start).reshape(rows, width)
        state = data[start + 4 * rows * width :]
    except (OSError, struct.error, ValueError):
        return None
    return LlamaState(np.asarray(tokens, np.int32), scores, n, state, size, seed)


LlamaCache = LlamaRAMCache

__all__ = ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache"]
