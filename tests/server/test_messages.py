"""/v1/messages, with Anthropic's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from served import quiet, wait_for

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
        "required": ["city"],
    },
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'


@pytest.fixture
def claude(server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message(claude, client) -> None:
    settings: dict[str, Any] = {"model": "m", "messages": HELLO, "system": "Be brief."}
    message = claude.messages.create(max_tokens=8, extra_body={"temperature": 0}, **settings)
    chat = [{"role": "system", "content": "Be brief."}, *HELLO]
    expected = client.chat.completions.create(model="m", max_tokens=8, messages=chat, temperature=0)
    assert message.content[0].text == expected.choices[0].message.content
    assert message.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[expected.choices[0].finish_reason]
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected.usage.prompt_tokens
    assert usage.output_tokens == expected.usage.completion_tokens
    counted = claude.messages.count_tokens(**settings)
    assert counted.input_tokens == expected.usage.prompt_tokens


def test_a_stream(claude, engine) -> None:
    engine.says("It rains in Oslo.")
    with claude.messages.stream(model="m", max_tokens=50, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "It rains in Oslo."
        message = stream.get_final_message()
    assert message.content[0].text == "It rains in Oslo."
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 0


def test_stop_sequences(claude, engine) -> None:
    engine.says("It rains in Oslo.")
    message = claude.messages.create(model="m", max_tokens=50, messages=HELLO, stop_sequences=[" in"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " in")
    assert message.content[0].text == "It rains"


def test_tools(claude, engine) -> None:
    settings: dict[str, Any] = {
        "model": "m",
        "max_tokens": 100,
        "tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}],
    }
    engine.says(CALL)
    message = claude.messages.create(messages=HELLO, **settings)
    (block,) = message.content
    assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Oslo"})
    assert message.stop_reason == "tool_use"
    engine.says(CALL)
    with claude.messages.stream(messages=HELLO, **settings) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.input == {"city": "Oslo"}
    engine.says("Rain.")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "rain"}]}
    chat = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(messages=chat, **settings).content[0].text == "Rain."
    engine.processor = None
    forced = claude.messages.create(messages=HELLO, tool_choice={"type": "tool", "name": "get_weather"}, **settings)
    assert forced.content[0].input["city"] in ("Oslo", "Paris")


def test_a_line_that_changes_each_time_is_left_out(claude, engine) -> None:
    text = {"type": "text", "text": "could more people look at the number of the time " * 6}
    for i in range(2):
        system = [{"type": "text", "text": f"x-anthropic-billing-header: cc_version={i}{i}"}, text]
        usage = claude.messages.create(model="m", max_tokens=1, messages=HELLO, system=system).usage
    assert usage.cache_read_input_tokens > 0.9 * (usage.input_tokens + usage.cache_read_input_tokens)


def test_errors(claude, server, engine) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        claude.messages.create(model="m", max_tokens=8, messages=HELLO, extra_body={"temperature": -1})
    for wrong in (
        {},
        {"messages": [5]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": HELLO, "tools": [5]},
        {"messages": HELLO, "tools": [{"name": 5}]},
        {"messages": HELLO, "system": [5]},
        {"messages": HELLO, "stop_sequences": [5]},
        {"messages": HELLO, "output_config": {"format": {"type": "xml"}}},
        {"messages": HELLO, "output_format": {"type": "json_schema"}},
        {"messages": [*HELLO, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ):
        response = server.post("/v1/messages", {"max_tokens": 2, **wrong})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert server.post("/v1/messages", {"messages": HELLO}).status_code == 400

    def breaks(ids: Any, logits: Any) -> None:
        raise RuntimeError("broken")

    engine.processor = breaks
    with pytest.raises(anthropic.APIError), claude.messages.stream(model="m", max_tokens=5, messages=HELLO) as stream:
        stream.get_final_message()


def test_a_client_that_goes_away(claude, engine) -> None:
    engine.slowly()
    with claude.messages.stream(model="m", max_tokens=1500, messages=HELLO) as stream:
        next(iter(stream))
        wait_for(lambda: engine.metrics().n_running == 1)
    quiet(engine)
