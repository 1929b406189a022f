"""Activations of a corpus on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pyllm import errors
from pyllm.interp import Interp, NpyWriter, capture_to_npy, capture_to_safetensors

NAMES = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]


@pytest.mark.parametrize("n_sequences", [1, 4])
def test_npy(open_lab: Callable[..., Interp], texts: list[np.ndarray], tmp_path: Path, n_sequences: int) -> None:
    lab = open_lab(n_sequences=n_sequences)
    paths = capture_to_npy(lab, iter(texts), tmp_path / "out", NAMES)
    assert list(paths) == [*NAMES, "index"]
    arrays = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
    total = sum(map(len, texts))
    assert arrays[NAMES[0]].shape == (total, 64)
    assert arrays[NAMES[1]].shape == (total, 4, 16)
    start = 0
    for number, ids in enumerate(texts):
        rows = slice(start, start + len(ids))
        expected = np.stack([np.full(len(ids), number), np.arange(len(ids)), ids], axis=1)
        assert np.array_equal(arrays["index"][rows], expected)
        cache = lab.capture(ids, NAMES)
        for name in NAMES:
            assert np.allclose(arrays[name][rows], cache[name], atol=2e-3)
        start += len(ids)


def test_a_folder_is_continued(lab: Interp, texts: list[np.ndarray], tmp_path: Path) -> None:
    for part in (texts[:2], texts[2:], []):
        paths = capture_to_npy(lab, part, tmp_path / "parts", NAMES)
    capture_to_npy(lab, texts, tmp_path / "whole", NAMES)
    for path in [*(tmp_path / "whole").iterdir()]:
        assert np.array_equal(np.load(tmp_path / "parts" / path.name), np.load(path))
    assert paths["index"].name == "index.npy"


def test_half_precision_and_positions(lab: Interp, texts: list[np.ndarray], tmp_path: Path) -> None:
    paths = capture_to_npy(lab, texts, tmp_path, NAMES[0], positions=[-1], dtype=np.float16)
    values = np.load(paths[NAMES[0]])
    assert (values.shape, values.dtype) == ((len(texts), 64), np.float16)
    assert np.load(paths["index"])[:, 1].tolist() == [len(ids) - 1 for ids in texts]


def test_nothing_but_one_text_is_held(lab: Interp, tmp_path: Path) -> None:
    """Texts are taken from the iterator as they are needed, and what is done is on disk before the next one."""

    def corpus() -> Iterator[np.ndarray]:
        for number in range(4):
            if number:
                assert len(np.load(tmp_path / "index.npy")) == 10 * number
                assert len(np.load(tmp_path / f"{NAMES[0]}.npy")) == 10 * number
            yield np.arange(5 + number, 15 + number)

    capture_to_npy(lab, corpus(), tmp_path, NAMES)
    assert len(np.load(tmp_path / "index.npy")) == 40


def test_a_failure_leaves_whole_files(lab: Interp, texts: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(errors.PyllmError):
        capture_to_npy(lab, [texts[0], [10**6], texts[1]], tmp_path, NAMES)
    assert len(np.load(tmp_path / f"{NAMES[0]}.npy")) == len(np.load(tmp_path / "index.npy")) == len(texts[0])
    capture_to_npy(lab, texts[1:2], tmp_path, NAMES)
    assert np.load(tmp_path / "index.npy")[-1, 0] == 1


def test_what_has_no_rows(lab: Interp, texts: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="pattern"):
        capture_to_npy(lab, texts, tmp_path, "blocks.0.attn.hook_pattern")


def test_safetensors(lab: Interp, texts: list[np.ndarray], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    paths = capture_to_safetensors(lab, texts, tmp_path, NAMES, rows_per_file=25)
    assert [path.name for path in paths] == [f"activations-{i:05d}.safetensors" for i in range(3)]
    files = [safetensors.load_file(path) for path in paths]
    capture_to_npy(lab, texts, tmp_path / "npy", NAMES)
    for name in (*NAMES, "index"):
        assert np.array_equal(np.concatenate([file[name] for file in files]), np.load(tmp_path / "npy" / f"{name}.npy"))
    cache = lab.capture(texts[0], NAMES)
    assert np.array_equal(safetensors.load_file(cache.save(tmp_path / "c.safetensors"))[NAMES[0]], cache[NAMES[0]])
    with pytest.raises(errors.InvalidArgumentError, match="rows_per_file"):
        capture_to_safetensors(lab, texts, tmp_path, NAMES, rows_per_file=0)
    # What is there is neither written over nor mixed with something else.
    with pytest.raises(errors.InvalidArgumentError, match="already"):
        capture_to_safetensors(lab, texts[:1], tmp_path, NAMES)


def test_one_text_and_other_types_are_refused(lab: Interp, texts: list[np.ndarray], tmp_path: Path) -> None:
    for capture in (capture_to_npy, capture_to_safetensors):
        with pytest.raises(errors.InvalidArgumentError, match="list"):
            capture(lab, "one text", tmp_path, NAMES)
        for dtype in (np.int8, "U3", object):
            with pytest.raises(errors.InvalidArgumentError, match="floating-point"):
                capture(lab, texts, tmp_path, NAMES, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_without_the_package(
    lab: Interp, texts: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'safetensors>="):
        capture_to_safetensors(lab, texts, tmp_path, NAMES)


# ---- the writer


def test_writer(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    with NpyWriter(path, (3,), np.float16) as writer:
        assert np.load(path).shape == (0, 3)
        writer.append(np.ones((2, 3)))
        writer.flush()
        assert np.load(path, mmap_mode="r").shape == (2, 3)
        writer.append(np.zeros((1, 3)))
    writer.close()
    with NpyWriter(path, (3,), np.float16) as writer:
        assert writer.n_rows == 3
        writer.append(np.full((2, 3), 2))
    values = np.load(path)
    assert values.dtype == np.float16
    assert values[:, 0].tolist() == [1, 1, 0, 2, 2]


def test_rows_after_the_last_flush_are_written_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    with NpyWriter(path, (2,)) as writer:
        writer.append(np.ones((2, 2)))
    with open(path, "ab") as file:
        file.write(b"half a row")
    with NpyWriter(path, (2,)) as writer:
        writer.append(np.zeros((1, 2)))
    assert np.load(path)[:, 0].tolist() == [1, 1, 0]


def test_files_that_cannot_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    with NpyWriter(path, (2,)):
        pass
    with pytest.raises(errors.InvalidArgumentError, match=r"\(2,\)"):
        NpyWriter(path, (3,))
    with pytest.raises(errors.InvalidArgumentError, match="float32"):
        NpyWriter(path, (2,), np.float64)
    with NpyWriter(path, (2,)) as writer, pytest.raises(errors.InvalidArgumentError, match="shape"):
        writer.append(np.zeros((1, 3)))
    np.save(tmp_path / "other.npy", np.zeros((4, 2), np.float32))
    path.write_text("hello")
    for name in ("rows.npy", "other.npy"):
        with pytest.raises(errors.InvalidArgumentError, match="exists"):
            NpyWriter(tmp_path / name, (2,))
