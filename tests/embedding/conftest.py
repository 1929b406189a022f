"""Llamas on tiny models, closed after the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.numerics import EXACT

from pyllm import Llama

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
            made[key] = Llama(tiny_models.make(arch, **(of_model or {})), **{**EXACT, **arguments})
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
