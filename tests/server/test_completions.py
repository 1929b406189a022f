"""/v1/completions, with OpenAI's own client and by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import openai
import pytest

from pyllm import Llama


@pytest.fixture(scope="module")
def llm(tiny_model) -> Any:
    with Llama(tiny_model, n_ctx=1024, n_threads=1) as llm:
        yield llm


def events(server, body: dict[str, Any], path: str = "/v1/completions") -> list[Any]:
    """The data of a stream's events."""
    with httpx.stream("POST", server.url + path, json={**body, "stream": True}, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# ---- texts


def test_the_same_text_as_a_llama(client, llm) -> None:
    answer = client.completions.create(model="any", prompt="the cat sat", max_tokens=8, temperature=0)
    expected = llm("the cat sat", max_tokens=8, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens


def test_a_stream_is_the_whole_in_pieces(client) -> None:
    settings = {
        "model": "m",
        "prompt": "the cat sat",
        "max_tokens": 12,
        "seed": 4,
        "extra_body": {"deterministic": True},
    }
    whole = client.completions.create(**settings)
    chunks = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_that_asks_for_no_usage_has_none(server) -> None:
    assert all("usage" not in event for event in events(server, {"prompt": "the", "max_tokens": 3}))


def test_prompts_of_all_kinds(client, llm) -> None:
    texts = ["the cat", "no way", "more people"]
    ids = [llm.vocab.tokenize(text, add_special=True, parse_special=True) for text in texts]
    expected = [llm(one, max_tokens=4, temperature=0).text for one in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(model="m", prompt=prompt, max_tokens=4, temperature=0)
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert (
        client.completions.create(model="m", prompt=ids[0], max_tokens=4, temperature=0).choices[0].text == expected[0]
    )


def test_several_texts_of_several_prompts_in_a_stream(server) -> None:
    body = {"prompt": ["the cat", "no way"], "n": 2, "max_tokens": 4, "seed": 1, "deterministic": True}
    whole = server.post("/v1/completions", body).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    texts = ["", "", "", ""]
    for one in events(server, body):
        (choice,) = one["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


def test_seeds(client) -> None:
    def text(seed: int) -> str:
        extra = {"deterministic": True}
        return (
            client.completions.create(model="m", prompt="the", max_tokens=12, seed=seed, extra_body=extra)
            .choices[0]
            .text
        )

    assert text(5) == text(5)
    assert text(2**40) == text(2**40)
    assert text(5) != text(6)


def test_stop(client) -> None:
    whole = client.completions.create(model="m", prompt="the cat", max_tokens=12, temperature=0).choices[0].text
    stop = whole[3:6]
    answer = client.completions.create(model="m", prompt="the cat", max_tokens=12, temperature=0, stop=[stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_echo(client, llm) -> None:
    answer = client.completions.create(model="m", prompt="the cat", max_tokens=4, temperature=0, echo=True)
    assert answer.choices[0].text == "the cat" + llm("the cat", max_tokens=4, temperature=0).text


def test_logit_bias(client, llm) -> None:
    token = llm.vocab.tokenize(" people", add_special=False)[0]
    answer = client.completions.create(model="m", prompt="the", max_tokens=3, logit_bias={str(token): 100}, logprobs=0)
    piece = llm.vocab.token_to_piece(token).decode()
    assert answer.choices[0].logprobs.tokens == [piece] * 3
    banned = client.completions.create(model="m", prompt="the", max_tokens=8, logit_bias={str(token): -100}, logprobs=0)
    assert piece not in banned.choices[0].logprobs.tokens


def test_logprobs(client, llm) -> None:
    settings: dict[str, Any] = {"model": "m", "prompt": "the cat", "max_tokens": 5, "temperature": 0, "logprobs": 3}
    answer = client.completions.create(**settings)
    found = answer.choices[0].logprobs
    expected = llm("the cat", max_tokens=5, temperature=0, logprobs=3).logprobs
    assert tuple(found.tokens) == expected.tokens
    assert found.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-3)
    assert all(len(top) >= 3 for top in found.top_logprobs)
    chunks = client.completions.create(
        model="m", prompt="the cat", max_tokens=5, temperature=0, logprobs=3, stream=True
    )
    tokens = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.tokens]
    assert tokens == found.tokens


def test_logprobs_of_the_prompt(client, server, llm) -> None:
    text, ids = "the cat sat", llm.vocab.tokenize("more people look", parse_special=True)
    for prompt in (text, ids):
        for max_tokens in (0, 1, 4):
            settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0, "echo": True, "logprobs": 2}
            answer = client.completions.create(model="m", prompt=prompt, **settings)
            found, expected = answer.choices[0], llm(prompt, **settings)
            assert found.text == expected.text
            assert tuple(found.logprobs.tokens) == expected.logprobs.tokens
            assert tuple(found.logprobs.text_offset) == expected.logprobs.text_offset
            assert found.logprobs.token_logprobs[0] is None and found.logprobs.top_logprobs[0] is None
            numbers = expected.logprobs.token_logprobs[1:]
            assert found.logprobs.token_logprobs[1:] == pytest.approx(numbers, abs=1e-3)
            assert answer.usage.completion_tokens == len(expected.choices[0].tokens)
    body = {"prompt": [text, ids], "max_tokens": 2, "echo": True, "logprobs": 1, "n": 2, "seed": 1}
    whole = server.post("/v1/completions", body | {"deterministic": True}).json()
    assert [len(choice["logprobs"]["tokens"]) > 2 for choice in whole["choices"]] == [True] * 4
    streamed: dict[int, list[str]] = {}
    for one in events(server, body | {"deterministic": True}):
        (choice,) = one["choices"]
        streamed.setdefault(choice["index"], []).extend((choice["logprobs"] or {"tokens": []})["tokens"])
    assert streamed == {choice["index"]: choice["logprobs"]["tokens"] for choice in whole["choices"]}


def test_what_cannot_be_has_a_number_that_json_has(server) -> None:
    text = server.post(
        "/v1/completions", {"prompt": "the", "max_tokens": 1, "logprobs": 2, "logit_bias": [[5, False]]}
    ).text
    assert "Infinity" not in text
    assert "NaN" not in text
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_object"}},
        {"json_schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}},
        {"grammar": 'root ::= "{}" | "[1]"'},
    ],
)
def test_forms(server, form: dict[str, Any]) -> None:
    body = {"prompt": "the", "max_tokens": 400, "temperature": 0, **form}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    if choice["finish_reason"] == "stop":
        json.loads(choice["text"])
    else:
        assert "response_format" in form  # any JSON may be long


def test_best_of(server) -> None:
    answer = server.post("/v1/completions", {"prompt": "the", "n": 1, "best_of": 3, "max_tokens": 4}).json()
    assert len(answer["choices"]) == 1
    assert answer["usage"]["completion_tokens"] > 4


def test_cached_tokens_are_told(client) -> None:
    prompt = "could more people look at the number of the time " * 6
    settings = {"model": "m", "prompt": prompt, "max_tokens": 1}
    client.completions.create(**settings)
    usage = client.completions.create(**settings).usage
    assert usage.prompt_tokens_details.cached_tokens > 0.9 * usage.prompt_tokens


def test_a_limit_of_the_server(start, engine) -> None:
    server = start(engine, max_tokens=3)
    body = {"prompt": "the", "logit_bias": {"2": -100}}
    assert server.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 3
    assert server.post("/v1/completions", body | {"max_tokens": 50}).json()["usage"]["completion_tokens"] == 3
    assert server.post("/v1/completions", body | {"max_tokens": 2}).json()["usage"]["completion_tokens"] == 2


# ---- errors


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": ["a", [True]]}, "prompt[1]"),
        ({"prompt": [[10**30]]}, "prompt[0]"),
        ({"prompt": [99999999]}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": "x"}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logprobs": 1000}, "logprobs"),
        ({"logprobs": 50, "echo": True}, "logprobs"),
        ({"logit_bias": 5}, "logit_bias"),
        ({"logit_bias": {"5": "x"}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "grammar"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"samplers": ["nothing"]}, "samplers"),
        ({"samplers": 7}, "samplers"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"guided_grammar": "root ::= ("}, "grammar"),
        ({"guided_json": {}, "guided_regex": "x"}, "guided_regex"),
        ({"guided_whitespace_pattern": " ", "guided_json": {}}, "guided_whitespace_pattern"),
        ({"structured_outputs": 5}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "x", "choice": ["y"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json_object": 5}}, "structured_outputs.json_object"),
        (
            {"structured_outputs": {"regex": "x"}, "response_format": {"type": "json_object"}},
            "structured_outputs.regex",
        ),
    ],
)
def test_what_is_wrong_is_named(server, wrong: dict[str, Any], param: str | None) -> None:
    response = server.post("/v1/completions", {"prompt": "the", "max_tokens": 2, **wrong})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param, error


