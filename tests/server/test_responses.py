"""/v1/responses, with OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from support.engines import wait_until_idle
from support.waiting import wait_for

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
        "required": ["city"],
    },
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'


def test_a_response(client) -> None:
    response = client.responses.create(
        model="m", input="Hello", instructions="Be brief.", max_output_tokens=8, temperature=0
    )
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = client.chat.completions.create(model="m", messages=chat, max_tokens=8, temperature=0)
    assert response.output_text == expected.choices[0].message.content
    cut = expected.choices[0].finish_reason == "length"
    assert response.status == ("incomplete" if cut else "completed")
    assert response.usage.input_tokens == expected.usage.prompt_tokens
    assert response.usage.output_tokens == expected.usage.completion_tokens


def test_a_stream(client, engine) -> None:
    engine.says("It rains in Oslo.")
    with client.responses.stream(model="m", input=[{"role": "user", "content": "Hello"}]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "It rains in Oslo."
    assert final.status == "completed"
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "It rains in Oslo."
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client, engine, stream: bool) -> None:
    others = [{"type": "web_search"}, {"type": "namespace", "name": "x", "tools": []}, {"type": "image_generation"}]
    settings: dict[str, Any] = {"model": "m", "tools": [*others, WEATHER]}
    question = {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}
    engine.says(CALL)
    if stream:
        chunks = client.responses.create(input=[question], stream=True, **settings)
        (call,) = list(chunks)[-1].response.output
    else:
        (call,) = client.responses.create(input=[question], **settings).output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})
    engine.says("Rain.")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    again = client.responses.create(input=[question, call.model_dump(), result], **settings)
    assert again.output_text == "Rain."


def test_forms(client) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    response = client.responses.create(model="m", input="x", text={"format": form}, temperature=0, max_output_tokens=60)
    assert json.loads(response.output_text)["a"] in (1, 2)


def test_errors(client, server, engine) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    for wrong in (
        {},
        {"input": []},
        {"input": [5]},
        {"input": [{"type": "nothing"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": "x", "tools": [5]},
        {"input": "x", "max_output_tokens": 0},
        {"input": "x", "text": {"format": {"type": "json_schema"}}},
    ):
        response = server.post("/v1/responses", wrong)
        assert response.status_code == 400, (wrong, response.text)

    def breaks(ids: Any, logits: Any) -> None:
        raise RuntimeError("broken")

    engine.processor = breaks
    events = list(client.responses.create(model="m", input="x", stream=True))
    assert events[-1].type == "response.failed"


def test_a_client_that_goes_away(client, engine) -> None:
    engine.slowly()
    stream = client.responses.create(model="m", input="x", stream=True)
    next(iter(stream))
    wait_for(lambda: engine.metrics().n_running == 1)
    stream.close()
    wait_until_idle(engine)
