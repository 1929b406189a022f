"""/v1/messages, with Anthropic's own client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from support.engines import Prompted, wait_until_idle
from support.waiting import wait_for

from pyllm.chat.messages import left_out
from pyllm.server.messages import MessagesTokenCountRequest
from pyllm.server.wire import decode

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


def shaped(response: Any, status: int, kind: str) -> str:
    """The message of an error in Anthropic's shape, which has the name of the request as its header has it."""
    assert response.status_code == status, response.text
    answer = response.json()
    assert (answer["type"], answer["error"]["type"]) == ("error", kind)
    assert answer["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return answer["error"]["message"]


def test_errors_before_the_endpoint_have_the_same_shape(start, server, engine) -> None:
    body = {"max_tokens": 2, "messages": HELLO}
    shaped(server.post("/v1/messages/nothing", body), 404, "not_found_error")
    shaped(server.get("/v1/messages"), 405, "invalid_request_error")
    shaped(server.post("/v1/messages", body, headers={"content-encoding": "gzip"}), 415, "invalid_request_error")
    small = start(engine, api_keys=("secret",), max_body_bytes=200)
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        shaped(small.post(path, body), 401, "authentication_error")
        long = {"max_tokens": 2, "messages": HELLO * 100}
        shaped(small.post(path, long, headers={"x-api-key": "secret"}), 413, "request_too_large")
    # Anthropic's client names its version everywhere; OpenAI's gets OpenAI's shape.
    version = {"anthropic-version": "2023-06-01"}
    shaped(server.get("/v1/models/nothing", headers=version), 404, "not_found_error")
    assert "param" in server.get("/v1/models/nothing").json()["error"]
    assert "request-id" not in server.get("/v1/models").headers


def test_errors_of_a_busy_or_broken_server_have_the_same_shape(start, server, engine, tiny_model) -> None:
    body = {"max_tokens": 200, "messages": HELLO}

    def breaks(ids: Any, logits: Any) -> None:
        raise RuntimeError("broken")

    engine.processor = breaks
    shaped(server.post("/v1/messages", body), 500, "api_error")
    with Prompted(tiny_model, n_ctx=512, n_parallel=1, n_threads=1, max_queued=1) as full:
        full.slowly()
        busy = start(full)
        jobs = [full.submit("the cat", max_tokens=400)]
        wait_for(lambda: full.metrics().n_running == 1)
        jobs.append(full.submit("the cat", max_tokens=400))
        wait_for(lambda: full.metrics().n_waiting == 1)
        refused = busy.post("/v1/messages", body)
        shaped(refused, 429, "rate_limit_error")
        assert refused.headers["retry-after"]
        for job in jobs:
            job.cancel()
        wait_until_idle(full)
        busy.state.draining = True
        shaped(busy.post("/v1/messages", body), 503, "overloaded_error")
        busy.stop()


def test_a_prompt_that_is_too_long_says_so_in_anthropics_words(server) -> None:
    body = {"max_tokens": 2, "messages": [{"role": "user", "content": "the cat " * 9000}]}
    message = shaped(server.post("/v1/messages", body), 400, "invalid_request_error")
    assert re.match(r"prompt is too long: \d+ tokens > \d+ maximum", message)


def test_every_answer_has_the_name_of_its_request(claude, server) -> None:
    message = claude.messages.create(model="m", max_tokens=2, messages=HELLO)
    assert message._request_id.startswith("req_")
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model="m", max_tokens=2, messages=[])
    assert caught.value.request_id == caught.value.body["request_id"]


def test_documents_and_results_of_a_search_are_text(server, claude) -> None:
    text = {"type": "text", "text": "It rains."}
    plain = {"type": "text", "media_type": "text/plain", "data": "It rains."}
    document = {"type": "document", "source": plain, "title": "Oslo", "context": "A forecast", "citations": {}}
    parts = {"type": "document", "source": {"type": "content", "content": [text, text]}}
    found = {"type": "search_result", "source": "https://example.org/a", "title": "Oslo", "content": [text]}
    shown = {
        "document": "<document>\n<title>Oslo</title>\n<context>A forecast</context>\nIt rains.\n</document>",
        "parts": "<document>\nIt rains.\nIt rains.\n</document>",
        "found": "<search_result>\n<title>Oslo</title>\n<source>https://example.org/a</source>\nIt rains.\n"
        "</search_result>",
    }

    def n_tokens(messages: list[dict[str, Any]]) -> int:
        return claude.messages.count_tokens(model="m", messages=messages).input_tokens

    for block, expected in zip((document, parts, found), shown.values(), strict=True):
        body = {"messages": [{"role": "user", "content": [block, text]}]}
        assert decode(MessagesTokenCountRequest, body).chat() == [{"role": "user", "content": f"{expected}\nIt rains."}]
        said = n_tokens([{"role": "user", "content": [block]}])
        assert said == n_tokens([{"role": "user", "content": expected}])
        call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}
        results = [
            [
                *HELLO,
                call,
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": content}]},
            ]
            for content in ([block], expected)
        ]
        assert n_tokens(results[0]) == n_tokens(results[1])
    # In a tool's result a line says what was left out, as every later turn has that result too.
    file = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [text, file, document]}
    body = {"messages": [*HELLO, {"role": "user", "content": [result]}]}
    content = decode(MessagesTokenCountRequest, body).chat()[-1]["content"]
    assert content == f"It rains.\n{left_out('document')}\n{shown['document']}"
    for source, name in (
        ({"type": "base64", "media_type": "application/pdf", "data": ""}, "base64"),
        ({"type": "url", "url": "https://example.org/a.pdf"}, "url"),
        ({"type": "file", "file_id": "a"}, "file"),
    ):
        wrong = [{"role": "user", "content": [{"type": "document", "source": source}]}]
        message = shaped(
            server.post("/v1/messages", {"max_tokens": 2, "messages": wrong}), 400, "invalid_request_error"
        )
        assert "messages[0].content[0].source.type" in message and f"'{name}'" in message
    for block, where in (
        ({"type": "document"}, "source"),
        ({"type": "document", "source": {"type": "text"}}, "source.data"),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "image"}]}}, "source.content[0]"),
        ({"type": "search_result", "title": "a", "source": "b"}, "content"),
        ({"type": "search_result", "title": 5, "source": "b", "content": [text]}, "title"),
    ):
        wrong = [{"role": "user", "content": [block]}]
        message = shaped(
            server.post("/v1/messages", {"max_tokens": 2, "messages": wrong}), 400, "invalid_request_error"
        )
        assert f"messages[0].content[0].{where}" in message


def test_a_client_that_goes_away(claude, engine) -> None:
    engine.slowly()
    with claude.messages.stream(model="m", max_tokens=1500, messages=HELLO) as stream:
        next(iter(stream))
        wait_for(lambda: engine.metrics().n_running == 1)
    wait_until_idle(engine)
