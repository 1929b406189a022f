"""/v1/completions with return_token_ids: ids and bytes beside OpenAI's shape, which knows tokens by their texts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.servers import Served

from pyllm import Llama

ASK: dict[str, Any] = {"prompt": "the cat sat", "max_tokens": 6, "temperature": 0, "logprobs": 4}


def check(server: Served, choice: dict[str, Any]) -> None:
    vocab = server.state.model.vocab
    logprobs, content = choice["logprobs"], choice["logprobs"]["content"]
    assert [entry["id"] for entry in content] == choice["token_ids"]
    assert [entry["logprob"] for entry in content] == logprobs["token_logprobs"]
    for entry in content:
        assert bytes(entry["bytes"]) == vocab.token_to_piece(entry["id"])
        top = entry["top_logprobs"]
        assert len(top) == len({one["id"] for one in top}) == 4
        values = [one["logprob"] for one in top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-4
        # The most likely is what temperature 0 takes.
        assert top[0]["id"] == entry["id"] and top[0]["logprob"] == pytest.approx(entry["logprob"], abs=1e-5)
        assert all(bytes(one["bytes"]) == vocab.token_to_piece(one["id"]) for one in top)


def test_ids_and_bytes(server: Served) -> None:
    (choice,) = server.post("/v1/completions", {**ASK, "return_token_ids": True}).json()["choices"]
    assert len(choice["token_ids"]) == 6
    check(server, choice)


def test_in_a_stream(server: Served, client) -> None:
    whole = server.post("/v1/completions", {**ASK, "return_token_ids": True}).json()["choices"][0]
    # OpenAI's client keeps what it does not know.
    stream = client.completions.create(model="m", **ASK, stream=True, extra_body={"return_token_ids": True})
    choices = [chunk.choices[0].model_dump() for chunk in stream]
    for choice in choices:
        check(server, choice)
    assert [token for choice in choices for token in choice["token_ids"]] == whole["token_ids"]


def test_they_are_not_there_unless_asked_for(server: Served) -> None:
    (choice,) = server.post("/v1/completions", ASK).json()["choices"]
    assert "token_ids" not in choice and "content" not in choice["logprobs"]
    (choice,) = server.post("/v1/completions", {**ASK, "logprobs": None, "return_token_ids": True}).json()["choices"]
    assert len(choice["token_ids"]) == 6 and choice["logprobs"] is None
    error = server.post("/v1/completions", {**ASK, "return_token_ids": 1}).json()["error"]
    assert error["param"] == "return_token_ids"


def test_going_on_from_ids_is_going_on_from_the_text(server: Served) -> None:
    """What the inspector does to branch: the prompt's ids, and some of the answer's, are the next prompt."""
    body = {**ASK, "return_token_ids": True, "deterministic": True}
    whole = server.post("/v1/completions", body).json()["choices"][0]
    prompt = server.state.model.vocab.tokenize(ASK["prompt"]) + whole["token_ids"][:3]
    rest = server.post("/v1/completions", {**body, "prompt": prompt, "max_tokens": 3}).json()["choices"][0]
    assert rest["token_ids"] == whole["token_ids"][3:]


def test_ids_in_python(tiny_model) -> None:
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:
        completion = llm("the cat sat", max_tokens=5, temperature=0, logprobs=2, echo=True)
        logprobs, prompt = completion.logprobs, llm.tokenize("the cat sat")
        assert logprobs.ids == (*prompt, *completion.tokens)
        assert logprobs.top_ids[0] == ()
        assert all(len(top) == 2 and top[0][1] >= top[1][1] for top in logprobs.top_ids[1:])
        assert len(logprobs.ids) == len(logprobs.top_ids) == len(logprobs.tokens)
        # Comparing looks at what the shape of OpenAI's API has.
        assert "ids" not in logprobs.to_dict()
