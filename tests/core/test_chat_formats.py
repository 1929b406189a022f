"""What models of many families answer, read whole and as it streams in."""

import json
import random
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chats import conversations, templates, tools

from pyllm import errors
from pyllm.core.chat import ChatPrompt

CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
ADD = '{"name": "add", "arguments": {"a": 1, "b": 2}}'

# Template, what the model writes after the prompt, and what it thought.
FORMATS = {
    "Qwen-Qwen3-0.6B": (f"<think>hm</think>\n\nSo:\n<tool_call>\n{CALL}\n</tool_call>", "hm"),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": (f"<tool_call>\n{CALL}\n</tool_call>", ""),
    "meta-llama-Llama-3.1-8B-Instruct": ('{"name": "get_weather", "parameters": {"city": "Paris"}}', ""),
    "mistralai-Mistral-Nemo-Instruct-2407": (f'[TOOL_CALLS][{CALL[:-1]}, "id": "abcdef123"}}]', ""),
    "mistralai-Ministral-3-14B-Reasoning-2512": (
        '[THINK]hm[/THINK][TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        "hm",
    ),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": (
        "<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>[\n    "
        '{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}\n]<|END_ACTION|>',
        "hm",
    ),
    "llama-cpp-deepseek-r1": (
        "hm</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "hm",
    ),
    "deepseek-ai-DeepSeek-V3.1": (
        "hm</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "hm",
    ),
    "meetkai-functionary-medium-v3.1": ('<function=get_weather>{"city": "Paris"}</function>', ""),
    "meetkai-functionary-medium-v3.2": ('get_weather\n{"city": "Paris"}', ""),
    "openai-gpt-oss-120b": (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Paris"}',
        "hm",
    ),
    "ibm-granite-granite-4.0": (f"<tool_call>\n{CALL}\n</tool_call>", ""),
    "GLM-4.6": (
        "<think>hm</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        "hm",
    ),
    "Kimi-K2-Instruct": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        "",
    ),
    "MiniMax-M2": (
        'hm\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
        "</invoke>\n</minimax:tool_call>",
        "hm",
    ),
    "NVIDIA-Nemotron-Nano-v2": (f"hm\n</think>\n\n<TOOLCALL>[{CALL}]</TOOLCALL>", "hm"),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (
        "hm</think><tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        "hm",
    ),
    "google-gemma-4-31B-it": ('<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>', ""),
    "LFM2-8B-A1B": ('<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>', ""),
    "Qwen3-Coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        "",
    ),
    "ByteDance-Seed-OSS": (
        "<seed:think>hm</seed:think>\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
        "</function>\n</seed:tool_call>",
        "hm",
    ),
    "Apertus-8B-Instruct": ('<|tools_prefix|>[{"get_weather": {"city": "Paris"}}]<|tools_suffix|>', ""),
    "fireworks-ai-llama-3-firefunction-v2": (f" functools[{CALL}]", ""),
}


def ask(name: str) -> ChatPrompt:
    return templates(name).apply(conversations()["tools"][0], tools=tools(), parallel_tool_calls=True)


asked = cache(ask)


def assembled(deltas: list[dict]) -> dict:
    """The message that a client puts together from deltas."""
    message = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    for delta in deltas:
        message["content"] += delta.get("content", "")
        message["reasoning_content"] += delta.get("reasoning_content", "")
        for part in delta.get("tool_calls", ()):
            assert part["index"] <= len(message["tool_calls"])
            if part["index"] == len(message["tool_calls"]):
                assert part["id"] and part["type"] == "function" and part["function"]["name"]
                empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                message["tool_calls"].append(empty)
            call = message["tool_calls"][part["index"]]
            call["id"] = part.get("id", call["id"])
            call["function"]["name"] = part["function"].get("name", call["function"]["name"])
            call["function"]["arguments"] += part["function"].get("arguments", "")
    return message


@pytest.mark.parametrize("name", FORMATS)
def test_a_tool_call_is_read_whole(name):
    text, thought = FORMATS[name]
    message = ask(name).parse(text)
    assert message.get("reasoning_content", "").strip() == thought
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert call["id"] and call["type"] == "function"
    if name == "Qwen-Qwen3-0.6B":
        assert message["content"].strip() == "So:"
    else:
        assert not (message["content"] or "").strip()


@pytest.mark.parametrize("name", FORMATS)
def test_a_tool_call_streams(name):
    text, _ = FORMATS[name]
    prompt = ask(name)
    before, deltas = None, []
    for i in range(len(text) + 1):
        after = prompt.parse(text[:i], partial=i < len(text))
        deltas += ChatPrompt.diff(before, after)
        before = after
    whole = prompt.parse(text)
    message = assembled(deltas)
    assert message["content"] == (whole["content"] or "")
    assert message["reasoning_content"] == whole.get("reasoning_content", "")
    assert message["tool_calls"] == whole["tool_calls"]


