"""Llamas on tiny models, closed after the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyllm import Llama

# No 16-bit numbers but those of the weights: what is computed in another order differs in the last bits only.
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}

TEXTS = [
    "the cat sat on the mat",
    "time and the number of people",
    "no way",
    "could more people look at the number of the time " * 6,
    "would you like it",
]


@pytest.fixture(scope="module")
def llama(tiny_models) -> Iterator[Callable[..., Llama]]:
    """`llama(arch, of_model={…}, **arguments)`: a Llama on a tiny model, made once for the same arguments."""
    made: dict[str, Llama] = {}

    def make(arch: str = "bert", of_model: dict[str, Any] | None = None, **arguments: Any) -> Llama:
        key = repr((arch, of_model, sorted(arguments.items())))
        if key not in made or made[key].context.closed:
            made[key] = Llama(tiny_models.make(arch, **(of_model or {})), **{"n_threads": 1, **EXACT, **arguments})
        return made[key]

    yield make
    for one in made.values():
        one.close()


@pytest.fixture(scope="module")
def bert(llama) -> Llama:
    """An encoder with mean pooling."""
    return llama("bert")


@pytest.fixture(scope="module")
def writer(llama) -> Llama:
    """A model that generates text."""
    return llama("llama")
