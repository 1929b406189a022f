"""What an answer is held to in templates that come with llama.cpp: a call that must be, and the form of the content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chat.conftest import CLOCK, TEMPLATES, WEATHER, user

from pyllm import errors
from pyllm.chat.request import ChatRequest

SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string", "pattern": r"^\d{3}$"}},
    "required": ["id"],
    "additionalProperties": False,
}
PATHS = sorted(TEMPLATES.glob("*.jinja"))
# A prompt that ends with "▁", which a tokenizer such as the tiny one cannot tell from a space.
BLANK = "Spark2.5"
# One of each kind of format: calls in tags as JSON, as elements, behind channels, without a mark.
KINDS = ("Qwen-Qwen3-0.6B", "Qwen3-Coder", "openai-gpt-oss", "meta-llama-Llama-3.1", "mistralai-Mistral-Nemo")
SOME = [path for path in PATHS if path.stem.startswith(KINDS)]
EACH = [pytest.param(path, id=path.stem, marks=() if path in SOME else pytest.mark.slow) for path in PATHS]


def request_of(llm, path: Path, **arguments) -> ChatRequest:
    return ChatRequest(llm, user(), {"chat_template": path, **arguments})


def sampler_of(llm, request: ChatRequest):
    """The sampler of the answer, behind reasoning that the prompt has opened."""
    sampler = request.completion_arguments["grammar"].sampler(llm.vocab)
    reader = request.prompt
    start = reader.thinking_start_tag.strip()
    opened = reader.generation_prompt.rpartition(start)[2] if start else None
    if opened is not None and opened != reader.generation_prompt:
        ends = [end for end in reader.thinking_end_tags if end]
        if not any(end in opened for end in ends):
            accept(llm, sampler, f"hm\n{ends[0]}")
    return sampler


def accept(llm, sampler, text: str) -> None:
    for token in llm.vocab.tokenize(text, add_special=False, parse_special=True):
        sampler.accept(token)


def allows(llm, sampler, text: str) -> bool:
    ids, logits, _, _ = sampler.apply(np.zeros(len(llm.vocab), np.float32))
    first = llm.vocab.tokenize(text, add_special=False)[-len(text)]
    return bool(logits[ids == first][0] > -1e30)


@pytest.mark.parametrize("path", EACH)
def test_a_call_that_must_be_has_no_talk_before_it(llm, path: Path):
    """Else a small model talks until its tokens are used up, and there is no call."""
    request = request_of(llm, path, tools=[WEATHER, CLOCK], tool_choice="required")
    if BLANK in path.stem:
        pytest.skip("its prompt ends with a blank")
    sampler = sampler_of(llm, request)
    assert not allows(llm, sampler, "H") and not allows(llm, sampler, "Z")
    optional = request_of(llm, path, tools=[WEATHER, CLOCK]).completion_arguments.get("grammar")
    assert optional is None or optional.is_lazy


@pytest.mark.parametrize("path", EACH)
def test_a_schema_is_held_as_in_completions(llm, path: Path):
    """llama.cpp's own rules for a template would allow any text for a pattern that they cannot express."""
    request = request_of(llm, path, json_schema=SCHEMA)
    if BLANK in path.stem:
        pytest.skip("its prompt ends with a blank")
    rules = request.completion_arguments["grammar"].text
    assert "the form" not in rules
    (leaf,) = (line for line in rules.splitlines() if "[0-9]{3}" in line)
    assert leaf


def test_a_schema_that_completions_hold(llm, template):
    for name in ("", "Qwen-Qwen3-0.6B"):
        chosen = {"chat_template": template(name)} if name else {}
        for seed in (1, 2, 3):
            answer = llm.create_chat_completion(user(), json_schema=SCHEMA, seed=seed, max_tokens=400, **chosen)
            if answer.finish_reason == "stop":
                assert json.loads(answer.text)["id"].isdecimal() and len(json.loads(answer.text)["id"]) == 3


def test_reasoning_comes_before_a_schema(llm, says, template):
    text = '<think>\nHm.\n</think>\n\n{"id": "123"}'
    qwen = {"chat_template": template("Qwen-Qwen3-0.6B"), "json_schema": SCHEMA}
    answer = llm.create_chat_completion(user(), logits_processor=says(text), **qwen)
    assert (answer.reasoning.strip(), answer.parsed) == ("Hm.", {"id": "123"})
    with pytest.raises(errors.PyllmError):
        llm.create_chat_completion(user(), logits_processor=says(text.replace("123", "12a")), **qwen)


def test_tools_that_are_allowed(llm, says, template):
    """All are described; one of those that are not allowed cannot be called."""
    weather = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "celsius": true}}\n</tool_call>'
    clock = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>'
    named = {"type": "function", "function": {"name": "get_time"}}
    chosen = {"chat_template": template("Qwen-Qwen3-0.6B"), "tools": [WEATHER, CLOCK]}
    plain = llm.create_chat_completion(user(), max_tokens=1, **chosen)
    for mode in ("auto", "required"):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}}
        answer = llm.create_chat_completion(user(), tool_choice=choice, logits_processor=says(clock), **chosen)
        assert [call.name for call in answer.tool_calls] == ["get_time"]
        assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
        with pytest.raises(errors.PyllmError):
            llm.create_chat_completion(user(), tool_choice=choice, logits_processor=says(weather), **chosen)
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [named]}
    assert llm.create_chat_completion(user(), tool_choice=choice, logits_processor=says("No."), **chosen).text == "No."