def test_openais_client_raises_its_own_errors(client) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="the", top_p=7)
    assert caught.value.param == "top_p"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="the cat " * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"


def test_half_a_character(server) -> None:
    """JSON can hold halves of characters, which are no text."""
    body = b'{"prompt": "\\ud800", "max_tokens": 2}'
    response = httpx.post(server.url + "/v1/completions", content=body, timeout=60)
    assert response.status_code == 400, response.text


def test_an_error_in_a_running_stream_is_its_last_event(server, engine) -> None:
    def breaks(ids: Any, logits: Any) -> None:
        raise RuntimeError("what is secret")

    engine.processor = breaks
    with server.client() as client, pytest.raises(openai.APIError) as caught:
        list(client.completions.create(model="m", prompt="the", stream=True))
    assert "secret" not in str(caught.value)
    response = server.post("/v1/completions", {"prompt": "the"})
    assert response.status_code == 500
    assert "secret" not in response.text
    engine.processor = None
    assert server.post("/v1/completions", {"prompt": "the", "max_tokens": 1}).status_code == 200


def test_infinity_is_not_sent() -> None:
    from pyllm.server.errors import to_json

    assert to_json({"a": [math.inf, -math.inf, 1.0]}) == b'{"a":[9999.0,-9999.0,1.0]}'
