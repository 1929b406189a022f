"""Forms with a real model, and the same text as llama.cpp's own program writes with the same grammar."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field
from structured.test_schema import Everything, Point

from pyllm import Llama
from pyllm.structured import grammar_of

PROGRAM = Path(__file__).parents[2] / "build" / "cmake-native" / "bin" / "llama-completion"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "likes": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
}
PROMPT = "<|im_start|>user\nDescribe a person as JSON.<|im_end|>\n<|im_start|>assistant\n"


class Bounded(Everything):
    """Without lists and maps that a small model would never end."""

    union: int | bool | Annotated[list[int], Field(max_length=2)]
    map: Point  # type: ignore[assignment]
    child: None = None  # type: ignore[assignment]


pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def llm(smollm2):
    with Llama(smollm2, n_ctx=1024, n_threads=1) as llm:
        yield llm


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_pydantic_model(llm, temperature):
    answer = llm(PROMPT, json_schema=Bounded, temperature=temperature, seed=3, max_tokens=900)
    assert answer.finish_reason == "stop"
    assert isinstance(answer.parsed, Bounded)


@pytest.mark.process
@pytest.mark.skipif(not PROGRAM.exists(), reason="llama-completion is not built; run `make tools`")
def test_the_text_is_that_of_llama_completion(llm, smollm2_path, tmp_path):
    grammar = grammar_of(json_schema=SCHEMA)
    file = tmp_path / "person.gbnf"
    file.write_text(grammar.text, encoding="utf-8")
    done = subprocess.run(
        [PROGRAM, "-m", smollm2_path, "-p", PROMPT, "-n", "96", "--temp", "0", "-no-cnv", "--no-display-prompt",
         "-t", "1", "-c", "1024", "--grammar-file", file],
        check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    theirs = done.stdout.replace("[end of text]", "").strip()
    ours = llm(PROMPT, grammar=grammar, temperature=0, max_tokens=96).text.strip()
    assert theirs == ours and json.loads(ours)["name"]


def test_the_grammar_is_seldom_asked_about_the_whole_vocabulary(llm):
    """What costs is a choice that did not fit: a model that keeps to JSON by itself makes few."""
    from pyllm import SamplingParams
    from pyllm.core.generation import Generation
    from pyllm.sampling import build_chain

    chain = build_chain(SamplingParams(grammar=grammar_of(json_schema=SCHEMA), temperature=0), llm.vocab, 1)
    llm.reset()
    llm.context.memory.clear()
    generation = Generation(llm.context, chain)
    generation.prefill(llm.tokenize(PROMPT))
    generation.run(64)
    llm.context.memory.clear()
    llm.reset()
    assert chain[0].n_rejected <= chain[0].n_chosen / 4
