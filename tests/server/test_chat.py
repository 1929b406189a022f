"""/v1/chat/completions, with OpenAI's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from pyllm import Llama

TEMPLATES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models" / "templates"
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'


@pytest.fixture(scope="module")
def llm(tiny_model) -> Any:
    with Llama(tiny_model, n_ctx=2048, n_threads=1) as llm:
        yield llm


def test_the_same_answer_as_a_llama(client, llm) -> None:
    answer = client.chat.completions.create(model="any", messages=HELLO, max_tokens=10, temperature=0)
    expected = llm.create_chat_completion(HELLO, max_tokens=10, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens


def test_a_stream_is_the_whole_in_pieces(client) -> None:
    settings: dict[str, Any] = {"model": "m", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not chunks[-2].choices[0].delta.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_answers(client) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO, n=3, max_completion_tokens=4, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_call_that_is_required(client) -> None:
    """The model is random: it is the grammar that makes the call."""
    settings = {"model": "m", "messages": HELLO, "tools": [WEATHER, CLOCK], "max_tokens": 200, "temperature": 0}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(**settings, tool_choice=choice)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo")
    required = client.chat.completions.create(**settings, tool_choice="required", parallel_tool_calls=False)
    assert len(required.choices[0].message.tool_calls) == 1


def test_a_call_that_the_model_chooses(client, engine) -> None:
    engine.says(CALL)
    answer = client.chat.completions.create(model="m", messages=HELLO, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    assert answer.choices[0].finish_reason == "tool_calls"
    engine.says(CALL)
    with client.chat.completions.stream(model="m", messages=HELLO, tools=[WEATHER]) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    engine.says("It rains.")
    again = [*HELLO, answer.choices[0].message, {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
    assert client.chat.completions.create(model="m", messages=again, tools=[WEATHER]).choices[0].message.content == (
        "It rains."
    )


def test_a_choice_without_tools_is_none(client) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO, tool_choice="auto", max_tokens=2)
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize("stream", [False, True])
def test_forms(client, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="m",
        messages=HELLO,
        temperature=0,
        max_tokens=100,
        stream=stream,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    assert json.loads(text)["answer"] in ("yes", "no")


def test_reasoning(start, engine) -> None:
    (path,) = TEMPLATES.glob("Qwen-Qwen3-0.6B*.jinja")
    server = start(engine, chat_template=path.read_text(encoding="utf-8"))
    text = "<think>\nrain is wet\n</think>\n\nIt is wet."
    with server.client() as client:
        engine.says(text)
        message = client.chat.completions.create(model="m", messages=HELLO).choices[0].message
        assert message.content.strip() == "It is wet."
        assert message.reasoning_content.strip() == "rain is wet"
        engine.says(text)
        thought = said = ""
        for chunk in client.chat.completions.create(model="m", messages=HELLO, stream=True):
            delta = chunk.choices[0].delta
            thought += getattr(delta, "reasoning_content", None) or ""
            said += delta.content or ""
        assert (thought.strip(), said.strip()) == ("rain is wet", "It is wet.")
        plain = server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1}).json()["usage"]
        off = {"messages": HELLO, "max_tokens": 1, "reasoning_effort": "none"}
        assert server.post("/v1/chat/completions", off).json()["usage"]["prompt_tokens"] > plain["prompt_tokens"]


def test_logprobs(client) -> None:
    settings: dict[str, Any] = {"model": "m", "messages": HELLO, "max_tokens": 4, "temperature": 0}
    answer = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert 1 <= len(content) <= 4
    assert all(len(one.top_logprobs) == 2 for one in content)
    chunks = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2, stream=True)
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]


def test_cached_tokens_are_told(client) -> None:
    system = {"role": "system", "content": "could more people look at the number of the time " * 8}
    client.chat.completions.create(model="m", messages=[system, *HELLO], max_tokens=1)
    again = [system, {"role": "user", "content": "Goodbye"}]
    usage = client.chat.completions.create(model="m", messages=again, max_tokens=1).usage
    assert usage.prompt_tokens_details.cached_tokens > usage.prompt_tokens / 2


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///"}}]}]}, None),
        ({"tools": "x"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, None),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": 5}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": "x"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"functions": "x"}, "functions"),
        ({"functions": [], "function_call": {"name": "x"}}, "tool_choice"),
        ({"functions": [{"name": "x"}], "function_call": 5}, "function_call"),
        ({"functions": [{"name": "x"}], "tools": [WEATHER]}, "functions"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "messages[2]",
        ),
        ({"continue_final_message": "all"}, "continue_final_message"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}, None),
        ({"response_format": 5}, "response_format"),
        ({"reasoning_format": "x"}, "reasoning_format"),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
    ],
)
def test_what_is_wrong_is_named(server, wrong: dict[str, Any], param: str | None) -> None:
    response = server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2, **wrong})
    assert response.status_code == 400, response.text
    if param is not None:
        assert response.json()["error"]["param"] == param, response.text


def test_a_template_cannot_come_from_a_request(server) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "chat_template": "{{ 'x' * 10**9 }}"}
    assert server.post("/v1/chat/completions", body).status_code == 200


def test_a_chat_that_is_too_long(client) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "the cat " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
