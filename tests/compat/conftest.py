"""A Llama by its old name, closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyllm.compat.llama_cpp import Llama


@pytest.fixture
def make(tiny_models) -> Iterator[Callable[..., Llama]]:
    """`make(path=…, **arguments)`: a Llama with few threads, of the tiny model where no other is named."""
    made: list[Llama] = []

    def start(path: Any = None, **arguments: Any) -> Llama:
        made.append(Llama(str(path or tiny_models["llama"]), **{"n_ctx": 256, "n_threads": 1} | arguments))
        return made[-1]

    yield start
    for llm in made:
        llm.close()


@pytest.fixture
def llm(make) -> Llama:
    return make()
