"""Whatever stands in a field, the answer is a result or an error of the client's: never one of the server's."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
from support.servers import PYTHON

VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "\0", [], [5], ["x"], [[]], [None], [{}], {}, {"a": 1}, {"type": 5},
    {"type": "function"}, {"type": "json_schema"}, {"function": {"name": []}},
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": 5}}}],
    [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "nope"}}}}}],
    [{"role": "assistant", "tool_calls": [5]}], [{"role": "tool", "content": "x"}],
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/x"}}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "("}}},
]  # fmt: skip
HELLO = [{"role": "user", "content": "x"}]
SHARED = "max_tokens temperature top_p top_k min_p seed logit_bias n stream"
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/completions": (
        {"prompt": "the", "max_tokens": 1},
        f"{SHARED} prompt stop stream_options logprobs echo best_of suffix response_format json_schema grammar "
        "samplers",
    ),
    "/v1/chat/completions": (
        {"messages": HELLO, "max_tokens": 1},
        f"{SHARED} messages tools tool_choice response_format logprobs top_logprobs reasoning_effort reasoning_format "
        "reasoning_budget chat_template_kwargs continue_final_message add_generation_prompt parallel_tool_calls",
    ),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 1}, "messages system tools tool_choice stop_sequences thinking"),
    "/v1/responses": ({"input": "x", "max_output_tokens": 1}, "input instructions tools tool_choice text reasoning"),
    "/tokenize": ({"content": "x"}, "content add_special with_pieces"),
    "/detokenize": ({"tokens": [1]}, "tokens"),
}


def test_anything_in_any_field(server, engine) -> None:
    cases = [(path, name, value) for path, (_, names) in FIELDS.items() for name in names.split() for value in VALUES]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path, name, value in random.Random(2).sample(cases, 200):
            body = json.dumps({**FIELDS[path][0], name: value})
            response = client.post(path, content=body)
            assert response.status_code in (200, 400), (path, name, value, response.text)
            assert "internal_error" not in response.text, (path, name, value, response.text)
    assert engine.metrics().n_failed == 0


def test_errors_have_no_words_of_python(server) -> None:
    cases = [(path, name, value) for path, (_, names) in FIELDS.items() for name in names.split() for value in VALUES]
    wrong = set()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path, name, value in random.Random(5).sample(cases, 400):
            body = json.dumps({**FIELDS[path][0], name: value})
            answer = client.post(path, content=body)
            if answer.status_code == 400 and PYTHON.search(message := answer.json()["error"]["message"]):
                wrong.add((path, name, str(value)[:40], message[:200]))
    assert not wrong
