"""Activations of a corpus, written to disk as they come: for sparse autoencoders, probes and statistics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from pyllm.errors import InvalidArgumentError
from pyllm.interp.cache import ActivationCache, save_safetensors
from pyllm.interp.names import Names
from pyllm.interp.runner import Interp

Text = str | bytes | Sequence[int] | NDArray[np.integer[Any]]

# Room for the header of a file whose length is not known yet.
_HEADER = 256


class NpyWriter:
    """A ``.npy`` file that rows are appended to, and that ``np.load(path, mmap_mode="r")`` reads at any time between.

    Args:
        path: The file. One that exists already is continued if its rows fit.
        row_shape: Shape of a row.
        dtype: Their type.

    Raises:
        InvalidArgumentError: The file that exists holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], row_shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
        self.path = Path(path)
        self.row_shape = tuple(row_shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if self.dtype.kind not in "fiub":
            raise InvalidArgumentError(f"rows are numbers, not {self.dtype}")
        self.n_rows = 0
        exists = self.path.exists() and self.path.stat().st_size > 0
        self._file = open(self.path, "r+b" if exists else "w+b")  # noqa: SIM115, closed by close()
        try:
            if exists:
                self._continue()
            else:
                self.flush()
        except BaseException:
            self._file.close()
            raise

    def _continue(self) -> None:
        try:
            version = npy.read_magic(self._file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, fortran, dtype = npy.read_array_header_1_0(self._file)
        except ValueError as error:
            raise InvalidArgumentError(
                f"{self.path} exists and is no .npy file that can be continued: {error}"
            ) from error
        if fortran or dtype != self.dtype or shape[1:] != self.row_shape or self._file.tell() != _HEADER:
            raise InvalidArgumentError(
                f"{self.path} exists with rows of {dtype} {shape[1:]}, and these are {self.dtype} {self.row_shape}"
            )
        self.n_rows = shape[0]
        # What a process that died left behind the last whole row is written over.
        self._file.seek(_HEADER + self.n_rows * self._row_bytes)
        self._file.truncate()

    @property
    def _row_bytes(self) -> int:
        return int(self.dtype.itemsize * np.prod(self.row_shape, dtype=np.int64))

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, shape (n, *row_shape)."""
        if rows.shape[1:] != self.row_shape:
            raise InvalidArgumentError(f"rows of {self.path.name} have shape {self.row_shape}, not {rows.shape[1:]}")
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.n_rows += len(rows)

    def flush(self) -> None:
        """Write the number of rows into the header: from here on the file is whole."""
        header = repr(
            {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.n_rows, *self.row_shape)}
        )
        text = npy.magic(1, 0) + (_HEADER - 10).to_bytes(2, "little")
        text += header.encode().ljust(_HEADER - 11) + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        self._file.write(text)
        self._file.seek(max(end, _HEADER))
        self._file.flush()

    def close(self) -> None:
        """Finish the file. Closing twice is allowed."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def capture_to_npy(
    lab: Interp,
    texts: Iterable[Text],
    folder: str | os.PathLike[str],
    names: Names,
    *,
    layers: Iterable[int] | int | None = None,
    positions: int | slice | Sequence[int] | None = None,
    dtype: DTypeLike = np.float32,
) -> dict[str, Path]:
    """Compute texts one after the other and append their activations to files, one ``.npy`` for each name.

    Memory holds the activations of lab.context.n_seq_max texts at a time. A folder that exists is continued.

    Args:
        lab: The model.
        texts: Texts or token ids, from any iterable; they are read as they are needed.
        folder: Where to; it is made.
        names: As in :meth:`pyllm.interp.Interp.capture`; every activation must have positions as its first dimension.
        layers: Only those of these layers.
        positions: Only the rows of these positions.
        dtype: How they are stored; float16 halves the size.

    Returns:
        dict: Paths by name, and "index": int32 rows (text, position, token) for the rows of every other file; the
        texts are numbered from 0, going on where the folder exists.
    """
    _check_stored(texts, dtype)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    index = NpyWriter(target / "index.npy", (3,), np.int32)
    writers: dict[str, NpyWriter] = {}
    try:
        number = _next_text(index.path)
        for cache in _caches(lab, texts, names, layers, positions):
            for name, values in cache.items():
                if name not in writers:
                    writers[name] = _writer(target, name, cache, dtype, index.n_rows)
                writers[name].append(values)
            index.append(_index_rows(cache, number))
            number += 1
            for writer in (*writers.values(), index):
                writer.flush()
    finally:
        for writer in (*writers.values(), index):
            writer.close()
    return {**{name: writer.path for name, writer in writers.items()}, "index": index.path}


def capture_to_safetensors(
    lab: Interp,
    texts: Iterable[Text],
    folder: str | os.PathLike[str],
    names: Names,
    *,
    layers: Iterable[int] | int | None = None,
    positions: int | slice | Sequence[int] | None = None,
    dtype: DTypeLike = np.float32,
    rows_per_file: int = 65536,
) -> list[Path]:
    """As :func:`capture_to_npy`, into ``activations-00000.safetensors`` and so on, which hold all names and "index".

    A folder that has such files is not continued.

    Args:
        rows_per_file: A file is written when so many rows have come together; they are held in memory until then.

    Returns:
        list[Path]: The files.

    Raises:
        InvalidArgumentError: The folder has such files already.
        MissingDependencyError: The safetensors package is not there.
    """
    _check_stored(texts, dtype)
    target = Path(folder)
    if rows_per_file < 1:
        raise InvalidArgumentError(f"rows_per_file must be at least 1, not {rows_per_file}")
    target.mkdir(parents=True, exist_ok=True)
    if next(target.glob("activations-*.safetensors"), None) is not None:
        raise InvalidArgumentError(f"{target} has activations in it already; take another folder, or remove them")
    paths: list[Path] = []
    held: dict[str, list[NDArray[Any]]] = {}
    n_held = 0

    def write() -> None:
        path = target / f"activations-{len(paths):05d}.safetensors"
        save_safetensors(path, {name: np.concatenate(parts) for name, parts in held.items()})
        paths.append(path)
        held.clear()

    for number, cache in enumerate(_caches(lab, texts, names, layers, positions)):
        for name, values in cache.items():
            _check_rows(name, cache)
            held.setdefault(name, []).append(values.astype(dtype))
        held.setdefault("index", []).append(_index_rows(cache, number))
        n_held += len(cache.positions)
        if n_held >= rows_per_file:
            write()
            n_held = 0
    if held:
        write()
    return paths


def _check_stored(texts: object, dtype: DTypeLike) -> None:
    if isinstance(texts, (str, bytes)):
        raise InvalidArgumentError("texts must be several: put a single one into a list")
    if np.dtype(dtype).kind != "f":
        raise InvalidArgumentError(f"activations are stored as floating-point numbers, not as {np.dtype(dtype)}")


def _caches(
    lab: Interp,
    texts: Iterable[Text],
    names: Names,
    layers: Iterable[int] | int | None,
    positions: int | slice | Sequence[int] | None,
) -> Iterator[ActivationCache]:
    waiting: list[Text] = []
    chosen = layers if layers is None or isinstance(layers, int) else list(layers)
    for text in texts:
        waiting.append(text)
        if len(waiting) == lab.context.n_seq_max:
            yield from lab.capture(waiting, names, layers=chosen, positions=positions)
            waiting = []
    if waiting:
        yield from lab.capture(waiting, names, layers=chosen, positions=positions)


def _index_rows(cache: ActivationCache, number: int) -> NDArray[np.int32]:
    rows = np.empty((len(cache.positions), 3), np.int32)
    rows[:, 0], rows[:, 1], rows[:, 2] = number, cache.positions, cache.tokens[cache.positions]
    return rows


def _check_rows(name: str, cache: ActivationCache) -> None:
    if cache.points[name].axis != 0:
        raise InvalidArgumentError(f"{name!r} has no rows by position and cannot be streamed")


def _writer(folder: Path, name: str, cache: ActivationCache, dtype: DTypeLike, n_rows: int) -> NpyWriter:
    _check_rows(name, cache)
    path = folder / f"{name.replace('/', '_')}.npy"
    writer = NpyWriter(path, cache[name].shape[1:], dtype)
    if writer.n_rows != n_rows:
        writer.close()
        raise InvalidArgumentError(f"{path} has {writer.n_rows} rows and the index of its folder {n_rows}")
    return writer


def _next_text(index: Path) -> int:
    rows = np.load(index, mmap_mode="r")
    return int(rows[-1, 0]) + 1 if len(rows) else 0


__all__ = ["NpyWriter", "capture_to_npy", "capture_to_safetensors"]