def test_parallel_calls():
    prompt = ask("Qwen-Qwen3-0.6B")
    text = f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{ADD}\n</tool_call>"
    calls = prompt.parse(text)["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather", "add"]
    assert calls[0]["id"] != calls[1]["id"]


def test_ids_of_calls():
    """A format's own id is kept; else one is made, the same over a stream and another for the next prompt."""
    text, _ = FORMATS["mistralai-Mistral-Nemo-Instruct-2407"]
    assert ask("mistralai-Mistral-Nemo-Instruct-2407").parse(text)["tool_calls"][0]["id"] == "abcdef123"
    text, _ = FORMATS["Qwen3-Coder"]
    one, two = ask("Qwen3-Coder"), ask("Qwen3-Coder")
    ids = [prompt.parse(text)["tool_calls"][0]["id"] for prompt in (one, one, two)]
    assert re.fullmatch("call_[0-9a-f]{24}", ids[0]) and ids[0] == ids[1] != ids[2]
    streams: list[list[str]] = [[], []]
    made = [one.parse(text, ids=stream)["tool_calls"][0]["id"] for stream in (*streams, *streams)]
    assert made[0] == made[2] != made[1] == made[3] and streams == [[made[0]], [made[1]]]


def test_output_that_fits_no_format():
    prompt = templates("Qwen3-Coder").apply(conversations()["user"][0], tools=tools(), tool_choice="required")
    with pytest.raises(errors.ChatParseError, match="format") as caught:
        prompt.parse("<tool_call>\n<function=nonsense>")
    assert caught.value.text == "<tool_call>\n<function=nonsense>"
    assert prompt.parse("<tool_call>\n<function=nonsense>", partial=True)["role"] == "assistant"
    with pytest.raises(TypeError, match="text"):
        prompt.parse(3)


def test_nesting_does_not_end_the_process():
    prompt = ask("Qwen-Qwen3-0.6B")
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": ' + "[" * 20_000
    assert prompt.parse(text, partial=True)["role"] == "assistant"
    try:
        assert prompt.parse(text + "]" * 19_000)["role"] == "assistant"
    except errors.ChatParseError:
        pass


def test_pure_content():
    prompt = templates("Qwen-Qwen3-0.6B").apply(conversations()["user"][0], force_pure_content=True)
    text = f"<think>hm</think><tool_call>\n{CALL}\n</tool_call>"
    assert prompt.parse(text) == {"role": "assistant", "content": text}


def test_diffs():
    diff = ChatPrompt.diff
    hello = {"role": "assistant", "content": "Hello"}
    assert diff(None, hello) == [{"content": "Hello"}]
    assert diff(hello, hello) == []
    assert diff({"content": "He"}, hello) == [{"content": "llo"}]
    assert diff({"content": None, "reasoning_content": "a"}, {"content": "b", "reasoning_content": "ac"}) == [
        {"reasoning_content": "c"},
        {"content": "b"},
    ]
    with pytest.raises(errors.InvalidArgumentError, match="Invalid diff"):
        diff(hello, {"content": "Bye"})
    for wrong in ({"tool_calls": [{}]}, {"tool_calls": [{"function": {"name": None}}]}, {"content": 3}, "x"):
        with pytest.raises(errors.InvalidArgumentError, match="must be one that parse"):
            diff(None, wrong)


# ---- anything at all

ALPHABET = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<tool_call>", "</tool_call>", "{", "}", '"', "name", ":", "get_weather", "[", "]", "ü"]
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "Qwen3-Coder", "google-gemma-4-31B-it", "openai-gpt-oss-120b"])
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(max_size=60), ALPHABET))
def test_any_text_is_read_or_refused(name, text):
    prompt = asked(name)
    assert prompt.parse(text, partial=True)["role"] == "assistant"
    try:
        assert prompt.parse(text)["role"] == "assistant"
    except errors.ChatParseError:
        pass


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "GLM-4.6", "meetkai-functionary-medium-v3.2"])
def test_damaged_answers_are_read_or_refused(name):
    text, _ = FORMATS[name]
    prompt, chance = ask(name), random.Random(0)
    for _ in range(200):
        damaged = list(text)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.choice('<>{}"[]\n\\ü')
        broken = "".join(damaged)
        assert prompt.parse(broken, partial=True)["role"] == "assistant"
        try:
            message = prompt.parse(broken)
        except errors.ChatParseError as error:
            assert str(error)
        else:
            assert message["role"] == "assistant"
