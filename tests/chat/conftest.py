"""A tiny model that writes what a test tells it to, by way of its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm import Llama

TEMPLATES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}, "celsius": {"type": "boolean"}},
            "required": ["city", "celsius"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
        },
    },
}


@pytest.fixture(scope="module")
def llm(tiny_model) -> Iterator[Llama]:
    """A tiny model without a template: ChatML is used."""
    with Llama(tiny_model, n_ctx=4096, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="session")
def template() -> Callable[[str], str]:
    """The source of a template that comes with llama.cpp, by the beginning of its name."""

    def template(name: str) -> str:
        (path,) = TEMPLATES.glob(f"{name}*.jinja")
        return path.read_text(encoding="utf-8")

    return template


@pytest.fixture(scope="module")
def says(llm) -> Callable[..., Any]:
    """`says("text")`: what makes the model write this text, and then end it."""

    def says(*texts: str) -> Any:
        scripts = [[*llm.vocab.tokenize(text, add_special=False, parse_special=True), llm.vocab.eos] for text in texts]
        state = {"text": -1, "start": 0}

        class Script:
            def reset(self) -> None:
                state["text"] += 1
                state["start"] = -1

            def __call__(self, ids: np.ndarray, logits: np.ndarray) -> None:
                if state["start"] < 0:
                    state["start"] = len(ids)
                token = scripts[state["text"]][len(ids) - state["start"]]
                logits[:] = -np.inf
                logits[token] = 0

        return Script()

    return says


def user(text: str = "Hello") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
