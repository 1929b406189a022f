"""Logits processors by name."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from pyllm import errors
from pyllm.processors.named import named_processor


class Counting:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self, ids: Any, logits: Any) -> None:
        self.n += 1


class Needy:
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted


def plain(ids: Any, logits: Any) -> None:
    logits[0] = -np.inf


@pytest.fixture(autouse=True)
def module() -> Any:
    made = types.ModuleType("some_processors")
    made.plain, made.Counting, made.Needy, made.number = plain, Counting, Needy, 5  # type: ignore[attr-defined]
    made.make_counting = lambda: Counting()  # type: ignore[attr-defined]
    made.make_number = lambda: 5  # type: ignore[attr-defined]
    sys.modules["some_processors"] = made
    yield made
    del sys.modules["some_processors"]


def test_a_function_is_used_by_all_texts() -> None:
    make = named_processor("some_processors:plain")
    assert make() is make() is plain


@pytest.mark.parametrize("name", ["Counting", "make_counting"])
def test_a_class_or_a_factory_makes_one_for_each_text(name: str) -> None:
    make = named_processor(f"some_processors:{name}")
    first, second = make(), make()
    assert isinstance(first, Counting) and isinstance(second, Counting) and first is not second


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plain", "module:attribute"),
        ("some_processors:", "module:attribute"),
        ("no_such_module_at_all:x", "cannot be imported"),
        ("some_processors:x", "is not there"),
        ("some_processors:number", "must be a function"),
        ("some_processors:make_number", "must be a function"),
        ("some_processors:Needy", "makes no logits processor"),
    ],
)
def test_what_is_no_processor_is_refused_with_its_name(name: str, words: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=words):
        named_processor(name)
