"""Fixtures: laboratories on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pyllm.core.model import Model
from pyllm.interp import Interp


@pytest.fixture
def open_lab(load: Callable[..., Model]) -> Iterator[Callable[..., Interp]]:
    """`open_lab(arch="llama", **arguments)`: an Interp on a shared tiny model, closed after the test."""
    made: list[Interp] = []

    def open_lab(arch: str = "llama", **arguments: Any) -> Interp:
        made.append(Interp(load(arch), **({"n_ctx": 64, "n_threads": 1} | arguments)))
        return made[-1]

    yield open_lab
    for lab in made:
        lab.close()


@pytest.fixture
def lab(open_lab: Callable[..., Interp]) -> Interp:
    return open_lab()


@pytest.fixture
def text() -> str:
    return "the more people look at the number"


@pytest.fixture
def texts() -> list[np.ndarray]:
    """Sequences of different lengths, two of them alike, as token ids that every tiny model has."""
    random = np.random.default_rng(0)
    ids = [random.integers(3, 200, n).astype(np.int32) for n in (9, 21, 2, 14, 9, 30)]
    ids[4] = ids[0].copy()
    return ids
